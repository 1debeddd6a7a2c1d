"""`options.rate_limit` and overrides as `_core` reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ojs_fast import _core
from ojs_fast._core import EnvelopeError, check_limit_key, parse_limit_override, parse_rate_limit


def parse(**members: Any) -> list[Any]:
    """Parse a limit of a job in queue `mail`."""
    return parse_rate_limit(json.dumps(members).encode(), "mail")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"max_per_second": 1}, ["queue:mail", 0, 1, 1000, 0, "wait", 1]),
        ({"max_per_second": 5, "key": "k", "concurrency": 2}, ["k", 2, 5, 1000, 0, "wait", 1]),
        ({"key": "k"}, ["k", 0, 0, 0, 0, "wait", 1]),
        ({"key": "k", "concurrency": 0}, ["k", -1, 0, 0, 0, "wait", 1]),
        ({"key": "k", "concurrency": 7, "on_limit": "drop"}, ["k", 7, 0, 0, 0, "drop", 1]),
        ({"key": "k", "rate": {"limit": 3, "period": "PT1M"}}, ["k", 0, 3, 60_000, 0, "wait", 1]),
        ({"key": "k", "rate": {"limit": 3, "period": "hour"}}, ["k", 0, 3, 3_600_000, 0, "wait", 1]),
        ({"key": "k", "rate": 3, "period": "second"}, ["k", 0, 3, 1000, 0, "wait", 1]),
        ({"key": "k", "rate": 3, "period": "PT0.5S"}, ["k", 0, 3, 500, 0, "wait", 1]),
        ({"key": "k", "throttle": {"limit": 10, "period": "PT1S"}}, ["k", 0, 0, 0, 100, "wait", 10]),
        ({"key": "k", "throttle": {"limit": 3, "period": "PT1S"}}, ["k", 0, 0, 0, 1000 / 3, "wait", 3]),
        ({"key": "k", "rate": None, "concurrency": None, "on_limit": None}, ["k", 0, 0, 0, 0, "wait", 1]),
        ({"key": "tenant:a-b.c_1", "on_limit": "reschedule", "x": 1}, ["tenant:a-b.c_1", 0, 0, 0, 0, "reschedule", 1]),
    ],
)
def test_a_limit_is_read_in_every_shape(members: dict[str, Any], expected: list[Any]) -> None:
    """The specification's windows, the flat form of its suite, the per-second form of level 4."""
    assert parse(**members) == expected


# (the member that is bad below options.rate_limit, a template with a hole, what fills it)
HOLE = object()
BAD_VALUES: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("key", {}, [None]),
    ("key", {"concurrency": 1}, [None]),
    ("key", {"key": HOLE}, ["", "-a", "a b", "a/b", "ä", 1, [], "k" * 256]),
    ("concurrency", {"key": "k", "concurrency": HOLE}, [-1, 10_001, 1.5, "1", True, [], {}]),
    ("rate", {"key": "k", "rate": HOLE}, [0, -1, "x", [], True, 1.5]),
    ("rate", {"key": "k", "max_per_second": 1, "rate": 1}, [None]),
    ("rate.limit", {"key": "k", "rate": {}}, [None]),
    ("rate.limit", {"key": "k", "rate": {"limit": HOLE, "period": "PT1S"}}, [0, -1, "1", 10**10, True]),
    ("period", {"key": "k", "rate": 5, "period": HOLE}, [None, "fortnight"]),
    ("rate.period", {"key": "k", "rate": {"limit": 1, "period": HOLE}}, ["", "PT0S", "P1Y", "P367D", 5, None, "-PT1S"]),
    ("throttle", {"key": "k", "throttle": HOLE}, [1, "x", [], True]),
    ("throttle.limit", {"key": "k", "throttle": {"limit": 0, "period": "PT1S"}}, [None]),
    ("throttle.period", {"key": "k", "throttle": {"limit": 1, "period": "soon"}}, [None]),
    ("on_limit", {"key": "k", "on_limit": HOLE}, ["", "WAIT", 1, []]),
    ("max_per_second", {"max_per_second": HOLE}, [0, -1, 1.5, "1", True, 10**10]),
]


def filled(template: Any, value: Any) -> Any:
    """Put the value where the template has its hole."""
    if isinstance(template, dict):
        return {name: filled(member, value) for name, member in template.items()}
    return value if template is HOLE else template


BAD = [(filled(template, value), field) for field, template, values in BAD_VALUES for value in values]


@pytest.mark.parametrize(("members", "field"), BAD)
def test_a_bad_limit_is_refused_by_name(members: dict[str, Any], field: str) -> None:
    """The error names the field below options.rate_limit and is a 400."""
    with pytest.raises(EnvelopeError) as refused:
        parse(**members)
    assert refused.value.field == f"options.rate_limit.{field}"
    assert not refused.value.retry_policy


