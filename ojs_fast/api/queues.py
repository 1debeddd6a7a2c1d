"""Handlers of `/queues` and `/admin/queues` (ojs-http-binding section 11, ojs-queue-config section 9, ojs-admin-api 6).

Where the documents and SDKs disagree the answer is the union of their shapes (docs/design.md).
"""

from collections.abc import Iterable
from typing import Any

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request, json_reply, moment_ms
from ojs_fast.core.queue_admin import PURGEABLE, Purge, QueueAdmin
from ojs_fast.core.queues import Queue, Queues
from ojs_fast.core.refusals import refused
from ojs_fast.core.stats import Snapshot, Stats
from ojs_fast.errors import Unsupported, invalid_field

DEFAULT_PURGE = ("available", "scheduled", "retryable")


class QueueHandlers:
    """List, look, create, configure, pause, empty, delete."""

    def __init__(self, queues: Queues, admin: QueueAdmin, stats: Stats) -> None:
        self._queues = queues
        self._admin = admin
        self._stats = stats

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

    async def list_in_detail(self, request: Request) -> Reply:
        """GET /admin/queues (ojs-admin-api section 6.1)."""
        queues = self._queues.all()
        page = request.query_int("page", 1, 1, 10**9)
        per_page = request.query_int("per_page", 20, 1, 100)
        snapshots = await self._stats.of(queues[(page - 1) * per_page : page * per_page])
        items = [
            {**one.queue.as_json(), "counts": one.states(), "depth": one.depth, **one.details()} for one in snapshots
        ]
        return json_reply({"items": items, "pagination": {"total": len(queues), "page": page, "per_page": per_page}})

    async def get(self, request: Request) -> Reply:
        """GET /queues/{name} (ojs-queue-config section 9.3)."""
        snapshot = await self._snapshot(request)
        about = _about(snapshot.queue)
        stats = {"depth": snapshot.depth, **snapshot.states()}
        return json_reply({**about, "queue": about, "stats": stats})

    async def get_in_detail(self, request: Request) -> Reply:
        """GET /admin/queues/{name} (ojs-admin-api section 6.2)."""
        snapshot = await self._snapshot(request)
        about = _about(snapshot.queue)
        return json_reply(
            {
                **about,
                "queue": about,
                "counts": snapshot.states(),
                "depth": snapshot.depth,
                "configuration": snapshot.queue.config,
                **snapshot.details(),
            }
        )

    async def stats(self, request: Request) -> Reply:
        """GET /queues/{name}/stats (section 11.2)."""
        snapshot = await self._snapshot(request)
        queue, states = snapshot.queue, snapshot.states()
        rules = queue.rules
        bound = {"max_depth": rules.max_depth} if rules.max_depth else {}
        flat = {**queue.as_json(), **states, "depth": snapshot.depth, **bound}
        stats = {"queue": queue.name, "depth": snapshot.depth, **bound, **states, **snapshot.details()}
        computed_at = _core.format_rfc3339_ms(snapshot.computed_ms)
        return json_reply({**flat, "queue": flat, "stats": stats, "computed_at": computed_at})

    async def create(self, request: Request) -> Reply:
        """POST /queues (ojs-queue-config section 9.2)."""
        body = request.json()
        _only(body, ("name", "config"))
        name = body.get("name")
        if not isinstance(name, str):
            raise invalid_field("name", name, "the name of the queue (required)")
        about = _about(await self._admin.create(_checked(name), body.get("config")))
        return json_reply({**about, "queue": about}, 201)

    async def get_config(self, request: Request) -> Reply:
        """GET /queues/{name}/config."""
        return _config(await self._admin.look(_name(request)))

    async def configure(self, request: Request) -> Reply:
        """PUT and PATCH /queues/{name}/config (ojs-queue-config section 9.1): the members given, the others stay."""
        return _config(await self._admin.configure(_name(request), request.json()))

    async def delete(self, request: Request) -> Reply:
        """DELETE /queues/{name} (section 9.4), strategy `reject` only."""
        name = _name(request)
        body = request.json() if request.body else {}
        _only(body, ("strategy", "target_queue"))
        strategy = body.get("strategy", "reject")
        if strategy in ("discard", "move"):
            raise Unsupported(
                f"Field 'strategy' is '{strategy}'; this server deletes empty queues only.",
                details={"field": "strategy", "received": strategy, "supported": ["reject"]},
                hint=f"POST /ojs/v1/queues/{name}/purge empties a queue.",
            )
        if strategy != "reject":
            raise invalid_field("strategy", strategy, '"reject"')
        await self._admin.delete(name)
        return json_reply({"queue": name, "name": name, "state": "deleted", "deleted": True, "jobs_affected": 0})

    async def purge(self, request: Request) -> Reply:
        """POST /queues/{name}/purge and DELETE /admin/queues/{name}/jobs (ojs-admin-api section 6.5)."""
        name = _name(request)
        body = request.json() if request.body else {}
        _only(body, ("states", "older_than", "confirm"))
        if body.get("confirm") is not True:
            raise invalid_field("confirm", body.get("confirm"), "true: a purge cannot be undone")
        states = body.get("states")
        if states is None:
            states = list(DEFAULT_PURGE)
        if not isinstance(states, list) or not states or not all(isinstance(one, str) for one in states):
            raise invalid_field("states", states, f"an array of {', '.join(PURGEABLE)}")
        for number, state in enumerate(states):
            if state not in PURGEABLE:
                raise invalid_field(f"states[{number}]", state, f"one of {', '.join(PURGEABLE)}")
        older_than = body.get("older_than")
        what = Purge(frozenset(states), 0 if older_than is None else moment_ms("older_than", older_than))
        purged = await self._admin.purge(name, what)
        return json_reply({"queue": name, "purged_count": purged, "states": states})

    async def pause(self, request: Request) -> Reply:
        """POST /queues/{name}/pause; works on unseen names."""
        return await self._pause(request, paused=True)

    async def resume(self, request: Request) -> Reply:
        """POST /queues/{name}/resume."""
        return await self._pause(request, paused=False)

    async def _pause(self, request: Request, *, paused: bool) -> Reply:
        queue = await self._admin.pause(_name(request), paused=paused)
        at = {"paused_at" if paused else "resumed_at": _core.format_rfc3339_ms(queue.updated_ms)}
        about = {**queue.as_json(), **at}
        return json_reply({**about, "queue": about})

    async def _snapshot(self, request: Request) -> Snapshot:
        queue = await self._admin.look(_name(request))
        [snapshot] = await self._stats.of([queue])
        return snapshot


def _about(queue: Queue) -> dict[str, Any]:
    updated_ms = queue.updated_ms or queue.created_ms
    return {**queue.as_json(), "config": queue.config, "updated_at": _core.format_rfc3339_ms(updated_ms)}


def _config(queue: Queue) -> Reply:
    return json_reply({**_about(queue), "queue": queue.name, "configuration": queue.config})


def _only(body: dict[str, Any], known: Iterable[str]) -> None:
    for field, value in body.items():
        if field not in known:
            raise invalid_field(field[:80], value, f"only {', '.join(known)}")


def _checked(name: str) -> str:
    try:
        return _core.check_queue_name(name, "name")
    except ValueError as error:
        raise refused(error) from None


def _name(request: Request) -> str:
    return _checked(request.params["name"])
