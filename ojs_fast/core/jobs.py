"""Jobs before and beside their execution: enqueue, read, cancel, activate; loading a record."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.core import unique
from ojs_fast.core.admission import Admission, Grant, Ticket
from ojs_fast.core.checkpoint import drop_checkpoint
from ojs_fast.core.claims import Claims
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.peers import Peers
from ojs_fast.core.propagate import WAITING, Propagator, dead_key, scheduled_key
from ojs_fast.core.queues import Queues
from ojs_fast.core.refusals import refused
from ojs_fast.core.retention import Retention
from ojs_fast.core.stale import StaleMessages
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Tallies
from ojs_fast.core.tracing import Tracing
from ojs_fast.core.unique import Wish
from ojs_fast.core.unique_enqueue import Cancelled, UniqueEnqueuer, duplicate_of
from ojs_fast.core.unique_locks import UniqueLocks
from ojs_fast.errors import (
    BackendUnavailable,
    Conflict,
    Duplicate,
    InvalidRequest,
    OJSError,
    PayloadTooLarge,
    illegal_transition,
    job_not_found,
)
from ojs_fast.storage import names
from ojs_fast.storage.errors import BatchRefused, KeyTaken, RevisionConflict, Unavailable
from ojs_fast.storage.records import ATOMIC_BATCH_DEFAULT

log = logging.getLogger(__name__)

# How often a change is tried again when somebody else changed the job in between.
ATTEMPTS = 10
MAX_BATCH = 10_000
# In these a job has not ended and no worker has it.
WAITING_STATES = ("available", "scheduled", "retryable", "pending")
# Room that a new record leaves for what the server itself adds later: worker, times, an error of its own.
GROWTH_BYTES = 8192

NewId = Callable[[int], str]


class Jobs:
    """Producers' side of the job lifecycle."""

    def __init__(
        self,
        stores: Stores,
        settings: Settings,
        queues: Queues,
        claims: Claims,
        events: Events,
        propagator: Propagator,
        tallies: Tallies,
        stale: StaleMessages,
        admission: Admission,
        peers: Peers,
        tracing: Tracing,
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._to_bytes = tracing.to_bytes
        self._stores = stores
        self._tallies = tallies
        self._stale = stale
        self._admission = admission
        self._peers = peers
        self._settings = settings
        self._answers_early = settings.is_only_node
        self._retention = Retention(settings, queues)
        self._locks = UniqueLocks(stores, propagator, clock)
        self._unique = UniqueEnqueuer(stores, self._locks, tallies, self._retention.ttl_s, node_id, clock)
        self._queues = queues
        self._claims = claims
        self._events = events
        self._propagator = propagator
        self._node_id = node_id
        self._clock = clock
        self._ids = _core.UuidV7Generator()

    # -- enqueue ---------------------------------------------------------------------------------

    async def enqueue(
        self, body: bytes, ticket: Ticket | None = None, new_id: NewId | None = None
    ) -> tuple[str, bytes, bool]:
        """Store one job and hand it to the workers: `(job id, record bytes, whether it is new)`.

        Two round trips: create the record, publish the work message; the second one is not waited for where no other
        node can look for the job. `ticket` tells how long to wait for room in a bounded queue, `new_id` makes the id
        of a job without one. Raises OJSError.
        """
        record = self.parsed(body, new_id or self._ids.next)
        if unique.is_asked_for(record):
            return await self._enqueue_unique(record, ticket)
        stored = self._serialized(record)
        if not self._queues.knows(record.queue, record.priority):
            await self._open_levels([record])
        grants = await self._enter([record], ticket) if self._queues.rules else None
        try:
            revision = await self._stores.records.create(record.id, stored)
            if self._answers_early and not grants and self._queues.has_one_level(record.queue):
                await self._propagator.follow_early(record, stored, revision)
            else:
                await self._propagator.followed(record, stored, revision)
        except KeyTaken:
            raise _duplicate(record.id) from None
        finally:
            if grants:
                self._admission.leave(grants, at_once=record.state == "available")
        self._announce(record)
        return record.id, stored, True

    def _serialized(self, record: _core.Record) -> bytes:
        stored = self._to_bytes(record)
        self._refuse_oversize(len(stored))
        return stored

    async def _enqueue_unique(self, record: _core.Record, ticket: Ticket | None) -> tuple[str, bytes, bool]:
        """The same under a lock (ojs-unique-jobs): one round trip more."""
        wish = unique.wish_of(record)
        self._refuse_oversize(len(record.body))
        if not self._queues.knows(record.queue, record.priority):
            await self._open_levels([record])
        grants = await self._enter([record], ticket) if self._queues.rules else None
        try:
            outcome = await self._unique.create(wish, record, self._serialized)
            if not outcome.revision:
                return _core.Record.parse(outcome.stored).id, outcome.stored, False
            await self._propagator.followed(record, outcome.stored, outcome.revision)
        except KeyTaken:
            raise _duplicate(record.id) from None
        finally:
            if grants:
                self._admission.leave(grants, at_once=record.state == "available")
        if outcome.cancelled is not None:
            await self._follow_replaced(outcome.cancelled)
        self._announce(record)
        return record.id, outcome.stored, True

    async def _follow_replaced(self, old: Cancelled) -> None:
        self._leave(old.record, old.before, "", old.record.node_id, old.revision_before, old.revision)
        await self._propagator.followed(old.record, old.stored, old.revision)
        self._events.job("job.cancelled", old.record, before=old.before)

    async def create_allotted(
        self, body: bytes, job_id: str, extra: dict[str, Any] | None = None
    ) -> _core.Record | None:
        """Enqueue a job of the server's own under an id allotted before.

        None when it was created already. Duplicate when it is unique and another job is in its way.

        Raises OJSError, Unavailable.
        """
        record = self.parsed(body, lambda _: job_id)
        wish = unique.wish_of(record) if unique.is_asked_for(record) else None
        if extra is not None:
            record.extra = {**(record.extra or {}), **extra}
        await self._queues.ensure(record.queue, record.priority)
        try:
            if wish is None:
                stored = self._serialized(record)
                revision = await self._stores.records.create(job_id, stored)
            else:
                outcome = await self._unique.create(wish, record, self._serialized)
                stored, revision = outcome.stored, outcome.revision
                if outcome.cancelled is not None:
                    await self._follow_replaced(outcome.cancelled)
        except KeyTaken:
            return None
        except Duplicate as duplicate:
            if (duplicate.details or {}).get("existing_job_id") == job_id:
                return None
            raise
        if wish is not None and not revision:
            existing = _core.Record.parse(stored)
            if existing.id == job_id:
                return None
            raise duplicate_of(wish, existing)
        await self._propagator.followed(record, stored, revision)
        self._announce(record)
        return record

    def parsed(self, body: bytes, new_id: NewId) -> _core.Record:
        """The record that `enqueue` would store now. Raises OJSError."""
        try:
            record = _core.parse_enqueue(body, self._clock(), new_id, self._settings.max_depth)
        except (ValueError, TypeError) as error:
            raise refused(error) from None
        record.node_id = self._node_id
        if self._queues.rules:
            self._apply_rules([record])
        return record

    def parsed_batch(self, body: bytes, new_id: NewId) -> list[_core.Record]:
        """The same for each job of a batch. Raises OJSError."""
        try:
            records = _core.parse_batch(body, self._clock(), new_id, self._settings.max_depth, MAX_BATCH)
        except (ValueError, TypeError) as error:
            raise refused(error) from None
        for record in records:
            record.node_id = self._node_id
        if self._queues.rules:
            self._apply_rules(records)
        return records

    def _apply_rules(self, records: list[_core.Record]) -> None:
        for record in records:
            if (rules := self._queues.rules.get(record.queue)) is not None:
                rules.apply(record)

    async def _enter(self, records: list[_core.Record], ticket: Ticket | None) -> list[Grant]:
        demand = Counter(record.queue for record in records)
        return await self._admission.enter(demand, records[0].type, ticket or Ticket())

    async def enqueue_batch(
        self, body: bytes, ticket: Ticket | None = None, new_id: NewId | None = None
    ) -> list[bytes]:
        """Store many jobs, all or none; the records' bytes in the order given. Raises OJSError.

        `ticket` and `new_id` as in `enqueue`.
        """
        made: set[str] = set()

        def new(now_ms: int) -> str:
            id_ = self._ids.next(now_ms)
            made.add(id_)
            return id_

        records = self.parsed_batch(body, new_id or new)
        ids_are_new = len(made) == len(records)
        if not ids_are_new:
            self._refuse_twins(records)
        wishes = {place: unique.wish_of(record) for place, record in enumerate(records) if unique.is_asked_for(record)}
        await self._open_levels([r for r in records if not self._queues.knows(r.queue, r.priority)])
        if not wishes:
            batch = [(record.id, self._to_bytes(record)) for record in records]
            await self._store_batch(
                records, batch, ticket, lambda: self._stores.batches.create_all(batch, ids_are_new=ids_are_new)
            )
            return [stored for _, stored in batch]
        async with self._locks.line(wish.fingerprint for wish in wishes.values()):
            return await self._enqueue_unique_batch(records, wishes, ticket)

    async def _enqueue_unique_batch(
        self, records: list[_core.Record], wishes: dict[int, Wish], ticket: Ticket | None
    ) -> list[bytes]:
        try:
            admitted = await self._unique.admit(wishes, records)
        except KeyTaken as taken:
            raise _duplicate(str(taken)) from None
        cancelled: list[Cancelled] = []
        new = [record for place, record in enumerate(records) if place not in admitted.existing]
        batch = [(record.id, self._to_bytes(record)) for record in new]

        async def write() -> list[int]:
            revisions, gone = await self._unique.write(admitted, batch)
            cancelled.extend(gone)
            return revisions

        if new:
            try:
                await self._store_batch(new, batch, ticket, write)
            except RevisionConflict:
                await self._unique.undo(admitted)
                if there := await self._stores.records.get_many(record.id for record in new):
                    raise _duplicate(next(iter(there))) from None
                raise BackendUnavailable("A job that this batch replaces has just changed; try again.") from None
            except OJSError:
                await self._unique.undo(admitted)
                raise
        for old in cancelled:
            await self._follow_replaced(old)
        made = iter(stored for _, stored in batch)
        return [admitted.existing[place] if place in admitted.existing else next(made) for place in range(len(records))]

    async def _store_batch(
        self,
        records: list[_core.Record],
        batch: list[tuple[str, bytes]],
        ticket: Ticket | None,
        write: Callable[[], Awaitable[list[int]]],
    ) -> None:
        self._refuse_oversize(max(len(stored) for _, stored in batch))
        grants = await self._enter(records, ticket) if self._queues.rules else None
        try:
            await self._follow_batch(records, batch, await write())
        except KeyTaken as taken:
            raise _duplicate(str(taken)) from None
        except BatchRefused as error:
            raise InvalidRequest(
                f"Field 'jobs' has {len(batch)} jobs; the NATS server takes {ATOMIC_BATCH_DEFAULT} at once.",
                details={"field": "jobs", "received": len(batch), "reason": str(error)},
                hint="Send smaller batches, or raise jetstream.limits.batch.max_msgs of the NATS server.",
            ) from None
        finally:
            if grants:
                self._admission.leave(grants, at_once=all(record.state == "available" for record in records))
        for record in records:
            self._announce(record)

    async def _open_levels(self, records: list[_core.Record]) -> None:
        # Before the first job enters, so that no crash leaves one in a level that nobody drains; but a
        # job that will be refused must not create its queue.
        if not records:
            return
        taken = await self._stores.records.get_many(record.id for record in records)
        if taken:
            raise _duplicate(next(iter(taken)))
        for queue, priority in {(record.queue, record.priority) for record in records}:
            await self._queues.ensure(queue, priority)

    def _refuse_oversize(self, stored_bytes: int, room_bytes: int = GROWTH_BYTES) -> None:
        limit = self._stores.connection.max_record_bytes - room_bytes
        if stored_bytes > limit:
            raise PayloadTooLarge(
                f"The job takes {stored_bytes} bytes; the NATS server takes {limit}.",
                details={"max_bytes": limit},
                hint="Pass a reference instead of the payload, or raise max_payload of the NATS server.",
            )

    def fit(self, record: _core.Record, room_bytes: int = 0) -> bytes:
        """The bytes to store, without the oldest errors when all are too many. Raises PayloadTooLarge."""
        stored = record.serialize()
        while len(stored) + room_bytes > self._stores.connection.max_record_bytes and len(record.errors) > 1:
            del record.errors[0]
            stored = record.serialize()
        self._refuse_oversize(len(stored), room_bytes)
        return stored

    def _refuse_twins(self, records: list[_core.Record]) -> None:
        seen: set[str] = set()
        for number, record in enumerate(records):
            if record.id in seen:
                raise InvalidRequest(
                    f"Field 'jobs[{number}].id' is '{record.id}', which stands in this batch twice.",
                    details={"field": f"jobs[{number}].id", "received": record.id, "expected": "a unique id"},
                )
            seen.add(record.id)

    async def _follow_batch(
        self, records: list[_core.Record], batch: list[tuple[str, bytes]], revisions: list[int]
    ) -> None:
        # One flush, so all work messages share one PubAck; waiting for the last waits for all.
        waiting = set()
        for record, (job_id, stored), revision in zip(records, batch, revisions, strict=True):
            if not revision:
                self._propagator.doubt(job_id)
            elif (published := self._propagator.follow(record, stored, revision)) is not None:
                waiting.add(published)
        for published in waiting:
            try:
                await asyncio.shield(published)
            except Exception as error:  # noqa: BLE001 - whatever it was, the repair is the same
                log.info("work messages of a batch are late: %s", error)
                for record in records:
                    self._propagator.doubt(record.id)

    def _announce(self, record: _core.Record) -> None:
        self._events.job("job.scheduled" if record.state == "scheduled" else "job.enqueued", record)

    # -- read ------------------------------------------------------------------------------------

    async def load(self, job_id: str) -> tuple[_core.Record, bytes, int]:
        """`(record, its bytes, revision)`. Raises NotFound, Unavailable."""
        found = await self._stores.records.get(job_id) if _core.is_uuid7(job_id) else None
        if found is None:
            raise job_not_found(job_id)
        try:
            return _core.Record.parse(found[0]), found[0], found[1]
        except ValueError:
            log.exception("a foreign record in ojs-jobs", extra={"ojs.job_id": job_id})
            raise job_not_found(job_id) from None

    async def existing(self, job_ids: Iterable[str]) -> dict[str, bytes]:
        """The records of those jobs that exist, by id. Raises Unavailable."""
        return {job_id: stored for job_id, (stored, _) in (await self._stores.records.get_many(job_ids)).items()}

    async def preferred_to(self, record: _core.Record) -> bytes:
        """The job that a unique one would be ignored in favour of now, b"" when there is none. Raises Unavailable."""
        wish = unique.wish_of(record) if unique.is_asked_for(record) else None
        if wish is None or wish.on_conflict != "ignore":
            return b""
        holder, _ = await self._locks.in_the_way(wish, record.id)
        return holder.stored if holder is not None else b""

    async def get(self, job_id: str) -> bytes:
        """The public JSON of a job. A job past its `expires_at` is discarded first. Raises OJSError."""
        record, stored, _ = await self.load(job_id)
        if self.is_past(record):
            try:
                record, stored = await self.change(job_id, "expire", lambda r, now: r.expire(now))
            except Conflict:  # the leader, a worker or another read was faster
                _, stored, _ = await self.load(job_id)
            else:
                self._events.job("job.expired", record)
        return _core.public_job(stored)

    def is_past(self, record: _core.Record) -> bool:
        """True when a waiting job must not run any more."""
        return 0 < record.expires_ms <= self._clock() and record.state in WAITING

    # -- change ----------------------------------------------------------------------------------

    async def change(
        self, job_id: str, operation: str, apply: Callable[[_core.Record, int], None]
    ) -> tuple[_core.Record, bytes]:
        """One transition by compare-and-set on the record: `(record, its bytes)` as written.

        `operation` names it in a 409. Raises NotFound, Conflict, Unavailable.
        """
        for _ in range(ATTEMPTS):
            record, _, revision = await self.load(job_id)
            before, ack_subject, holder, at = record.state, record.ack_subject, record.node_id, revision
            try:
                apply(record, self._clock())
            except _core.IllegalTransition as error:
                raise illegal_transition(job_id, operation, before, error.expected_states) from None
            record.node_id = self._node_id
            period = self._tallies.stamp(record, before)
            stored = record.serialize()
            try:
                revision = await self._stores.records.replace(job_id, stored, revision, self._retention.ttl_s(record))
            except RevisionConflict:
                self._tallies.doubt(period, job_id)
                continue
            except (Unavailable, asyncio.CancelledError):
                self._tallies.doubt(period, job_id)
                raise
            if period is not None:
                period.count(record)
            self._leave(record, before, ack_subject, holder, at, revision)
            if record.state == before != "available":
                return record, stored  # another priority: no message, index or permit depends on it
            await self._propagator.followed(record, stored, revision)
            return record, stored
        raise BackendUnavailable(f"Job '{job_id}' is being changed by too many clients at once.")

    def _leave(
        self, record: _core.Record, before: str, ack_subject: str, holder: str, revision: int, written: int
    ) -> None:
        job_id = record.id
        if before == "active":
            self._claims.settled(job_id, self._claims.take(job_id))
            if ack_subject:
                self._stores.work.ack(ack_subject)
            self._peers.settled(holder, job_id, revision)
        elif before == "available":
            self._stale.left_by(record, written)
        elif before == record.state:
            return
        elif before == "scheduled":
            self._stores.outbox.erase(names.SCHEDULED, scheduled_key(record))
        elif before == "retryable":
            self._stores.outbox.erase(names.RETRY, names.retry_key(record.queue, job_id, record.attempt))

    async def cancel(self, job_id: str, only: tuple[str, ...] = ()) -> tuple[_core.Record, bytes, str]:
        """Any non-terminal state, or one of `only`, → cancelled: `(record, bytes, previous state)`. Raises OJSError."""
        previous = ""

        def apply(record: _core.Record, now_ms: int) -> None:
            nonlocal previous
            previous = record.state
            if only and previous not in only:
                raise _core.IllegalTransition("cancel", previous, only)
            record.cancel(now_ms)
            drop_checkpoint(record)

        record, stored = await self.change(job_id, "cancel", apply)
        self._events.job("job.cancelled", record, before=previous)
        return record, stored, previous

    async def activate(self, job_id: str) -> tuple[_core.Record, bytes]:
        """`pending` → available. Raises OJSError."""
        record, stored = await self.change(job_id, "activate", lambda r, now: r.activate(now))
        self._events.job("job.enqueued", record, before="pending")
        return record, stored

    async def remove(self, record: _core.Record, revision: int) -> None:
        """Delete a job that has ended, and its entry among the dead letters. Raises RevisionConflict, Unavailable."""
        await self._stores.records.delete(record.id, revision)
        if record.dead_letter:
            self._stores.outbox.erase(names.DEAD, dead_key(record))


def _duplicate(job_id: str) -> Duplicate:
    return Duplicate(
        f"A job with the id '{job_id}' exists already.",
        details={"field": "id", "existing_job_id": job_id, "job_id": job_id},
    )
