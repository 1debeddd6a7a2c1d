"""Handlers of `/queues` (ojs-http-binding section 11)."""

from typing import Any

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.jobs import refused
from ojs_fast.core.queues import Queues
from ojs_fast.errors import NotFound


class QueueHandlers:
    """List, get, pause, resume."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    async def list(self, request: Request) -> Reply:
        """GET /queues."""
        queues = self._queues.all()
        limit = request.query_int("limit", 50, 1, 200)
        start = request.query_int("cursor", 0, 0, 10**9) or request.query_int("offset", 0, 0, 10**9)
        has_more = start + limit < len(queues)
        pagination: dict[str, Any] = {"total": len(queues), "limit": limit, "offset": start, "has_more": has_more}
        if has_more:
            pagination["next_cursor"] = str(start + limit)
        return json_reply({"queues": [q.as_json() for q in queues[start : start + limit]], "pagination": pagination})

    async def get(self, request: Request) -> Reply:
        """GET /queues/{name}."""
        name = _name(request)
        queue = await self._queues.find(name)
        if queue is None:
            raise NotFound(
                f"Queue '{name}' not found.",
                details={"resource_type": "queue", "resource_id": name},
                hint="A queue exists once a job was enqueued to it or it was paused.",
            )
        return json_reply({"queue": queue.as_json()})

    async def pause(self, request: Request) -> Reply:
        """POST /queues/{name}/pause; works on unseen names."""
        queue = await self._queues.update(_name(request), paused=True)
        return json_reply({"queue": queue.as_json()})

    async def resume(self, request: Request) -> Reply:
        """POST /queues/{name}/resume."""
        queue = await self._queues.update(_name(request), paused=False)
        return json_reply({"queue": queue.as_json()})


def _name(request: Request) -> str:
    try:
        return _core.check_queue_name(request.params["name"], "name")
    except ValueError as error:
        raise refused(error) from None
