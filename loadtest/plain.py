"""The pieces of `_core` in plain Python: what one would write without it, not strawmen. `micro.py` times both."""

import heapq
import math
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from ojs_fast import _core

JOB_ID = "019c516c-ac5b-7a1b-9c3d-0123456789ab"
NOW_MS = 1_770_892_200_123
TRANSITIONS = {
    (operation, state): _core.transition(operation, state)
    for operation in ("promote", "claim", "ack", "cancel", "requeue")
    for state in _core.expected_states(operation)
}


def plain_transition(operation: str, state: str) -> str:
    """Look the transition up in a dict of pairs."""
    try:
        return TRANSITIONS[operation, state]
    except KeyError:
        message = f"Cannot {operation} a job in state {state!r}"
        raise ValueError(message) from None


def plain_backoff(
    strategy: str,
    index: int,
    initial_ms: int,
    coefficient: float,
    max_ms: int,
    jitter: bool,  # noqa: FBT001 - as the compiled one
    unit: float,
) -> int:
    """Compute the formulas of ojs-retry Appendix A with the same checks."""
    if index < 1 or initial_ms < 0 or max_ms < 0 or not 0 <= unit < 1:
        raise ValueError
    if not (math.isfinite(coefficient) and coefficient >= 1):
        raise ValueError
    try:
        match strategy:
            case "exponential":
                raw = initial_ms * coefficient ** (index - 1)
            case "linear":
                raw = initial_ms * index
            case "polynomial":
                raw = initial_ms * index**coefficient
            case _:
                raw = initial_ms
    except OverflowError:
        raw = math.inf
    delay = round(min(raw, max_ms))
    return min((delay + 1) // 2 + int(delay * unit), max_ms) if jitter else delay


def plain_priority_key(priority: int, sequence: int) -> tuple[int, int]:
    """Make a tuple that sorts the same way."""
    if not -100 <= priority <= 100 or sequence < 0:
        raise ValueError
    return -priority, sequence


def plain_format_time(epoch_ms: int) -> str:
    """Write RFC 3339 by datetime."""
    seconds, milliseconds = divmod(epoch_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def plain_format_time_iso(epoch_ms: int) -> str:
    """Write RFC 3339 by datetime's fastest way."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def plain_parse_time(text: str) -> int:
    """Read RFC 3339 by datetime."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError
    return (moment - EPOCH) // MILLISECOND


DURATION = re.compile(r"P(?:(\d+)W|(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:[.,]\d+)?)S)?)?)")


def plain_parse_duration(text: str) -> int:
    """Read an ISO 8601 duration by a regular expression."""
    match = DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        raise ValueError
    weeks, days, hours, minutes, seconds = match.groups(default="0")
    whole = ((int(weeks) * 7 + int(days)) * 24 + int(hours)) * 60 + int(minutes)
    return whole * 60_000 + int(float(seconds.replace(",", ".")) * 1000)


def plain_format_duration(milliseconds: int) -> str:
    """Write an ISO 8601 duration."""
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = "PT" + (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "")
    if rest or text == "PT":
        text += f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "S"
    return text


def plain_uuid7(epoch_ms: int, random_bytes: bytes) -> str:
    """Lay out RFC 9562 section 5.7 with integers."""
    bits = int.from_bytes(random_bytes, "big") & 0x0FFF_3FFF_FFFF_FFFF_FFFF
    text = f"{epoch_ms << 80 | 0x7000_8000_0000_0000_0000 | bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class PlainUuid7Generator:
    """Version 7 ids with a counter, as the compiled generator makes them."""

    def __init__(self) -> None:
        self.last_ms = -1
        self.counter = 0

    def next(self, epoch_ms: int) -> str:
        """Return the next id."""
        tail = os.urandom(10)
        if epoch_ms > self.last_ms:
            self.last_ms = epoch_ms
            self.counter = int.from_bytes(tail[:4], "big") & 0x1FF_FFFF
        else:
            self.counter += 1
        head = self.last_ms << 16 | 0x7000 | self.counter >> 14
        text = f"{head:016x}{0x8000 | self.counter & 0x3FFF:04x}{tail[4:].hex()}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def plain_is_uuid7(text: str) -> bool:
    """Match the pattern of the contract."""
    return UUID7.fullmatch(text) is not None


def plain_pub_ack(payload: bytes, loads: Callable[[bytes], Any]) -> tuple[int, int, str]:
    """Read a PubAck with a JSON decoder."""
    ack = loads(payload)
    error = ack.get("error")
    if error is None:
        return ack["seq"], 0, ""
    return ack.get("seq", 0), error.get("err_code") or error["code"], error.get("description", "")


def plain_ack_subject(subject: str) -> tuple[str, str, int, int, int, int, int]:
    """Split an acknowledgement subject."""
    tokens = subject.split(".")
    if tokens[:2] != ["$JS", "ACK"] or len(tokens) not in {9, 11, 12}:
        raise ValueError
    first = 2 if len(tokens) == 9 else 4
    stream, consumer, delivered, stream_sequence, consumer_sequence, timestamp, pending = tokens[first : first + 7]
    return (
        stream,
        consumer,
        int(delivered),
        int(stream_sequence),
        int(consumer_sequence),
        int(timestamp),
        int(pending),
    )


TYPE = re.compile(r"[a-z][a-z0-9_\-]*(\.[a-z][a-z0-9_\-]*)*")
QUEUE = re.compile(r"[a-z0-9][a-z0-9\-.]*")


def plain_enqueue(body: bytes) -> dict[str, Any]:
    """Check a request by decoding it, and make the record that would be encoded again."""
    request = orjson.loads(body)
    options = request.get("options") or {}
    queue, priority = options.get("queue", "default"), options.get("priority", 0)
    if not isinstance(request, dict) or not isinstance(request.get("args"), list):
        raise TypeError
    if TYPE.fullmatch(request["type"]) is None or QUEUE.fullmatch(queue) is None or not -100 <= priority <= 100:
        raise ValueError
    return {
        "specversion": "1.0",
        "id": JOB_ID,
        "type": request["type"],
        "queue": queue,
        "state": "available",
        "priority": priority,
        "attempt": 0,
        "max_attempts": 3,
        "created_at": plain_format_time_iso(NOW_MS),
        "enqueued_at": plain_format_time_iso(NOW_MS),
        "args": request["args"],
        "meta": request.get("meta", {}),
    }


def plain_claim(stored: bytes) -> bytes:
    """Claim a job by decoding its record and encoding it again."""
    record = orjson.loads(stored)
    record["state"] = plain_transition("claim", record["state"])
    record["attempt"] += 1
    record["started_at"] = plain_format_time_iso(NOW_MS)
    record["worker_id"] = "worker-1"
    return orjson.dumps(record)


class PlainWireParser:
    """The protocol parser as one writes it in Python: lines, then payloads."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[tuple[str, str, bytes]]:
        """Return the complete messages in what came so far: (subject, reply, payload)."""
        buffer, at, messages = self.rest + data, 0, []
        while (end := buffer.find(b"\r\n", at)) >= 0:
            words = buffer[at:end].decode().split()
            if words[0] != "MSG":
                at = end + 2
                continue
            size = int(words[-1])
            if len(buffer) < end + size + 4:
                break
            messages.append((words[1], words[3] if len(words) == 5 else "", buffer[end + 2 : end + 2 + size]))
            at = end + size + 4
        self.rest = buffer[at:]
        return messages


def plain_publish(subject: str, reply: str, headers: bytes, payload: bytes) -> bytes:
    """Frame a message with an f-string."""
    if not headers:
        return f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"
    sizes = f"{len(headers)} {len(headers) + len(payload)}"
    return f"HPUB {subject} {reply} {sizes}\r\n".encode() + headers + payload + b"\r\n"


class PlainTimerHeap:
    """A heapq with a dict that tells live entries from stale ones."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, str]] = []
        self.live: dict[str, tuple[int, int, str]] = {}
        self.pushes = 0

    def push(self, key: str, due_ms: int) -> None:
        """Arm `key`."""
        self.pushes += 1
        entry = (due_ms, self.pushes, key)
        self.live[key] = entry
        heapq.heappush(self.heap, entry)

    def remove(self, key: str) -> bool:
        """Disarm `key`, compacting when most entries are stale."""
        if self.live.pop(key, None) is None:
            return False
        if len(self.heap) > 2 * len(self.live) + 64:
            self.heap = list(self.live.values())
            heapq.heapify(self.heap)
        return True

    def pop_due(self, now_ms: int, limit: int) -> list[str]:
        """Disarm and return the keys that are due."""
        due: list[str] = []
        while self.heap and len(due) < limit and self.heap[0][0] <= now_ms:
            entry = heapq.heappop(self.heap)
            if self.live.get(entry[2]) is entry:
                del self.live[entry[2]]
                due.append(entry[2])
        return due
