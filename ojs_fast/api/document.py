"""Handlers of `/openapi.json` and `/docs`: what this server does, for programs and for people."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import orjson

from ojs_fast.api.http import PLAIN_JSON, Reply, Request
from ojs_fast.api.openapi.endpoint import Endpoint

_KEPT = (b"cache-control", b"public, max-age=300")
_HTML = b"text/html; charset=utf-8"
# The page loads nothing; its own style sheet is allowed by its digest.
_POLICY = "default-src 'none'; style-src '{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class DocumentHandlers:
    """Made at the first request, then kept: a server that nobody asks does not even load the descriptions."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._routes: Sequence[Endpoint] = ()

    def describe(self, routes: Sequence[Endpoint]) -> None:
        """Set what there is to tell about."""
        self._routes = routes

    @cached_property
    def _document(self) -> dict[str, Any]:
        from ojs_fast.api.openapi.builder import build

        return build(self._routes, self._max_body_bytes)

    @cached_property
    def _json(self) -> bytes:
        return orjson.dumps(self._document)

    @cached_property
    def _page(self) -> Reply:
        from ojs_fast.api.openapi.page import STYLE_DIGEST, render

        headers = [
            _KEPT,
            (b"content-security-policy", _POLICY.format(style=STYLE_DIGEST).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]
        return Reply(200, render(self._document).encode(), headers, content_type=_HTML)

    async def openapi(self, request: Request) -> Reply:
        """GET /openapi.json."""
        return Reply(200, self._json, [_KEPT], content_type=PLAIN_JSON)

    async def page(self, request: Request) -> Reply:
        """GET /docs."""
        return self._page
