"""The OpenAPI document: valid, complete, and checked by a checker that finds what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from ojs_fast.api.keys import scope_names
from ojs_fast.api.openapi.builder import TAGS, build, descriptions, path_of, resolved
from ojs_fast.api.openapi.page import render
from ojs_fast.api.routes import methods_of, routes
from ojs_fast.api.scopes import scope_of
from tests.support.openapi import HANDLERS, Described, document

TABLE = routes(*(MagicMock() for _ in range(HANDLERS)), with_reset=True)
OPERATIONS = [
    (method, path, operation)
    for path, item in document()["paths"].items()
    for method, operation in item.items()
]  # fmt: skip
JOB: dict[str, Any] = document()["components"]["schemas"]["Job"]["examples"][0]
HEADERS = {"ojs-version": "1.0", "x-request-id": "r", "content-type": "application/json"}


def test_the_document_is_valid() -> None:
    """Against the schema of OpenAPI 3.1, references and examples included."""
    assert list(OpenAPIV31SpecValidator(json.loads(json.dumps(document()))).iter_errors()) == []


def test_every_route_is_described_and_nothing_else() -> None:
    """Describe each new route in `ojs_fast/api/openapi/operations`."""
    assert set(descriptions()) == {(route.method, path_of(route)) for route in TABLE}
    assert {(method.upper(), path) for method, path, _ in OPERATIONS} == {
        (route.method, path_of(route)) for route in TABLE
    }


def test_a_server_without_reset_does_not_describe_it() -> None:
    """What is not served is not in the document."""
    table = routes(*(MagicMock() for _ in range(HANDLERS)), with_reset=False)
    assert "/ojs/v1/admin/reset" not in build(table, 1)["paths"]


def test_operations_have_names_of_their_own_and_known_tags() -> None:
    """Generators make functions of operationIds."""
    ids = Counter(operation["operationId"] for _, _, operation in OPERATIONS)
    assert [name for name, count in ids.items() if count > 1 or not name.isidentifier()] == []
    assert {tag for _, _, operation in OPERATIONS for tag in operation["tags"]} == set(TAGS)


def test_the_scopes_are_those_that_the_server_asks_for() -> None:
    """Open endpoints ask for none."""
    for route in TABLE:
        operation = document()["paths"][path_of(route)][route.method.lower()]
        needed = [] if route.is_open else [{"apiKey": scope_names(scope_of(route.method, route.path))}]
        assert operation["security"] == needed
        assert ("401" in operation["responses"]) is not route.is_open


def test_every_parameter_of_a_path_is_described() -> None:
    """And none that the path does not have."""
    for _, path, operation in OPERATIONS:
        found = [resolved(document(), one) for one in operation["parameters"]]
        in_path = [one["name"] for one in found if one["in"] == "path"]
        assert [f"{{{name}}}" for name in in_path] == [part for part in path.split("/") if part.startswith("{")]


def test_every_shape_is_used() -> None:
    """A shared shape that nothing names is left over."""
    text = json.dumps(document())
    unused = [name for name in document()["components"]["schemas"] if f'"#/components/schemas/{name}"' not in text]
    assert unused == []


def test_the_methods_of_a_path_are_found() -> None:
    """Templates count, and what another path takes does not."""
    assert methods_of(TABLE, "/ojs/v1/jobs/x") == ["GET", "PATCH", "DELETE"]
    assert methods_of(TABLE, "/ojs/v1/jobs/bulk") == ["POST", "GET", "PATCH", "DELETE"]
    assert methods_of(TABLE, "/ojs/v1/schemas/http://a/b") == ["GET", "DELETE"]
    assert methods_of(TABLE, "/ojs/v1/nothing") == []


# -- the checker ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "more"),
    [
        (201, {"job": JOB}, {}),  # another status
        (200, {"job": JOB, "more": 1}, {}),  # a member more
        (200, {}, {}),  # a member less
        (200, {"job": {**JOB, "priority": 101}}, {}),
        (200, {"job": {**JOB, "created_at": "yesterday"}}, {}),
        (200, {"job": {**JOB, "error": {"message": "no code"}}}, {}),
        (200, {"job": JOB}, {"x-more": "1"}),
        (200, {"job": JOB}, {"content-type": "text/plain"}),
        (404, {"error": {"code": "not_found"}}, {}),
        (404, {"error": {"code": "other", "message": "", "retryable": False, "request_id": "", "type": ""}}, {}),
    ],
)
def test_what_is_not_described_is_found(status: int, body: Any, more: dict[str, str]) -> None:
    """Status, members, values, headers, media type."""
    checker = Described(document())
    checker.check("GET", "/ojs/v1/jobs/x", 200, HEADERS, json.dumps({"job": JOB}).encode())
    with pytest.raises(AssertionError):
        checker.check("GET", "/ojs/v1/jobs/x", status, HEADERS | more, json.dumps(body).encode())


def test_a_header_that_must_be_there_is_missed() -> None:
    """Each answer names the version and the request."""
    body = json.dumps({"job": JOB}).encode()
    with pytest.raises(AssertionError, match="x-request-id"):
        Described(document()).check("GET", "/ojs/v1/jobs/x", 200, {"ojs-version": "1.0"}, body)


def test_an_endpoint_that_is_not_described_is_found() -> None:
    """It may only say that there is none."""
    with pytest.raises(AssertionError, match="no such endpoint"):
        Described(document()).check("GET", "/ojs/v1/nothing", 200, HEADERS, b"{}")


# -- the page ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects ids, links and what would load something; fails on tags that do not match."""

    EMPTY: ClassVar = {"meta", "wbr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what it says."""
        found = dict(attrs)
        if tag not in self.EMPTY:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "a":
            self.links.append(found["href"] or "")
        if tag in ("script", "link", "img", "iframe") or "src" in found or "style" in found:
            self.loads.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It closes the last one."""
        assert self.open.pop() == tag


def test_the_page_is_sound() -> None:
    """Tags match, ids are unique, links lead somewhere, nothing is loaded, every operation is there."""
    page = Page(render(document()))
    assert page.open == []
    assert page.loads == []
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {operation["operationId"] for _, _, operation in OPERATIONS} <= set(page.ids)
    assert {link for link in page.links if not link.startswith("#")} == {"/openapi.json", "https://openjobspec.org"}
