"""How members end: notes it in their segments, tells of it, and reads it from the records when in doubt."""

from dataclasses import dataclass
from functools import partial

from ojs_fast.core.event_data import error_of
from ojs_fast.core.events import Events
from ojs_fast.core.workflows.members import Members
from ojs_fast.core.workflows.model import CANCELLED, COMPLETED, FAILED, OPEN, OUTCOMES, Header, Segment, nested_id
from ojs_fast.core.workflows.store import Run, WorkflowStore

WORKFLOW_OUTCOMES = {"completed": COMPLETED, "failed": FAILED, "cancelled": CANCELLED}


@dataclass(slots=True, frozen=True)
class Mark:
    """How one member ended."""

    generation: int
    outcome: str
    job_id: str = ""
    type: str = ""
    duration_ms: int = 0
    ended_ms: int = 0


class Outcomes:
    """Marks members of workflows."""

    def __init__(self, store: WorkflowStore, members: Members, events: Events) -> None:
        self._store = store
        self._members = members
        self._events = events

    async def mark(self, run: Run, marks: dict[int, Mark]) -> set[int]:
        """Note outcomes, one compare-and-set per segment; the segments they are in. Raises OJSError, Unavailable."""
        places: dict[int, dict[int, int]] = {}
        for index in marks:
            number, offset = run.header.place(index)
            places.setdefault(number, {})[offset] = index
        for number, indexes in places.items():
            noted: list[int] = []
            if await self._store.change(run, number, partial(_note, indexes, marks, noted)):
                for index in noted:
                    await self._announce_member(run, index, marks[index])
        return set(places)

    async def look(self, run: Run) -> tuple[dict[int, Mark], set[int]]:
        """Outcomes that records tell and segments do not yet, and which open members exist. Raises Unavailable."""
        header = run.header
        await self._store.read_segments(run, range(header.segments + 1))
        callbacks = [header.count + header.callbacks.index(name) for name in header.fired or ()]
        open_ = [index for index in [*range(header.count), *callbacks] if run.outcome(index) == OPEN]
        records = await self._members.records(run, open_)
        marks = {
            index: Mark(run.generation(index), OUTCOMES[record.state], record.id, record.type)
            for index, record in records.items()
            if record.state in OUTCOMES
        }
        if header.nested:
            rest = {nested_id(header.id, index): index for index in open_ if index not in records}
            for id_, inner in (await self._store.find_many(rest)).items():
                index = rest[id_]
                if inner.header.parent != [header.id, index, run.generation(index)]:
                    continue  # a retry that has not come to it yet
                if inner.header.state in WORKFLOW_OUTCOMES:
                    outcome = WORKFLOW_OUTCOMES[inner.header.state]
                    marks[index] = Mark(run.generation(index), outcome, "", inner.header.type)
        return marks, set(records)

    def announce(self, event_type: str, header: Header, **more: object) -> None:
        """Tell that something happened to a whole workflow (ojs-workflows appendix B)."""
        self._events.announce(event_type, header.id, _about(header) | {"state": header.state} | more)

    def announce_start(self, header: Header) -> None:
        """Tell that it runs, for the first time or again."""
        self.announce("workflow.started", header, total_steps=header.count)

    def announce_end(self, header: Header, failure: dict[str, object]) -> None:
        """Tell how it ended; `failure` is of `failure`."""
        duration_ms = header.ended_ms - header.created_ms
        more = {"total_steps": header.count, "duration_ms": duration_ms, **failure}
        self.announce(f"workflow.{header.state}", header, **more)

    async def failure(self, run: Run) -> dict[str, object]:
        """What the end of a failed workflow tells of the first member that failed. Raises OJSError, Unavailable."""
        header = run.header
        await self._store.read_segments(run, range(header.segments + bool(header.callbacks)))
        outcomes = [run.outcome(index) for index in range(header.count + len(header.callbacks))]
        index = next((outcomes.index(how) for how in (FAILED, CANCELLED) if how in outcomes), None)
        if index is None:
            return {}
        [(_, member)] = await self._store.members(header, [index])
        record = (await self._members.records(run, [index])).get(index)
        error = (
            error_of(record) if record is not None else {"code": "workflow_failed", "message": "It did not complete."}
        )
        return {"failed_step_id": member.id, "failed_step_type": member.type, "error": error}

    async def _announce_member(self, run: Run, index: int, mark: Mark) -> None:
        header = run.header
        if not mark.type or index >= header.count:
            return
        kind = "step" if header.has_edges else "job"
        ended = "completed" if mark.outcome == COMPLETED else "failed"
        data: dict[str, object] = {
            "step_index": index,
            "step_type": mark.type,
            "job_id": mark.job_id,
            "duration_ms": mark.duration_ms,
        }
        if header.has_edges:
            [(_, member)] = await self._store.members(header, [index])
            await self._store.read_segments(run)
            data |= {"step_id": member.id, "steps_remaining": run.outcomes.count(OPEN)}
        self._events.announce(f"workflow.{kind}_{ended}", header.id, _about(header) | data)


def _about(header: Header) -> dict[str, object]:
    return {"workflow_id": header.id, "workflow_type": header.type, "workflow_name": header.name}


def _note(indexes: dict[int, int], marks: dict[int, Mark], noted: list[int], segment: Segment) -> bool:
    noted[:] = [
        index
        for offset, index in indexes.items()
        if segment.mark(offset, marks[index].generation, marks[index].outcome)
    ]
    return bool(noted)
