"""Drives workflows: what follows when a member's job ends, and the same again after any crash.

A job's record says how it ended. From there: its outcome is marked in a segment, members that waited for it
are created, and when all have an outcome the header gets its callbacks or its end. Each of these writes is
idempotent, and all of them follow from the records, so a turn may be repeated by anybody at any time.

One turn of a workflow runs at a time on a node; outcomes that come meanwhile share the next one.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.stores import Stores
from ojs_fast.core.tracing import Facts, Tracing
from ojs_fast.core.workflows.creator import Creator
from ojs_fast.core.workflows.graph import due_callbacks, final_state
from ojs_fast.core.workflows.keeper import Keeper
from ojs_fast.core.workflows.members import Members
from ojs_fast.core.workflows.model import (
    CANCELLED,
    COMPLETED,
    FAILED,
    FEATURE,
    OPEN,
    OUTCOMES,
    Header,
    nested_id,
)
from ojs_fast.core.workflows.outcomes import WORKFLOW_OUTCOMES, Mark, Outcomes
from ojs_fast.core.workflows.store import Run, WorkflowStore
from ojs_fast.errors import BackendUnavailable, Conflict, NotFound, OJSError
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

AGAIN_S = 0.1
CLOSE_S = 2
SETTLED_S = 0.1
CANCELS_AT_ONCE = 100
# A definition without header that is older than this will never get one.
CREATION_MS = 600_000


@dataclass(slots=True)
class _Work:
    """What is to be done about one workflow in its next turn."""

    marks: dict[int, Mark] = field(default_factory=dict)
    #: jobs that wait for a worker: they must not when the workflow is cancelled
    waiting: set[str] = field(default_factory=set)
    #: trust nothing but the records
    look: bool = False

    def absorb(self, newer: "_Work") -> None:
        self.marks |= newer.marks
        self.waiting |= newer.waiting
        self.look |= newer.look


class Driver:
    """Runs the turns of all workflows whose jobs end on this node."""

    def __init__(
        self,
        stores: Stores,
        jobs: Jobs,
        events: Events,
        propagator: Propagator,
        store: WorkflowStore,
        members: Members,
        outcomes: Outcomes,
        keeper: Keeper,
        creator: Creator,
        tracing: Tracing,
        clock: NowMs,
    ) -> None:
        self._tracing = tracing
        self._stores = stores
        self._jobs = jobs
        self._events = events
        self._store = store
        self._members = members
        self._outcomes = outcomes
        self._keeper = keeper
        self._creator = creator
        self._clock = clock
        self._work: dict[str, _Work] = {}
        self._turns: dict[str, asyncio.Task[None]] = {}
        propagator.on_extra(FEATURE, self._followed)

    async def close(self) -> None:
        """Stop; whoever reconciles this node or audits goes on."""
        turns = list(self._turns.values())
        if turns:
            await asyncio.wait(turns, timeout=CLOSE_S)
        self.forget()
        await asyncio.gather(*turns, return_exceptions=True)

    def forget(self) -> None:
        """Drop all that is to be done (after a reset)."""
        self._work.clear()
        for turn in self._turns.values():
            turn.cancel()

    # -- what comes in ---------------------------------------------------------------------------

    def _followed(self, record: _core.Record, _revision: int) -> None:
        assert record.extra is not None
        workflow_id, index, generation = record.extra[FEATURE]
        outcome = OUTCOMES.get(record.state)
        if outcome is not None:
            duration_ms = max(0, record.ended_ms - record.started_ms) if record.started_ms else 0
            mark = Mark(generation, outcome, record.id, record.type, duration_ms, record.ended_ms)
            self._ask(workflow_id, _Work(marks={index: mark}))
        elif record.state != "active":
            self._ask(workflow_id, _Work(waiting={record.id}))

    def look(self, workflow_id: str) -> None:
        """Go through the workflow from its records soon."""
        self._ask(workflow_id, _Work(look=True))

    def _ask(self, workflow_id: str, work: _Work) -> None:
        known = self._work.get(workflow_id)
        if known is None:
            self._work[workflow_id] = work
        else:
            known.absorb(work)
        if workflow_id not in self._turns:
            self._turns[workflow_id] = asyncio.create_task(self._run(workflow_id))

    async def settled(self, workflow_id: str, limit_s: float = SETTLED_S) -> None:
        """Wait a moment until this node has nothing to do for a workflow, so that one reads what one wrote."""
        turn = self._turns.get(workflow_id)
        if turn is not None:
            await asyncio.wait([turn], timeout=limit_s)

    async def _run(self, workflow_id: str) -> None:
        about = {"ojs.workflow_id": workflow_id}
        try:
            while work := self._work.pop(workflow_id, None):
                try:
                    await self._turn(workflow_id, work)
                except (Unavailable, RevisionConflict, BackendUnavailable) as error:
                    log.info("workflow is driven again: %s", error, extra=about)
                    work.absorb(self._work.pop(workflow_id, _Work()))
                    self._work[workflow_id] = work
                    await self._stores.connection.wait_up()
                    await asyncio.sleep(AGAIN_S)
                except OJSError as error:
                    # It left the store meanwhile, or a job does not fit any more.
                    log.warning("workflow is left to the audit: %s", error, extra=about)
                except Exception:
                    log.exception("workflow could not be driven; the audit tries again", extra=about)
        finally:
            self._turns.pop(workflow_id, None)

    # -- one turn --------------------------------------------------------------------------------

    async def _turn(self, workflow_id: str, work: _Work) -> None:
        run = await self._store.find(workflow_id)
        if run is None:
            await self._without_header(workflow_id, work)
            return
        with self._tracing.act("ojs.workflow.advance", _about(run, work)):
            await self._advance(run, work)

    async def _advance(self, run: Run, work: _Work) -> None:
        if run.header.resetting:
            await self._keeper.reopen(run)
        existing: set[int] = set()
        if work.look:
            found, existing = await self._outcomes.look(run)
            work.marks = {**found, **work.marks}
        touched = await self._outcomes.mark(run, work.marks)
        if run.header.state == "running":
            await self._start_ready(run, work, touched, existing)
            callbacks = run.header.segments
            if work.look or any(number == callbacks or run.segments[number].is_full for number in touched):
                await self._conclude(run)
        else:
            await self._after_end(run, work)

    async def _without_header(self, workflow_id: str, work: _Work) -> None:
        # The workflow's time is over, and its last jobs need not stay for it; or its creation was never finished.
        await self._members.keep_jobs([mark.job_id for mark in work.marks.values() if mark.job_id], 1)
        if work.look and _core.uuid7_ms(workflow_id) + CREATION_MS < self._clock():
            await self._store.erase(workflow_id)

    async def _start_ready(self, run: Run, work: _Work, touched: set[int], existing: set[int]) -> None:
        header = run.header
        members_touched = {number for number in touched if number < header.segments}
        if not header.has_edges:
            if work.look:
                await self._store.read_segments(run)
                await self.start(run, [i for i in range(header.count) if run.outcome(i) == OPEN and i not in existing])
            return
        if not (members_touched or work.look):
            return
        await self._store.refresh(run)
        graph = await self._store.graph(header)
        blocked = graph.blocked(run.outcomes) if FAILED in run.outcomes or CANCELLED in run.outcomes else []
        if blocked:
            touched |= await self._outcomes.mark(
                run, {index: Mark(run.generation(index), CANCELLED) for index in blocked}
            )
        after = None if work.look else [index for index in work.marks if index < header.count]
        await self.start(run, [index for index in graph.ready(run.outcomes, after) if index not in existing])

    async def begin(self, run: Run) -> None:
        """Create what a new workflow starts with. Raises OJSError, Unavailable."""
        self._outcomes.announce("workflow.created", run.header)
        self._outcomes.announce_start(run.header)
        indexes = list(range(run.header.count))
        if run.header.has_edges:
            indexes = (await self._store.graph(run.header)).ready(OPEN * run.header.count)
        await self.start(run, indexes)

    async def start(self, run: Run, indexes: list[int]) -> None:
        """Create these members or callbacks, jobs and nested workflows. Raises OJSError, Unavailable."""
        if not indexes:
            return
        if run.header.generation:
            await self._store.read_segments(run, range(run.header.segments + 1))
        members = await self._store.members(run.header, indexes)
        await self._members.create_jobs(run, [one for one in members if not one[1].nested])
        for index, member in members:
            if member.nested:
                await self._start_nested(run, index, member.raw)

    async def _start_nested(self, run: Run, index: int, raw: bytes) -> None:
        id_ = nested_id(run.header.id, index)
        parent = [run.header.id, index, run.generation(index)]
        inner = await self._store.find(id_)
        if inner is None:
            draft = self._creator.draft(raw, is_accepted=True)
            await self.begin(await self._creator.create(id_, draft, parent, run.header.trace))
        elif inner.header.parent != parent:
            await self.restart(inner, parent)
        else:
            self.look(id_)

    # -- the end ---------------------------------------------------------------------------------

    async def _conclude(self, run: Run) -> None:
        """Fire callbacks or end the workflow if all members have an outcome. Raises OJSError, Unavailable."""
        await self._store.refresh(run)
        if not run.is_over:
            return
        header, outcomes = run.header, run.outcomes
        fired: dict[str, str] = {}
        if header.callbacks:
            due = due_callbacks(header.callbacks, all_completed=outcomes.count(COMPLETED) == header.count)
            if await self._store.update(run, partial(_fire, due, header.generation)):
                self._outcomes.announce("workflow.callback_fired", run.header, callbacks=due)
            if not run.header.runs(header.generation):
                return
            await self._store.read_segments(run, [header.segments])
            places = {name: header.count + header.callbacks.index(name) for name in run.header.fired or ()}
            fired = {name: run.outcome(index) for name, index in places.items()}
            waiting = [index for name, index in places.items() if fired[name] == OPEN]
            if waiting:
                await self.start(run, waiting)
                return
        state = final_state(outcomes, fired)
        failure = await self._outcomes.failure(run) if state == "failed" else {}
        if await self._store.update(run, partial(_end, state, self._clock(), header.generation)):
            self._outcomes.announce_end(run.header, failure)
        if run.header.state != "running":  # else it was retried meanwhile
            await self._wrap_up(run, [])

    async def _after_end(self, run: Run, work: _Work) -> None:
        """A workflow that has ended: its last jobs, and what a crash may have left undone."""
        if run.header.state == "cancelled":
            if work.look:
                await self._sweep(run)
            await self._cancel_jobs(sorted(work.waiting))
        await self._store.refresh(run)
        if run.is_over:
            ended_ms = run.header.ended_ms
            await self._wrap_up(run, [mark.job_id for mark in work.marks.values() if mark.ended_ms > ended_ms])

    async def _wrap_up(self, run: Run, late: list[str]) -> None:
        """Tell the parent, let everything leave the store in time, and be done.

        `late` are jobs that ended after the workflow did.
        """
        header = run.header
        if header.parent is not None:
            outer, index, generation = header.parent
            outcome = WORKFLOW_OUTCOMES[header.state]
            duration_ms = header.ended_ms - header.created_ms
            self._ask(outer, _Work(marks={index: Mark(generation, outcome, "", header.type, duration_ms)}))
            await self._keeper.keep_late(late)
        else:
            await self._keeper.wrap_up(run, late)
        self._store.mark_done(header.id)

    # -- cancel ----------------------------------------------------------------------------------

    async def _sweep(self, run: Run) -> None:
        """End what a cancelled workflow has open, but let active jobs finish. Raises OJSError, Unavailable."""
        marks, _ = await self._outcomes.look(run)
        await self._outcomes.mark(run, marks)
        open_ = [index for index in range(run.header.count) if run.outcome(index) == OPEN]
        if run.header.fired is not None:
            open_ += [
                index
                for index in range(run.header.count, run.header.count + len(run.header.callbacks))
                if run.outcome(index) == OPEN
            ]
        records = await self._members.records(run, open_)
        await self._cancel_jobs([record.id for record in records.values() if record.state != "active"])
        missing = [index for index in open_ if index not in records]
        if run.header.nested:
            inner = await self._store.find_many(nested_id(run.header.id, index) for index in missing)
            for nested in inner.values():
                await self.cancel(nested)
        await self._outcomes.mark(
            run,
            {
                index: Mark(run.generation(index), CANCELLED)
                for index in open_
                if index not in records or records[index].state != "active"
            },
        )

    async def cancel(self, run: Run) -> bool:
        """Running → cancelled; False when it had ended. Raises OJSError, Unavailable."""
        if not await self._store.update(run, partial(_end, "cancelled", self._clock(), None)):
            return False
        self._outcomes.announce("workflow.cancelled", run.header)
        await self._sweep(run)
        self._ask(run.header.id, _Work())
        return True

    async def _cancel_jobs(self, ids: list[str]) -> None:
        for start in range(0, len(ids), CANCELS_AT_ONCE):
            await asyncio.gather(*(self._cancel_job(id_) for id_ in ids[start : start + CANCELS_AT_ONCE]))

    async def _cancel_job(self, id_: str) -> None:
        def apply(record: _core.Record, now_ms: int) -> None:
            if record.state == "active":
                raise _core.IllegalTransition("cancel", "active", ("available", "scheduled", "pending", "retryable"))
            record.cancel(now_ms)

        try:
            record, _ = await self._jobs.change(id_, "cancel", apply)
        except (Conflict, NotFound):
            return
        self._events.job("job.cancelled", record)

    # -- retry -----------------------------------------------------------------------------------

    async def restart(self, run: Run, parent: list[object] | None = None) -> bool:
        """Failed → running, from what did not complete; a nested workflow from cancelled too.

        False when it is in no such state. Raises OJSError, Unavailable.
        """
        allowed = ("failed", "cancelled") if parent else ("failed",)
        if run.header.state not in allowed:
            return False
        await self._store.mark_open(run.header.id)
        if not await self._store.update(run, partial(_restart, allowed, parent)):
            return False
        self._outcomes.announce_start(run.header)
        self.look(run.header.id)
        return True


def _about(run: Run, work: _Work) -> Facts:
    facts: dict[str, str | int] = {"ojs.workflow.id": run.header.id, "ojs.workflow.type": run.header.type}
    if work.marks:
        facts["ojs.workflow.step"] = min(work.marks)
    return facts


def _fire(due: list[str], generation: int, header: Header) -> bool:
    if not header.runs(generation) or header.fired is not None:
        return False
    header.fired = due
    return True


def _end(state: str, now_ms: int, generation: int | None, header: Header) -> bool:
    if not header.runs(header.generation if generation is None else generation):
        return False
    header.state = state
    header.ended_ms = now_ms
    return True


def _restart(allowed: tuple[str, ...], parent: list[object] | None, header: Header) -> bool:
    if header.state not in allowed:
        return False
    header.state = "running"
    header.ended_ms = 0
    header.fired = None
    header.generation += 1
    header.resetting = True
    header.parent = parent or header.parent
    return True
