"""Finds permits that nobody gives back, and waiting jobs that nobody woke.

A permit is lost when its node dies between permit and claim, or between a settle and the return. It is
dropped only when the job's record proves that no claim under it is or can become active; where a slow claim
might still land, the record is written anew first, so that the claim's compare-and-set must fail.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from ojs_fast import _core
from ojs_fast.core.limit_state import Limit, LimitState
from ojs_fast.core.limits import PERMIT, Limits
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.stores import Stores
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.leases import Leases
from ojs_fast.storage.server_clock import ServerClock

log = logging.getLogger(__name__)

SWEEP_S = 1.0
CHECK_AFTER_S = 1.5
KEYS_AT_ONCE = 200
READ_AT_ONCE = 200
# A lease takes a moment to be seen by all: younger permits are those of living nodes.
YOUNG_MS = 5_000
FENCED = "fenced"  # Record.extra: the permit whose claim must not land any more


class LimitUpkeep:
    """Repairs what deaths and lost messages leave behind of limits."""

    def __init__(
        self,
        stores: Stores,
        limits: Limits,
        leases: Leases,
        propagator: Propagator,
        server_clock: ServerClock,
        node_id: str,
    ) -> None:
        self._stores = stores
        self._limits = limits
        self._leases = leases
        self._propagator = propagator
        self._server_clock = server_clock
        self._node_id = node_id
        self._bucket = Bucket(stores.connection, names.LIMITS)
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to sweep."""
        self._task = asyncio.create_task(self._sweep_loop())

    async def close(self) -> None:
        """Stop sweeping."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _sweep_loop(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self._sweep()
            except Unavailable as error:
                log.info("the limits are swept again: %s", error)
            except Exception:
                log.exception("sweeping the limits failed; it is tried again")

    async def _sweep(self) -> None:
        """Look at the keys for which jobs wait here: the word that would wake them may have been lost."""
        keys, now_s = self._limits.keys, time.monotonic()
        due = [name for name in self._limits.parking if keys.get(name).swept_s < now_s - CHECK_AFTER_S]
        for name in due[:KEYS_AT_ONCE]:
            key = keys.get(name)
            # What was given back and never asked for room was stale.
            key.out, key.swept_s = 0, now_s
            state = await keys.refresh(name)
            if state is not None and _is_full(state, key.waiting):
                await self.verify(name, state)
        for name in list(self._limits.suspects):
            state = await keys.refresh(name)
            if state is None or await self.verify(name, state):
                self._limits.suspects.discard(name)

    async def reconcile(self, dead: Iterable[str]) -> None:
        """Give back what nodes that died left behind, on every key. Raises Unavailable."""
        gone = tuple(f"{node_id}." for node_id in dead)
        after = 0
        while page := await self._bucket.page(after, READ_AT_ONCE):
            after = page[-1][2]
            for token, value, _ in page:
                state = LimitState.read(token, value)
                if state is not None and any(permit.startswith(gone) for permit, _ in state.holders.values()):
                    await self.verify(names.decode_token(token), state)

    async def verify(self, name: str, state: LimitState) -> bool:
        """Give back the permits of this entry that are over; False when one could not be judged now.

        Raises Unavailable.
        """
        found = await self._stores.records.get_many(state.holders)
        live, dead = self._leases.live_nodes(), self._leases.dead_nodes()
        is_sure, dropped = True, 0
        for job_id, (permit, taken_ms) in state.holders.items():
            stored, revision = found.get(job_id, (b"", 0))
            record = _core.Record.parse(stored) if stored else None
            is_over = _is_over(record, permit)
            if is_over is None and record is not None:
                node_id = permit.partition(".")[0]
                if node_id == self._node_id:
                    may_claim = permit in self._limits.under_way
                else:
                    is_young = taken_ms > self._server_clock.now_ms() - YOUNG_MS
                    may_claim = node_id not in dead and (node_id in live or is_young)
                is_over = not may_claim and await self._fence(record, revision, permit)
                is_sure &= is_over or may_claim
            if is_over:
                self._limits.keys.give_back(name, job_id, permit)
                dropped += 1
        if dropped:
            log.info("%d permits of the limit '%s' had been lost", dropped, name)
        return is_sure

    async def _fence(self, record: _core.Record, revision: int, permit: str) -> bool:
        """Make a claim that may be on its way fail: the job gets a new revision and work message."""
        record.extra = {**(record.extra or {}), FENCED: permit}
        stored = record.serialize()
        try:
            written = await self._stores.records.replace(record.id, stored, revision)
        except RevisionConflict:
            return False
        await self._propagator.followed(record, stored, written)
        return True


def _is_over(record: _core.Record | None, permit: str) -> bool | None:
    """Whether the record proves that a permit is over (True) or in use (False); None when it tells neither."""
    if record is None:
        return True
    if record.extra is not None and record.extra.get(PERMIT, ("",))[0] == permit:
        return record.state != "active"
    # The claim has not landed. It is conditional on a revision at which the job was available.
    return None if record.state == "available" else True


def _is_full(state: LimitState, waiting: Limit | None) -> bool:
    limit = state.effective(waiting or state.limit, state.last_ms)
    return limit.concurrency > 0 and len(state.holders) >= limit.concurrency
