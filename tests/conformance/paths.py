"""JSON values as the official conformance cases name them: paths into answers, templates, values as text.

Owns which value a path or a template stands for, to the letter of the official runner. Knows no matcher.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

# What a step answered, by step id; None where the body was no JSON object.
Bodies = Mapping[str, dict[str, Any] | None]


# --- values -------------------------------------------------------------------------------------------------


def parse_object(text: str) -> dict[str, Any] | None:
    """Parse a body; None unless it is a JSON object, as assertions know no other."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell numbers from booleans, which Python counts among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_type(value: Any) -> str:
    """Name the JSON type of a value."""
    if value is None:
        return "null"
    if is_number(value):
        return "number"
    names = {bool: "boolean", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def as_text(value: Any) -> str:
    """Write a value as templates and filters do: strings raw, whole numbers bare, the rest JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def deep_equal(one: Any, other: Any) -> bool:
    """Compare as JSON does: 1 equals 1.0, but not true."""
    if json_type(one) != json_type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(deep_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(deep_equal, one, other))
    return bool(one == other)


# --- paths --------------------------------------------------------------------------------------------------


class PathError(Exception):
    """The path makes no sense for this value: a key of a non-object, an index out of range."""


@dataclass(frozen=True, slots=True)
class Each:
    """`[*]`: the rest of the path, for every element."""


@dataclass(frozen=True, slots=True)
class First:
    """`[?(@.key=='wanted')]`: the first element that has it."""

    key: str
    wanted: str


Token = str | int | Each | First

_BRACKET = re.compile(
    r"""\[(?: (?P<index>\d+)
            | (?P<each>\*)
            | \?\(\s*@\.(?P<key>[^=\s]+)\s*==\s*
                (?: '(?P<single>[^']*)' | "(?P<double>[^"]*)" | (?P<bare>[^)\]]*) )\s*\)
        )\]""",
    re.VERBOSE,
)
_KEY = re.compile(r"[^.\[]*")


def parse_path(path: str) -> tuple[Token, ...]:
    """Split a path into keys, indexes, wildcards and filters; the leading `$.` is optional."""
    text = path.removeprefix("$.") if path.startswith("$.") else re.sub(r"^\$(?=\[|$)", "", path)
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        if text[position] == "[":
            bracket = _BRACKET.match(text, position)
            if bracket is None:
                raise PathError(f"cannot read {text[position:]!r} in {path!r}")
            tokens.append(_bracket_token(bracket))
            position = bracket.end()
        else:
            # A dot also follows a bracket, where no key stands before it.
            start = position + (text[position] == "." and position > 0)
            key = _KEY.match(text, start)
            assert key is not None
            tokens.append(key.group())
            position = max(key.end(), position + 1)
    return tuple(tokens)


def _bracket_token(bracket: re.Match[str]) -> Token:
    parts = bracket.groupdict()
    if parts["index"] is not None:
        return int(parts["index"])
    if parts["each"] is not None:
        return Each()
    quoted = parts["double"] if parts["single"] is None else parts["single"]
    return First(parts["key"], parts["bare"].strip() if quoted is None else quoted)


def resolve(root: Any, path: str) -> Any:
    """Find what the path names: None when null or a key is missing, PathError where it makes no sense."""
    return _walk(root, parse_path(path))


def _walk(value: Any, tokens: tuple[Token, ...]) -> Any:
    for position, token in enumerate(tokens):
        if isinstance(token, str):
            if not isinstance(value, dict):
                raise PathError(f"no key {token!r} in {json_type(value)}")
            if token not in value:
                return None
            value = value[token]
            continue
        if not isinstance(value, list):
            raise PathError(f"no elements in {json_type(value)}")
        if isinstance(token, Each):
            rest = tokens[position + 1 :]
            return [found for element in value if (found := _walk_or_none(element, rest)) is not None]
        if isinstance(token, First):
            keys = parse_path(token.key)
            found = (element for element in value if _has(element, keys, token.wanted))
            if (value := next(found, None)) is None:
                return None
        elif token < len(value):
            value = value[token]
        else:
            raise PathError(f"no element {token} among {len(value)}")
    return value


def _walk_or_none(value: Any, tokens: tuple[Token, ...]) -> Any:
    try:
        return _walk(value, tokens)
    except PathError:
        return None


def _has(element: Any, keys: tuple[Token, ...], wanted: str) -> bool:
    found = _walk_or_none(element, keys)
    return found is not None and as_text(found) == wanted


# --- templates ----------------------------------------------------------------------------------------------

_TEMPLATE = re.compile(r"\{\{steps\.([^.]+)\.response\.body\.([^}]+)\}\}")
_WHOLE_TEMPLATE = re.compile(r"\{\{(steps\.[^}]+)\}\}")


def substitute(text: str, bodies: Bodies) -> str:
    """Put earlier answers in place of templates, as text; what does not resolve stays as it is."""

    def answer(template: re.Match[str]) -> str:
        try:
            value = resolve(bodies.get(template[1]), template[2])
        except PathError:
            value = None
        return template[0] if value is None else as_text(value)

    return _TEMPLATE.sub(answer, text)


def substitute_in(value: Any, bodies: Bodies) -> Any:
    """Substitute in every string of a matcher."""
    if isinstance(value, str):
        return substitute(value, bodies)
    if isinstance(value, list):
        return [substitute_in(item, bodies) for item in value]
    if isinstance(value, dict):
        return {substitute(key, bodies): substitute_in(item, bodies) for key, item in value.items()}
    return value


def answer_at(path: str, bodies: Bodies) -> Any:
    """Find a value by `$.steps.<id>.response.body…`; PathError when nothing is there."""
    answered = {step: {"response": {"body": body}} for step, body in bodies.items() if body is not None}
    value = resolve({"steps": answered}, path)
    if value is None:
        raise PathError(f"nothing at {path}")
    return value


def answer_of(value: Any, bodies: Bodies) -> Any:
    """Resolve a template to the value itself, not to its text; anything else stands for itself."""
    whole = _WHOLE_TEMPLATE.fullmatch(value) if isinstance(value, str) else None
    return substitute_in(value, bodies) if whole is None else answer_at(whole[1], bodies)
