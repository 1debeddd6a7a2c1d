"""The record of `_core`: what is stored comes back, and what GET shows follows CONTRACT sections 2 and 3."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ojs_fast._core import (
    STATES,
    IllegalTransition,
    Record,
    expected_states,
    format_rfc3339_ms,
    job_reply,
    jobs_reply,
    parse_enqueue,
    public_job,
    scan_json_object,
    split_work_message,
    work_message,
)

NOW_MS = 1_770_892_200_123
JOB_ID = "019c516c-ac5b-7a1b-9c3d-0123456789ab"
ALWAYS = {"specversion", "id", "type", "queue", "state", "args", "meta", "priority", "attempt", "max_attempts"} | {
    "created_at"
}
AT_TIMES = {"enqueued_at", "activated_at", "started_at", "completed_at", "cancelled_at", "discarded_at"} | {
    "next_attempt_at"
}
MEMBERS = ALWAYS | AT_TIMES | {"scheduled_at", "retry", "retry_delay_ms", "worker_id", "errors", "error", "result"}

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=8
)


@st.composite
def spelled(draw: st.DrawFn, what: st.SearchStrategy[Any]) -> bytes:
    """JSON as a client may write it; infinities become numbers beyond a double."""
    ascii_only, indent = draw(st.booleans()), draw(st.sampled_from([None, 1]))
    text = json.dumps(draw(what), ensure_ascii=ascii_only, indent=indent, separators=(" ,", ":  "))
    return text.replace("Infinity", "1e999").encode()


raw_values = spelled(values)
raw_errors = spelled(st.fixed_dictionaries({"message": st.text()}, optional={"code": st.text(), "details": values}))
milliseconds = st.integers(0, 3_153_600_000_000)


class Lifecycle(RuleBasedStateMachine):
    """A job under any order of operations, stored and read back after each."""

    now_ms = NOW_MS
    stored = b""

    @initialize(
        args=spelled(st.lists(values)),
        meta=spelled(st.dictionaries(st.text() | st.just("trace_id"), values)),
        more=st.dictionaries(st.text(), raw_values, max_size=2),
        extra=st.one_of(st.none(), st.dictionaries(st.text(), st.lists(st.integers(0, 2**53)) | st.text())),
        options=st.sampled_from(
            [
                b"{}",
                b'{"pending":true}',
                b'{"scheduled_at":"+PT1H"}',
                b'{"retry":{"max_attempts":2,"on_exhaustion":"dead_letter","non_retryable_errors":["\xc3\xa9"]}}',
                b'{"expires_at":"2099-12-31T23:59:59Z","tags":["a"],"timeout_ms":5,"priority":-3,"mine":[1 ,2]}',
            ]
        ),
    )
    def enqueue(
        self, args: bytes, meta: bytes, more: dict[str, bytes], options: bytes, extra: dict[str, Any] | None
    ) -> None:
        """Start with a request that carries members the server does not know."""
        self.args, self.meta = args, meta
        self.more = {f"x{key}": value for key, value in more.items()}
        unknown = b"".join(b",%s:%s" % (orjson.dumps(key), value) for key, value in self.more.items())
        body = b'{"type":"a.b","args":%s,"meta":%s,"options":%s%s}' % (args, meta, options, unknown)
        self.options = json.loads(options)
        record = parse_enqueue(body, self.now_ms, lambda _: JOB_ID)
        assert record.extra is None
        record.extra = self.extra = extra
        self.stored = record.serialize()
        self.errors: list[bytes] = []
        self.result = b""
        self.attempt = 0
        self.expired = False

    def change(self, operation: str, apply: Callable[[Record], None]) -> bool:
        """Apply an operation to what is stored; return whether it was legal. A refused one changes nothing."""
        self.now_ms += 1
        record = Record.parse(self.stored)
        before = record.state
        if before in expected_states(operation):
            apply(record)
            self.stored = record.serialize()
            return True
        with pytest.raises(IllegalTransition) as refusal:
            apply(record)
        assert (refusal.value.operation, refusal.value.state) == (operation, before)
        assert record.serialize() == self.stored
        return False

    @rule(worker_id=st.text(), reservation_ms=milliseconds, timeout_ms=milliseconds)
    def claim(self, worker_id: str, reservation_ms: int, timeout_ms: int) -> None:
        """A worker fetches the job."""
        if self.change("claim", lambda r: r.claim(self.now_ms, worker_id, reservation_ms, timeout_ms)):
            self.attempt += 1
            record = Record.parse(self.stored)
            assert record.worker_id == worker_id
            assert record.started_ms == self.now_ms
            assert record.timeout_ms == (self.options.get("timeout_ms") or record.timeout_ms)

    @rule(result=st.one_of(st.just(b""), raw_values))
    def complete(self, result: bytes) -> None:
        """The worker acknowledges."""
        if self.change("ack", lambda r: r.complete(self.now_ms, result)):
            self.result = result

    @rule(error=raw_errors, delay_ms=milliseconds, times=st.sampled_from([1, 1, 30]))
    def fail(self, error: bytes, delay_ms: int, times: int) -> None:
        """An attempt, or many, go wrong and the job will be tried again."""

        def apply(record: Record) -> None:
            record.schedule_retry(self.now_ms, delay_ms)
            for _ in range(times):
                record.fail(error)

        if self.change("retry", apply):
            self.errors += [error] * times
            assert Record.parse(self.stored).next_attempt_ms == self.now_ms + delay_ms

    @rule(error=raw_errors, dead_letter=st.booleans())
    def discard(self, error: bytes, dead_letter: bool) -> None:
        """The last attempt goes wrong."""

        def apply(record: Record) -> None:
            record.discard(self.now_ms, dead_letter)
            record.fail(error)

        if self.change("discard", apply):
            self.errors.append(error)
            assert Record.parse(self.stored).dead_letter is dead_letter

    @rule(counts=st.booleans())
    def requeue(self, counts: bool) -> None:
        """The job goes back to its queue."""
        if self.change("requeue", lambda r: r.requeue(self.now_ms, counts)):
            self.attempt -= not counts

    @rule()
    def promote(self) -> None:
        """The job is due."""
        self.change("promote", lambda r: r.promote(self.now_ms))

    @rule()
    def activate(self) -> None:
        """Somebody releases the pending job."""
        self.change("activate", lambda r: r.activate(self.now_ms))

    @rule()
    def cancel(self) -> None:
        """Somebody cancels the job."""
        self.change("cancel", lambda r: r.cancel(self.now_ms))

    @rule()
    def expire(self) -> None:
        """The job's `expires_at` passes."""
        self.expired |= self.change("expire", lambda r: r.expire(self.now_ms))

    @rule()
    def revive(self) -> None:
        """An operator retries the discarded job."""
        if self.change("dead_letter_retry", lambda r: r.revive(self.now_ms)):
            self.attempt, self.expired = 0, False

    @invariant()
    def what_is_stored_comes_back(self) -> None:
        """Reading and writing a record changes no byte of it."""
        assert Record.parse(self.stored).serialize() == self.stored

    @invariant()
    def a_brief_record_lacks_only_what_is_large(self) -> None:
        """With body, errors and result put back it is the same, and the record it was made from has not changed."""
        whole = Record.parse(self.stored)
        brief = Record.parse(whole.brief())
        assert (brief.body, brief.errors, brief.result) == (b"", [], b"")
        brief.body, brief.errors, brief.result = whole.body, whole.errors, whole.result
        assert brief.serialize() == whole.serialize() == self.stored

    @invariant()
    def a_trace_in_meta_is_remembered(self) -> None:
        """Whatever happens to the job."""
        assert Record.parse(self.stored).may_be_traced is (b'"trace' in self.meta)

    @invariant()
    def only_public_members_are_shown(self) -> None:
        """Whatever the operations, GET shows a JSON object without private members."""
        shown = scan_json_object(public_job(self.stored))
        extra = {"options"} if "mine" in self.options else set()
        allowed = MEMBERS | set(self.options) - {"pending", "mine"} | set(self.more) | extra
        assert ALWAYS <= set(shown) <= allowed

    @invariant()
    def user_json_survives_verbatim(self) -> None:
        """Arguments, meta, unknown members, errors and result are the bytes that came."""
        job = public_job(self.stored)
        shown = {key: job[start:end] for key, (start, end) in scan_json_object(job).items()}
        assert (shown["args"], shown["meta"]) == (self.args, self.meta)
        assert {key: shown[key] for key in self.more} == self.more
        if "mine" in self.options:
            assert shown["options"] == b'{"mine":[1 ,2]}'
        assert shown.get("result", b"") == self.result

    @invariant()
    def errors_are_kept_up_to_25(self) -> None:
        """`errors` is the history, `error` the latest of it until the job completes."""
        record = Record.parse(self.stored)
        assert record.errors == self.errors[-25:]
        job = public_job(self.stored)
        shown = {key: job[start:end] for key, (start, end) in scan_json_object(job).items()}
        assert ("errors" in shown) == bool(self.errors)
        assert ("error" in shown) == (bool(self.errors) and record.state != "completed")
        if "error" in shown:
            assert shown["error"] == self.errors[-1]

    @invariant()
    def the_end_is_told_as_the_contract_says(self) -> None:
        """A cancelled or expired job never completed; one that failed for good did."""
        record = Record.parse(self.stored)
        ends = {"completed_at", "cancelled_at", "discarded_at"} & set(scan_json_object(public_job(self.stored)))
        expected = {"completed": {"completed_at"}, "cancelled": {"cancelled_at"}}.get(record.state, set())
        if record.state == "discarded":
            expected = {"discarded_at"} if self.expired else {"discarded_at", "completed_at"}
        assert ends == expected
        assert record.expired is self.expired

    @invariant()
    def attempts_are_claims(self) -> None:
        """Only claims count, and giving one back or starting over uncounts them."""
        record = Record.parse(self.stored)
        assert record.attempt == self.attempt
        assert record.extra == self.extra
        assert (record.next_attempt_ms > 0) == (record.state == "retryable")


