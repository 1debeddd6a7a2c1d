"""Handlers of `/workflows` (ojs-workflows section 11, ojs-http-binding section 14)."""

from typing import Any

from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.workflows.service import Shown, Workflows

STEPS_SHOWN = 1000
MOST_STEPS_SHOWN = 10_000


class WorkflowHandlers:
    """Create, get, list, cancel, retry."""

    def __init__(self, workflows: Workflows) -> None:
        self._workflows = workflows

    async def create(self, request: Request) -> Reply:
        """POST /workflows."""
        workflow_id, shown = await self._workflows.create(request.body, STEPS_SHOWN)
        return _reply(201, shown, [(b"location", b"/ojs/v1/workflows/" + workflow_id.encode())])

    async def get(self, request: Request) -> Reply:
        """GET /workflows/{id}."""
        offset = request.query_int("steps_offset", 0, 0, MOST_STEPS_SHOWN)
        limit = request.query_int("steps_limit", STEPS_SHOWN, 0, MOST_STEPS_SHOWN)
        return _reply(200, await self._workflows.get(request.params["id"], offset, limit))

    async def list(self, request: Request) -> Reply:
        """GET /workflows."""
        limit = request.query_int("limit", 50, 1, 200)
        offset = request.query_int("offset", 0, 0, 10_000)
        page = await self._workflows.page(
            state=request.query("state"),
            type_=request.query("type"),
            limit=limit,
            cursor=request.query("cursor"),
            offset=offset,
        )
        pagination: dict[str, Any] = {
            "total": page.total,
            "limit": limit,
            "offset": offset,
            "has_more": bool(page.next_cursor),
        }
        if page.next_cursor:
            pagination["next_cursor"] = page.next_cursor
        return json_reply({"workflows": page.workflows, "pagination": pagination})

    async def cancel(self, request: Request) -> Reply:
        """DELETE /workflows/{id} and POST /workflows/{id}/cancel."""
        return _reply(200, await self._workflows.cancel(request.params["id"], STEPS_SHOWN))

    async def retry(self, request: Request) -> Reply:
        """POST /workflows/{id}/retry."""
        return _reply(200, await self._workflows.retry(request.params["id"], STEPS_SHOWN))


def _reply(status: int, shown: Shown, headers: list[tuple[bytes, bytes]] | None = None) -> Reply:
    # The specification wraps the workflow; the JavaScript SDK reads its members at the top.
    head, whole = shown
    return Reply(status, b'{"workflow":' + whole + b"," + head[1:], headers or [])
