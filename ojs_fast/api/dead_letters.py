"""Handlers of `/dead-letter` (ojs-http-binding section 12)."""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.dead_letters import DeadLetters


class DeadLetterHandlers:
    """List, get, retry, delete."""

    def __init__(self, dead_letters: DeadLetters) -> None:
        self._dead_letters = dead_letters

    async def list(self, request: Request) -> Reply:
        """GET /dead-letter."""
        limit = request.query_int("limit", 50, 1, 100)
        offset = request.query_int("offset", 0, 0, 10_000)
        page = await self._dead_letters.page(request.query("queue"), limit, request.query("cursor"), offset)
        pagination: dict[str, Any] = {
            "total": page.total,
            "limit": limit,
            "offset": offset,
            "has_more": bool(page.next_cursor),
        }
        if page.next_cursor:
            pagination["next_cursor"] = page.next_cursor
        body = _core.jobs_reply(page.jobs)[:-1] + b',"pagination":' + orjson.dumps(pagination) + b"}"
        return Reply(200, body)

    async def get(self, request: Request) -> Reply:
        """GET /dead-letter/{id}."""
        return Reply(200, b'{"job":' + await self._dead_letters.get(request.params["id"]) + b"}")

    async def retry(self, request: Request) -> Reply:
        """POST /dead-letter/{id}/retry."""
        record, stored = await self._dead_letters.retry(request.params["id"])
        at = _core.format_rfc3339_ms(record.enqueued_ms).encode()
        return Reply(200, b'{"job":' + _core.public_job(stored)[:-1] + b',"re_enqueued_at":"%s"}}' % at)

    async def delete(self, request: Request) -> Reply:
        """DELETE /dead-letter/{id}."""
        await self._dead_letters.delete(request.params["id"])
        return json_reply({"deleted": True, "job_id": request.params["id"]})
