"""Event envelopes (ojs-events section 2), written once the change is durable. Best effort."""

import base64
import binascii
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.event_data import MEMBERS, error_of, job_of, trace_id
from ojs_fast.core.metrics import Metrics
from ojs_fast.errors import InvalidRequest
from ojs_fast.storage.event_log import EventLog

MESSAGES_SCANNED = 20_000


class Events:
    """Announces changes of jobs and answers `GET /events`."""

    def __init__(self, event_log: EventLog, metrics: Metrics, node_id: str, clock: NowMs) -> None:
        self._log = event_log
        self._metrics = metrics
        self._clock = clock
        self._ids = _core.UuidV7Generator()
        self._source = f"ojs://ojs-fast/server/{node_id}"

    def job(self, event_type: str, record: _core.Record, extra: str = "", before: str = "") -> None:
        """Announce a change of one job; `extra` is more JSON members of `data`, with a leading comma.

        `before` is the state that it left, where the type of event does not tell.
        """
        self._metrics.observe(event_type, record, before)
        if event_type == "job.enqueued" and record.state == "pending":
            return  # it is announced when it is activated (ojs-events section 4.1)
        members = MEMBERS.get(event_type)
        if members is not None:
            extra = members(record) + extra
        if traced := trace_id(record):
            extra += f',"trace_id":{_core.quote_json(traced)}'
        if before:
            extra += f',"previous_state":"{before}"'
        now_ms = self._clock()
        event = _core.job_event(record, event_type, self._ids.next(now_ms), self._source, now_ms, extra)
        self._log.append(event_type, record.id, event)
        if event_type == "job.discarded" and record.dead_letter:
            self.dead_letter("added", record, {"total_attempts": record.attempt, "last_error": error_of(record)})

    def dead_letter(self, change: str, record: _core.Record, more: dict[str, Any] | None = None) -> None:
        """Announce that a dead letter was `added`, `retried` or `deleted` (ojs-dead-letter section 11.1)."""
        event_type = f"dead_letter.{change}"
        self.count(event_type, record)
        self.announce(event_type, record.id, job_of(record) | (more or {}))

    def count(self, event_type: str, record: _core.Record) -> None:
        """Count a change of one job that is announced together with others."""
        self._metrics.observe(event_type, record)

    def announce(self, event_type: str, subject: str, data: dict[str, Any]) -> None:
        """Announce something that is no change of a job."""
        self._log.append(event_type, subject, orjson.dumps(self.envelope(event_type, subject, data)))

    def envelope(self, event_type: str, subject: str, data: dict[str, Any]) -> dict[str, Any]:
        """An event that happens now, not announced."""
        now_ms = self._clock()
        time = _core.format_rfc3339_ms(now_ms)
        return {
            "specversion": "1.0",
            "id": f"evt_{self._ids.next(now_ms)}",
            "type": event_type,
            "source": self._source,
            "time": time,
            "subject": subject,
            "data": {**data, "timestamp": time},
        }

    async def read(
        self, *, after: str, types: list[str], queues: list[str], job_types: list[str], limit: int
    ) -> tuple[list[dict[str, Any]], str, bool]:
        """`(events, cursor, has_more)` behind the cursor `after` (ojs-events section 6.4).

        Raises InvalidRequest for a cursor that is not ours, Unavailable.
        """
        if after.startswith("evt_"):
            sequence, index = await self._find(after)
        else:
            sequence, index = _decode_cursor(after)
        found: list[dict[str, Any]] = []
        cursor = (sequence, index)
        for _ in range(MESSAGES_SCANNED // 200):
            page = await self._log.read(sequence - 1 if index else sequence, types)
            if not page:
                return found, _encode_cursor(cursor), False
            for sequence, events in page:
                start = index if sequence == cursor[0] else 0
                for number, event in enumerate(events[start:], start + 1):
                    if len(found) == limit:
                        return found, _encode_cursor(cursor), True
                    cursor = (sequence, number)
                    if _matches(event, types, queues, job_types):
                        found.append(event)
                cursor = (sequence, 0)
                index = 0
        return found, _encode_cursor(cursor), True

    async def _find(self, event_id: str) -> tuple[int, int]:
        """The cursor right behind an event named by its id. Raises InvalidRequest, Unavailable."""
        if not _core.is_uuid7(event_id[4:]):
            raise _bad_cursor(event_id)
        since = _core.format_rfc3339_ms(max(0, _core.uuid7_ms(event_id[4:]) - ID_CLOCK_MARGIN_MS))
        page = await self._log.read(0, [], since)
        for _ in range(MESSAGES_SCANNED // 200):
            for sequence, events in page:
                for number, event in enumerate(events, 1):
                    if event.get("id") == event_id:
                        return sequence, number
            if not page:
                break
            page = await self._log.read(page[-1][0], [])
        raise _bad_cursor(event_id)


# An event is written right after the clock was read for its id; the log's clock may differ a little.
ID_CLOCK_MARGIN_MS = 5000


def _matches(event: dict[str, Any], types: list[str], queues: list[str], job_types: list[str]) -> bool:
    data = event.get("data", {})
    return (
        bool(event)  # else it is none of ours
        and (not types or event.get("type") in types)
        and (not queues or data.get("queue") in queues)
        and (not job_types or data.get("job_type") in job_types)
    )


def _encode_cursor(cursor: tuple[int, int]) -> str:
    return base64.urlsafe_b64encode(b"%d.%d" % cursor).decode().rstrip("=")


def _decode_cursor(text: str) -> tuple[int, int]:
    # (sequence, index): events up to `index` of that message were seen; index 0 = all of it.
    if not text:
        return 0, 0
    try:
        sequence, _, index = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).partition(b".")
        if not (sequence.isdigit() and index.isdigit() and len(sequence) < 19 and len(index) < 19):
            raise ValueError(text)  # noqa: TRY301 - joins the decoder's own errors
        return int(sequence), int(index)
    except (ValueError, binascii.Error):
        raise _bad_cursor(text) from None


def _bad_cursor(text: str) -> InvalidRequest:
    return InvalidRequest(
        f"Parameter 'after' is '{text[:60]}'; expected the 'cursor' of an earlier answer or the id of a kept event.",
        details={"field": "after", "received": text[:60]},
    )
