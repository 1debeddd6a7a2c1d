"""What each piece of the compiled core costs beside plain Python: `python -m loadtest.micro [word …]`.

Owns the comparison table. A row earns a piece its place in `_core`; add one by appending to `ROWS`.
Words on the command line select the rows whose name contains one of them.
"""

import json
import random
import sys
import timeit
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from loadtest.plain import (
    JOB_ID,
    NOW_MS,
    PlainTimerHeap,
    PlainUuid7Generator,
    PlainWireParser,
    plain_ack_subject,
    plain_backoff,
    plain_claim,
    plain_enqueue,
    plain_format_duration,
    plain_format_time,
    plain_format_time_iso,
    plain_is_uuid7,
    plain_parse_duration,
    plain_parse_time,
    plain_priority_key,
    plain_pub_ack,
    plain_publish,
    plain_transition,
    plain_uuid7,
)
from ojs_fast import _core


@dataclass(frozen=True)
class Row:
    """One comparison: two statements that do the same, timed with `names` in scope.

    `setup` runs before every timing, untimed. A statement that handles many items says so in `items`,
    and the figures are then per item. `same` is off where the results differ by nature, as random ids.
    """

    name: str
    compiled: str
    plain: str
    names: dict[str, Any] = field(default_factory=dict)
    setup: str = "pass"
    items: int = 1
    same: bool = True


REPEATS = 7
TARGET_SECONDS = 0.05


def best_ns(statement: str, row: Row) -> float:
    """Nanoseconds per item: the best of several timings, as disturbance only ever adds."""
    timer = timeit.Timer(statement, row.setup, globals=row.names)
    calls = 1
    while timer.timeit(calls) < TARGET_SECONDS and calls < 10**7:
        calls *= 4
    return min(timer.repeat(REPEATS, calls)) / calls / row.items * 1e9


def check_same(row: Row) -> None:
    """Fail unless both statements give equal results, or the comparison would mean nothing."""
    scope = dict(row.names)
    exec(row.setup, scope)
    compiled = eval(row.compiled, scope)
    exec(row.setup, scope)
    plain = eval(row.plain, scope)
    if row.same and compiled != plain:
        message = f"{row.name}: {compiled!r} != {plain!r}"
        raise AssertionError(message)


def report(rows: Iterable[Row]) -> None:
    """Print a Markdown table, a line as soon as it is measured."""
    print(f"| {'piece':<42} | {'_core ns':>9} | {'Python ns':>9} | {'ratio':>6} |")
    print(f"|{'-' * 44}|{'-' * 10}:|{'-' * 10}:|{'-' * 7}:|")
    for row in rows:
        check_same(row)
        compiled, plain = best_ns(row.compiled, row), best_ns(row.plain, row)
        print(f"| {row.name:<42} | {compiled:>9.0f} | {plain:>9.0f} | {plain / compiled:>6.1f} |", flush=True)


def compiled_claim(stored: bytes) -> bytes:
    """Claim a job by splicing its record."""
    record = _core.Record.parse(stored)
    record.claim(NOW_MS, "worker-1", 1_800_000, 1_800_000)
    return record.serialize()


def timers_fire(make: Callable[[], Any], keys: list[str], due: list[int]) -> int:
    """Arm every key and let all of them fire."""
    heap = make()
    for key, due_ms in zip(keys, due, strict=True):
        heap.push(key, due_ms)
    fired = 0
    while batch := heap.pop_due(10**12, 256):
        fired += len(batch)
    return fired


def timers_cancelled(heap: Any, keys: list[str]) -> int:
    """Arm and disarm every key beside those already armed, as claims that settle in time do."""
    for key in keys:
        heap.push(key, 1_800_000)
    return sum(heap.remove(key) for key in keys)


