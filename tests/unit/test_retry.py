"""What a failure means for a job: reading the error of a nack, and the decision (CONTRACT section 4)."""

import json
from typing import Any

import orjson
import pytest

from ojs_fast._core import Record, parse_enqueue, scan_json_object
from ojs_fast.core.retry import Decision, Failure, decide, matches, parse_failure
from ojs_fast.errors import InvalidRequest

NOW_MS = 1_770_892_200_123
JOB_ID = "019c516c-ac5b-7a1b-9c3d-0123456789ab"
DISCARD = Decision("discard")
DEAD = Decision("discard", dead_letter=True)


def parse(error: bytes) -> Failure:
    """Read the error of a nack whose other members surround it."""
    body = b'{"job_id":"x", "error" : %s ,"requeue":false}' % error
    return parse_failure(body, scan_json_object(body)["error"])


def failure(**members: Any) -> Failure:
    """Read an error with a message and these members."""
    return parse(orjson.dumps({"message": "m", **members}))


def active(attempt: int = 1, **policy: Any) -> Record:
    """Build a job in its n-th run with this retry policy (none given: the default)."""
    retry = orjson.dumps(policy) if policy else b"null"
    record = parse_enqueue(b'{"type":"a","args":[],"options":{"retry":%s}}' % retry, NOW_MS, lambda _: JOB_ID)
    record.claim(NOW_MS, "w", 1000, 1000)
    record.attempt = attempt
    return record


def decision(record: Record, error: Failure, unit: float = 0.5) -> Decision:
    """Decide with a known die."""
    return decide(record, error, lambda: unit)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "code", "kind"),
    [
        ({}, "handler_error", "handler_error"),
        ({"code": "C"}, "C", "C"),
        ({"code": "C", "type": "T"}, "C", "T"),
        ({"type": "T"}, "handler_error", "T"),
        ({"details": {"error_class": "E"}}, "handler_error", "E"),
        ({"code": "C", "details": {"error_class": "E"}}, "C", "E"),
        ({"type": "T", "details": {"error_class": "E"}}, "handler_error", "T"),
        ({"type": "", "code": ""}, "handler_error", "handler_error"),
        ({"type": None, "code": None, "details": None, "retryable": None}, "handler_error", "handler_error"),
        ({"details": {"error_class": 1}}, "handler_error", "handler_error"),
        ({"details": []}, "handler_error", "handler_error"),
        ({"details": "text"}, "handler_error", "handler_error"),
    ],
)
def test_code_and_type_have_fallbacks(members: dict[str, Any], code: str, kind: str) -> None:
    """The type is `type`, else the error's class, else the code."""
    read = failure(**members)
    assert (read.code, read.type, read.message) == (code, kind, "m")


def test_a_bare_string_is_the_message() -> None:
    """The JavaScript SDK's serverless adapter sends nothing else."""
    assert parse(b'"b\\u0061d"') == Failure("handler_error", "handler_error", "bad")


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"null", "error"),
        (b"1", "error"),
        (b"[]", "error"),
        (b"true", "error"),
        (b'""', "error"),
        (b"{}", "error.message"),
        (b'{"message":""}', "error.message"),
        (b'{"message":null}', "error.message"),
        (b'{"message":1}', "error.message"),
        (b'{"message":["m"]}', "error.message"),
        (b'{"message":"m","code":1}', "error.code"),
        (b'{"message":"m","type":{}}', "error.type"),
        (b'{"message":"m","retryable":"no"}', "error.retryable"),
        (b'{"message":"m","retryable":0}', "error.retryable"),
        (b'{"message":"m","retryable":1.0}', "error.retryable"),
        (b'{"message":"m","retryable":[]}', "error.retryable"),
        (b'{"message":"m","retryable":1e400}', "error.retryable"),
    ],
)
def test_other_errors_are_refused_by_name(raw: bytes, field: str) -> None:
    """A wrong type or a missing message is an invalid request that names the field."""
    with pytest.raises(InvalidRequest) as refused:
        parse(raw)
    assert refused.value.details is not None
    assert refused.value.details["field"] == field
    assert refused.value.message.startswith(f"Field '{field}' is ")


def test_a_missing_error_is_refused() -> None:
    """A nack without `error` says nothing."""
    with pytest.raises(InvalidRequest, match="Field 'error'"):
        parse_failure(b"{}", None)


def test_the_entry_keeps_what_the_worker_sent() -> None:
    """`errors[]` has the known members, the attempt and the time; all others keep their bytes."""
    read = parse(b'{"message":"m\\n","details":{"n":[1.0 , 1e400]},"retryable":false,"attempt":99,"occurred_at":"x"}')
    entry = read.as_json(2, "2026-02-12T10:30:00.000Z")
    assert b'"details":{"n":[1.0 , 1e400]}' in entry
    assert json.loads(entry) == {
        "code": "handler_error",
        "type": "handler_error",
        "message": "m\n",
        "attempt": 2,
        "occurred_at": "2026-02-12T10:30:00.000Z",
        "details": {"n": [1.0, float("inf")]},
        "retryable": False,
    }


