"""Unique jobs: the policy, the fingerprint, and when a job is in another's way (ojs-unique-jobs). Pure."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
import rfc8785

from ojs_fast import _core
from ojs_fast.errors import InvalidRequest

# In `Record.extra`: `[path, policy]` as the client wrote it, then `[fingerprint, revision of the lock, states]`.
FEATURE = "unique"
DIMENSIONS = ("type", "queue", "args", "meta")
STATES = ("scheduled", "available", "pending", "active", "completed", "retryable", "cancelled", "discarded")
DEFAULT_STATES = ("available", "active", "scheduled", "retryable", "pending")
CONFLICTS = {
    "reject": "reject",
    "ignore": "ignore",
    "use_existing": "ignore",  # as openapi.yaml calls it
    "replace": "replace",
    "replace_except_schedule": "replace_except_schedule",
}
_KNOWN = ("keys", "key", "args_keys", "meta_keys", "period", "states", "on_conflict")
# From so many characters on a double may no longer tell integers apart, and neither would the fingerprint.
_LONG = 16
_DELICATE = re.compile(rb"[0-9]{16}|[:,\[\s]-?[0-9.]+[eE]")


@dataclass(slots=True, frozen=True)
class Wish:
    """What a job asks for. `period_ms` 0 = without end; `on_conflict` is one of `CONFLICTS`' values."""

    fingerprint: str
    states: tuple[str, ...]
    period_ms: int
    on_conflict: str

    def is_in_the_way(self, other: _core.Record, now_ms: int) -> bool:
        """True when a job with the same fingerprint is a duplicate (section 7.4)."""
        if other.state not in self.states:
            return False
        return not self.period_ms or now_ms < other.created_ms + self.period_ms


def is_asked_for(record: _core.Record) -> bool:
    """True when a record that was just parsed has a policy."""
    return record.extra is not None and FEATURE in record.extra


def drop(record: _core.Record) -> None:
    """Take the policy off a record: the job is to run whatever else there is."""
    if record.extra is not None and FEATURE in record.extra:
        record.extra = {name: value for name, value in record.extra.items() if name != FEATURE} or None


def wish_of(record: _core.Record) -> Wish:
    """Read the policy of a record that was just parsed. Raises InvalidRequest (section 2.2)."""
    at, text = (record.extra or {})[FEATURE]
    policy = _policy(at, text)
    return Wish(_fingerprint(record, policy, at), policy.states, policy.period_ms, policy.on_conflict)


def check(record: _core.Record, at: str) -> None:
    """Refuse a template whose jobs would be refused for their policy; `at` is its place. Raises InvalidRequest."""
    if is_asked_for(record):
        path, text = (record.extra or {})[FEATURE]
        _fingerprint(record, _policy(at + path, text), at + path)


@dataclass(slots=True, frozen=True)
class _Policy:
    """A policy that was checked, as far as that can be done without its job."""

    keys: frozenset[str]
    args_keys: tuple[str, ...] | None
    meta_keys: tuple[str, ...]
    states: tuple[str, ...]
    period_ms: int
    on_conflict: str


@lru_cache(maxsize=1024)  # producers write the same policy into every job
def _policy(at: str, text: str) -> _Policy:
    policy = json.loads(text)
    for name in policy:
        if name not in _KNOWN:
            raise _invalid(f"{at}.{name[:60]}", policy[name], f"only {', '.join(_KNOWN)}")
    keys_at = "key" if policy.get("keys") is None and policy.get("key") is not None else "keys"
    _texts(policy, at, "key", DIMENSIONS)  # also where `keys` goes before it: what is kept must be sound
    keys = _texts(policy, at, keys_at, DIMENSIONS) or ["type"]
    states = _texts(policy, at, "states", STATES)
    if states == []:
        raise _invalid(f"{at}.states", [], f"an array of {', '.join(STATES)}")
    on_conflict = policy.get("on_conflict")
    if on_conflict is None:
        on_conflict = "reject"
    if not isinstance(on_conflict, str) or on_conflict not in CONFLICTS:
        raise _invalid(f"{at}.on_conflict", on_conflict, f"one of {', '.join(CONFLICTS)}")
    args_keys, meta_keys = _texts(policy, at, "args_keys"), _texts(policy, at, "meta_keys")
    if "meta" in keys and not meta_keys:
        raise _invalid(f"{at}.meta_keys", meta_keys, "the members of meta that count (required with meta in keys)")
    return _Policy(
        frozenset(keys),
        None if args_keys is None else tuple(args_keys),
        tuple(meta_keys or ()),
        tuple(states) if states is not None else DEFAULT_STATES,
        _period_ms(policy.get("period"), f"{at}.period"),
        CONFLICTS[on_conflict],
    )


