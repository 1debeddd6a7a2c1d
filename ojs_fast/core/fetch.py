"""Fetch: pull work messages and claim their jobs, two round trips whatever the number of jobs."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.core.claims import Claim, Claims
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.limit_state import Limit
from ojs_fast.core.limits import QUEUE_KEY, Limits, Work, limits_of
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.queues import Queue, Queues
from ojs_fast.core.stale import StaleMessages
from ojs_fast.core.stores import Stores
from ojs_fast.errors import OJSError
from ojs_fast.storage.connection import PubAck
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.work import WorkMessage

log = logging.getLogger(__name__)


# Looking past jobs that wait for a limit: messages per pull at most, and how often in vain.
REACH = 100
ROUNDS_IN_VAIN = 20
# Records that are read together: what NATS sends at once should fit into the 64 MB that it holds for a connection.
LARGE_AT_ONCE = 50
# A NATS server that begins to lead may not know yet what others acknowledged.
LAG_MS = 500


@dataclass(slots=True)
class _Claiming:
    # A claim whose compare-and-set is under way.
    work: Work
    stored: bytes
    pending: "asyncio.Future[PubAck]"


class Fetcher:
    """Workers' way to jobs."""

    def __init__(
        self,
        stores: Stores,
        settings: Settings,
        queues: Queues,
        claims: Claims,
        jobs: Jobs,
        events: Events,
        propagator: Propagator,
        limits: Limits,
        stale: StaleMessages,
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._stale = stale
        self._stores = stores
        self._settings = settings
        self._queues = queues
        self._claims = claims
        self._jobs = jobs
        self._events = events
        self._propagator = propagator
        self._limits = limits
        self._node_id = node_id
        self._clock = clock
        self._expiring: set[asyncio.Task[None]] = set()

    async def fetch(
        self, queues: list[str], count: int, worker_id: str, visibility_ms: int, gone: Callable[[], bool]
    ) -> list[bytes]:
        """Claim up to `count` jobs: queues in the order given, higher levels first, then the older job.

        `visibility_ms` 0 = the server's default; `gone()` tells that the client hung up: its jobs are
        given back. Returns records' bytes. Raises Unavailable when nothing was claimed.
        """
        reservation_ms = visibility_ms or self._settings.visibility_timeout_ms
        claimed: list[tuple[_core.Record, bytes]] = []
        try:
            for name in queues:
                queue = await self._queues.find(name)
                if queue is None or queue.paused:
                    continue
                already = len(claimed)
                await self._drain(queue, count, worker_id, reservation_ms, claimed)
                if len(queue.levels) > 1:
                    # A stale message makes it take again, and something more urgent may have come in between.
                    claimed[already:] = sorted(claimed[already:], key=lambda one: -one[0].priority)
                if len(claimed) >= count:
                    break
        except Unavailable:
            if not claimed:
                raise
        if gone():
            await self._give_back(claimed)
            return []
        for record, _ in claimed:
            self._events.job("job.started", record)
        return [stored for _, stored in claimed]

    async def _drain(
        self,
        queue: Queue,
        count: int,
        worker_id: str,
        reservation_ms: int,
        claimed: list[tuple[_core.Record, bytes]],
    ) -> None:
        reach = in_vain = 0
        while len(claimed) < count and in_vain < ROUNDS_IN_VAIN:
            wanted = count - len(claimed)
            asked, one_level = max(wanted, reach), reach > 0
            levels = (self._queues.known(queue.name) or queue).levels
            # Jobs that waited for a limit are given back.
            looks = not queue.limited and not self._limits.parking.of_queue(queue.name)
            messages = await self._stores.work.take(queue.name, levels, asked, one_level=one_level, looks=looks)
            if not messages:
                return
            opened = await self._read([work for message in messages if (work := self._open(message, queue))])
            works = opened
            if reach or any(work.limits for work in works):
                before = self._limits.put_aside
                works = await self._limits.admit(opened, wanted)
                in_vain += self._limits.put_aside == before and not works
                if len(works) < min(wanted, len(opened)):
                    reach = min(REACH, asked * 4)
            under_way = [self._start_claim(work, worker_id, reservation_ms) for work in works]
            for claiming in under_way:
                if await self._finish_claim(claiming):
                    claimed.append((claiming.work.record, claiming.stored))  # noqa: PERF401 - counts even if a later one fails
            if len(messages) < asked and not one_level:
                return

    def _open(self, message: WorkMessage, queue: Queue) -> Work | None:
        try:
            revision, stored = _core.split_work_message(message.payload)
            record = _core.Record.parse(stored)
        except ValueError as error:
            log.error("a foreign message in stream OJS is removed: %s", error)
            self._stores.work.ack(message.ack_subject)
            return None
        if self._jobs.is_past(record):
            self._stores.work.ack(message.ack_subject)
            self._expire_later(record.id)
            return None
        limits = limits_of(record) if record.extra is not None else None
        if queue.limited:
            # First, because all ask for it: so they are granted it in their order.
            limits = [Limit(QUEUE_KEY + queue.name), *(limits or ())]
        return Work(record, revision, message, limits)

    async def _read(self, works: list[Work]) -> list[Work]:
        """Those that can be claimed, with their whole records: a work message has only the head of a large one.

        Raises Unavailable; then none is taken.
        """
        job_ids = [work.record.id for work in works if not work.record.body]
        if not job_ids:
            return works
        try:
            found: dict[str, tuple[bytes, int]] = {}
            for start in range(0, len(job_ids), LARGE_AT_ONCE):
                found |= await self._stores.records.get_many(job_ids[start : start + LARGE_AT_ONCE])
        except BaseException:
            for work in works:
                self._stores.work.give_back(work.message)
            raise
        whole: list[Work] = []
        for work in works:
            job_id = work.record.id
            stored, at = found.get(job_id, (b"", 0))
            if work.record.body:
                whole.append(work)
            elif at == work.revision:
                work.record = _core.Record.parse(stored)
                whole.append(work)
            elif at < work.revision and self._stores.connection.is_replicated:
                self._stores.work.give_back_to(work.message.ack_subject, LAG_MS)
            else:
                self._stale.refused(work.message, job_id)
        return whole

    def _start_claim(self, work: Work, worker_id: str, reservation_ms: int) -> _Claiming:
        record = work.record
        now_ms = self._clock()
        if work.limits:
            now_ms = self._limits.started_ms(work)
            self._limits.mark(work)
        record.claim(now_ms, worker_id, reservation_ms, self._settings.execution_timeout_ms)
        record.node_id = self._node_id
        record.ack_subject = work.message.ack_subject
        stored = record.serialize()
        self._claims.begin(record.id)
        pending = self._stores.records.start_replace(record.id, stored, work.revision)
        return _Claiming(work, stored, pending)

    async def _finish_claim(self, claiming: _Claiming) -> bool:
        work = claiming.work
        record = work.record
        try:
            revision = await self._stores.records.finish_replace(
                record.id, claiming.stored, work.revision, 0, claiming.pending
            )
        except RevisionConflict:
            # Cancelled, expired, claimed elsewhere or published twice: this message is stale.
            self._stale.refused(work.message, record.id)
            if work.limits:
                self._limits.undo(work)
            return False
        except Unavailable:
            self._stores.work.give_back(work.message)
            self._propagator.doubt(record.id)
            if work.limits:
                self._limits.lost(work)
            return False
        finally:
            self._claims.end(record.id)
        self._claims.hold(Claim(record, revision, record.started_ms + record.reservation_ms))
        if work.limits:
            self._limits.landed(work)
        return True

    def _expire_later(self, job_id: str) -> None:
        async def expire() -> None:
            try:
                await self._jobs.get(job_id)
            except (OJSError, Unavailable) as error:
                log.info("an expired job was not discarded: %s", error, extra={"ojs.job_id": job_id})

        task = asyncio.get_running_loop().create_task(expire())
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _give_back(self, claimed: list[tuple[_core.Record, bytes]]) -> None:
        # The client hung up before its answer left: nobody has these jobs, so no attempt is counted.
        for record, _ in claimed:
            claim = self._claims.take(record.id)
            if claim is None:
                continue
            try:
                await self._propagator.release(claim.record, claim.revision)
            except (Unavailable, RevisionConflict):
                self._propagator.doubt(record.id)