Lifecycle.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestLifecycle = Lifecycle.TestCase


def sample(state: str = "active", errors: int = 2, result: bytes = b"") -> Record:
    """Build a record with something in every part."""
    body = b'{"type":"a.b","args":["\xc3\xa9",1e999],"options":{"retry":{"max_attempts":5}}}'
    record = parse_enqueue(body, NOW_MS, lambda _: JOB_ID)
    record.claim(NOW_MS + 1, 'w"1', 1000, 2000)
    record.ack_subject, record.node_id, record.test_directive = "$JS.ACK.x", "n1", "quiet"
    for number in range(errors):
        record.fail(b'{"message":"m%d"}' % number)
    record.state, record.result = state, result
    return record


SAMPLES = [
    record.serialize()
    for record in (sample(), sample(errors=0), sample("completed", result=b'{"r":[null]}'), sample("retryable", 25))
]


def test_the_members_are_what_the_contract_calls_them() -> None:
    """One job, in full."""
    record = sample("completed", errors=1, result=b"null")
    record.ended_ms, record.scheduled_ms, record.priority = NOW_MS + 5, NOW_MS + 2, 7
    assert json.loads(public_job(record.serialize())) == {
        "specversion": "1.0",
        "id": JOB_ID,
        "type": "a.b",
        "queue": "default",
        "state": "completed",
        "priority": 7,
        "attempt": 1,
        "max_attempts": 5,
        "created_at": format_rfc3339_ms(NOW_MS),
        "enqueued_at": format_rfc3339_ms(NOW_MS),
        "started_at": format_rfc3339_ms(NOW_MS + 1),
        "completed_at": format_rfc3339_ms(NOW_MS + 5),
        "worker_id": 'w"1',
        "args": ["é", float("inf")],
        "meta": {},
        "retry": {"max_attempts": 5},
        "errors": [{"message": "m0"}],
        "result": None,
    }


