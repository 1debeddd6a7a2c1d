"""Who waits for whom: which members may start, which never will, and what the end of all means. Pure."""

from collections.abc import Iterable, Sequence

from ojs_fast.core.workflows.model import CANCELLED, CHAIN, COMPLETED, FAILED, OPEN, Header

NOT_COMPLETED = (FAILED, CANCELLED)


class Graph:
    """The edges of one workflow, forward and backward."""

    def __init__(self, depends_on: Sequence[Sequence[int]]) -> None:
        """`depends_on[i]`: the members that must complete before i starts."""
        self.depends_on = depends_on
        self._dependents: list[list[int]] = [[] for _ in depends_on]
        for index, needed in enumerate(depends_on):
            for one in needed:
                self._dependents[one].append(index)

    @staticmethod
    def chain(count: int) -> "Graph":
        """Each waits for the one before it."""
        return Graph([(index - 1,) if index else () for index in range(count)])

    def cycle(self) -> list[int]:
        """The members of one cycle in order, [] when there is none."""
        waiting = [len(needed) for needed in self.depends_on]
        free = [index for index, count in enumerate(waiting) if not count]
        for index in free:
            for one in self._dependents[index]:
                waiting[one] -= 1
                if not waiting[one]:
                    free.append(one)
        stuck = {index for index, count in enumerate(waiting) if count}
        if not stuck:
            return []
        # Every stuck member waits for a stuck one, so walking back must come around.
        path: list[int] = []
        at = min(stuck)
        while at not in path:
            path.append(at)
            at = next(one for one in self.depends_on[at] if one in stuck)
        return path[path.index(at) :][::-1]

    def ready(self, outcomes: str, after: Iterable[int] | None = None) -> list[int]:
        """Open members that may start, in order; with `after` only those that wait for one of these."""
        candidates: Iterable[int] = range(len(outcomes))
        if after is not None:
            candidates = sorted({one for index in after for one in self._dependents[index]})
        return [
            index
            for index in candidates
            if outcomes[index] == OPEN and all(outcomes[one] == COMPLETED for one in self.depends_on[index])
        ]

    def blocked(self, outcomes: str) -> list[int]:
        """Open members that will never start, because one that they wait for did not complete."""
        frontier = [index for index, outcome in enumerate(outcomes) if outcome in NOT_COMPLETED]
        found: set[int] = set()
        while frontier:
            for one in self._dependents[frontier.pop()]:
                if outcomes[one] == OPEN and one not in found:
                    found.add(one)
                    frontier.append(one)
        return sorted(found)


def graph_of(header: Header, depends_on: Sequence[Sequence[int]]) -> Graph:
    """The graph of a workflow whose members wait for others."""
    return Graph.chain(header.count) if header.type == CHAIN else Graph(depends_on)


def due_callbacks(defined: Iterable[str], *, all_completed: bool) -> list[str]:
    """Which callbacks the members' outcomes call for (ojs-workflows section 6.5)."""
    called = {"on_complete", "on_success" if all_completed else "on_failure"}
    return [name for name in defined if name in called]


def final_state(outcomes: str, fired: dict[str, str]) -> str:
    """The state that a workflow ends in. `fired`: outcome by callback.

    With callbacks they decide (section 8.3): a failure that a callback dealt with is dealt with. A failure
    that no callback was told of must not look like success.
    """
    if fired:
        return "completed" if set(fired.values()) == {COMPLETED} else "failed"
    return "completed" if outcomes.count(COMPLETED) == len(outcomes) else "failed"
