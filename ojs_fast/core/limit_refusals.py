"""What becomes of a job that a limit refuses and that does not wait: rescheduled or dropped, one write each."""

import asyncio
import logging
from dataclasses import dataclass

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.event_data import job_of
from ojs_fast.core.events import Events
from ojs_fast.core.limit_keys import LimitKeys
from ojs_fast.core.limit_state import Limit, Refusal
from ojs_fast.core.propagate import RESCHEDULES, Propagator
from ojs_fast.core.retention import Retention
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Period, Tallies
from ojs_fast.storage.connection import PubAck
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.server_clock import ServerClock
from ojs_fast.storage.work import WorkMessage

log = logging.getLogger(__name__)

# Nobody knows when a running job ends: a job refused for concurrency asks again after this.
CONCURRENCY_MS = 1000


@dataclass(slots=True)
class Refused:
    """A pulled job that may not start, the limit that says so, and the changes of its key up to then."""

    record: _core.Record
    revision: int
    message: WorkMessage
    limit: Limit
    refusal: Refusal
    changes: int


class RefusedJobs:
    """Moves refused jobs out of `available`."""

    def __init__(
        self,
        stores: Stores,
        retention: Retention,
        server_clock: ServerClock,
        events: Events,
        propagator: Propagator,
        tallies: Tallies,
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._stores = stores
        self._retention = retention
        self._server_clock = server_clock
        self._events = events
        self._propagator = propagator
        self._tallies = tallies
        self._node_id = node_id
        self._clock = clock

    async def handle(self, refused: list[Refused], keys: LimitKeys) -> None:
        """Reschedule or drop them, pipelined. What NATS does not take now is given back."""
        started = [(one, *self._start(one, keys)) for one in refused]
        for one, stored, period, pending in started:
            await self._finish(one, stored, period, pending)

    def _start(self, one: Refused, keys: LimitKeys) -> tuple[bytes, Period | None, "asyncio.Future[PubAck]"]:
        record = one.record
        if one.limit.on_limit == "drop":
            now_ms = self._clock()
            record.fail(_error(one, now_ms))
            record.drop(now_ms)
        else:
            record.extra = {**(record.extra or {}), RESCHEDULES: (record.extra or {}).get(RESCHEDULES, 0) + 1}
            record.reschedule(self._slot_ms(one, keys))
        record.node_id = self._node_id
        period = self._tallies.stamp(record, "available")
        stored = record.serialize()
        pending = self._stores.records.start_replace(record.id, stored, one.revision, self._retention.ttl_s(record))
        return stored, period, pending

    def _slot_ms(self, one: Refused, keys: LimitKeys) -> int:
        # One behind the other: a thousand jobs that all come back for the same slot would all be refused again.
        limit, key = one.limit, keys.get(one.limit.key)
        now_ms = self._server_clock.now_ms()
        gap_ms = max(limit.throttle_ms, limit.period_ms / limit.rate if limit.rate else 0)
        if not gap_ms:
            gap_ms = CONCURRENCY_MS / max(1, limit.concurrency)
        free_ms = one.refusal.until_ms or now_ms + CONCURRENCY_MS
        key.slot_ms = max(free_ms, key.slot_ms + gap_ms)
        return self._clock() + int(key.slot_ms - now_ms) + 1

    async def _finish(
        self, one: Refused, stored: bytes, period: Period | None, pending: "asyncio.Future[PubAck]"
    ) -> None:
        record = one.record
        ttl_s = self._retention.ttl_s(record)
        try:
            revision = await self._stores.records.finish_replace(record.id, stored, one.revision, ttl_s, pending)
        except RevisionConflict:
            self._tallies.doubt(period, record.id)
            self._stores.work.ack(one.message.ack_subject)
            return
        except (Unavailable, asyncio.CancelledError) as error:
            self._tallies.doubt(period, record.id)
            self._stores.work.give_back(one.message)
            self._propagator.doubt(record.id)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        if period is not None:
            period.count(record)
        self._stores.work.ack(one.message.ack_subject)
        self._propagator.follow_or_doubt(record, stored, revision)
        if record.state == "scheduled":
            self._events.job("job.scheduled", record, before="available")
            return
        self._events.announce("rate_limit.dropped", record.id, {"key": one.limit.key} | job_of(record))
        self._events.job("job.discarded", record, before="available")


def _error(one: Refused, now_ms: int) -> bytes:
    strategy, limit, current = one.refusal.strategy, one.refusal.limit, one.refusal.current
    return orjson.dumps(
        {
            "code": "rate_limited",
            "type": "rate_limited",
            "message": f"The {strategy} limit of '{one.limit.key}' is reached, and on_limit is drop.",
            "attempt": one.record.attempt,
            "occurred_at": _core.format_rfc3339_ms(now_ms),
            "details": {"key": one.limit.key, "strategy": strategy, "limit": limit, "current": current},
        }
    )
