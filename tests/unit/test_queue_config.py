"""What a queue's configuration means, how a change is merged, and what is refused."""

from typing import Any

import pytest

from ojs_fast import _core
from ojs_fast.core.queue_config import QueueRules, merged, rules
from ojs_fast.errors import InvalidRequest, JobTypeNotAllowed, OJSError, Unsupported, ValidationFailed


def record(**fields: Any) -> _core.Record:
    """Make a job that sets only `fields` itself."""
    one = _core.Record("id", "mail.send", "q", b"")
    for name, value in fields.items():
        setattr(one, name, value)
    return one


def test_an_empty_configuration_changes_nothing() -> None:
    """Without rules there is no bound, no default and no limit of types."""
    assert rules({}) == QueueRules()


def test_both_names_of_a_bound_mean_the_same() -> None:
    """`max_size` of ojs-queue-config is `max_depth` of ojs-backpressure."""
    one = rules({"max_size": 5, "overflow_policy": "drop_oldest"})
    other = rules({"backpressure": {"max_depth": 5, "strategy": "drop_oldest"}})
    assert one == other
    assert (one.max_depth, one.strategy, one.warning_threshold) == (5, "drop_oldest", 0.8)


def test_the_bound_that_was_set_last_counts() -> None:
    """Setting one name of the bound removes the other, so that no two bounds disagree."""
    first = merged({}, {"max_size": 5})
    second = merged(first, {"backpressure": {"max_depth": 7}})
    assert rules(second).max_depth == 7
    assert rules(merged(second, {"max_size": 3})).max_depth == 3


def test_a_change_keeps_what_it_does_not_name_and_null_removes() -> None:
    """Members given replace, members not given stay."""
    config = merged({"default_timeout": 5, "visibility_timeout": 6}, {"default_timeout": None, "max_size": 1})
    assert config == {"visibility_timeout": 6, "max_size": 1}


@pytest.mark.parametrize("value", [5, 0, None])
def test_the_concurrency_is_kept_elsewhere(value: int | None) -> None:
    """It is fine, but the limit of the queue's key holds it, so that there is one truth."""
    assert merged({"max_size": 1}, {"concurrency": value}) == {"max_size": 1}


def test_defaults_apply_only_to_what_the_job_leaves_open() -> None:
    """A job's own values win over its queue's (ojs-queue-config section 7.3)."""
    queue = rules({"default_timeout": 7, "visibility_timeout": 8, "default_retry": {"max_attempts": 9}})
    open_job, own_job = record(), record(timeout_ms=1, visibility_ms=2, retry=_core.DEFAULT_RETRY, max_attempts=3)
    queue.apply(open_job)
    queue.apply(own_job)
    assert (open_job.timeout_ms, open_job.visibility_ms, open_job.max_attempts) == (7000, 8000, 9)
    assert (own_job.timeout_ms, own_job.visibility_ms, own_job.max_attempts) == (1, 2, 3)


@pytest.mark.parametrize(("patterns", "fits"), [(["mail.*"], True), (["mail.send"], True), (["pay.*", "x"], False)])
def test_a_queue_takes_only_the_types_it_allows(patterns: list[str], *, fits: bool) -> None:
    """An exact type or a pattern with `*` at its end."""
    queue = rules({"allowed_job_types": patterns})
    if fits:
        queue.apply(record())
        return
    with pytest.raises(JobTypeNotAllowed) as refusal:
        queue.apply(record())
    assert refusal.value.details is not None
    assert refusal.value.details["field"] == "type"
    with pytest.raises(JobTypeNotAllowed, match=r"'steps\[1\]\.type' is 'mail.send'"):
        queue.check_type(record(), "steps[1].")


