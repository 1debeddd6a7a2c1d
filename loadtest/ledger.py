"""What went into a queue and what came out of it, as its clients were told. Knows ids, nothing of HTTP."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Ledger:
    """One run's jobs and workflows."""

    accepted: set[str] = field(default_factory=set)
    completed: Counter[str] = field(default_factory=Counter)
    #: workflows that have not ended
    workflows: set[str] = field(default_factory=set)
    #: jobs whose enqueue was not answered with success: they are there or not
    unsure: int = 0
    fetched: int = 0

    def went_in(self, ids: list[str], asked: int) -> None:
        """The answer to an enqueue of `asked` jobs."""
        self.accepted.update(ids)
        self.unsure += asked - len(ids)

    def came_out(self, job_id: str) -> None:
        """An acknowledgement was answered with success."""
        self.completed[job_id] += 1

    @property
    def is_open(self) -> bool:
        """True while a job is not completed or a workflow has not ended."""
        return bool(self.workflows) or not self.completed.keys() >= self.accepted

    def complaints(self) -> list[str]:
        """What must not be: jobs that were lost or completed twice, workflows that do not end."""
        found = []
        if missing := self.accepted - set(self.completed):
            found.append(f"{len(missing)} jobs were accepted and are not completed, such as {min(missing)}")
        if twice := [job_id for job_id, times in self.completed.items() if times > 1]:
            found.append(f"{len(twice)} jobs were completed more than once, such as {min(twice)}")
        if self.workflows:
            found.append(f"{len(self.workflows)} workflows do not end, such as {min(self.workflows)}")
        return found

    def summary(self) -> str:
        """The sums in a line."""
        return (
            f"{len(self.accepted)} jobs accepted, {self.unsure} unsure, {self.fetched} fetched, "
            f"{self.completed.total()} acknowledged"
        )
