"""Policies of unique jobs: what is refused, what makes two jobs alike, who is in the way."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from ojs_fast import _core
from ojs_fast.core import unique
from ojs_fast.core.unique import Wish
from ojs_fast.errors import InvalidRequest

NOW = 1_700_000_000_000
JOB_ID = "01900000-0000-7000-8000-000000000000"


def parsed(policy: Any, *, args: Any = (), meta: Any = None, type_: str = "a.b", queue: str = "q") -> _core.Record:
    """The record of an enqueue request."""
    request = {"type": type_, "args": list(args), "meta": meta or {}, "options": {"queue": queue, "unique": policy}}
    return _core.parse_enqueue(json.dumps(request).encode(), NOW, lambda _: JOB_ID)


def fingerprint(policy: Any, **job: Any) -> str:
    """What the job is known by."""
    return unique.wish_of(parsed(policy, **job)).fingerprint


def test_the_fingerprint_is_sha256_of_canonical_json() -> None:
    """As section 4.3 computes it."""
    policy = {"keys": ["queue", "args"], "args_keys": ["user_id"]}
    canonical = b'{"args":{"user_id":42},"queue":"notifications","type":"email.send"}'
    found = fingerprint(policy, args=[{"user_id": 42, "x": 1}], type_="email.send", queue="notifications")
    assert found == hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"a": 1, "b": [2]}], [{"b": [2], "a": 1}]),
        ([1.0], [1]),
        (["é"], ["e\u0301"]),
        ([{"e\u0301": 1}], [{"é": 1}]),
        ([1e2], [100]),
    ],
)
def test_what_means_the_same_is_the_same(one: list[Any], other: list[Any]) -> None:
    """Order of members, ways to write a number, ways to write a character."""
    assert fingerprint({"keys": ["args"]}, args=one) == fingerprint({"keys": ["args"]}, args=other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[9007199254740993]", "[9007199254740992]"),
        ("[1e400]", "[1e401]"),
        ("[" + "9" * 5000 + "]", "[" + "9" * 5001 + "]"),
        ("[1]", "[true]"),
        ("[1]", '["1"]'),
        ("[null]", "[]"),
        ("[0.1]", "[0.10000000000000002]"),
    ],
)
def test_what_differs_is_told_apart(one: str, other: str) -> None:
    """Also numbers that no double holds."""

    def found(args: str) -> str:
        body = b'{"type":"a.b","args":%s,"options":{"unique":{"keys":["args"]}}}' % args.encode()
        return unique.wish_of(_core.parse_enqueue(body, NOW, lambda _: JOB_ID)).fingerprint

    assert found(one) != found(other)


def test_each_dimension_counts_only_when_asked_for() -> None:
    """The type always counts, the others by name; `key` is `keys`."""
    assert fingerprint({}, args=[1], queue="q") == fingerprint({"keys": ["type"]}, args=[2], queue="r")
    assert fingerprint({}, type_="a.b") != fingerprint({}, type_="a.c")
    assert fingerprint({"keys": ["queue"]}, queue="q") != fingerprint({"keys": ["queue"]}, queue="r")
    assert fingerprint({"keys": ["args"]}, args=[1]) != fingerprint({"keys": ["args"]}, args=[2])
    assert fingerprint({"key": ["args"]}, args=[1]) == fingerprint({"keys": ["type", "args"]}, args=[1])
    by_tenant = {"keys": ["meta"], "meta_keys": ["tenant"]}
    assert fingerprint(by_tenant, meta={"tenant": "a", "x": 1}) == fingerprint(by_tenant, meta={"tenant": "a", "x": 2})
    assert fingerprint(by_tenant, meta={"tenant": "a"}) != fingerprint(by_tenant, meta={"tenant": "b"})
    by_user = {"keys": ["args"], "args_keys": ["user"]}
    assert fingerprint(by_user, args=[{"user": 1, "x": 1}]) == fingerprint(by_user, args=[{"user": 1, "x": 2}])


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"keys": ["argz"]}, "options.unique.keys[0]"),
        ({"keys": ["type", "Args"]}, "options.unique.keys[1]"),
        ({"keys": "type"}, "options.unique.keys"),
        ({"keys": [1]}, "options.unique.keys"),
        ({"key": ["argz"]}, "options.unique.key[0]"),
        ({"keys": ["args"], "args_keys": ["nobody"]}, "options.unique.args_keys[0]"),
        ({"keys": ["args"], "args_keys": "user"}, "options.unique.args_keys"),
        ({"keys": ["meta"]}, "options.unique.meta_keys"),
        ({"keys": ["meta"], "meta_keys": []}, "options.unique.meta_keys"),
        ({"keys": ["meta"], "meta_keys": [1]}, "options.unique.meta_keys"),
        ({"period": "1h"}, "options.unique.period"),
        ({"period": 60}, "options.unique.period"),
        ({"period": "PT0S"}, "options.unique.period"),
        ({"states": ["waiting"]}, "options.unique.states[0]"),
        ({"states": []}, "options.unique.states"),
        ({"states": "active"}, "options.unique.states"),
        ({"keys": ["type"], "key": ["color"]}, "options.unique.key[0]"),
        ({"on_conflict": "explode"}, "options.unique.on_conflict"),
        ({"on_conflict": 1}, "options.unique.on_conflict"),
        ({"on_conflict": False}, "options.unique.on_conflict"),
        ({"on_conflict": ""}, "options.unique.on_conflict"),
        ({"perid": "PT1H"}, "options.unique.perid"),
    ],
)
def test_a_bad_policy_is_refused_by_name(policy: dict[str, Any], field: str) -> None:
    """With the field, and what would be accepted."""
    with pytest.raises(InvalidRequest) as refused:
        unique.wish_of(parsed(policy, args=[{"user": 1}]))
    assert refused.value.details is not None
    assert refused.value.details["field"] == field


TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_canonical_json_is_that_of_rfc_8785(value: Any) -> None:
    """Whichever library writes it."""

    def nfc(one: Any) -> Any:
        if isinstance(one, str):
            return unicodedata.normalize("NFC", one)
        if isinstance(one, dict):
            return {nfc(name): nfc(member) for name, member in one.items()}
        return [nfc(member) for member in one] if isinstance(one, list) else one

    assert unique.canonical(value) == rfc8785.dumps(nfc(value))


@given(VALUES)
@example(-100_000_000_000_000)  # its sign is no digit
def test_both_decoders_tell_the_same_apart(value: Any) -> None:
    """A number that the quick decoder must not touch makes no other value look different."""
    args = json.dumps([value]).encode()
    quick, exact = (
        unique.wish_of(_core.parse_enqueue(body, NOW, lambda _: JOB_ID)).fingerprint
        for body in (
            b'{"type":"a.b","args":%s,"options":{"unique":{"keys":["args"]}}}' % args,
            b'{"type":"a.b","args":%s,"options":{"unique":{"keys":["args"]}},"meta":{"x":1e5}}' % args,
        )
    )
    assert quick == exact


@given(
    state=st.sampled_from(unique.STATES),
    states=st.lists(st.sampled_from(unique.STATES), min_size=1),
    period_ms=st.integers(0, 100),
    age_ms=st.integers(0, 200),
)
def test_who_is_in_the_way(state: str, states: list[str], period_ms: int, age_ms: int) -> None:
    """Its state is listed, and the period since its creation is not over (section 7.4)."""
    other = _core.Record(JOB_ID, "a.b", "q", b"")
    other.state, other.created_ms = state, NOW
    expected = state in states and (period_ms == 0 or age_ms < period_ms)
    wish = Wish("f", tuple(states), period_ms, "reject")
    assert wish.is_in_the_way(other, NOW + age_ms) == expected


def test_a_job_without_policy_asks_for_nothing() -> None:
    """`null` is none; dropping one leaves other features alone."""
    assert not unique.is_asked_for(parsed(None))
    record = parsed({})
    assert unique.is_asked_for(record)
    record.extra = {**(record.extra or {}), "ttl": 5}
    unique.drop(record)
    assert record.extra == {"ttl": 5}