REFUSED: list[tuple[Any, str, type[OJSError]]] = [
    ([], "config", InvalidRequest),
    ({"surprise": 1}, "surprise", InvalidRequest),
    ({"concurrency": -1}, "concurrency", InvalidRequest),
    ({"concurrency": 10_001}, "concurrency", InvalidRequest),
    ({"concurrency": True}, "concurrency", InvalidRequest),
    ({"concurrency": "5"}, "concurrency", InvalidRequest),
    ({"rate_limit": {"limit": 5}}, "rate_limit", Unsupported),
    ({"dead_letter_queue": "x"}, "dead_letter_queue", Unsupported),
    ({"max_size_bytes": 5}, "max_size_bytes", Unsupported),
    ({"max_size": -1}, "max_size", InvalidRequest),
    ({"max_size": "5"}, "max_size", InvalidRequest),
    ({"max_size": True}, "max_size", InvalidRequest),
    ({"max_size": 10**12}, "max_size", InvalidRequest),
    ({"max_size": 1, "overflow_policy": "panic"}, "overflow_policy", InvalidRequest),
    ({"backpressure": {"max_depth": 1}, "overflow_policy": "panic"}, "overflow_policy", InvalidRequest),
    ({"backpressure": {"max_size_bytes": False}}, "backpressure.max_size_bytes", Unsupported),
    ({"max_size": 1, "backpressure": {"max_depth": 1}}, "backpressure", InvalidRequest),
    ({"backpressure": 5}, "backpressure", InvalidRequest),
    ({"backpressure": {"max_depth": 1.5}}, "backpressure.max_depth", InvalidRequest),
    ({"backpressure": {"max_depth": False}}, "backpressure.max_depth", InvalidRequest),
    ({"backpressure": {"strategy": "panic"}}, "backpressure.strategy", InvalidRequest),
    ({"backpressure": {"strategy": []}}, "backpressure.strategy", InvalidRequest),
    ({"backpressure": {"warning_threshold": 1.5}}, "backpressure.warning_threshold", InvalidRequest),
    ({"backpressure": {"warning_threshold": True}}, "backpressure.warning_threshold", InvalidRequest),
    ({"backpressure": {"max_size_bytes": 5}}, "backpressure.max_size_bytes", Unsupported),
    ({"backpressure": {"surprise": 5}}, "backpressure.surprise", InvalidRequest),
    ({"retention": 5}, "retention", InvalidRequest),
    ({"retention": {"available": "P1D"}}, "retention.available", InvalidRequest),
    ({"retention": {"completed": "soon"}}, "retention.completed", InvalidRequest),
    ({"retention": {"completed": 5}}, "retention.completed", InvalidRequest),
    ({"retention": {"completed": "PT0S"}}, "retention.completed", InvalidRequest),
    ({"retention": {"completed": "PT0.5S"}}, "retention.completed", InvalidRequest),
    ({"visibility_timeout": 0}, "visibility_timeout", InvalidRequest),
    ({"default_timeout": "PT5S"}, "default_timeout", InvalidRequest),
    ({"default_timeout": 10**9}, "default_timeout", InvalidRequest),
    ({"default_retry": {"max_attempts": -1}}, "default_retry.max_attempts", ValidationFailed),
    ({"default_retry": 5}, "default_retry", ValidationFailed),
    ({"allowed_job_types": "x"}, "allowed_job_types", InvalidRequest),
    ({"allowed_job_types": []}, "allowed_job_types", InvalidRequest),
    ({"allowed_job_types": [5]}, "allowed_job_types", InvalidRequest),
]


@pytest.mark.parametrize(
    ("change", "field", "kind"), REFUSED, ids=[f"{field}={change}" for change, field, _ in REFUSED]
)
def test_a_bad_configuration_is_refused_by_name(change: Any, field: str, kind: type[OJSError]) -> None:
    """The error names the field."""
    with pytest.raises(kind) as refusal:
        merged({}, change)
    assert refusal.value.details is not None
    assert refusal.value.details["field"] == field
    assert f"'{field}'" in refusal.value.message
