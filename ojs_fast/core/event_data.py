"""What an event tells of its job beside what all of them tell: the members that ojs-events requires. Pure."""

import re
from collections.abc import Callable
from typing import Any

import orjson

from ojs_fast import _core

LONGEST_MESSAGE = 1000
LONGEST_TRACE_ID = 255
DEEPEST = 1000
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def _started(record: _core.Record) -> str:
    return f',"worker_id":{_core.quote_json(record.worker_id)}'


def _failed(record: _core.Record) -> str:
    error = _last_error(record)
    # A run that was left says more than the error: the job's policy took it for final.
    is_final = record.state == "discarded" and record.attempt < record.max_attempts
    retryable = "false" if is_final or error.get("retryable") == b"false" else "true"
    return f',"error":{{{_told(record)},"retryable":{retryable}}}'


def _retrying(record: _core.Record) -> str:
    at = _core.format_rfc3339_ms(record.next_attempt_ms)
    return (
        f',"max_attempts":{record.max_attempts},"next_retry_at":"{at}","retry_delay_ms":{record.retry_delay_ms},'
        f'"error":{{{_told(record)}}}'
    )


def _discarded(record: _core.Record) -> str:
    return f',"total_attempts":{record.attempt},"last_error":{{{_told(record)}}}'


def _scheduled(record: _core.Record) -> str:
    return f',"scheduled_at":"{_core.format_rfc3339_ms(record.scheduled_ms)}"'


def _expired(record: _core.Record) -> str:
    created, expired = (_core.format_rfc3339_ms(at_ms) for at_ms in (record.created_ms, record.ended_ms))
    ttl_ms = max(0, record.expires_ms - record.created_ms)
    return f',"created_at":"{created}","expired_at":"{expired}","ttl_ms":{ttl_ms}'


#: event → JSON members of its `data` (ojs-events section 4.1), each with a leading comma
MEMBERS: dict[str, Callable[[_core.Record], str]] = {
    "job.started": _started,
    "job.failed": _failed,
    "job.retrying": _retrying,
    "job.discarded": _discarded,
    "job.scheduled": _scheduled,
    "job.expired": _expired,
}


def job_of(record: _core.Record) -> dict[str, Any]:
    """Which job it is, for the `data` of an event that is no `job.…`."""
    return {"job_id": record.id, "job_type": record.type, "queue": record.queue}


def trace_id(record: _core.Record) -> str:
    """The trace that a job belongs to, by `meta.trace_id` or `meta.traceparent` (ojs-events section 8), "" if none."""
    if not record.may_be_traced:
        return ""
    meta = _members(_members(b"{%b}" % record.body[1:]).get("meta", b""))
    told = _text(meta.get("trace_id"))
    if told:
        return told[:LONGEST_TRACE_ID]
    found = _TRACEPARENT.match(_text(meta.get("traceparent")))
    return found[1] if found else ""


def error_of(record: _core.Record) -> dict[str, str]:
    """`{code, message}` of the last failure."""
    error = _last_error(record)
    return {name: _text(error.get(name))[:LONGEST_MESSAGE] for name in ("code", "message")}


def _last_error(record: _core.Record) -> dict[str, bytes]:
    return _members(record.errors[-1]) if record.errors else {}


def _told(record: _core.Record) -> str:
    return ",".join(f'"{name}":{_core.quote_json(text)}' for name, text in error_of(record).items())


def _members(raw: bytes) -> dict[str, bytes]:
    """The members of an object as bytes, none of what is no object: an event must not fail for what lies in NATS."""
    try:
        return {name: raw[start:end] for name, (start, end) in _core.scan_json_object(raw, DEEPEST).items()}
    except (ValueError, TypeError):
        return {}


def _text(raw: bytes | None) -> str:
    """A JSON string, "" for what is none."""
    try:
        value = orjson.loads(raw) if raw else None
    except orjson.JSONDecodeError:
        return ""
    return value if isinstance(value, str) else ""