# -- deciding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("Auth.*", "Auth.TokenExpired", True),
        ("Auth.*", "Auth.", True),
        ("Auth.*", "Auth", False),
        ("Auth.*", "AuthenticationError", False),
        ("Auth.*", "auth.TokenExpired", False),
        ("Auth", "Auth", True),
        ("Auth", "Auth.TokenExpired", False),
        ("auth", "Auth", False),
        ("*", "Auth", False),
        (".*", ".x", True),
        ("A.*.B", "A.x.B", False),
        ("", "", True),
    ],
)
def test_patterns_are_equality_or_a_dotted_prefix(pattern: str, value: str, expected: bool) -> None:
    """`X.*` is what starts with `X.`; no other wildcard, case counts."""
    assert matches(pattern, value) is expected


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_failed_run_is_retried_while_runs_are_left(attempt: int) -> None:
    """Three runs by default, the delay doubling from one second."""
    delay_ms = 1000 * 2 ** (attempt - 1)
    assert decision(active(attempt), failure()) == Decision("retry", delay_ms=delay_ms)


def test_the_last_run_exhausts() -> None:
    """At the third failure the job is discarded, as a dead letter if the policy says so."""
    assert decision(active(3), failure()) == DISCARD
    assert decision(active(3, on_exhaustion="dead_letter"), failure()) == DEAD
    assert decision(active(1, max_attempts=1), failure()) == DISCARD
    assert decision(active(1, max_attempts=0), failure()) == DISCARD


def test_an_error_that_says_so_is_not_retried() -> None:
    """`retryable: false` exhausts at once; true and absent do not."""
    assert decision(active(), failure(retryable=False)) == DISCARD
    assert decision(active(on_exhaustion="dead_letter"), failure(retryable=False)) == DEAD
    assert decision(active(), failure(retryable=True)).action == "retry"
    assert decision(active(3), failure(retryable=True)) == DISCARD


@pytest.mark.parametrize(
    ("members", "action"),
    [
        ({"type": "Auth.Expired"}, "discard"),
        ({"details": {"error_class": "Auth.Expired"}}, "discard"),
        ({"type": "Other", "details": {"error_class": "Auth.Expired"}}, "discard"),
        ({"code": "Auth.Expired"}, "discard"),
        ({"type": "Other", "code": "Auth.Expired"}, "discard"),
        ({"code": "fatal"}, "discard"),
        ({"code": "Fatal"}, "retry"),
        ({"type": "Authentication"}, "retry"),
        ({}, "retry"),
    ],
)
def test_listed_errors_are_not_retried(members: dict[str, Any], action: str) -> None:
    """Type, class and code are all looked up in `non_retryable_errors`."""
    record = active(non_retryable_errors=["Auth.*", "fatal"])
    assert decision(record, failure(**members)).action == action


@pytest.mark.parametrize(
    ("code", "attempt", "expected"),
    [
        ("DISCARD", 1, DISCARD),
        ("FAIL", 1, DISCARD),
        ("DEAD_LETTER", 1, DEAD),
        ("RETRY", 1, Decision("retry", delay_ms=1000)),
        ("RETRY", 3, Decision("discard", dead_letter=True)),
    ],
)
def test_a_handlers_code_goes_before_the_rest(code: str, attempt: int, expected: Decision) -> None:
    """It overrides the flag and the patterns, but no handler gets more runs than the policy has."""
    record = active(attempt, jitter=False, on_exhaustion="dead_letter", non_retryable_errors=["RETRY"])
    assert decision(record, failure(code=code, retryable=False)) == expected


@pytest.mark.parametrize(
    ("policy", "attempt", "delay_ms"),
    [
        ({"backoff_strategy": "none"}, 4, 1000),
        ({"backoff_strategy": "constant"}, 4, 1000),
        ({"backoff_strategy": "linear"}, 4, 4000),
        ({"backoff_strategy": "exponential"}, 4, 8000),
        ({"backoff_strategy": "polynomial"}, 4, 16000),
        ({"backoff_coefficient": 1.0}, 4, 1000),
        ({"initial_interval": "PT0.5S"}, 1, 500),
        ({"max_interval": "PT3S"}, 4, 3000),
    ],
)
def test_the_delay_follows_the_policy(policy: dict[str, Any], attempt: int, delay_ms: int) -> None:
    """The number of the failed run is the index of the formula."""
    record = active(attempt, max_attempts=9, jitter=False, **policy)
    assert decision(record, failure()) == Decision("retry", delay_ms=delay_ms)


@pytest.mark.parametrize(("unit", "delay_ms"), [(0.0, 500), (0.5, 1000), (0.999, 1499)])
def test_jitter_spreads_the_delay(unit: float, delay_ms: int) -> None:
    """From half the delay to one and a half, by the die."""
    assert decision(active(), failure(), unit).delay_ms == delay_ms
