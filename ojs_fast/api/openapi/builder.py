"""From routes, scopes and descriptions to one OpenAPI 3.1 document."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from ojs_fast import __version__
from ojs_fast.api.keys import scope_names
from ojs_fast.api.openapi.components import SCHEMAS
from ojs_fast.api.openapi.components.common import HEADERS, OPTIONAL_HEADERS
from ojs_fast.api.openapi.endpoint import Endpoint
from ojs_fast.api.openapi.operation import JSON_TYPES, Alias, Answer, Operation, Parameter
from ojs_fast.api.openapi.operations import OPERATIONS
from ojs_fast.api.openapi.schema import one_of, ref, string
from ojs_fast.api.scopes import scope_of

Document = dict[str, Any]

SCHEME = "apiKey"
TAGS = {
    "Jobs": "Enqueue jobs, look at them, cancel them",
    "Bulk": "Many jobs in one request, each with an outcome of its own",
    "Workers": "The worker's side: fetch, ack, nack, heartbeat",
    "Workflows": "Chains, groups, batches and graphs of jobs",
    "Cron": "Jobs by schedule",
    "Queues": "Queues, their configuration and statistics",
    "Schemas": "A registry of JSON Schemas; it enforces none",
    "Rate limits": "Limits on the start of jobs",
    "Dead letter": "Jobs out of retries",
    "Events": "What happened, read back or live",
    "Webhooks": "Events sent to a URL, signed, again until they arrive",
    "Admin": "For dashboards and operators",
    "System": "The server itself",
}
_TEXT = """A job-queue server that implements the [Open Job Spec](https://openjobspec.org) 1.0.

Answers are `application/openjobspec+json`, or `application/json` for clients that accept that alone. Requests may be \
either, in UTF-8, at most {body:,} bytes long. Errors are `{{"error": {{"code", "message", …}}}}` and name the field, \
the value and what would be accepted. Members that are null mean the same as missing ones. A 503 with `Retry-After` \
means that NATS is away or the server is overloaded: try again."""
_AUTHENTICATION = (
    "A key made by `ojs-fast keys create`, or `OJS_API_KEY`. What stands beside each operation is the scope that its "
    "key must have. A server without keys asks for none."
)
_ERRORS = {
    400: "The request is malformed, or a field breaks a rule",
    401: "The API key is missing or wrong",
    403: "The API key lacks the scope",
    413: "The body is too large",
    415: "The body is compressed",
    422: "The OJS-Version is unknown",
    500: "A defect of the server",
    503: "NATS is away, or the server is overloaded; try again shortly",
}
_OPEN_ERRORS = (400, 413, 415, 422, 500)  # without a key nobody is refused, and these do not queue up
_ERROR_HEADERS: dict[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    413: ("X-OJS-Max-Batch-Size",),
    429: ("Retry-After", "X-OJS-Queue-Depth", "X-OJS-Queue-Bound"),
    503: ("Retry-After",),
}
_COMMON_PARAMETERS = {
    "RequestId": Parameter(
        "X-Request-Id", "header", string(), "A name of the request, given back; 1 to 128 printable characters"
    ),
    "OjsVersion": Parameter("OJS-Version", "header", one_of(("1.0",)), "The version that the client speaks"),
}


def build(routes: Iterable[Endpoint], max_body_bytes: int) -> Document:
    """The document of these routes. Raises KeyError for one that is not described."""
    described = descriptions()
    paths: dict[str, dict[str, Any]] = {}
    order = list(described)
    for route in sorted(routes, key=lambda one: order.index((one.method, path_of(one)))):
        path = path_of(route)
        operation, alias = described[route.method, path]
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, operation, alias)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ojs-fast",
            "version": __version__,
            "description": _TEXT.format(body=max_body_bytes),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "headers": {name: _header(name) for name in HEADERS},
            "parameters": {name: _parameter(one) for name, one in _COMMON_PARAMETERS.items()},
            "responses": {_name(status): _error(status, text) for status, text in _ERRORS.items()},
            "securitySchemes": {SCHEME: {"type": "http", "scheme": "bearer", "description": _AUTHENTICATION}},
        },
    }


def path_of(route: Endpoint) -> str:
    """The path of a route in words of OpenAPI: `{path:name}`, which takes slashes too, is just a parameter there."""
    return route.path.replace("{path:", "{")


def descriptions() -> Mapping[tuple[str, str], tuple[Operation, Alias]]:
    """What is described, by method and path; an endpoint that is no alias comes as one of itself."""
    found = {}
    for operation in OPERATIONS:
        own = Alias(operation.id, operation.method, operation.path)
        for alias in (own, *operation.aliases):
            found[alias.method, alias.path] = (operation, alias)
    return found


def _operation(route: Endpoint, operation: Operation, alias: Alias) -> dict[str, Any]:
    is_alias = alias.id != operation.id
    text = operation.text
    if is_alias:
        text = f"The same as `{operation.method} {operation.path}`. {text}".strip()
    common = [{"$ref": f"#/components/parameters/{name}"} for name in _COMMON_PARAMETERS]
    described: dict[str, Any] = {
        "operationId": alias.id,
        "summary": operation.summary,
        **({"description": text} if text else {}),
        "tags": [alias.tag or operation.tag],
        "parameters": [*map(_parameter, operation.parameters), *common],
        "responses": _responses(operation, is_open=route.is_open),
        "security": [] if route.is_open else [{SCHEME: scope_names(scope_of(route.method, route.path))}],
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {kind: {"schema": operation.body} for kind in JSON_TYPES},
        }
    return described


def _responses(operation: Operation, *, is_open: bool) -> dict[str, Any]:
    found: dict[int, Any] = {}
    for status in _OPEN_ERRORS if is_open else _ERRORS:
        found[status] = {"$ref": f"#/components/responses/{_name(status)}"}
    for status, text in operation.errors.items():
        found[status] = _error(status, text)
    for status, answer in operation.answers.items():
        found[status] = _answer(answer)
    return {str(status): found[status] for status in sorted(found)}


def _error(status: int, text: str) -> dict[str, Any]:
    return _answer(Answer(text, ref("ErrorResponse"), _ERROR_HEADERS.get(status, ())))


def _answer(answer: Answer) -> dict[str, Any]:
    headers: Sequence[str] = ("OJS-Version", "X-Request-Id", *answer.headers)
    described: dict[str, Any] = {
        "description": answer.text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
    }
    if answer.schema is not None:
        described["content"] = {kind: {"schema": answer.schema} for kind in answer.types}
    return described


def _header(name: str) -> dict[str, Any]:
    text, schema = HEADERS[name]
    return {"description": text, "required": name not in OPTIONAL_HEADERS, "schema": schema}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "schema": parameter.schema,
    }
    text = parameter.text or parameter.schema.get("description", "")
    if text:
        described["description"] = text
    if parameter.place == "query":
        described["allowEmptyValue"] = True  # which means the same as none
        if parameter.schema.get("type") == "array":
            described |= {"style": "form", "explode": False}
    return described


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "")


def resolved(document: Document, one: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` names, or the thing itself."""
    if "$ref" not in one:
        return one
    *_, kind, name = one["$ref"].split("/")
    found: dict[str, Any] = document["components"][kind][name]
    return found
