"""What a failure means for a job: retry, discard or requeue. Pure (CONTRACT section 4, ojs-retry)."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.refusals import decode_field
from ojs_fast.errors import InvalidRequest


@dataclass(slots=True, frozen=True)
class Failure:
    """One reported error: `raw` members that are copied, and what the retry decision looks at."""

    code: str
    type: str
    message: str
    error_class: str = ""
    retryable: bool | None = None
    # Until when what the handler called wants to be left alone (ojs-rate-limiting section 9.1), 0 = nothing said.
    limited_until_ms: int = 0
    extra: bytes = b""

    def as_json(self, attempt: int, occurred_at: str) -> bytes:
        """The entry of `errors[]` and of `error` (CONTRACT section 4)."""
        known = orjson.dumps(
            {
                "code": self.code,
                "type": self.type,
                "message": self.message,
                "attempt": attempt,
                "occurred_at": occurred_at,
            }
        )
        return known[:-1] + self.extra + b"}"


@dataclass(slots=True, frozen=True)
class Decision:
    """What becomes of the job. `delay_ms` counts for action "retry", `dead_letter` for "discard"."""

    action: str
    delay_ms: int = 0
    dead_letter: bool = False


def parse_failure(body: bytes, span: tuple[int, int] | None) -> Failure:
    """Read the `error` of a nack; its details are kept as bytes. Raises InvalidRequest."""
    raw = body[span[0] : span[1]] if span else b"null"
    if raw[:1] == b'"' and raw != b'""':
        # The JavaScript SDK's serverless adapter sends a bare string.
        return Failure("handler_error", "handler_error", orjson.loads(raw))
    if raw[:1] != b"{":
        raise _refused("error", raw, 'an object with "message" (required)')
    members = _core.scan_json_object(raw)
    texts = {name: _text(raw, members, name) for name in ("code", "message", "type")}
    if not texts["message"]:
        raise _refused("error.message", b"missing", "a non-empty string (required)")
    retryable = _value(raw, members, "retryable")
    if retryable is not None and type(retryable) is not bool:
        raise _refused("error.retryable", orjson.dumps(retryable), "true or false")
    until_ms = _until_ms(raw, members)
    details = members.get("details")
    error_class = ""
    if details and raw[details[0]] == ord("{"):
        inside = raw[details[0] : details[1]]
        found = _value(inside, _core.scan_json_object(inside), "error_class")
        error_class = found if isinstance(found, str) else ""
    code = texts["code"] or "handler_error"
    extra = b"".join(
        b"," + orjson.dumps(name) + b":" + raw[start:end]
        for name, (start, end) in members.items()
        if name not in ("code", "message", "type", "attempt", "occurred_at")
    )
    return Failure(
        code, texts["type"] or error_class or code, texts["message"], error_class, retryable, until_ms, extra
    )


def _until_ms(raw: bytes, members: dict[str, tuple[int, int]]) -> int:
    text = _text(raw, members, "rate_limit_until")
    if not text:
        return 0
    try:
        return max(0, _core.parse_rfc3339_ms(text))
    except ValueError:
        expected = 'an RFC 3339 time with a zone ("2026-02-13T12:05:00Z")'
        raise _refused("error.rate_limit_until", orjson.dumps(text), expected) from None


def _refused(field: str, raw: bytes, expected: str) -> InvalidRequest:
    shown = raw[:60].decode("utf-8", "replace")
    return InvalidRequest(
        f"Field '{field}' is {shown}; expected {expected}.",
        details={"field": field, "received": shown, "expected": expected},
    )


def _value(raw: bytes, members: dict[str, tuple[int, int]], name: str) -> Any:
    span = members.get(name)
    return decode_field(raw[span[0] : span[1]], f"error.{name}") if span else None


def _text(raw: bytes, members: dict[str, tuple[int, int]], name: str) -> str:
    span = members.get(name)
    if span is None or raw[span[0] : span[1]] == b"null":
        return ""
    if raw[span[0]] != ord('"'):
        raise _refused(f"error.{name}", raw[span[0] : span[1]], "a string")
    return str(orjson.loads(raw[span[0] : span[1]]))


def matches(pattern: str, value: str) -> bool:
    """Case-sensitive equality, or `X.*` against anything that starts with `X.`."""
    return value == pattern or (pattern.endswith(".*") and value.startswith(pattern[:-1]))


def decide(record: _core.Record, failure: Failure, rand: Callable[[], float] = random.random) -> Decision:
    """The order of CONTRACT section 4: handler code, retryable flag, patterns, runs left."""
    policy = record.retry or _core.DEFAULT_RETRY
    if failure.code in ("DISCARD", "FAIL"):
        return Decision("discard")
    if failure.code == "DEAD_LETTER":
        return Decision("discard", dead_letter=True)
    exhausted = Decision("discard", dead_letter=policy[7])
    if record.attempt >= record.max_attempts:
        return exhausted
    if failure.code != "RETRY":
        if failure.retryable is False:
            return exhausted
        values = [v for v in (failure.type, failure.error_class, failure.code) if v]
        if any(matches(pattern, value) for pattern in policy[6] for value in values):
            return exhausted
    delay_ms = _core.backoff_delay_ms(policy[5], record.attempt, policy[1], policy[2], policy[3], policy[4], rand())
    return Decision("retry", delay_ms=delay_ms)