def _texts(policy: Mapping[str, Any], at: str, name: str, allowed: tuple[str, ...] = ()) -> list[str] | None:
    values = policy.get(name)
    if values is None:
        return None
    expected = f"an array of {', '.join(allowed)}" if allowed else "an array of strings"
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise _invalid(f"{at}.{name}", values, expected)
    for number, value in enumerate(values):
        if allowed and value not in allowed:
            raise _invalid(f"{at}.{name}[{number}]", value, f"one of {', '.join(allowed)}")
    return values


def _period_ms(value: Any, field: str) -> int:
    if value is None:
        return 0
    try:
        period_ms = _core.parse_duration_ms(value) if isinstance(value, str) else 0
    except ValueError:
        period_ms = 0
    if period_ms <= 0:
        raise _invalid(field, value, 'an ISO 8601 duration above zero ("PT1H")')
    return period_ms


def _fingerprint(record: _core.Record, policy: _Policy, at: str) -> str:
    """SHA-256 over the canonical JSON of the chosen dimensions (section 4), in hexadecimal digits."""
    keys = policy.keys
    body: dict[str, Any] = {}
    if "args" in keys or "meta" in keys:
        body = _decoded(b"{" + record.body[1:] + b"}")
    chosen: dict[str, Any] = {"type": record.type}
    if "queue" in keys:
        chosen["queue"] = record.queue
    if "args" in keys:
        chosen["args"] = body["args"] if policy.args_keys is None else _picked_args(body["args"], policy.args_keys, at)
    if "meta" in keys:
        chosen["meta"] = {name: body["meta"][name] for name in policy.meta_keys if name in body["meta"]}
    return hashlib.sha256(canonical(chosen)).hexdigest()


def _picked_args(args: list[Any], names: tuple[str, ...], at: str) -> Any:
    # Named arguments are one object in the array of arguments (CONTRACT section 7).
    members = args[0] if len(args) == 1 and isinstance(args[0], dict) else None
    for number, name in enumerate(names):
        if members is None or name not in members:
            raise _invalid(f"{at}.args_keys[{number}]", name, "a member of the job's only argument, an object")
    return {name: (members or {})[name] for name in names}


def _decoded(text: bytes) -> dict[str, Any]:
    # Where no number is in danger, as nearly everywhere, the quick decoder gives the same.
    if _DELICATE.search(text) is None:
        quick: dict[str, Any] = orjson.loads(text)
        return quick
    exact: dict[str, Any] = json.loads(text, parse_int=_integer, parse_float=_number)
    return exact


def canonical(value: Any) -> bytes:
    """RFC 8785 with strings in NFC. Raises ValueError for what has no UTF-8."""
    notes: set[str] = set()
    normalised = _normalised(value, notes)
    # orjson writes the same, and much faster, but for floats and the order of names that are not ASCII.
    return rfc8785.dumps(normalised) if notes else orjson.dumps(normalised, option=orjson.OPT_SORT_KEYS)


def _normalised(value: Any, notes: set[str]) -> Any:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if kind is list:
        return [_normalised(one, notes) for one in value]
    if kind is dict:
        if not all(map(str.isascii, value)):
            notes.add("names")
        return {_normalised(name, notes): _normalised(one, notes) for name, one in value.items()}
    if kind is float:
        notes.add("floats")
    return value


# Numbers that no double holds count by their digits, so that no two of them are alike.


def _integer(digits: str) -> Any:
    return int(digits) if len(digits.lstrip("-")) < _LONG else {"integer": digits}


def _number(text: str) -> Any:
    value = float(text)
    return value if abs(value) != float("inf") else {"number": text}


def _invalid(field: str, value: object, expected: str) -> InvalidRequest:
    shown = "missing" if value is None else json.dumps(value)[:80]
    return InvalidRequest(
        f"Field '{field}' is {shown}; expected {expected}.",
        details={"field": field, "received": shown, "expected": expected},
    )
