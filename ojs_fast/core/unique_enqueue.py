"""Enqueueing unique jobs: lock, then record; what happens when another job is in the way (ojs-unique-jobs 5)."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Period, Tallies
from ojs_fast.core.unique import Wish
from ojs_fast.core.unique_locks import ATTEMPTS, Holder, UniqueLocks
from ojs_fast.errors import BackendUnavailable, Duplicate
from ojs_fast.storage.errors import KeyTaken, RevisionConflict, Unavailable


def duplicate_of(wish: Wish, existing: _core.Record) -> Duplicate:
    """409 for a job that is there already (section 5.1)."""
    return Duplicate(
        f"Job '{existing.id}' with the same uniqueness key is {existing.state}.",
        details={
            "existing_job_id": existing.id,
            "existing_job_state": existing.state,
            "job_id": existing.id,
            "uniqueness_key": wish.fingerprint,
            "on_conflict": wish.on_conflict,
        },
        hint="A job that runs is never replaced." if wish.on_conflict.startswith("replace") else "",
    )


@dataclass(slots=True, frozen=True)
class Replaced:
    """A job that was cancelled in favour of a new one: as it is now, and what it was before."""

    record: _core.Record
    stored: bytes
    before: str
    revision_before: int
    period: Period | None

    def settled(self, revision: int) -> "Cancelled":
        """It was written."""
        if self.period is not None:
            self.period.count(self.record)
        return Cancelled(self.record, self.stored, self.before, self.revision_before, revision)


@dataclass(slots=True, frozen=True)
class Cancelled:
    """The same once it is written at `revision`."""

    record: _core.Record
    stored: bytes
    before: str
    revision_before: int
    revision: int


@dataclass(slots=True, frozen=True)
class Outcome:
    """What became of one request. `revision` 0: nothing was written, `stored` is the job that was there."""

    stored: bytes
    revision: int
    cancelled: Cancelled | None = None


@dataclass(slots=True)
class Admitted:
    """A batch whose locks are taken: which of its jobs exist already (by place), and which jobs go in exchange."""

    existing: dict[int, bytes] = field(default_factory=dict)
    locked: list[tuple[Wish, _core.Record, Holder | None]] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)


class UniqueEnqueuer:
    """Writes unique jobs, one or a batch; at most one job of a fingerprint gets through at a time."""

    def __init__(
        self,
        stores: Stores,
        locks: UniqueLocks,
        tallies: Tallies,
        ttl_s: Callable[[_core.Record], int],
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._stores = stores
        self._locks = locks
        self._tallies = tallies
        self._ttl_s = ttl_s
        self._node_id = node_id
        self._clock = clock

    # -- one job ---------------------------------------------------------------------------------

    async def create(self, wish: Wish, record: _core.Record, serialize: Callable[[_core.Record], bytes]) -> Outcome:
        """Lock and write one record, or find the job that is in the way.

        Raises Duplicate, KeyTaken (the id belongs to another job), BackendUnavailable, Unavailable.
        """
        async with self._locks.lane(wish.fingerprint):
            place = 0  # of a deletion marker where the record is to go
            for _ in range(ATTEMPTS):
                holder = await self._locks.take(wish, record)
                if holder is None:
                    outcome = await self._write(record, serialize(record), place)
                elif wish.on_conflict == "ignore":
                    return Outcome(holder.stored, 0)
                else:
                    outcome = await self._replace(wish, record, holder, serialize, place)
                if outcome is not None:
                    return outcome
                place = await self._free_place(record)
        raise BackendUnavailable("Too many clients want the same unique job at once.")

    async def _write(self, record: _core.Record, stored: bytes, place: int) -> Outcome | None:
        try:
            if place:
                return Outcome(stored, await self._stores.records.replace(record.id, stored, place))
            return Outcome(stored, await self._stores.records.create(record.id, stored))
        except (KeyTaken, RevisionConflict):
            return None

    async def _free_place(self, record: _core.Record) -> int:
        """The revision to write over after a conflict: a fence that was set while this node was slow."""
        if await self._stores.records.get(record.id) is None:
            return await self._stores.records.marker(record.id)
        self._locks.give_back(record)
        raise KeyTaken(record.id)

    async def _replace(
        self,
        wish: Wish,
        record: _core.Record,
        holder: Holder,
        serialize: Callable[[_core.Record], bytes],
        place: int,
    ) -> Outcome | None:
        self._refuse_unless_replaceable(wish, record, holder)
        if not await self._locks.take_over(wish, record, holder):
            return None
        _keep_schedule(wish, record, holder.record)
        stored = serialize(record)
        if _core.is_terminal(holder.record.state):
            return await self._write(record, stored, place)
        replaced = self._cancel(holder)
        old = replaced.record
        try:
            revisions = await self._stores.records.replace_all(
                [(old.id, replaced.stored, holder.revision, self._ttl_s(old)), (record.id, stored, place, 0)]
            )
        except RevisionConflict:
            self._tallies.drop(replaced.period)
            return None
        except (Unavailable, asyncio.CancelledError):
            self._tallies.doubt(replaced.period, old.id)
            raise
        return Outcome(stored, revisions[1], replaced.settled(revisions[0]))

    def _refuse_unless_replaceable(self, wish: Wish, record: _core.Record, holder: Holder) -> None:
        if holder.record.id == record.id:  # the same job once more
            raise KeyTaken(record.id)
        # A job that runs has effects already; its worker is not to find it gone.
        if wish.on_conflict == "reject" or holder.record.state == "active":
            raise duplicate_of(wish, holder.record)

    def _cancel(self, holder: Holder) -> Replaced:
        old, before = holder.record, holder.record.state
        old.cancel(self._clock())
        old.node_id = self._node_id
        period = self._tallies.stamp(old, before)
        return Replaced(old, old.serialize(), before, holder.revision, period)

    # -- a batch ---------------------------------------------------------------------------------

    async def admit(self, wishes: dict[int, Wish], records: list[_core.Record]) -> Admitted:
        """Take the locks of a batch, given the policies by place; the caller stands in line.

        Raises Duplicate, KeyTaken, BackendUnavailable, Unavailable; then no lock is kept.
        """
        admitted = Admitted()
        first: dict[str, _core.Record] = {}
        try:
            for place, wish in wishes.items():
                record = records[place]
                twin = first.setdefault(wish.fingerprint, record)
                if twin is not record:
                    if wish.on_conflict != "ignore":
                        raise duplicate_of(wish, twin)  # noqa: TRY301 - undone below like any other
                    admitted.existing[place] = twin.serialize()
                    continue
                await self._admit_one(admitted, place, wish, record)
        except BaseException:
            await self.undo(admitted)
            raise
        return admitted

    async def _admit_one(self, admitted: Admitted, place: int, wish: Wish, record: _core.Record) -> None:
        for _ in range(ATTEMPTS):
            holder = await self._locks.take(wish, record)
            if holder is None:
                admitted.locked.append((wish, record, None))
                return
            if wish.on_conflict == "ignore":
                admitted.existing[place] = holder.stored
                return
            self._refuse_unless_replaceable(wish, record, holder)
            if await self._locks.take_over(wish, record, holder):
                _keep_schedule(wish, record, holder.record)
                admitted.locked.append((wish, record, holder))
                if not _core.is_terminal(holder.record.state):
                    admitted.replaced.append(self._cancel(holder))
                return
        raise BackendUnavailable("Too many clients want the same unique job at once.")

    async def undo(self, admitted: Admitted) -> None:
        """Give the locks back: nothing of the batch was written. Raises Unavailable."""
        for replaced in admitted.replaced:
            self._tallies.drop(replaced.period)
        for wish, record, holder in admitted.locked:
            if holder is None:
                self._locks.give_back(record)
            else:
                await self._locks.leave_to(wish, record, holder)

    async def write(self, admitted: Admitted, batch: list[tuple[str, bytes]]) -> tuple[list[int], list[Cancelled]]:
        """Write a batch together with what it replaces: the new records' revisions, and what was cancelled.

        Raises KeyTaken, BatchRefused, RevisionConflict, Unavailable.
        """
        if not admitted.replaced:
            return await self._stores.batches.create_all(batch), []
        writes = [
            (one.record.id, one.stored, one.revision_before, self._ttl_s(one.record)) for one in admitted.replaced
        ]
        try:
            revisions = await self._stores.records.replace_all(
                [*writes, *((key, stored, 0, 0) for key, stored in batch)]
            )
        except (Unavailable, asyncio.CancelledError):
            for one in admitted.replaced:
                self._tallies.doubt(one.period, one.record.id)
            admitted.replaced.clear()
            raise
        cancelled = [one.settled(revision) for one, revision in zip(admitted.replaced, revisions, strict=False)]
        return revisions[len(cancelled) :], cancelled


def _keep_schedule(wish: Wish, record: _core.Record, old: _core.Record) -> None:
    """Section 5.3: the new job runs when the old one was to run."""
    if wish.on_conflict == "replace_except_schedule" and old.state == "scheduled":
        record.state = "available"
        record.reschedule(old.scheduled_ms)
