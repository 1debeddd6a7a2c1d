"""Handlers of `/rate-limits` (ojs-rate-limiting section 10)."""

from datetime import datetime
from typing import Any

from ojs_fast import _core
from ojs_fast.api.http import RawHeaders, Reply, Request, json_reply
from ojs_fast.core.clock import now_ms
from ojs_fast.core.limit_admin import LimitAdmin
from ojs_fast.core.refusals import refused

MAX_PER_PAGE = 100


class RateLimitHandlers:
    """Inspect, list, override."""

    def __init__(self, admin: LimitAdmin) -> None:
        self._admin = admin

    async def get(self, request: Request) -> Reply:
        """GET /rate-limits/{key}."""
        return _reply(await self._admin.get(_key(request)))

    async def put(self, request: Request) -> Reply:
        """PUT /rate-limits/{key}: replace what its jobs declare, until `expires_at`."""
        return _reply(await self._admin.override(_key(request), _override(request)))

    async def delete(self, request: Request) -> Reply:
        """DELETE /rate-limits/{key}: what its jobs declare counts again."""
        return _reply(await self._admin.override(_key(request), None))

    async def put_queue(self, request: Request) -> Reply:
        """PUT /admin/queues/{name}/rate-limit: limit all jobs of a queue (section 7.2)."""
        return _reply(await self._admin.limit_queue(_queue(request), _override(request)))

    async def delete_queue(self, request: Request) -> Reply:
        """DELETE /admin/queues/{name}/rate-limit."""
        return _reply(await self._admin.limit_queue(_queue(request), None))

    async def list(self, request: Request) -> Reply:
        """GET /rate-limits."""
        page = request.query_int("page", 1, 1, 10**9)
        per_page = request.query_int("per_page", 20, 1, MAX_PER_PAGE)
        items, total = await self._admin.page(page, per_page)
        pagination = {"total": total, "page": page, "per_page": per_page, "has_more": page * per_page < total}
        return json_reply({"items": items, "pagination": pagination})


def _key(request: Request) -> str:
    try:
        return _core.check_limit_key(request.params["key"], "key")
    except ValueError as error:
        raise refused(error) from None


def _queue(request: Request) -> str:
    try:
        return _core.check_queue_name(request.params["name"], "name")
    except ValueError as error:
        raise refused(error) from None


def _override(request: Request) -> dict[str, Any]:
    try:
        return _core.parse_limit_override(request.body, now_ms())
    except (ValueError, TypeError) as error:
        raise refused(error) from None


def quota_headers(limit: int, left: int, resets_s: int) -> RawHeaders:
    """The headers of section 10.4."""
    return [
        (b"x-ratelimit-limit", b"%d" % limit),
        (b"x-ratelimit-remaining", b"%d" % left),
        (b"x-ratelimit-reset", b"%d" % resets_s),
    ]


def _reply(shown: dict[str, Any]) -> Reply:
    reply = json_reply(shown)
    reply.headers.extend(_headers(shown))
    return reply


def _headers(shown: dict[str, Any]) -> RawHeaders:
    # Section 10.4, for the key that the answer is about.
    if "rate" in shown:
        limit, left = shown["rate"]["limit"], max(0, shown["rate"]["limit"] - shown["rate"]["current_count"])
        resets = datetime.fromisoformat(shown["rate"]["window_resets_at"]).timestamp()
    elif "concurrency" in shown:
        limit, left = shown["concurrency"]["limit"], shown["concurrency"]["available"]
        resets = now_ms() / 1000
    else:
        return []
    return quota_headers(limit, left, int(resets) + 1)
