"""Whether answers are those that the OpenAPI document describes: status, headers, media type, body.

What a server adds to an answer must be described too: shapes that do not say otherwise are closed here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import MagicMock

import httpx
import jsonschema_rs

from ojs_fast.api.openapi.builder import Document, build
from ojs_fast.api.routes import routes

HANDLERS = 17
# Set by the HTTP server itself, or by what carries the answer.
TRANSPORT = {"content-type", "content-length", "date", "server", "transfer-encoding", "connection"}
# Not told to people who read the document: they forbid browsers what no client does.
HARDENING = {"x-content-type-options", "referrer-policy", "x-accel-buffering"}
NO_ENDPOINT = {404, 405}


@functools.cache
def document() -> Document:
    """The document of all endpoints, as a server with OJS_ENABLE_RESET=true gives it."""
    table = routes(*(MagicMock() for _ in range(HANDLERS)), with_reset=True)
    return build(table, 10 * 1024 * 1024)


def closed(schema: Any, *, is_part: bool = False) -> Any:
    """The schema with every object closed that does not say what else it may have.

    `is_part`: one of several that together describe an object, so that the whole is closed instead.
    """
    if isinstance(schema, list):
        return [closed(one, is_part=is_part) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("properties", "schemas", "$defs"):
            found[name] = {key: closed(one) for key, one in value.items()}
        elif name in ("not", "if", "const", "enum", "examples", "default", "required"):
            found[name] = value
        elif name in ("anyOf", "oneOf") and "properties" not in schema:
            found[name] = closed(value, is_part=is_part)
        else:
            found[name] = closed(value, is_part=name in ("allOf", "anyOf", "oneOf"))
    if is_part or "additionalProperties" in schema:
        return found
    if "allOf" in schema:
        found["unevaluatedProperties"] = False
    elif "properties" in schema:
        found["additionalProperties"] = False
    return found


class Described:
    """Checks answers against a document."""

    def __init__(self, text: Document) -> None:
        self._paths = text["paths"]
        self._components = text["components"]
        self._shapes = {"schemas": closed(self._components["schemas"])}
        self._templates = [
            # A URI may hold slashes.
            (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path).replace(r"\{uri\}", ".+"))), path)
            for path in sorted(self._paths, key=lambda path: path.count("{"))
        ]
        self._validators: dict[int, Callable[[Any], Any]] = {}

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """The description of an endpoint, None when there is none."""
        for template in self.templates(path):
            if method.lower() in self._paths[template]:
                found: dict[str, Any] = self._paths[template][method.lower()]
                return found
        return None

    def templates(self, path: str) -> list[str]:
        """The paths of the document that a path fits, the one with the fewest parameters first."""
        return [template for pattern, template in self._templates if pattern.fullmatch(path)]

    def check(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        """Fail unless the answer is described; without `body` (a stream) only what comes before it is looked at."""
        where = f"{method} {path} answered {status}"
        operation = self.operation(method, path)
        if operation is None:
            assert status in NO_ENDPOINT, f"{where}, but there is no such endpoint in the document"
            answer = self._components["responses"]["BadRequest"]
        else:
            assert str(status) in operation["responses"], f"{where}, which is not described: {(body or b'')[:300]!r}"
            answer = self._resolved(operation["responses"][str(status)])
        self._check_headers(where, answer["headers"], headers, is_endpoint=operation is not None)
        media = headers.get("content-type", "").partition(";")[0]
        if method == "HEAD":
            return
        if "content" not in answer:
            assert not body, f"{where} with a body, which is not described"
            return
        assert media in answer["content"], f"{where} as {media!r}, described are {list(answer['content'])}"
        if body is not None and media.endswith("json"):
            self._check_body(where, answer["content"][media]["schema"], body)

    def _check_headers(
        self, where: str, described: dict[str, Any], headers: Mapping[str, str], *, is_endpoint: bool
    ) -> None:
        known = {name.lower(): self._resolved(one) for name, one in described.items()}
        for name, one in known.items():
            assert name in headers or not one["required"], f"{where} without the header {name}"
            if name in headers:
                self._validate(one["schema"], _value(headers[name], one["schema"]))
        if is_endpoint:
            extra = {name.lower() for name in headers} - set(known) - TRANSPORT - HARDENING
            assert not extra, f"{where} with headers that are not described: {sorted(extra)}"

    def _check_body(self, where: str, schema: dict[str, Any], body: bytes) -> None:
        try:
            self._validate(schema, json.loads(body, parse_float=_double, parse_int=_integer))
        except jsonschema_rs.ValidationError as error:
            raise AssertionError(
                f"{where}, not as described: {error.message[:500]}\nat {error.instance_path}, {error.schema_path}\n"
                f"{body[:1500]!r}"
            ) from None

    def _validate(self, schema: dict[str, Any], value: Any) -> None:
        # The shapes are parts of the document, which stays: each is compiled once.
        key = id(schema)
        if key not in self._validators:
            whole = {**closed(schema), "components": self._shapes}
            self._validators[key] = jsonschema_rs.Draft202012Validator(whole, validate_formats=True).validate
        self._validators[key](value)

    def _resolved(self, one: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in one:
            return one
        *_, kind, name = one["$ref"].split("/")
        found: dict[str, Any] = self._components[kind][name]
        return found


# What a client sends comes back as it was, also what is beyond every number of Python: any other will do here.
def _double(text: str) -> float:
    return min(max(float(text), -1e300), 1e300)


def _integer(text: str) -> int:
    return int(text[:300])


def _value(text: str, schema: dict[str, Any]) -> Any:
    return {"integer": int, "number": float}.get(schema["type"], str)(text)


@functools.cache
def described() -> Described:
    """The one that all tests of a process share: shapes are compiled once."""
    return Described(document())


def check(response: httpx.Response) -> None:
    """Look at an answer of httpx; a hook of its clients."""
    is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
    body = None if is_stream else response.read()
    path = response.request.url.raw_path.decode().partition("?")[0]
    described().check(response.request.method, path, response.status_code, response.headers, body)


async def acheck(response: httpx.Response) -> None:
    """`check` for asynchronous clients."""
    is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
    if not is_stream:
        await response.aread()
    check(response)
