"""The official cases as files: where they are, how they are read, which of them are known to be defective.

Owns the shape of a case. Cases are keyed by path, as the official ids repeat. Sends nothing.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNNUMBERED_LEVEL = 99  # `"level": "ext"`

_REQUEST_KEYS = {"action", "path", "headers", "body", "raw_body"}
_OTHER_KEYS = {"id", "delay_ms", "duration_ms", "parallel_with", "assertions", "intent", "description"}


class LoadError(Exception):
    """A file is not a case; the message names it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One action of a case; `ignored` names keys that no runner of level suites understands."""

    id: str
    action: str
    path: str
    headers: Mapping[str, str]
    body: Any
    raw_body: Any
    delay_ms: float
    duration_ms: float
    parallel_with: tuple[str, ...]
    assertions: Mapping[str, Any]
    ignored: tuple[str, ...]
    capture: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """One official case; `key` is its path from the directory it was loaded from, whose name comes first."""

    key: str
    path: Path
    test_id: str
    level: int
    category: str
    name: str
    setup: tuple[Step, ...]
    steps: tuple[Step, ...]
    teardown: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class KnownDefect:
    """A case no honest server passes; only excused assertions may fail, lest regressions hide behind it."""

    directory: str
    test_id: str
    reason: str
    excused: frozenset[str]


KNOWN_DEFECTS = (
    KnownDefect(
        directory="level-1-reliable/retry",
        test_id="L1-RTR-014",
        reason="expects error types that no request contains; only the words of the messages hint at them",
        excused=frozenset(f"body $.job.errors[{index}].type" for index in range(3)),
    ),
)


def known_defect(case: Case) -> KnownDefect | None:
    """Find the recorded defect of a case."""
    directory = "/".join(case.path.parent.parts[-2:])
    for defect in KNOWN_DEFECTS:
        if (directory, case.test_id) == (defect.directory, defect.test_id):
            return defect
    return None


def load(places: Iterable[Path], *, extended: bool = False) -> list[Case]:
    """Read every case in the given files and, recursively, directories, once each, sorted by id.

    `extended`: understand what extension suites use and the official runner does not: `capture`, `expect`, and the
    matchers `$type` and `$gte` by themselves.
    """
    found: dict[Path, Case] = {}
    for place in places:
        if not place.exists():
            raise LoadError(f"{place}: no such file or directory")
        top = place.resolve()
        for path in sorted(top.rglob("*.json")) if top.is_dir() else [top]:
            key = path.relative_to(top.parent).as_posix()
            found.setdefault(path.resolve(), read_case(path, key, extended=extended))
    return sorted(found.values(), key=lambda case: (case.test_id, case.key))


def read_case(path: Path, key: str, *, extended: bool = False) -> Case:
    """Read one file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        level = content["level"]
        return Case(
            key=key,
            path=path,
            test_id=str(content["test_id"]),
            level=level if isinstance(level, int) else UNNUMBERED_LEVEL,
            category=str(content["category"]),
            name=str(content.get("name", "")),
            setup=_read_steps(content.get("setup"), extended=extended),
            steps=_read_steps(content["steps"], extended=extended),
            teardown=_read_steps(content.get("teardown"), extended=extended),
        )
    except KeyError as error:
        raise LoadError(f"{path}: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise LoadError(f"{path}: {error}") from error


def _read_steps(given: Any, *, extended: bool) -> tuple[Step, ...]:
    # Setup and teardown wrap their steps in an object; the documentation allows both readings.
    steps = given.get("steps") if isinstance(given, dict) else given
    return tuple(
        _read_step(_plain(step) if extended else step, position, extended=extended)
        for position, step in enumerate(steps or (), 1)
    )


def _plain(step: dict[str, Any]) -> dict[str, Any]:
    """Say in words of the official runner what an extension suite says in its own."""
    asked = {**(step.get("expect") or {}), **(step.get("assertions") or {})}
    return {**{key: value for key, value in step.items() if key != "expect"}, "assertions": _plain_matchers(asked)}


def _plain_matchers(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_matchers(one) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$type"}:
        return {"$exists": True, **value}
    if set(value) == {"$gte"}:
        return {"range": {"min": value["$gte"]}}
    # The official runner knows `$gte` within `$size`, and nowhere else.
    return {key: one if key == "$size" else _plain_matchers(one) for key, one in value.items()}


def _read_step(given: dict[str, Any], position: int, *, extended: bool) -> Step:
    parallel = given.get("parallel_with") or ()
    return Step(
        id=str(given.get("id") or f"#{position}"),
        action=str(given.get("action", "GET")).upper(),
        path=str(given.get("path") or "/"),
        headers={str(name): str(value) for name, value in (given.get("headers") or {}).items()},
        body=given.get("body"),
        raw_body=given.get("raw_body"),
        delay_ms=float(given.get("delay_ms") or 0),
        duration_ms=float(given.get("duration_ms") or 0),
        parallel_with=(parallel,) if isinstance(parallel, str) else tuple(parallel),
        assertions=dict(given.get("assertions") or {}),
        ignored=tuple(sorted(given.keys() - _REQUEST_KEYS - _OTHER_KEYS - ({"capture"} if extended else set()))),
        capture=dict(given.get("capture") or {}) if extended else {},
    )