def test_a_number_beyond_a_double_is_refused_where_it_matters() -> None:
    """And kept where nobody reads it."""
    assert parse_rate_limit(b'{"key":"k","note":1e400}', "q")[0] == "k"
    with pytest.raises(EnvelopeError) as refused:
        parse_rate_limit(b'{"key":"k","concurrency":1e400}', "q")
    assert refused.value.field == "options.rate_limit.concurrency"


def test_an_override_replaces_at_least_one_thing() -> None:
    """Concurrency 0 pauses the key."""
    assert parse_limit_override(b'{"concurrency":0}', 5) == {"concurrency": 0, "expires_ms": 0}
    assert parse_limit_override(b'{"rate":{"limit":2,"period":"day"},"expires_at":"+PT1S"}', 5) == {
        "rate": [2, 86_400_000],
        "expires_ms": 1005,
    }
    assert parse_limit_override(b'{"throttle":{"limit":2,"period":"second"}}', 5) == {
        "throttle": [500, 2],
        "expires_ms": 0,
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "concurrency"),
        (b'{"expires_at":"2030-01-01T00:00:00Z"}', "concurrency"),
        (b'{"concurrency":-1}', "concurrency"),
        (b'{"concurrency":1,"expires_at":"1999-01-01T00:00:00Z"}', "expires_at"),
        (b'{"concurrency":1,"expires_at":7}', "expires_at"),
        (b'{"rate":{"limit":0,"period":"PT1S"}}', "rate.limit"),
        (b'{"throttle":{"limit":1}}', "throttle.period"),
    ],
)
def test_a_bad_override_is_refused_by_name(body: bytes, field: str) -> None:
    """The error names the field."""
    with pytest.raises(EnvelopeError) as refused:
        parse_limit_override(body, 946_684_800_000)
    assert refused.value.field == field


def test_keys_are_those_of_the_specification() -> None:
    """Section 6.2: `^[a-zA-Z0-9][a-zA-Z0-9._:-]*$`."""
    assert check_limit_key("api.stripe.com", "key") == "api.stripe.com"
    with pytest.raises(EnvelopeError):
        check_limit_key("a\n", "key")


def record_of(body: dict[str, Any]) -> _core.Record:
    """Parse an enqueue request."""
    return _core.parse_enqueue(json.dumps(body).encode(), 1000, lambda at: _core.uuid7(at, b"0123456789"))


def test_the_job_keeps_what_the_client_sent_and_the_record_what_counts() -> None:
    """Jobs without a limit, or with an empty one, carry nothing."""
    limit = {"key": "k", "concurrency": 2, "note": "ours"}
    record = record_of({"type": "a", "args": [], "rate_limit": limit})
    assert record.extra == {"limits": [["k", 2, 0, 0, 0, "wait", 1]]}
    assert json.loads(_core.public_job(record.serialize()))["rate_limit"] == limit
    assert record_of({"type": "a", "args": []}).extra is None
    assert record_of({"type": "a", "args": [], "options": {"rate_limit": {}}}).extra is None


@pytest.mark.parametrize("options", [{}, {"scheduled_at": "1999-01-01T00:00:00Z"}, {"scheduled_at": "+PT0S"}])
def test_a_rescheduled_job_shows_its_new_time_once(options: dict[str, Any]) -> None:
    """Over any number of reschedules, whatever the client had asked for; the rest stays byte by byte."""
    record = record_of({"type": "a", "args": [',"scheduled_at":'], "options": {"tags": ["x"], **options}})
    for due_ms in (5000, 6000):
        record.state = "available"
        record.reschedule(due_ms)
        pairs = json.loads(_core.public_job(record.serialize()), object_pairs_hook=list)
        assert [value for name, value in pairs if name == "scheduled_at"] == [
            f"1970-01-01T00:00:0{due_ms // 1000}.000Z"
        ]
        shown = dict(pairs)
        assert (shown["args"], shown["tags"], shown["state"]) == ([',"scheduled_at":'], ["x"], "scheduled")
    assert _core.Record.parse(record.serialize()).scheduled_ms == 6000


def test_a_dropped_job_never_completed() -> None:
    """It shows discarded_at alone, like one that expired."""
    record = record_of({"type": "a", "args": []})
    record.drop(7000)
    shown = json.loads(_core.public_job(record.serialize()))
    assert (shown["state"], shown["discarded_at"]) == ("discarded", "1970-01-01T00:00:07.000Z")
    assert "completed_at" not in shown