PUB_ACK = b'{"stream":"KV_ojs-jobs","seq":123456}'
BATCH_ACK = b'{"stream":"KV_ojs-jobs","seq":123456,"batch":"Jk3xQ0vV7sYc2mHfPqLr9T","count":256}'
REFUSAL = (
    b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"},"stream":"KV_ojs-jobs","seq":0}'
)
ACK_SUBJECT = "$JS.ACK.OJS.q_default_0.1.123456.98765.1770892200123456789.42"
DICE = random.Random(7)
TIMER_KEYS = [_core.uuid7(NOW_MS + number, DICE.randbytes(10)) for number in range(10_000)]
TIMER_DUE = [NOW_MS + DICE.randrange(60_000) for _ in TIMER_KEYS]


SMALL = (
    b'{"type":"email.send","args":["user@example.com","welcome"],"meta":{"trace":"abc"},"options":{"queue":"email"}}'
)
LARGE = b'{"type":"email.send","args":[%s],"options":{"queue":"email"}}' % b",".join(
    b'{"name":"item \\"%d\\"","price":%d.5,"tags":["a","b"],"text":"%s"}' % (n, n, b"lorem ipsum " * 10)
    for n in range(50)
)
ACKS = b"".join(b"MSG _INBOX.abc.%d 1 %d\r\n%s\r\n" % (n, len(PUB_ACK), PUB_ACK) for n in range(100))
HEADERS = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 123456\r\n\r\n"


def compiled_enqueue(body: bytes) -> bytes:
    """Make the bytes to store from a request."""
    return _core.parse_enqueue(body, NOW_MS, lambda _: JOB_ID).serialize()


def against(compiled: Callable[..., Any], plain: Callable[..., Any], **names: Any) -> dict[str, Any]:
    """Build a scope in which `c` is the compiled piece, `p` its equivalent."""
    return {"c": compiled, "p": plain, **names}


def armed_heaps() -> dict[str, Any]:
    """Build a scope with both heaps already holding 10 000 timers."""
    heaps = against(_core.TimerHeap(), PlainTimerHeap(), f=timers_cancelled)  # type: ignore[arg-type]
    for key, due_ms in zip(TIMER_KEYS, TIMER_DUE, strict=True):
        heaps["c"].push(key, due_ms)
        heaps["p"].push(key, due_ms)
    return heaps | {"keys": [key[::-1] for key in TIMER_KEYS[:1000]]}


