"""Handlers of `/cron` (ojs-cron section 8, ojs-http-binding section 13)."""

from typing import Any

from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.cron import Cron
from ojs_fast.core.cron_entry import Entry, check_name
from ojs_fast.errors import invalid_parameter


class CronHandlers:
    """Register, list, get, change, delete."""

    def __init__(self, cron: Cron) -> None:
        self._cron = cron

    async def register(self, request: Request) -> Reply:
        """POST /cron: 201 for a new one, 200 for an update."""
        entry, is_new = await self._cron.register(request.body)
        return json_reply(_both(entry), 201 if is_new else 200)

    async def list(self, request: Request) -> Reply:
        """GET /cron, with `enabled`, `limit` and `offset` (or `page` and `per_page`, as the JavaScript SDK has it)."""
        wanted = request.query("enabled")
        if wanted not in ("", "true", "false"):
            raise invalid_parameter("enabled", wanted, "true or false")
        found = [entry for entry in self._cron.all() if not wanted or entry.enabled == (wanted == "true")]
        per_page = request.query_int("per_page", 50, 1, 200)
        limit = request.query_int("limit", per_page, 1, 200)
        page = request.query_int("page", 1, 1, 10**9)
        offset = request.query_int("cursor", 0, 0, 10**9) or request.query_int("offset", (page - 1) * limit, 0, 10**9)
        shown = [entry.as_json() for entry in found[offset : offset + limit]]
        has_more = offset + limit < len(found)
        pagination: dict[str, Any] = {"total": len(found), "limit": limit, "offset": offset, "has_more": has_more}
        if has_more:
            pagination["next_cursor"] = str(offset + limit)
        return json_reply({"crons": shown, "cron_jobs": shown, "count": len(found), "pagination": pagination})

    async def get(self, request: Request) -> Reply:
        """GET /cron/{name}."""
        return json_reply(_both(await self._cron.get(_name(request))))

    async def patch(self, request: Request) -> Reply:
        """PATCH /cron/{name}: enabled, or any field of a registration."""
        return json_reply(_both(await self._cron.patch(_name(request), request.body)))

    async def delete(self, request: Request) -> Reply:
        """DELETE /cron/{name}."""
        entry = await self._cron.delete(_name(request))
        return json_reply(_both(entry) | {"deleted": True, "name": entry.name})


def _name(request: Request) -> str:
    return check_name(request.params["name"])


def _both(entry: Entry) -> dict[str, Any]:
    # openapi.yaml and the suites read `cron`, the HTTP binding and the SDKs `cron_job`.
    shown = entry.as_json()
    return {"cron": shown, "cron_job": shown}
