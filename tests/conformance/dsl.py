"""The language of the official conformance cases: matchers and assertions (`paths` has paths and templates).

Owns what the assertions of a case mean, to the letter of the official runner, its quirks included: a server
must pass there, so being cleverer here would only hide failures. Where the official runner looks away
(`exclusive_claim`, `equality`), this one looks. Pure: knows no HTTP library, no files, no clock.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .paths import (
    Bodies,
    PathError,
    answer_at,
    answer_of,
    as_text,
    deep_equal,
    is_number,
    json_type,
    resolve,
    substitute_in,
)

FLOAT_SLACK = 1e-9
APPROXIMATE_SHARE = 0.5
APPROXIMATE_FLOOR_MS = 100


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP reply, as far as assertions can see it; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str
    body: dict[str, Any] | None
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Failure:
    """One assertion that does not hold."""

    assertion: str
    expected: Any
    actual: Any


@dataclass(slots=True)
class Findings:
    """What the assertions of one step came to; `skipped` names what nobody looked at, and why."""

    failures: list[Failure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def require(self, assertion: str, expected: Any, actual: Any, *, holds: bool) -> None:
        """Note a failure unless `holds`."""
        if not holds:
            self.failures.append(Failure(assertion, expected, actual))


# --- matchers -----------------------------------------------------------------------------------------------

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_DATETIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})", re.ASCII)


def _is_all(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda actual: isinstance(actual, str) and pattern.fullmatch(actual) is not None


def _found(pattern: Any, actual: Any) -> bool:
    try:
        return isinstance(actual, str) and re.search(pattern, actual) is not None
    except (re.error, TypeError):
        return False


def _within(low: Any, high: Any, actual: Any) -> bool:
    return is_number(actual) and (low is None or actual >= low) and (high is None or actual <= high)


def _holds(element: str, actual: Any, *, wanted: bool) -> bool:
    return isinstance(actual, list) and (element in map(as_text, actual)) is wanted


def _long(actual: Any, *, least: int = 0, most: float = float("inf")) -> bool:
    return isinstance(actual, list) and least <= len(actual) <= most


_WORDS: dict[str, Callable[[Any], bool]] = {
    "any": lambda _: True,
    "absent": lambda actual: actual is None,
    "exists": lambda actual: actual is not None,
    "string:nonempty": lambda actual: isinstance(actual, str) and actual != "",
    "string:non_empty": lambda actual: isinstance(actual, str) and actual != "",
    "string:uuid": _is_all(_UUID),
    "string:uuidv7": _is_all(_UUID7),
    "string:datetime": _is_all(_DATETIME),
    "number:positive": lambda actual: is_number(actual) and actual > 0,
    "number:non_negative": lambda actual: is_number(actual) and actual >= 0,
    "array:nonempty": lambda actual: _long(actual, least=1),
    "array:empty": lambda actual: _long(actual, most=0),
}

_NUMBER = r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*"
_RANGE = re.compile(rf"number:range\({_NUMBER},{_NUMBER}\)")

_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Any], bool]], ...] = (
    (
        re.compile(r"string:contains:(.*)", re.DOTALL),
        lambda form, actual: isinstance(actual, str) and form[1] in actual,
    ),
    (re.compile(r"string:pattern\((.*)\)", re.DOTALL), lambda form, actual: _found(form[1], actual)),
    (_RANGE, lambda form, actual: _within(float(form[1]), float(form[2]), actual)),
    (
        re.compile(r"array:length(?::([0-9]+)|\(([0-9]+)\))"),
        lambda form, actual: _long(actual, least=int(form[1] or form[2]), most=int(form[1] or form[2])),
    ),
    (re.compile(r"array:min(?:_length)?:([0-9]+)"), lambda form, actual: _long(actual, least=int(form[1]))),
    (re.compile(r"contains:(.*)", re.DOTALL), lambda form, actual: _holds(form[1], actual, wanted=True)),
    (re.compile(r"not_contains:(.*)", re.DOTALL), lambda form, actual: _holds(form[1], actual, wanted=False)),
    (
        re.compile(rf"~{_NUMBER}"),
        lambda form, actual: (
            is_number(actual) and abs(actual - float(form[1])) <= abs(float(form[1])) * APPROXIMATE_SHARE
        ),
    ),
)


def matches(matcher: Any, actual: Any) -> bool:
    """Tell whether a value is what the matcher describes."""
    if matcher is None:
        return actual is None
    if isinstance(matcher, str):
        return _matches_text(matcher, actual)
    if isinstance(matcher, bool):
        return actual is matcher
    if is_number(matcher):
        return _matches_number(matcher, actual)
    if isinstance(matcher, list):
        return _long(actual, least=len(matcher), most=len(matcher)) and all(map(matches, matcher, actual))
    return _matches_object(matcher, actual)


def _matches_text(matcher: str, actual: Any) -> bool:
    if (word := _WORDS.get(matcher)) is not None:
        return word(actual)
    for pattern, holds in _FORMS:
        if (form := pattern.fullmatch(matcher)) is not None:
            return holds(form, actual)
    return isinstance(actual, str) and actual == matcher


def _matches_number(matcher: float, actual: Any) -> bool:
    if not is_number(actual):
        return False
    if isinstance(matcher, int) or matcher.is_integer():
        return actual == matcher
    return abs(actual - matcher) <= FLOAT_SLACK


def _matches_existence(matcher: dict[str, Any], actual: Any) -> bool:
    if not matcher["$exists"]:
        return actual is None
    return actual is not None and matcher.get("$type", json_type(actual)) == json_type(actual)


def _matches_size(size: Any, actual: Any) -> bool:
    if isinstance(size, dict):
        return is_number(size.get("$gte")) and isinstance(actual, list) and len(actual) >= size["$gte"]
    return is_number(size) and isinstance(actual, list) and len(actual) == size


def _matches_any(alternatives: Any, actual: Any) -> bool:
    return isinstance(alternatives, list) and any(matches(one, actual) for one in alternatives)


def _matches_range(bounds: Any, actual: Any) -> bool:
    return isinstance(bounds, dict) and _within(bounds.get("min"), bounds.get("max"), actual)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$match": _found,
    "$in": _matches_any,
    "$size": _matches_size,
    "$or": _matches_any,
    "$empty": lambda _, __: True,
    "range": _matches_range,
}


def _matches_object(matcher: dict[str, Any], actual: Any) -> bool:
    if "$exists" in matcher:
        return _matches_existence(matcher, actual)
    for name, holds in _OPERATORS.items():
        if name in matcher:
            return holds(matcher[name], actual)
    # No operator: an object. A bare $type or $gte ends up here and fails, as it does in the official runner.
    return isinstance(actual, dict) and all(matches(one, actual.get(key)) for key, one in matcher.items())


def matches_status(matcher: Any, status: int) -> bool:
    """Tell whether a status is one of those the matcher allows; a bare list allows none."""
    if is_number(matcher):
        return status == matcher
    if isinstance(matcher, dict):
        return any(deep_equal(status, one) for one in matcher.get("$in", ()))
    if not isinstance(matcher, str):
        return False
    if matcher.startswith("one_of:"):
        return str(status) in map(str.strip, matcher.removeprefix("one_of:").split(","))
    return _RANGE.fullmatch(matcher) is not None and matches(matcher, status)


# --- assertions of a request --------------------------------------------------------------------------------


def check(assertions: Mapping[str, Any], response: Response, bodies: Bodies) -> Findings:
    """Evaluate the assertions of a step that sent a request."""
    findings = Findings()
    for kind, wanted in assertions.items():
        if wanted is None:
            continue
        if kind in _CHECKS:
            _CHECKS[kind](substitute_in(wanted, bodies), response, findings)
        else:
            findings.skipped.append(f"{kind}: unknown here, as in the official runner")
    return findings


def _check_status(wanted: Any, response: Response, findings: Findings) -> None:
    findings.require("status", wanted, response.status, holds=matches_status(wanted, response.status))


def _check_status_in(wanted: Any, response: Response, findings: Findings) -> None:
    holds = matches_status({"$in": wanted}, response.status)
    findings.require("status_in", wanted, response.status, holds=holds)


def _check_body(wanted: dict[str, Any], response: Response, findings: Findings) -> None:
    if "$or" in wanted:
        holds = any(_holds_entirely(paths, response.body) for paths in wanted["$or"])
        findings.require("body $or", wanted["$or"], response.text, holds=holds)
    for path, matcher in wanted.items():
        if path == "$or":
            continue
        if response.body is None:
            findings.skipped.append(f"body {path}: the body is no JSON object")
            continue
        problem = _problem_at(path, matcher, response.body)
        if problem is not None:
            findings.failures.append(problem)


def _holds_entirely(paths: Mapping[str, Any], body: Any) -> bool:
    return all(_problem_at(path, matcher, body) is None for path, matcher in paths.items())


def _problem_at(path: str, matcher: Any, body: Any) -> Failure | None:
    try:
        actual = resolve(body, path)
    except PathError as error:
        return None if matcher == "absent" else Failure(f"body {path}", matcher, f"({error})")
    return None if matches(matcher, actual) else Failure(f"body {path}", matcher, actual)


def _check_absent(wanted: Iterable[str], response: Response, findings: Findings) -> None:
    for path in wanted:
        problem = _problem_at(path, "absent", response.body)
        if problem is not None:
            findings.require(f"body_absent {path}", "absent", problem.actual, holds=False)


def _check_contains(wanted: Iterable[str], response: Response, findings: Findings) -> None:
    for part in wanted:
        findings.require("body_contains", part, response.text, holds=part in response.text)


def _check_headers(wanted: Mapping[str, Any], response: Response, findings: Findings) -> None:
    for name, matcher in wanted.items():
        actual = response.headers.get(name.lower())
        if isinstance(matcher, str):
            findings.require(f"header {name}", matcher, actual, holds=actual == matcher)
        elif isinstance(matcher, dict) and "$match" in matcher:
            findings.require(f"header {name}", matcher, actual, holds=_found(matcher["$match"], actual or ""))
        elif isinstance(matcher, dict) and "$eq" in matcher:
            findings.require(f"header {name}", matcher, actual, holds=actual == matcher["$eq"])
        else:
            findings.skipped.append(f"header {name}: unknown matcher, which the official runner drops")


def _check_timing(wanted: Mapping[str, Any], response: Response, findings: Findings) -> None:
    elapsed = response.elapsed_ms
    if (limit := wanted.get("less_than")) is not None:
        findings.require("timing_ms less_than", limit, elapsed, holds=elapsed < limit)
    if (limit := wanted.get("greater_than")) is not None:
        findings.require("timing_ms greater_than", limit, elapsed, holds=elapsed > limit)
    if (about := wanted.get("approximate")) is not None:
        slack = max(about * APPROXIMATE_SHARE, APPROXIMATE_FLOOR_MS)
        findings.require("timing_ms approximate", about, elapsed, holds=abs(elapsed - about) <= slack)


_CHECKS: dict[str, Callable[[Any, Response, Findings], None]] = {
    "status": _check_status,
    "status_in": _check_status_in,
    "body": _check_body,
    "body_absent": _check_absent,
    "body_contains": _check_contains,
    "headers": _check_headers,
    "timing_ms": _check_timing,
}


# --- assertions across steps --------------------------------------------------------------------------------


def check_across(assertions: Mapping[str, Any], bodies: Bodies) -> Findings:
    """Evaluate the assertions of an ASSERT step, which compares what earlier steps answered."""
    findings = Findings()
    for kind, wanted in assertions.items():
        if kind == "exclusive_claim":
            _check_exclusive_claim(wanted, bodies, findings)
        elif kind == "equality":
            _check_equality(wanted, bodies, findings)
        else:
            findings.skipped.append(f"{kind}: an ASSERT step has no reply to hold against it")
    return findings


def _check_exclusive_claim(wanted: Mapping[str, Any], bodies: Bodies, findings: Findings) -> None:
    expected = "one fetch with the job, the others empty"
    try:
        job_id = answer_of(wanted["job_id"], bodies)
        fetches = [answer_of(fetch, bodies) for fetch in wanted["fetches"]]
        claimed = [resolve(fetch, "[*].id") for fetch in fetches]
    except PathError as error:
        findings.require("exclusive_claim", expected, f"({error})", holds=False)
        return
    holders = sum(ids.count(job_id) for ids in claimed)
    empty = fetches.count([])
    findings.require("exclusive_claim", expected, claimed, holds=holders == 1 and empty == len(fetches) - 1)


def _check_equality(wanted: Mapping[str, Any], bodies: Bodies, findings: Findings) -> None:
    for path, other in wanted.items():
        try:
            one, expected = answer_at(path, bodies), answer_of(other, bodies)
        except PathError as error:
            findings.require(f"equality {path}", other, f"({error})", holds=False)
            continue
        findings.require(f"equality {path}", expected, one, holds=deep_equal(one, expected))
