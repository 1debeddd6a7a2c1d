"""What operators do to whole queues: create, configure, pause, empty, delete (ojs-queue-config, ojs-admin-api 6)."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ojs_fast import _core
from ojs_fast.core import queue_config
from ojs_fast.core.clock import NowMs
from ojs_fast.core.event_data import job_of
from ojs_fast.core.events import Events
from ojs_fast.core.job_search import JobFilter, JobSearch
from ojs_fast.core.jobs import WAITING_STATES, Jobs
from ojs_fast.core.limit_admin import LimitAdmin
from ojs_fast.core.queue_config import CONCURRENCY
from ojs_fast.core.queues import Queue, Queues
from ojs_fast.core.stats import Stats
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Tallies
from ojs_fast.errors import Conflict, NotFound, OJSError
from ojs_fast.storage.errors import RevisionConflict
from ojs_fast.storage.queue_counts import QueueCounts

log = logging.getLogger(__name__)

AT_ONCE = 200
PURGEABLE = (*WAITING_STATES, "completed", "discarded", "cancelled")


@dataclass(slots=True, frozen=True)
class Purge:
    """What a purge is to remove. `older_than_ms`: only jobs that ended before (0 = all)."""

    states: frozenset[str]
    older_than_ms: int = 0

    def takes(self, record: _core.Record, queue: str) -> bool:
        """True when a job is to go."""
        if record.queue != queue or record.state not in self.states:
            return False
        at_ms = record.ended_ms or record.enqueued_ms or record.created_ms
        return not self.older_than_ms or at_ms < self.older_than_ms


def queue_not_found(name: str) -> NotFound:
    """404 for a queue."""
    return NotFound(
        f"Queue '{name}' not found.",
        details={"resource_type": "queue", "resource_id": name},
        hint="A queue exists once a job was enqueued to it, or it was created, configured or paused.",
    )


class QueueAdmin:
    """Operators' side of queues."""

    def __init__(
        self,
        stores: Stores,
        queues: Queues,
        jobs: Jobs,
        search: JobSearch,
        stats: Stats,
        counts: QueueCounts,
        tallies: Tallies,
        limits: LimitAdmin,
        events: Events,
        clock: NowMs,
    ) -> None:
        self._stores = stores
        self._queues = queues
        self._jobs = jobs
        self._search = search
        self._stats = stats
        self._counts = counts
        self._tallies = tallies
        self._limits = limits
        self._events = events
        self._clock = clock

    async def find(self, name: str) -> Queue:
        """The queue. Raises NotFound, Unavailable."""
        queue = await self._queues.find(name)
        if queue is None:
            raise queue_not_found(name)
        return queue

    async def look(self, name: str) -> Queue:
        """The queue, its configuration with the `concurrency` in force. Raises NotFound, Unavailable."""
        queue = await self.find(name)
        most = await self._limits.concurrency(queue)
        return queue if most is None else replace(queue, config={**queue.config, CONCURRENCY: most})

    async def _limit(self, queue: Queue, change: Any) -> Queue:
        # After the rest, which may be refused; each of both writes is sound without the other.
        if change and CONCURRENCY in change:
            await self._limits.set_concurrency(queue.name, change[CONCURRENCY])
        return await self.look(queue.name)

    async def create(self, name: str, config: Any) -> Queue:
        """Make a queue that does not exist yet. Raises Conflict, InvalidRequest, Unavailable."""
        wanted = queue_config.merged({}, {} if config is None else config, "config.")
        queue = await self._queues.create(name, wanted)
        if queue is None:
            raise Conflict(
                f"Queue '{name}' exists already.",
                details={"resource_type": "queue", "resource_id": name},
                hint="PUT /ojs/v1/queues/{name}/config changes its configuration.",
            )
        queue = await self._limit(queue, config)
        self._events.announce("queue.created", name, {"queue": name})
        return queue

    async def configure(self, name: str, change: Any) -> Queue:
        """Set the members given, keep the others; the queue comes to be. Raises InvalidRequest, Unavailable."""
        at = ""
        if isinstance(change, dict) and set(change) == {"config"}:
            change, at = change["config"], "config."
        queue = await self._queues.update(name, configure=lambda present: queue_config.merged(present, change, at))
        queue = await self._limit(queue, change)
        self._events.announce("queue.config_updated", name, {"queue": name})
        return queue

    async def pause(self, name: str, *, paused: bool) -> Queue:
        """Stop or resume handing out jobs; works on unseen names. Raises Unavailable."""
        queue = await self._queues.update(name, paused=paused)
        self._events.announce("queue.paused" if paused else "queue.resumed", name, {"queue": name})
        return queue

    async def delete(self, name: str) -> None:
        """Remove an empty queue with its totals. Raises NotFound, Conflict, Unavailable."""
        queue = await self.find(name)
        [snapshot] = await self._stats.of([queue])
        if snapshot.depth:
            raise Conflict(
                f"Cannot delete queue '{name}': {snapshot.depth} jobs have not ended.",
                details={"resource_type": "queue", "resource_id": name, **snapshot.states()},
                hint=f"POST /ojs/v1/queues/{name}/purge empties it.",
            )
        await self._queues.remove(name)
        await self._counts.remove_consumers(name, list(queue.levels))
        await self._tallies.erase(name)
        self._events.announce("queue.deleted", name, {"queue": name})

    # -- purge -----------------------------------------------------------------------------------

    async def purge(self, name: str, what: Purge) -> int:
        """Cancel the waiting jobs and delete the ended ones that `what` takes; how many. Raises OJSError."""
        await self.find(name)
        purged = 0
        async for job_ids in self._search.ids(JobFilter(name, tuple(what.states))):
            for start in range(0, len(job_ids), AT_ONCE):
                gone = await asyncio.gather(
                    *(self._purge_one(job_id, name, what) for job_id in job_ids[start : start + AT_ONCE])
                )
                purged += sum(gone)
        self._events.announce("queue.purged", name, {"queue": name, "purged": purged, "states": sorted(what.states)})
        return purged

    async def _purge_one(self, job_id: str, queue: str, what: Purge) -> bool:
        try:
            record, _, revision = await self._jobs.load(job_id)
            if not what.takes(record, queue):
                return False
            if record.state in WAITING_STATES:
                await self._jobs.cancel(job_id, WAITING_STATES)
            else:
                await self._jobs.remove(record, revision)
        except (NotFound, Conflict, RevisionConflict):
            return False  # it moved on meanwhile
        return True

    # -- drop_oldest -----------------------------------------------------------------------------

    async def drop_oldest(self, name: str, count: int) -> int:
        """Discard the oldest waiting jobs (ojs-backpressure section 5.3); how many. Raises Unavailable."""
        queue = await self._queues.find(name)
        dropped = 0
        while queue is not None and dropped < count:
            oldest = await self._counts.oldest_messages(name, list(queue.levels), count - dropped)
            if not oldest:
                break
            gone = sum(
                await asyncio.gather(
                    *(self._drop(job_id, sequence) for sequence, payload in oldest for job_id in _job_ids([payload]))
                )
            )
            dropped += gone
            if not gone:
                break
        return dropped

    async def _drop(self, job_id: str, sequence: int) -> bool:
        def apply(record: _core.Record, now_ms: int) -> None:
            if record.state != "available":
                raise _core.IllegalTransition("drop", record.state, ("available",))
            at = _core.format_rfc3339_ms(now_ms)
            record.fail(
                b'{"code":"overflow","type":"overflow","message":"The queue is full and drops its oldest job.",'
                b'"attempt":%d,"occurred_at":"%s"}' % (record.attempt, at.encode())
            )
            # It leaves the queue as an expired job does: discarded before it ran.
            record.expire(now_ms)

        try:
            record, _ = await self._jobs.change(job_id, "drop", apply)
        except OJSError as error:
            log.info("a job is not dropped: %s", error, extra={"ojs.job_id": job_id})
            return False
        await self._stores.work.delete(sequence)
        self._events.job("job.discarded", record, before="available")
        self._events.announce("backpressure.dropped", record.queue, job_of(record))
        return True


def _job_ids(payloads: Iterable[bytes]) -> Iterable[str]:
    for payload in payloads:
        try:
            yield _core.Record.parse(_core.split_work_message(payload)[1]).id
        except ValueError as error:
            log.error("a foreign message in stream OJS is left alone: %s", error)
