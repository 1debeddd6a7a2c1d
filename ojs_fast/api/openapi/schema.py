"""A few words to write JSON Schema (2020-12) with, shorter than dictionaries."""

import re
from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]
_NULL: Schema = {"type": "null"}

_SECONDS = r"([1-9]\d{0,6}([.,]\d{1,3})?|0[.,]\d{0,2}[1-9])S"
_CLOCK = rf"T([1-9]\d{{0,2}}H([1-9]\d{{0,4}}M)?({_SECONDS})?|[1-9]\d{{0,4}}M({_SECONDS})?|{_SECONDS})"
#: ISO 8601 durations above zero (ojs-retry section 4): what a client needs of those that the compiled core takes.
#: Years and months have no fixed length.
DURATION = rf"^P([1-9]\d?W|[1-9]\d{{0,2}}D({_CLOCK})?|{_CLOCK})$"
#: Those that are sure to be no longer than a year, the bound of a limit's period.
PERIOD = rf"^P([1-9]\d?D|{_CLOCK})$"


def exactly(pattern: re.Pattern[str]) -> str:
    """What a schema says for a pattern that the code takes with `fullmatch`."""
    return f"^(?:{pattern.pattern})$" if "|" in pattern.pattern else f"^{pattern.pattern}$"


def ref(name: str, text: str = "") -> Schema:
    """A shared component."""
    found: Schema = {"$ref": f"#/components/schemas/{name}"}
    return {**found, "description": text} if text else found


def string(text: str = "", **facts: Any) -> Schema:
    """A string."""
    return _told({"type": "string", **facts}, text)


def integer(text: str = "", low: int | None = None, high: int | None = None, **facts: Any) -> Schema:
    """An integer, from `low` to `high`."""
    return _told({"type": "integer", **_bounds(low, high), **facts}, text)


def long(text: str = "", **facts: Any) -> Schema:
    """Any integer that JSON decoders keep: of 64 bits, with or without a sign."""
    return integer(text, -(2**63), 2**64 - 1, **facts)


def number(text: str = "", low: float | None = None, high: float | None = None, **facts: Any) -> Schema:
    """A number, from `low` to `high`."""
    return _told({"type": "number", **_bounds(low, high), **facts}, text)


def boolean(text: str = "", **facts: Any) -> Schema:
    """True or false."""
    return _told({"type": "boolean", **facts}, text)


def one_of(values: Iterable[str], text: str = "", **facts: Any) -> Schema:
    """One of some strings."""
    return _told({"type": "string", "enum": list(values), **facts}, text)


def array(items: Schema, text: str = "", **facts: Any) -> Schema:
    """An array."""
    return _told({"type": "array", "items": items, **facts}, text)


def time(text: str = "") -> Schema:
    """A moment (RFC 3339)."""
    return string(text, format="date-time")


def duration(text: str = "", **facts: Any) -> Schema:
    """An ISO 8601 duration above zero."""
    return string(text, pattern=DURATION, **facts)


def anything(text: str = "") -> Schema:
    """Any JSON value."""
    return {"description": text} if text else {}


def mapping(values: Schema, text: str = "") -> Schema:
    """An object with names that are not known beforehand."""
    return _told({"type": "object", "additionalProperties": values}, text)


def open_object(text: str = "") -> Schema:
    """An object with any members."""
    return _told({"type": "object", "additionalProperties": True}, text)


def answer(always: dict[str, Schema], sometimes: dict[str, Schema] | None = None, text: str = "") -> Schema:
    """An object in an answer: the members that it always has, and those that it may have."""
    properties = {**always, **(sometimes or {})}
    return _told({"type": "object", "required": list(always), "properties": properties}, text)


def request(
    required: dict[str, Schema], optional: dict[str, Schema] | None = None, text: str = "", **facts: Any
) -> Schema:
    """An object in a request. Optional members may be null, which means the same as missing (ojs-json-format)."""
    properties = {**required, **{name: nullable(schema) for name, schema in (optional or {}).items()}}
    needed = {"required": list(required)} if required else {}
    return _told({"type": "object", **needed, "properties": properties, **facts}, text)


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], _NULL]}
    if schema.keys() & {"$ref", "enum", "const", "not"}:
        about: Schema = {name: schema[name] for name in ("description", "default", "examples") if name in schema}
        return {"anyOf": [{name: value for name, value in schema.items() if name not in about}, _NULL], **about}
    # Without a type it is anything, null included.
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema


def either(*schemas: Schema, text: str = "", **facts: Any) -> Schema:
    """One of several shapes."""
    return _told({"anyOf": list(schemas), **facts}, text)


def _bounds(low: float | None, high: float | None) -> Schema:
    return {name: value for name, value in (("minimum", low), ("maximum", high)) if value is not None}


def _told(schema: Schema, text: str) -> Schema:
    return {**schema, "description": text} if text else schema