def test_the_jobs_own_timeouts_win() -> None:
    """Reservation and execution timeout of the job go before those of the claim."""
    own = parse_enqueue(b'{"type":"a","args":[],"timeout_ms":7,"visibility_timeout_ms":8}', NOW_MS, lambda _: JOB_ID)
    own.claim(NOW_MS, "", 1000, 2000)
    assert (own.reservation_ms, own.timeout_ms) == (8, 7)
    given_ = parse_enqueue(b'{"type":"a","args":[]}', NOW_MS, lambda _: JOB_ID)
    given_.claim(NOW_MS, "", 1000, 2000)
    assert (given_.reservation_ms, given_.timeout_ms) == (1000, 2000)


def test_many_jobs_are_one_array() -> None:
    """A reply of jobs is what GET shows of each."""
    assert jobs_reply([]) == b'{"jobs":[]}'
    assert jobs_reply(SAMPLES[:2]) == b'{"jobs":[' + public_job(SAMPLES[0]) + b"," + public_job(SAMPLES[1]) + b"]}"


def test_one_job_is_an_object() -> None:
    """A reply of one job is what GET shows of it, and more if there is more."""
    shown = public_job(SAMPLES[0])
    assert job_reply(SAMPLES[0]) == b'{"job":' + shown + b"}"
    assert job_reply(SAMPLES[0], b',"a":1') == b'{"job":' + shown + b',"a":1}'


# -- damaged bytes ---------------------------------------------------------------------------------


def assert_read_or_refused(stored: bytes) -> None:
    """Fail unless the bytes are a record that can be handled, or raise ValueError."""
    try:
        record = Record.parse(stored)
    except ValueError:
        return
    assert record.state in STATES
    assert all(type(error) is bytes for error in record.errors)
    assert stored.endswith(record.result + stored[-1:])
    # A time far away cannot be written.
    with contextlib.suppress(ValueError):
        record.serialize()


@pytest.mark.parametrize("stored", SAMPLES)
def test_a_truncated_or_longer_record_is_refused(stored: bytes) -> None:
    """Every length but the right one raises ValueError."""
    for length in range(len(stored)):
        with pytest.raises(ValueError, match="not a record"):
            Record.parse(stored[:length])
    with pytest.raises(ValueError, match="do not add up"):
        Record.parse(stored + b" ")


