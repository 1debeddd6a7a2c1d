"""How an endpoint is described: what it takes, what it answers with each status."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ojs_fast.api.http import MOST_QUERY_DIGITS, V1
from ojs_fast.api.openapi.schema import Schema, array, integer, one_of, ref, string

JSON_TYPES = ("application/openjobspec+json", "application/json")


@dataclass(slots=True, frozen=True)
class Parameter:
    """One parameter; `place` is path, query or header."""

    name: str
    place: str
    schema: Schema
    text: str = ""


@dataclass(slots=True, frozen=True)
class Answer:
    """What comes with one status. `headers` are names of `components.common.HEADERS`; no schema: no body."""

    text: str
    schema: Schema | None = None
    headers: tuple[str, ...] = ()
    types: tuple[str, ...] = JSON_TYPES


@dataclass(slots=True, frozen=True)
class Alias:
    """The same under another method or path, with an operationId of its own."""

    id: str
    method: str
    path: str
    tag: str = ""


@dataclass(slots=True, frozen=True)
class Operation:
    """One endpoint. `errors` are the statuses that not every endpoint can answer (or not for that reason)."""

    id: str
    method: str
    path: str
    tag: str
    summary: str
    answers: Mapping[int, Answer]
    text: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    body_required: bool = True
    errors: Mapping[int, str] = field(default_factory=dict)
    aliases: tuple[Alias, ...] = ()


def ok(schema: str | Schema, text: str = "Done", headers: tuple[str, ...] = ()) -> dict[int, Answer]:
    """A 200 with a shape, or the name of a shared one."""
    return {200: Answer(text, ref(schema) if isinstance(schema, str) else schema, headers)}


def path(name: str, schema: Schema, text: str = "") -> Parameter:
    """A part of the path."""
    return Parameter(name, "path", schema, text)


def query(name: str, schema: Schema, text: str = "") -> Parameter:
    """A query parameter."""
    return Parameter(name, "query", schema, text)


def header(name: str, schema: Schema, text: str = "") -> Parameter:
    """A request header."""
    return Parameter(name, "header", schema, text)


def count(name: str, default: int, low: int, high: int, text: str = "") -> Parameter:
    """An integer in the query, as `Request.query_int` reads it: what is above `high` counts as `high`."""
    bound = f"{low} to {high:,}; more counts as {high:,}"
    return query(
        name, integer(low=low, high=10**MOST_QUERY_DIGITS - 1, default=default), f"{text}. {bound}" if text else bound
    )


def choice(name: str, values: tuple[str, ...], default: str = "", text: str = "") -> Parameter:
    """One of some words in the query."""
    return query(name, one_of(values, **({"default": default} if default else {})), text)


def moment(name: str, text: str) -> Parameter:
    """A time in the query."""
    return query(name, string(format="date-time"), text)


def words(name: str, text: str) -> Parameter:
    """A list in the query, separated by commas."""
    return Parameter(name, "query", array(string()), text)


def below_v1(rest: str) -> str:
    """A path of the API."""
    return V1 + rest
