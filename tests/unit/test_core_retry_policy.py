"""Retry policies in `_core`: the rules of CONTRACT section 2, the 422 they are answered with, their defaults."""

from typing import Any

import orjson
import pytest

from ojs_fast._core import DEFAULT_RETRY, EnvelopeError, Record, parse_enqueue, parse_retry_policy, public_job

NOW_MS = 1_770_892_200_123
JOB_ID = "019c516c-ac5b-7a1b-9c3d-0123456789ab"


def enqueue(members: bytes) -> Record:
    """Parse a request with a type, arguments and these members as raw JSON."""
    return parse_enqueue(b'{"type":"a","args":[],%s}' % members, NOW_MS, lambda _: JOB_ID)


def refusal(members: bytes) -> EnvelopeError:
    """Give the error of a request that must be refused."""
    with pytest.raises(EnvelopeError) as refused:
        enqueue(members)
    return refused.value


ATTEMPTS, INITIAL, COEFFICIENT, MAXIMUM, JITTER, STRATEGY, PATTERNS, DEAD = range(8)


def test_an_empty_policy_is_the_default() -> None:
    """Omitted and null keys inherit."""
    assert parse_retry_policy(b"{}") == DEFAULT_RETRY
    keys = "max_attempts initial_interval backoff_coefficient max_interval jitter non_retryable_errors on_exhaustion"
    nulls = dict.fromkeys([*keys.split(), "backoff_strategy", "backoff_type", "initial_interval_ms"])
    assert parse_retry_policy(orjson.dumps(nulls)) == DEFAULT_RETRY


@pytest.mark.parametrize(
    ("policy", "index", "value"),
    [
        ({"max_attempts": 0}, ATTEMPTS, 0),
        ({"max_attempts": 1_000_000}, ATTEMPTS, 1_000_000),
        ({"initial_interval": "PT0.001S"}, INITIAL, 1),
        ({"initial_interval_ms": 1}, INITIAL, 1),
        ({"initial_interval": "PT1S", "initial_interval_ms": 7}, INITIAL, 1000),
        ({"backoff_coefficient": 1}, COEFFICIENT, 1.0),
        ({"backoff_coefficient": 1e6}, COEFFICIENT, 1e6),
        ({"max_interval": "PT1S"}, MAXIMUM, 1000),
        ({"max_interval_ms": 1000}, MAXIMUM, 1000),
        ({"initial_interval": "PT10M"}, MAXIMUM, 600_000),
        ({"jitter": False}, JITTER, False),
        ({"backoff_strategy": "linear"}, STRATEGY, "linear"),
        ({"backoff_type": "polynomial"}, STRATEGY, "polynomial"),
        ({"backoff_strategy": "none", "backoff_type": "linear"}, STRATEGY, "none"),
        ({"non_retryable_errors": ["Auth.*", "é"]}, PATTERNS, ["Auth.*", "é"]),
        ({"on_exhaustion": "dead_letter"}, DEAD, True),
        ({"on_exhaustion": "discard"}, DEAD, False),
        ({"mine": [1]}, ATTEMPTS, 3),
    ],
)
def test_policies_within_the_rules_are_taken(policy: dict[str, Any], index: int, value: object) -> None:
    """Each key by itself, limits included; the other keys stay at their defaults."""
    parsed = parse_retry_policy(orjson.dumps(policy))
    assert (parsed[index], type(parsed[index])) == (value, type(value))
    assert len(parsed) == len(DEFAULT_RETRY)


def test_unknown_keys_may_hold_anything() -> None:
    """Also a number that no double holds."""
    assert parse_retry_policy(b'{"mine":{"n":1e400},"max_attempts":5}')[ATTEMPTS] == 5


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("max_attempts", ["-1", "1000001", "1.5", "3.0", '"3"', "true", "[]", "{}", "9" * 30, "1e3", "1e400"]),
        (
            "initial_interval",
            ['"PT0S"', '"P1Y"', '"1s"', '""', "1", "1.5", "true", "[]", "{}", '"+PT1S"', '"P101000D"'],
        ),
        ("initial_interval_ms", ["0", "-1", "1.5", '"1"', "true", "[]", "3153600000001", "9" * 30]),
        ("max_interval", ['"PT0S"', '"PT0.5S"', "1", "false", "[]"]),
        ("backoff_coefficient", ["0.99", "0", "-2", "1000001", "1e300", "1e400", '"2"', "true", "[]"]),
        ("jitter", ["1", "0", '"true"', "[]", "{}"]),
        ("backoff_strategy", ['"fibonacci"', '"Linear"', '""', "1", "0", "false", "[]", "{}"]),
        ("non_retryable_errors", ['"a"', "{}", "[1]", "[1e400]", '["a",null]', "true", "0"]),
        ("on_exhaustion", ['"retry"', '""', "1", "0", "false", "[]", "{}"]),
    ],
)
def test_policies_outside_the_rules_are_refused(key: str, values: list[str]) -> None:
    """The error names the key and is a retry policy's (answered as 422), wherever the policy stands."""
    for value in values:
        raw = b'{"%s":%s}' % (key.encode(), value.encode())
        for path, members in (
            ("options.retry", b'"options":{"retry":%s}' % raw),
            ("options.retry_policy", b'"options":{"retry_policy":%s}' % raw),
            ("retry", b'"retry":%s' % raw),
        ):
            error = refusal(members)
            assert (error.field, error.retry_policy) == (f"{path}.{key}", True)


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ({"backoff_strategy": "none", "backoff_type": "panic"}, "backoff_type"),
        ({"initial_interval": "PT1S", "initial_interval_ms": 0}, "initial_interval_ms"),
        ({"max_interval": "PT9M", "max_interval_ms": "x"}, "max_interval_ms"),
    ],
)
def test_a_second_name_must_be_sound_too(policy: dict[str, object], key: str) -> None:
    """The job keeps and shows it, though the first name counts."""
    with pytest.raises(EnvelopeError, match=key):
        parse_retry_policy(orjson.dumps(policy))


def test_a_maximum_below_the_initial_interval_is_refused() -> None:
    """Also when the two are given in different units."""
    for policy in (
        {"initial_interval": "PT2S", "max_interval": "PT1S"},
        {"initial_interval_ms": 2000, "max_interval_ms": 1999},
    ):
        error = refusal(b'"options":{"retry":%s}' % orjson.dumps(policy))
        assert (error.field, error.retry_policy) == ("options.retry.max_interval", True)


def test_the_policy_is_shown_as_it_came_and_sets_the_runs() -> None:
    """`retry` keeps its bytes; 0 runs behave as 1."""
    record = enqueue(b'"options":{"retry":{"max_attempts": 0, "mine":1.0}}')
    assert record.max_attempts == 1
    assert record.retry is not None
    assert record.retry[ATTEMPTS] == 0
    assert b'"retry":{"max_attempts": 0, "mine":1.0}' in public_job(record.serialize())
    assert enqueue(b'"retry_policy":{"max_attempts":7}').max_attempts == 7
    assert enqueue(b'"retry":null').retry is None


@pytest.mark.parametrize("raw", [b"", b"x", b"[]", b"null", b'"x"', b"1e400", b'{"a":"\\ud800"}', b"{" * 5000])
def test_what_is_no_policy_is_refused(raw: bytes) -> None:
    """Even bytes that were never validated raise EnvelopeError."""
    with pytest.raises(EnvelopeError) as refused:
        parse_retry_policy(raw)
    assert (refused.value.field, refused.value.retry_policy) == ("options.retry", True)