ROWS: list[Row] = [
    Row("transition", 'c("ack", "active")', 'p("ack", "active")', against(_core.transition, plain_transition)),
    Row(
        "is_terminal",
        'c("active")',
        'p("active")',
        against(_core.is_terminal, lambda state: state in _core.TERMINAL_STATES),
    ),
    Row(
        "backoff exponential + jitter",
        'c("exponential", 5, 1000, 2.0, 300000, True, 0.3)',
        'p("exponential", 5, 1000, 2.0, 300000, True, 0.3)',
        against(_core.backoff_delay_ms, plain_backoff),
    ),
    Row(
        "priority_key",
        "c(10, 123456)",
        "p(10, 123456)",
        against(_core.priority_key, plain_priority_key),
        same=False,
    ),
    Row(
        "format time (isoformat)",
        f"c({NOW_MS})",
        f"p({NOW_MS})",
        against(_core.format_rfc3339_ms, plain_format_time_iso),
    ),
    Row("format time (strftime)", f"c({NOW_MS})", f"p({NOW_MS})", against(_core.format_rfc3339_ms, plain_format_time)),
    Row(
        "format time, another day each",
        f"[c({NOW_MS} + d * 86400000) for d in range(100)]",
        f"[p({NOW_MS} + d * 86400000) for d in range(100)]",
        against(_core.format_rfc3339_ms, plain_format_time_iso),
        items=100,
    ),
    Row(
        "parse time",
        'c("2026-02-12T11:30:00.123+01:00")',
        'p("2026-02-12T11:30:00.123+01:00")',
        against(_core.parse_rfc3339_ms, plain_parse_time),
    ),
    Row(
        "parse duration PT1S",
        'c("PT1S")',
        'p("PT1S")',
        against(_core.parse_duration_ms, plain_parse_duration),
    ),
    Row(
        "parse duration P1DT1H30M0.5S",
        'c("P1DT1H30M0.5S")',
        'p("P1DT1H30M0.5S")',
        against(_core.parse_duration_ms, plain_parse_duration),
    ),
    Row("format duration", "c(5400500)", "p(5400500)", against(_core.format_duration_ms, plain_format_duration)),
    Row(
        "uuid7",
        f"c({NOW_MS}, b)",
        f"p({NOW_MS}, b)",
        against(_core.uuid7, plain_uuid7, b=bytes(range(10))),
    ),
    Row(
        "UuidV7Generator.next",
        f"c({NOW_MS})",
        f"p({NOW_MS})",
        against(_core.UuidV7Generator().next, PlainUuid7Generator().next),
        same=False,
    ),
    Row("is_uuid7", "c(t)", "p(t)", against(_core.is_uuid7, plain_is_uuid7, t=JOB_ID)),
    Row(
        "uuid7_ms",
        "c(t)",
        "p(t)",
        against(_core.uuid7_ms, lambda text: int(text[:8] + text[9:13], 16), t=JOB_ID),
    ),
    Row(
        "PubAck (orjson)",
        "c(t)",
        "p(t, l)",
        against(_core.parse_pub_ack, plain_pub_ack, t=PUB_ACK, l=orjson.loads),
    ),
    Row("PubAck (json)", "c(t)", "p(t, l)", against(_core.parse_pub_ack, plain_pub_ack, t=PUB_ACK, l=json.loads)),
    Row(
        "PubAck of a batch (orjson)",
        "c(t)",
        "p(t, l)",
        against(_core.parse_pub_ack, plain_pub_ack, t=BATCH_ACK, l=orjson.loads),
    ),
    Row(
        "PubAck refusal (orjson)",
        "c(t)",
        "p(t, l)",
        against(_core.parse_pub_ack, plain_pub_ack, t=REFUSAL, l=orjson.loads),
    ),
    Row("ack subject", "c(t)", "p(t)", against(_core.parse_ack_subject, plain_ack_subject, t=ACK_SUBJECT)),
    *(
        row
        for size, body in (("small", SMALL), ("8 kB", LARGE))
        for row in (
            Row(
                f"scan_json_object, {size} (orjson.loads)",
                "c(t)",
                "p(t)",
                against(_core.scan_json_object, orjson.loads, t=body),
                same=False,
            ),
            Row(
                f"parse_enqueue + serialize, {size}",
                "c(t)",
                "d(p(t))",
                against(compiled_enqueue, plain_enqueue, t=body, d=orjson.dumps),
                same=False,
            ),
            Row(
                f"Record.parse, {size} (orjson.loads)",
                "c(s)",
                "p(t)",
                against(
                    _core.Record.parse, orjson.loads, s=compiled_enqueue(body), t=orjson.dumps(plain_enqueue(body))
                ),
                same=False,
            ),
            Row(
                f"Record parse, claim, serialize, {size}",
                "c(s)",
                "p(t)",
                against(compiled_claim, plain_claim, s=compiled_enqueue(body), t=orjson.dumps(plain_enqueue(body))),
                same=False,
            ),
        )
    ),
    Row(
        "WireParser, 100 PubAcks",
        "c.feed(t)",
        "p.feed(t)",
        {"c": _core.WireParser(), "p": PlainWireParser(), "t": ACKS},
        items=100,
        same=False,
    ),
    Row(
        "wire_publish with headers",
        'c("a.b", "_INBOX.a", h, t)',
        'p("a.b", "_INBOX.a", h, t)',
        against(_core.wire_publish, plain_publish, h=HEADERS, t=SMALL),
    ),
    Row(
        "timer armed and fired, of 10 000",
        "f(c, keys, due)",
        "f(p, keys, due)",
        against(_core.TimerHeap, PlainTimerHeap, f=timers_fire, keys=TIMER_KEYS, due=TIMER_DUE),
        items=len(TIMER_KEYS),
    ),
    Row(
        "timer cancelled beside 10 000",
        "f(c, keys)",
        "f(p, keys)",
        armed_heaps(),
        items=1000,
    ),
]


def main() -> None:
    """Measure the rows that the command line asks for, or all."""
    words = sys.argv[1:]
    report(row for row in ROWS if not words or any(word in row.name for word in words))


if __name__ == "__main__":
    main()
