"""Promote: scheduled and retryable jobs become available at the due instant. Runs on the leader only.

What waits past its `expires_at` is discarded by the same means.

Being the leader is an optimisation: every promotion is a compare-and-set, so two leaders at once
(across a takeover) promote each job once.
"""

import asyncio
import logging
from functools import partial
from typing import NamedTuple

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import Deadlines, NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.propagate import LISTED, WAITING, Propagator, entry_of, expiry_key
from ojs_fast.core.retention import Retention
from ojs_fast.core.stale import StaleMessages
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Period, Tallies
from ojs_fast.core.tracing import Tracing
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Watch
from ojs_fast.storage.connection import PubAck
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

_STATE_OF = {bucket: state for state, bucket in LISTED.items()}
RETRY_LATER_MS = 500


#: The indexes of due times.
_INDEXES = (*LISTED.values(), names.EXPIRY)


def _waits_at(bucket: str, key: str, record: _core.Record) -> bool:
    """Whether an index entry is that of the job in the state that it is in."""
    if bucket == names.EXPIRY:
        return record.state in WAITING and record.expires_ms > 0 and key == expiry_key(record)
    return entry_of(record) == (bucket, key)


def _due_ms(bucket: str, record: _core.Record) -> int:
    if bucket == names.EXPIRY:
        return record.expires_ms
    return record.scheduled_ms if bucket == names.SCHEDULED else record.next_attempt_ms


class _Promotion(NamedTuple):
    # A change whose compare-and-set is under way.
    key: str
    record: _core.Record
    stored: bytes
    revision: int
    ttl_s: int
    pending: "asyncio.Future[PubAck]"
    period: Period | None


class Promoter:
    """Follows the indexes of due times while this node leads."""

    def __init__(
        self,
        stores: Stores,
        retention: Retention,
        events: Events,
        propagator: Propagator,
        tallies: Tallies,
        stale: StaleMessages,
        tracing: Tracing,
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._tracing = tracing
        self._stores = stores
        self._retention = retention
        self._events = events
        self._propagator = propagator
        self._tallies = tallies
        self._stale = stale
        self._node_id = node_id
        self._clock = clock
        self._due = {bucket: self._deadlines(bucket) for bucket in _INDEXES}
        self._watches: list[Watch] = []

    def _deadlines(self, bucket: str) -> Deadlines:
        return Deadlines(self._clock, lambda keys: self._promote(bucket, keys))

    async def start(self) -> None:
        """Follow the indexes: this node became the leader."""
        for bucket, due in self._due.items():
            await due.open()
            watch = Watch(self._stores.connection, bucket, partial(self._changed, due))
            self._watches.append(watch)
            await watch.open()

    async def stop(self) -> None:
        """Stop: this node no longer leads."""
        watches, self._watches = self._watches, []
        for watch in watches:
            await watch.close()
        for due in self._due.values():
            await due.close()
            due.clear()

    def forget(self) -> None:
        """Drop all due times (after a reset)."""
        for due in self._due.values():
            due.clear()

    def _changed(self, due: Deadlines, key: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            due.drop(key)
        else:
            due.set(key, int(orjson.loads(value)["due_ms"]))

    async def _promote(self, bucket: str, keys: list[str]) -> None:
        """Promote what is due, a few at a time: when very many are, requests still get their turn."""
        middle = (len(keys) + 1) // 2
        name = "ojs.expiry.check" if bucket == names.EXPIRY else "ojs.scheduler.poll"
        with self._tracing.act(name, {"ojs.index": bucket, "messaging.batch.message_count": len(keys)}):
            await asyncio.gather(*(self._promote_some(bucket, part) for part in (keys[:middle], keys[middle:]) if part))

    async def _promote_some(self, bucket: str, keys: list[str]) -> None:
        due = self._due[bucket]
        try:
            found = await self._stores.records.get_many(names.indexed_job(key) for key in keys)
        except Unavailable as error:
            log.info("promotion is tried again: %s", error)
            for key in keys:
                due.set(key, self._clock() + RETRY_LATER_MS)
            return
        under_way = [entry for key in keys if (entry := self._start(bucket, key, found.get(names.indexed_job(key))))]
        published = None
        rest = iter(under_way)
        for key, record, stored, revision, ttl_s, pending, period in rest:
            try:
                written = await self._stores.records.finish_replace(record.id, stored, revision, ttl_s, pending)
            except (RevisionConflict, Unavailable) as error:
                self._tallies.doubt(period, record.id)
                log.info("promotion is tried again: %r", error, extra={"ojs.job_id": record.id})
                due.set(key, self._clock() + RETRY_LATER_MS)
                continue
            except asyncio.CancelledError:
                # Another node leads, and finds nothing to do for a job that is promoted already: it is ours to follow.
                self._tallies.doubt(period, record.id)
                for one in rest:
                    self._leave(one)
                raise
            if period is not None:
                period.count(record)
            published = self._propagator.follow_or_doubt(record, stored, written)
            self._stores.outbox.erase(bucket, key)
            if bucket == names.EXPIRY:
                # It may have waited in another index, or as a work message.
                self._propagator.forsake(record)
                self._stale.left_by(record, written)
            event_type = "job.expired" if record.state == "discarded" else "job.enqueued"
            self._events.job(event_type, record, before=_STATE_OF.get(bucket, ""))
        if published is not None:
            # Not for its outcome, which `follow_or_doubt` handles: NATS is to keep up.
            await asyncio.wait([published])

    def _leave(self, one: "_Promotion") -> None:
        self._stores.records.lost(one.record.id, one.revision)
        self._tallies.doubt(one.period, one.record.id)

    def _start(self, bucket: str, key: str, found: tuple[bytes, int] | None) -> "_Promotion | None":
        """Send the change of one job; None when its record says that there is nothing to do."""
        try:
            record = _core.Record.parse(found[0]) if found else None
        except ValueError as error:
            log.error("a foreign record in ojs-jobs is left alone: %s", error, extra={"key": key})
            record = None
        if found is None or record is None or not _waits_at(bucket, key, record):
            self._stores.outbox.erase(bucket, key)
            return None
        now_ms = self._clock()
        due_ms = _due_ms(bucket, record)
        if due_ms > now_ms:
            self._due[bucket].set(key, due_ms)
            return None
        if 0 < record.expires_ms <= now_ms:
            record.expire(now_ms)
        else:
            record.promote(now_ms)
        record.node_id = self._node_id
        period = self._tallies.stamp(record, "")
        stored, revision = record.serialize(), found[1]
        ttl_s = self._retention.ttl_s(record)
        pending = self._stores.records.start_replace(record.id, stored, revision, ttl_s)
        return _Promotion(key, record, stored, revision, ttl_s, pending, period)
