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
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.queues import Queues
from ojs_fast.core.stale import StaleMessages
from ojs_fast.core.stores import Stores
from ojs_fast.errors import OJSError
from ojs_fast.storage.connection import PubAck
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.work import WorkMessage

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Claiming:
    # A claim whose compare-and-set is under way.
    record: _core.Record
    stored: bytes
    revision: int
    message: WorkMessage
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
                for level in queue.levels:
                    await self._drain(name, level, count, worker_id, reservation_ms, claimed)
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
        queue: str,
        level: int,
        count: int,
        worker_id: str,
        reservation_ms: int,
        claimed: list[tuple[_core.Record, bytes]],
    ) -> None:
        while len(claimed) < count:
            wanted = count - len(claimed)
            messages = await self._stores.work.pull(queue, level, wanted)
            if not messages:
                return
            under_way = [c for m in messages if (c := self._start_claim(m, worker_id, reservation_ms))]
            for claiming in under_way:
                if await self._finish_claim(claiming):
                    claimed.append((claiming.record, claiming.stored))  # noqa: PERF401 - counts even if a later one fails
            if len(messages) < wanted:
                return

    def _start_claim(self, message: WorkMessage, worker_id: str, reservation_ms: int) -> _Claiming | None:
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
        record.claim(self._clock(), worker_id, reservation_ms, self._settings.execution_timeout_ms)
        record.node_id = self._node_id
        record.ack_subject = message.ack_subject
        stored = record.serialize()
        self._claims.begin(record.id)
        pending = self._stores.records.start_replace(record.id, stored, revision)
        return _Claiming(record, stored, revision, message, pending)

    async def _finish_claim(self, claiming: _Claiming) -> bool:
        record = claiming.record
        try:
            revision = await self._stores.records.finish_replace(
                record.id, claiming.stored, claiming.revision, 0, claiming.pending
            )
        except RevisionConflict:
            # Cancelled, expired, claimed elsewhere or published twice: this message is stale.
            self._stale.refused(claiming.message, record.id)
            return False
        except Unavailable:
            self._stores.work.give_back(claiming.message)
            self._propagator.doubt(record.id)
            return False
        finally:
            self._claims.end(record.id)
        self._claims.hold(Claim(record, revision, record.started_ms + record.reservation_ms))
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
