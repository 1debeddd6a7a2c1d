"""The claims this node holds: which worker has which job, until when; expiry of both deadlines.

Kept in memory only: the record in `ojs-jobs` says that a job is active, and another node adopts the
claims of a dead one from there. `ojs-active` holds what outlives a second, for that adoption.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import Deadlines, NowMs
from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Outbox
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

ENTER_AFTER_MS = 1000
SWEEP_S = 1.0
TRY_AGAIN_MS = 1000


@dataclass(slots=True)
class Claim:
    """One active job. `record` and `revision` are as last written; `visible_ms` is the reservation's end.

    `visible_ms` is epoch ms by the wall clock of when the claim was made; from `Claims.hold` on the two deadlines of
    the steady clock count. `heeded` is the revision of the entry in `ojs-active` that was heeded last.
    """

    record: _core.Record
    revision: int
    visible_ms: int
    entered: bool = False
    heeded: int = 0
    #: when the reservation and the execution time end (ms of the steady clock); unset before the first `hold`
    visible_at_ms: int | None = None
    timeout_at_ms: int = 0

    @property
    def is_timed_out(self) -> bool:
        """Whether it is the execution time that ends first."""
        return self.visible_at_ms is not None and self.timeout_at_ms <= self.visible_at_ms


def active_entry(worker_id: str, node_id: str, visible_ms: int, now_ms: int) -> dict[str, Any]:
    """What `ojs-active` tells of a claim: until when it is reserved, and by which clock."""
    return {"worker_id": worker_id, "node_id": node_id, "visible_ms": visible_ms, "at_ms": now_ms}


def reserved_until_ms(entry: dict[str, Any], now_ms: int) -> int:
    """When a reservation that another node entered ends; its clock may have been far ahead."""
    visible_ms = int(entry.get("visible_ms", 0))
    return min(visible_ms, now_ms + max(0, visible_ms - int(entry.get("at_ms", 0))))


class Claims:
    """Table of claims with their deadlines."""

    def __init__(self, clock: NowMs, steady: NowMs, outbox: Outbox, node_id: str) -> None:
        self._clock = clock
        self._steady = steady
        self._outbox = outbox
        self._node_id = node_id
        self._held: dict[str, Claim] = {}
        self._by_worker: dict[str, set[str]] = {}
        self._by_queue: defaultdict[str, int] = defaultdict(int)
        self._fresh: dict[str, int] = {}
        self._claiming: dict[str, int] = {}
        self._deadlines = Deadlines(steady, self._due)
        self._expire: Callable[[Claim], Awaitable[None]] | None = None
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def open(self, expire: Callable[[Claim], Awaitable[None]]) -> None:
        """Start the timers; `expire(claim)` is awaited for each claim that is due."""
        self._expire = expire
        await self._deadlines.open()
        self._task = asyncio.create_task(forever(self._enter_loop))

    async def close(self) -> None:
        """Stop the timers; whoever reconciles this node adopts its claims."""
        await self._deadlines.close()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def clear(self) -> None:
        """Forget all (after a reset)."""
        self._held.clear()
        self._by_worker.clear()
        self._by_queue.clear()
        self._fresh.clear()
        self._deadlines.clear()

    def begin(self, job_id: str) -> None:
        """A claim of this job is on its way: nobody may take its record for a claim that got lost."""
        self._claiming[job_id] = self._claiming.get(job_id, 0) + 1

    def end(self, job_id: str) -> None:
        """The outcome of `begin` is known."""
        left = self._claiming.pop(job_id) - 1
        if left:
            self._claiming[job_id] = left

    def has(self, job_id: str) -> bool:
        """True when this node holds the job or is about to."""
        return job_id in self._held or job_id in self._claiming

    def hold(self, claim: Claim) -> None:
        """Take a claim into the table and arm its deadline."""
        job_id = claim.record.id
        if job_id not in self._held:
            self._by_queue[claim.record.queue] += 1
        self._held[job_id] = claim
        if claim.record.worker_id:
            self._by_worker.setdefault(claim.record.worker_id, set()).add(job_id)
        if not claim.entered:
            self._fresh[job_id] = self._steady()
        self._arm(job_id, claim)

    def _arm(self, job_id: str, claim: Claim) -> None:
        if claim.visible_at_ms is None:
            # Once: a wall clock that is put right later must move no deadline.
            between_ms = self._steady() - self._clock()
            claim.visible_at_ms = claim.visible_ms + between_ms
            claim.timeout_at_ms = int(claim.record.started_ms + claim.record.timeout_ms) + between_ms
        self._deadlines.set(job_id, min(claim.visible_at_ms, claim.timeout_at_ms))

    def get(self, job_id: str) -> Claim | None:
        """Look without taking."""
        return self._held.get(job_id)

    def take(self, job_id: str) -> Claim | None:
        """Remove a claim that is about to be settled, so that nobody else settles it from here."""
        claim = self._held.pop(job_id, None)
        if claim is None:
            return None
        self._by_queue[claim.record.queue] -= 1
        self._fresh.pop(job_id, None)
        self._deadlines.drop(job_id)
        worker = self._by_worker.get(claim.record.worker_id)
        if worker is not None:
            worker.discard(job_id)
            if not worker:
                del self._by_worker[claim.record.worker_id]
        return claim

    def settled(self, job_id: str, claim: Claim | None) -> None:
        """Remove the trace of a claim of this node after its job left the active state."""
        if claim is not None and claim.entered:
            self._outbox.delete(names.ACTIVE, names.attempt_key(job_id, claim.record.attempt))

    def extend(self, job_id: str, visible_ms: int) -> None:
        """Move the end of a reservation (epoch ms, by the wall clock of now)."""
        claim = self._held.get(job_id)
        if claim is not None:
            claim.visible_at_ms = self._steady() + visible_ms - self._clock()
            self._arm(job_id, claim)
            self._enter(job_id, claim)

    def renew(self, record: _core.Record, revision: int) -> None:
        """The record of an active job was written over, still active: a claim of it goes on from there."""
        claim = self._held.get(record.id)
        if claim is not None and claim.revision < revision:
            claim.record, claim.revision = record, revision

    def late_ms(self, claim: Claim) -> int:
        """For how long the execution time of a held claim has been over."""
        return max(0, self._steady() - claim.timeout_at_ms)

    def of_worker(self, worker_id: str) -> list[Claim]:
        """The claims of one worker that this node holds."""
        return [self._held[job_id] for job_id in self._by_worker.get(worker_id, ())]

    def in_queue(self, queue: str) -> int:
        """How many jobs of a queue this node holds."""
        return self._by_queue.get(queue, 0)

    def held(self) -> list[Claim]:
        """All claims of this node."""
        return list(self._held.values())

    async def _due(self, job_ids: list[str]) -> None:
        assert self._expire
        for job_id in job_ids:
            claim = self._held.get(job_id)
            if claim is None:
                continue
            try:
                await self._expire(claim)
                continue
            except Unavailable as error:
                log.info("a deadline is tried again: %s", error, extra={"ojs.job_id": job_id})
            except Exception:
                log.exception("a deadline could not be handled; it is tried again", extra={"ojs.job_id": job_id})
            if job_id in self._held:
                self._deadlines.set(job_id, self._steady() + TRY_AGAIN_MS)

    def _enter(self, job_id: str, claim: Claim, *, only_new: bool = False) -> None:
        claim.entered = True
        self._fresh.pop(job_id, None)
        now_ms = self._clock()
        visible_ms = claim.visible_ms if claim.visible_at_ms is None else claim.visible_at_ms - self._steady() + now_ms
        self._outbox.put(
            names.ACTIVE,
            names.attempt_key(job_id, claim.record.attempt),
            active_entry(claim.record.worker_id, self._node_id, visible_ms, now_ms),
            only_new=only_new,
        )

    async def _enter_loop(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            horizon = self._steady() - ENTER_AFTER_MS
            for job_id, since in list(self._fresh.items()):
                if since > horizon:
                    break
                # Another node may have heard a heartbeat already, and its later deadline must stay.
                self._enter(job_id, self._held[job_id], only_new=True)