@settings(max_examples=1000)
@given(st.sampled_from(SAMPLES), st.integers(0, 700), st.binary(min_size=1, max_size=6), st.booleans())
def test_a_changed_byte_never_crashes(stored: bytes, at: int, damage: bytes, longer: bool) -> None:
    """Bytes overwritten or inserted anywhere give a record or ValueError."""
    at = min(at, len(stored))
    assert_read_or_refused(stored[:at] + damage + stored[at + (0 if longer else len(damage)) :])


GOOD = orjson.loads(SAMPLES[0][8 : int(SAMPLES[0][10:16], 16) - 1])
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, 1e300, "", "x", "active", [], [[]], {}]),
    st.lists(st.one_of(st.integers(-20, 20), st.sampled_from([2**63 - 1, -(2**63), None, "x"])), max_size=4),
)


@settings(max_examples=1000)
@given(st.lists(st.tuples(st.integers(1, len(GOOD) - 1), odd), min_size=1, max_size=4), st.integers(0, 3))
@example([(24, [])], 0)
@example([(26, 2**63 - 1)], 0)
@example([(25, 2**63 - 1), (26, 2**63 - 1)], 0)
@example([(27, [2**63 - 1])], 0)
@example([(27, [-11, 2**63 - 1])], 0)
@example([(28, -1)], 0)
@example([(4, None)], 0)
def test_a_foreign_private_part_never_crashes(changes: list[tuple[int, Any]], shorter: int) -> None:
    """Members of any type and size, lengths among them, give a record or ValueError."""
    private = list(GOOD)
    for index, value in changes:
        private[index] = value
    inner = orjson.dumps(private[1 : len(private) - shorter])[1:]
    offset = 19 + len(inner)
    assert_read_or_refused(b'{"_ojs":["%06x",%s,' % (offset, inner) + SAMPLES[0][int(SAMPLES[0][10:16], 16) :])


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{}",
        b'{"_ojs":["',
        b'{"_ojs":["000012",',
        b'{"_ojs":["000012"],}',
        b'{"_ojs":["00001a","a"],"b":1}',
        b'{"_ojs":["-00001","a"],"b":1}',
        b'{"_ojs":["0x1_2a","a"],"b":1}',
        b'{"_ojs":["00001A","a"],"b":1}',
        b'{"_ojs":["ffffff","a"],"b":1}',
        b'{"_ojs":["000000","a"],"b":1}',
    ],
)
def test_other_bytes_are_no_record(stored: bytes) -> None:
    """What was never a record raises ValueError."""
    with pytest.raises(ValueError, match="not a record"):
        Record.parse(stored)


@pytest.mark.parametrize("stored", [b"", b"{}", b'{"_ojs":["-00001"],"a":1}', b'{"_ojs":["ffffff"],"a":1}'])
def test_nothing_is_shown_of_other_bytes(stored: bytes) -> None:
    """Cutting the public part out of a foreign record raises ValueError."""
    with pytest.raises(ValueError, match="not a record"):
        public_job(stored)
    with pytest.raises(ValueError, match="not a record"):
        jobs_reply([stored])
    with pytest.raises(ValueError, match="not a record"):
        job_reply(stored)


@pytest.mark.parametrize("value", [None, "x", bytearray(b"x"), 1])
def test_only_bytes_are_taken(value: Any) -> None:
    """Anything but bytes raises TypeError, None included, instead of crashing compiled code."""
    for call in (
        Record.parse,
        public_job,
        split_work_message,
        lambda v: work_message(1, v),
        lambda v: jobs_reply([v]),
        job_reply,
        lambda v: job_reply(sample().serialize(), v),
    ):
        with pytest.raises(TypeError):
            call(value)
    with pytest.raises(TypeError):
        sample().complete(NOW_MS, value)
    with pytest.raises(TypeError):
        sample().fail(value)


# -- work messages ---------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1), st.binary())
def test_a_work_message_comes_apart_as_it_was_put_together(revision: int, stored: bytes) -> None:
    """Any revision, any record."""
    assert split_work_message(work_message(revision, stored)) == (revision, stored)


@given(st.one_of(st.binary(), st.text(" 0123456789+-_\n").map(str.encode)))
@example(b"")
@example(b" 1")
@example(b"1")
@example(b"+1 x")
@example(b"-1 x")
@example(b"1_0 x")
@example(b"1\n x")
@example(b"12345678901234567890 x")
def test_other_bytes_are_no_work_message(payload: bytes) -> None:
    """Unless digits and a space come first, ValueError is raised."""
    digits, space, rest = payload.partition(b" ")
    if space and digits.isdigit() and len(digits) < 20:
        assert split_work_message(payload) == (int(digits), rest)
    else:
        with pytest.raises(ValueError, match="not a work message"):
            split_work_message(payload)
