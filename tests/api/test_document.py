"""`/openapi.json` and `/docs` as a server gives them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import httpx

from tests.support.api import Api
from tests.support.openapi import check, document
from tests.support.plain import PLAIN
from tests.support.server import Server


def test_the_document_is_served_without_a_key(fresh_server: Callable[..., Server]) -> None:
    """At both places, as plain JSON, the same that the tests check answers by."""
    server = fresh_server(env={"OJS_API_KEY": "secret", "OJS_ENABLE_RESET": "true"})
    for path in ("/openapi.json", "/ojs/v1/openapi.json"):
        reply = httpx.get(server.url + path, **PLAIN)
        check(reply)
        assert reply.headers["content-type"] == "application/json"
        assert reply.json() == document()
    assert httpx.get(f"{server.url}/ojs/v1/jobs/x", **PLAIN).status_code == 401


def test_the_page_may_load_nothing_but_its_own_style(server: Server) -> None:
    """The policy forbids everything else, and names the digest of the style sheet."""
    reply = httpx.get(f"{server.url}/docs", **PLAIN)
    check(reply)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    style = reply.text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = reply.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "POST" in reply.text


def test_the_manifest_names_the_document(api: Api) -> None:
    """So that clients find it."""
    assert api.call("GET", "/ojs/manifest")["endpoints"]["openapi"] == "/openapi.json"


def test_the_manifest_tells_level_tier_and_strength(api: Api) -> None:
    """What a server of level 4 must declare (ojs-conformance section 4.2)."""
    manifest = api.call("GET", "/ojs/manifest")
    declared = [manifest[f"conformance_{what}"] for what in ("level", "tier")]
    assert (declared, manifest["unique_job_strength"]) == ([4, "runtime"], "strong")
    assert manifest["capabilities"]["unique_jobs"] is True, "manifest.schema.json has a boolean there"


def test_a_wrong_method_is_told_the_right_ones(api: Api) -> None:
    """405 with Allow (RFC 9110 section 15.5.6), also where the path has parameters."""
    for path, allowed in (("/jobs", "POST"), ("/jobs/x", "GET, PATCH, DELETE"), ("/queues/q/pause", "POST")):
        reply = api.request("PUT", path)
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
