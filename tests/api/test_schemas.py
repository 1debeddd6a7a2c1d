"""Schemas (ojs-http-binding section 15): kept under their URIs, not enforced."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.api.checks import refusal
from tests.support.api import Api, Body, unique_queue

SCHEMA = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "array", "minItems": 1}


def body(**fields: Any) -> Body:
    """A registration."""
    return {
        "uri": f"urn:ojs:schema:{unique_queue()}:v1",
        "type": "email.send",
        "version": 1,
        "schema": SCHEMA,
        **fields,
    }


def path(uri: str) -> str:
    """Where a schema is."""
    return f"/schemas/{quote(uri, safe='')}"


@pytest.mark.parametrize("prefix", ["urn:ojs:schema:", "https://schemas.example/a/b?c=d&x=", "a b%2F"])
def test_a_schema_is_registered_read_and_deleted(api: Api, prefix: str) -> None:
    """Whatever characters its URI has."""
    wanted = body(uri=prefix + unique_queue())
    made = api.request("POST", "/schemas", wanted)
    assert made.status_code == 201
    read = api.call("GET", path(wanted["uri"]))["schema"]
    assert {name: read[name] for name in wanted} == wanted
    assert read == made.json()["schema"]
    [listed] = [
        one for one in api.call("GET", "/schemas", params={"limit": 200})["schemas"] if one["uri"] == wanted["uri"]
    ]
    assert listed == {name: value for name, value in read.items() if name != "schema"}
    assert api.call("DELETE", path(wanted["uri"])) == {"deleted": True, "uri": wanted["uri"]}
    refusal(api.request("GET", path(wanted["uri"])), 404, code="not_found")
    refusal(api.request("DELETE", path(wanted["uri"])), 404, code="not_found")
    assert api.request("POST", "/schemas", wanted).status_code == 201


def test_the_same_again_is_fine_and_another_one_is_a_duplicate(api: Api) -> None:
    """A deployment registers its schemas each time; what a URI means does not change."""
    wanted = body()
    first = api.call("POST", "/schemas", wanted)
    again = api.request("POST", "/schemas", wanted)
    assert (again.status_code, again.json()) == (200, first)
    refusal(api.request("POST", "/schemas", {**wanted, "schema": {"type": "object"}}), 409, code="duplicate")
    assert api.call("GET", path(wanted["uri"]))["schema"] == first["schema"]


def test_lists_come_in_pages(api: Api) -> None:
    """By limit and offset, in order of their URIs."""
    for _ in range(3):
        api.call("POST", "/schemas", body())
    page = api.call("GET", "/schemas", params={"limit": 2, "offset": 0})
    rest = api.call("GET", "/schemas", params={"limit": 200, "offset": 2})
    assert page["pagination"]["has_more"] is True
    uris = [one["uri"] for one in page["schemas"] + rest["schemas"]]
    assert uris == sorted(uris)
    assert len(uris) == page["pagination"]["total"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"uri": ""}, "uri"),
        ({"uri": "ä"}, "uri"),
        ({"uri": "x" * 256}, "uri"),
        ({"schema": []}, "schema"),
        ({"schema": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "schema.$schema"),
        ({"type": 1}, "type"),
        ({"version": [1]}, "version"),
    ],
)
def test_bad_registrations_are_refused(api: Api, fields: Body, field: str) -> None:
    """With the field's name."""
    refusal(api.request("POST", "/schemas", body(**fields)), 400, code="invalid_request", field=field)


def test_a_job_may_name_a_schema_that_it_does_not_follow(api: Api) -> None:
    """`capabilities.schema_validation` is false, and so it is."""
    wanted = body()
    api.call("POST", "/schemas", wanted)
    job = api.enqueue(unique_queue(), schema=wanted["uri"])
    assert (job["schema"], job["args"]) == (wanted["uri"], [])


def test_numbered_versions_of_a_job_type(api: Api) -> None:
    """`/admin/schemas/{type}/{version}`: the same schemas under the URI that their type and number make."""
    job_type = unique_queue("type")
    where = f"/admin/schemas/{job_type}"
    for version in (1, 2, 10):
        made = api.request("PUT", f"{where}/{version}", {"schema": {"type": "array", "minItems": version}})
        assert made.status_code == 201
    refusal(api.request("PUT", f"{where}/2", {"schema": {"type": "array", "minItems": 2}}), 409, code="duplicate")
    refusal(api.request("PUT", f"{where}/two", {"schema": {}}), 400, field="version")
    assert [one["version"] for one in api.call("GET", f"{where}/versions")["versions"]] == [1, 2, 10]
    latest = api.call("GET", where)
    assert (latest["type"], latest["version"], latest["schema"]["minItems"]) == (job_type, 10, 10)
    assert api.call("GET", path(latest["uri"]))["schema"] == latest
    assert api.call("DELETE", f"{where}/10")["deleted"] is True
    assert api.call("GET", where)["version"] == 2
    refusal(api.request("GET", f"{where}/10"), 404, code="not_found")
    refusal(api.request("GET", f"{where}-other/versions"), 404, code="not_found")


@pytest.mark.parametrize("uri", ["", "x" * 256, "x" * 5000])
def test_a_uri_that_none_can_have_is_not_found(api: Api, uri: str) -> None:
    """An empty one, and one that is longer than any; the second would be too long a subject for NATS."""
    for method in ("GET", "DELETE"):
        refusal(api.request(method, f"/schemas/{uri}"), 404, code="not_found")
