"""Members as jobs: creates those that may start, lets them live as long as their workflow.

Creating is idempotent: the ids are derived, so what exists already is left as it is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.core import unique
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import GROWTH_BYTES
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.queues import Queues
from ojs_fast.core.retention import Retention
from ojs_fast.core.stores import Stores
from ojs_fast.core.tracing import Tracing
from ojs_fast.core.workflows.model import FEATURE, Member, job_id, nested_id
from ojs_fast.core.workflows.parse import MAX_JOBS
from ojs_fast.core.workflows.results import MAX_BYTES, Results, joined
from ojs_fast.core.workflows.store import Run, WorkflowStore
from ojs_fast.storage.errors import BatchRefused, KeyTaken, RevisionConflict, Unavailable
from ojs_fast.storage.records import ATOMIC_BATCH_DEFAULT

log = logging.getLogger(__name__)

# From here on one atomic batch is cheaper than single writes (docs/design.md).
WORTH_A_BATCH = 32
AT_ONCE = 500
FRAME_BYTES = 2048  # of a record: names, times, the private part
# What a workflow's job leaves free in its record, so that `parent_results` fits: a null for each member.
RESULTS_ROOM_BYTES = 5 * MAX_JOBS + FRAME_BYTES

_Made = tuple[_core.Record, bytes]


class Members:
    """Creates and keeps the jobs of workflows."""

    def __init__(
        self,
        stores: Stores,
        settings: Settings,
        queues: Queues,
        events: Events,
        propagator: Propagator,
        store: WorkflowStore,
        tracing: Tracing,
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._tracing = tracing
        self._stores = stores
        self._retention = Retention(settings, queues)
        self._max_depth = settings.max_depth
        self._queues = queues
        self._events = events
        self._propagator = propagator
        self._store = store
        self._results = Results(stores, store)
        self._node_id = node_id
        self._clock = clock

    # -- create ----------------------------------------------------------------------------------

    async def create_jobs(self, run: Run, jobs: list[tuple[int, Member]]) -> None:
        """Create the jobs of these members, in this order, unless they exist. Raises OJSError, Unavailable."""
        shared: bytes | None = None

        async def told(index: int, member: Member) -> bytes:
            nonlocal shared
            if shared is not None:
                return shared
            room = self._stores.connection.max_record_bytes - GROWTH_BYTES - len(member.raw) - FRAME_BYTES
            results = joined(await self._results.told_to(run, index, min(MAX_BYTES, room)))
            if not run.header.has_edges and index < run.header.count:
                shared = results  # members that wait for nothing are all told the same
            return results

        for start in range(0, len(jobs), ATOMIC_BATCH_DEFAULT):
            part = jobs[start : start + ATOMIC_BATCH_DEFAULT]
            made = [self._record(run, index, member, await told(index, member)) for index, member in part]
            for queue, priority in {(record.queue, record.priority) for record, _ in made}:
                await self._queues.ensure(queue, priority)
            await self._store_all(made)

    def _record(self, run: Run, index: int, member: Member, told: bytes) -> _Made:
        header, generation = run.header, run.generation(index)
        id_ = job_id(header.id, index, generation)
        record = _core.parse_enqueue(member.raw, self._clock(), lambda _: id_, self._max_depth)
        unique.drop(record)  # a step is to run, whatever else there is
        if (rules := self._queues.rules.get(record.queue)) is not None:
            rules.fill(record)
        record.node_id = self._node_id
        record.extra = {**(record.extra or {}), FEATURE: [header.id, index, generation]}
        self._tracing.carry(record, header.trace)
        record.body += b',"workflow_id":"%s","parent_results":%s' % (header.id.encode(), told)
        return record, record.serialize()

    async def _store_all(self, made: list[_Made]) -> None:
        batch = [(record.id, stored) for record, stored in made]
        if len(batch) >= WORTH_A_BATCH:
            try:
                revisions = await self._stores.batches.create_all(batch)
            except (KeyTaken, BatchRefused) as error:
                log.debug("members are created one by one: %r", error)
            else:
                await self._follow(made, revisions)
                return
        outcomes = await asyncio.gather(
            *(self._stores.records.create(id_, stored) for id_, stored in batch), return_exceptions=True
        )
        created = [one for one, outcome in zip(made, outcomes, strict=True) if isinstance(outcome, int)]
        await self._follow(created, [outcome for outcome in outcomes if isinstance(outcome, int)])
        for (record, _), outcome in zip(made, outcomes, strict=True):
            if isinstance(outcome, KeyTaken):
                await self._republish(record.id)
            elif isinstance(outcome, BaseException):
                raise outcome

    async def _follow(self, made: list[_Made], revisions: list[int]) -> None:
        # All work messages first, in order; their one PubAck is awaited after that.
        waiting = [
            published
            for (record, stored), revision in zip(made, revisions, strict=True)
            if (published := self._propagator.follow(record, stored, revision)) is not None
        ]
        for record, _ in made:
            self._events.job("job.scheduled" if record.state == "scheduled" else "job.enqueued", record)
        for published in set(waiting):
            try:
                await asyncio.shield(published)
            except Unavailable as error:
                log.info("work messages of a workflow are late: %s", error)
                for record, _ in made:
                    self._propagator.doubt(record.id)

    async def _republish(self, id_: str) -> None:
        # Whoever created it may have died before its work message; a second one is harmless.
        found = await self._stores.records.get(id_)
        if found is None:
            return
        record = _core.Record.parse(found[0])
        if record.state == "available" and not record.attempt:
            published = self._propagator.follow(record, *found)
            if published is not None:
                await asyncio.shield(published)

    # -- look ------------------------------------------------------------------------------------

    async def records(self, run: Run, indexes: list[int]) -> dict[int, _core.Record]:
        """The records of these members as far as they exist; a replica may lag behind. Raises Unavailable."""
        ids = {job_id(run.header.id, index, run.generation(index)): index for index in indexes}
        found = await self._stores.records.get_many(ids)
        return {ids[id_]: _core.Record.parse(stored) for id_, (stored, _) in found.items()}

    # -- keep ------------------------------------------------------------------------------------

    async def keep(self, run: Run, ttl_s: int, keep_nested: Callable[[str, int], Awaitable[None]]) -> None:
        """Let all members' records leave the store in `ttl_s` seconds, 0 = not at all. Raises Unavailable.

        A record whose own retention is longer keeps that.
        """
        total = run.header.count + len(run.header.callbacks)
        for start in range(0, total, AT_ONCE):
            indexes = range(start, min(total, start + AT_ONCE))
            await self.keep_jobs([job_id(run.header.id, i, run.generation(i)) for i in indexes], ttl_s)
            if run.header.nested:
                for index, member in await self._store.members(
                    run.header, [i for i in indexes if i < run.header.count]
                ):
                    if member.nested:
                        await keep_nested(nested_id(run.header.id, index), ttl_s)

    async def keep_jobs(self, ids: list[str], ttl_s: int) -> None:
        """The same for single records, of jobs that ended. Raises Unavailable."""
        found = await self._stores.records.get_many(ids)
        await asyncio.gather(*(self._keep_job(id_, *one, ttl_s) for id_, one in found.items()))

    async def _keep_job(self, id_: str, stored: bytes, revision: int, ttl_s: int) -> None:
        record = _core.Record.parse(stored)
        if not _core.is_terminal(record.state):
            return
        own_s = self._retention.own_ttl_s(record)
        longest_s = max(own_s, ttl_s) if own_s and ttl_s else 0
        try:
            await self._stores.records.replace(id_, stored, revision, longest_s)
        except RevisionConflict:
            log.debug("a job was revived while its workflow was kept", extra={"ojs.job_id": id_})
