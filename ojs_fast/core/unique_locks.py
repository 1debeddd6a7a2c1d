"""Locks of unique jobs in `ojs-unique`: fingerprint → the job that has it (ojs-unique-jobs section 8.1).

The lock is taken before the record is written, and the record remembers the lock's revision, so it is given back by
compare-and-set and never takes away another job's. A lock says nothing by itself: whoever finds one looks at the job
that it names. If that job does not exist, its creator is about to write it or died: after a moment the place of its
record is taken by a deletion marker, so that a creator that was only slow is refused and starts over.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.stores import Stores
from ojs_fast.core.unique import DEFAULT_STATES, FEATURE, Wish
from ojs_fast.errors import BackendUnavailable
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import PubAck
from ojs_fast.storage.errors import KeyTaken, RevisionConflict
from ojs_fast.storage.records import WRONG_LAST_SEQUENCE

log = logging.getLogger(__name__)

ATTEMPTS = 20
# How long the creator of a lock's job may take before it is fenced off.
PATIENCE_MS = 2000
LOOK_AGAIN_S = 0.02
REPLACES = "replaces"


@dataclass(slots=True, frozen=True)
class Holder:
    """The job that is in the way."""

    record: _core.Record
    stored: bytes
    revision: int
    #: of the lock as it was when this was found out
    lock_revision: int = 0


class UniqueLocks:
    """Takes and gives back locks."""

    def __init__(self, stores: Stores, propagator: Propagator, clock: NowMs) -> None:
        self._stores = stores
        self._propagator = propagator
        self._clock = clock
        self._bucket = Bucket(stores.connection, names.UNIQUE, {"job_id": str, "at_ms": int})
        # Those of one node that want the same lock stand in line here instead of at NATS.
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        propagator.on_extra(FEATURE, self._follow)

    def lane(self, fingerprint: str) -> asyncio.Lock:
        """What the requests of this node that are about one fingerprint stand in line for."""
        lock = self._lines.get(fingerprint)
        if lock is None:
            lock = self._lines[fingerprint] = asyncio.Lock()
        return lock

    @asynccontextmanager
    async def line(self, fingerprints: Iterable[str]) -> AsyncIterator[None]:
        """Wait until no other request of this node is about these fingerprints."""
        async with AsyncExitStack() as stack:
            # In order, so that two requests about the same several never wait for each other.
            for fingerprint in sorted(set(fingerprints)):
                await stack.enter_async_context(self.lane(fingerprint))
            yield

    async def take(self, wish: Wish, record: _core.Record) -> Holder | None:
        """Take the lock for a record that is not written yet, or tell who is in the way.

        Puts what gives it back into `record.extra`. Raises Unavailable, BackendUnavailable.
        """
        if await self._write(wish, record, 0):  # most are the only ones, so nothing is read first
            return None
        for _ in range(ATTEMPTS):
            holder, revision = await self.in_the_way(wish, record.id)
            if holder is not None:
                return replace(holder, lock_revision=revision)
            if await self._write(wish, record, revision):
                return None
        raise BackendUnavailable("Too many clients want the same unique job at once.")

    async def in_the_way(self, wish: Wish, own_id: str) -> tuple[Holder | None, int]:
        """The job that keeps job `own_id` from being enqueued, if any; the revision of the lock. Raises Unavailable."""
        value, revision = await self._bucket.last(wish.fingerprint)
        holder = await self._holder(value, own_id) if value is not None else None
        if holder is not None and wish.is_in_the_way(holder.record, self._clock()):
            return holder, revision
        return None, revision

    async def take_over(self, wish: Wish, record: _core.Record, holder: Holder) -> bool:
        """Take the lock from the job that `take` found; False when somebody else was faster. Raises Unavailable.

        Until that job is cancelled it is in the way all the same, also if this node dies now.
        """
        return await self._write(wish, record, holder.lock_revision, holder.record.id)

    async def leave_to(self, wish: Wish, record: _core.Record, holder: Holder) -> None:
        """Undo `take_over`: the other job stays. Raises Unavailable."""
        value, revision = await self._bucket.last(wish.fingerprint)
        if value is not None and value["job_id"] == record.id:
            await self._write(wish, holder.record, revision)

    async def _write(self, wish: Wish, record: _core.Record, revision: int, replaces: str = "") -> bool:
        value = {"job_id": record.id, "at_ms": self._clock()}
        if replaces:
            value[REPLACES] = replaces
        ttl_s = -(-wish.period_ms // 1000) if wish.period_ms else 0
        try:
            revision = await self._bucket.put(wish.fingerprint, value, revision, ttl_s)
        except RevisionConflict:
            return False
        states = [] if wish.states == DEFAULT_STATES else [list(wish.states)]
        record.extra = {**(record.extra or {}), FEATURE: [wish.fingerprint, revision, *states]}
        return True

    async def _holder(self, value: dict[str, Any], own_id: str) -> Holder | None:
        """The job that a lock is about; None when there is none, and from then on never will be."""
        job_id = value["job_id"]
        holder = await (self._look(job_id) if job_id == own_id else self._awaited(job_id, value["at_ms"]))
        if holder is not None:
            return holder
        return await self._look(value[REPLACES]) if REPLACES in value else None

    async def _look(self, job_id: str) -> Holder | None:
        found = await self._stores.records.get(job_id)
        return Holder(_core.Record.parse(found[0]), *found) if found is not None else None

    async def _awaited(self, job_id: str, since_ms: int) -> Holder | None:
        while (holder := await self._look(job_id)) is None:
            if 0 <= self._clock() - since_ms < PATIENCE_MS and not await self._stores.records.marker(job_id):
                await asyncio.sleep(LOOK_AGAIN_S)  # another node writes it: nothing here would tell
                continue
            try:
                await self._stores.records.fence(job_id)
            except KeyTaken:  # it was written just now, or it was there and is gone
                return await self._look(job_id)
            log.info("a lock without a job is taken over", extra={"ojs.job_id": job_id})
            return None
        return holder

    # -- giving back -----------------------------------------------------------------------------

    def _follow(self, record: _core.Record, _revision: int) -> None:
        _, _, *states = (record.extra or {})[FEATURE]
        if record.state not in (states[0] if states else DEFAULT_STATES):
            self.give_back(record)

    def give_back(self, record: _core.Record) -> None:
        """Remove the lock of a job unless somebody else has it by now; nobody waits for it."""
        fingerprint, revision, *_ = (record.extra or {})[FEATURE]

        def check(answer: "asyncio.Future[PubAck]") -> None:
            if (
                answer.cancelled()
                or answer.exception() is not None
                or answer.result()[1] not in (0, WRONG_LAST_SEQUENCE)
            ):
                self._propagator.call_later(partial(self._bucket.remove, fingerprint, revision))

        self._bucket.start_remove(fingerprint, revision).add_done_callback(check)
