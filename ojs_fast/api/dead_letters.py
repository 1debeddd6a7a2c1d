"""Handlers of `/dead-letter` and `/admin/dead-letter` (ojs-http-binding 12, ojs-dead-letter 10, ojs-admin-api 11)."""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.api.admin import job_filter, paging, query_moment_ms
from ojs_fast.api.http import Reply, Request, json_reply, moment_ms
from ojs_fast.config import Settings
from ojs_fast.core.dead_letters import DeadFilter, DeadLetters, Outcome
from ojs_fast.errors import invalid_field

DAY_S = 86_400


class DeadLetterHandlers:
    """List, get, retry, delete; the same under `/admin` in its shapes."""

    def __init__(self, dead_letters: DeadLetters, settings: Settings) -> None:
        self._dead_letters = dead_letters
        self._settings = settings

    async def list_in_detail(self, request: Request) -> Reply:
        """GET /admin/dead-letter (ojs-admin-api section 11.1)."""
        offset, per_page, page = paging(request)
        job_filter(request)  # the parameters of the job list, `state` among them
        found = await self._dead_letters.page(_asked(request), per_page, "", offset)
        pagination = orjson.dumps({"total": found.total, "page": page, "per_page": per_page})
        items = _core.jobs_reply(found.jobs).partition(b":")[2][:-1]
        return Reply(200, b'{"items":%s,"pagination":%s}' % (items, pagination))

    async def stats(self, request: Request) -> Reply:
        """GET /dead-letter/stats (ojs-dead-letter section 10.1)."""
        age_s = self._settings.retention_dead_letter_s
        days, rest_s = divmod(age_s, DAY_S)
        max_age = _core.format_duration_ms(age_s * 1000) if rest_s else f"P{days}D"
        retention = {"max_age": max_age, "max_count": self._settings.dead_letter_max_count or None}
        return json_reply({**await self._dead_letters.stats(), "retention": retention})

    async def retry_all(self, request: Request) -> Reply:
        """POST /dead-letter/retry (ojs-dead-letter section 6.2), needs `confirm: true`."""
        outcome = await self._dead_letters.retry_all(_confirmed(request))
        return json_reply({"action": "retry", **_summary(outcome), "retried": outcome.succeeded})

    async def purge(self, request: Request) -> Reply:
        """DELETE /dead-letter (ojs-admin-api section 11.3), needs `confirm: true`."""
        outcome = await self._dead_letters.delete_all(_confirmed(request))
        return json_reply({"action": "delete", **_summary(outcome), "purged_count": outcome.succeeded})

    async def remove(self, request: Request) -> Reply:
        """DELETE /admin/dead-letter/{id} (openapi.yaml): 204."""
        await self._dead_letters.delete(request.params["id"])
        return Reply(204, b"")

    async def list(self, request: Request) -> Reply:
        """GET /dead-letter (ojs-dead-letter section 9.1)."""
        limit = request.query_int("limit", 50, 1, 100)
        offset = request.query_int("offset", 0, 0, 10_000)
        page = await self._dead_letters.page(_asked(request), limit, request.query("cursor"), offset)
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


def _asked(request: Request) -> DeadFilter:
    """The filter in a query string. Raises InvalidRequest."""
    return DeadFilter(
        request.query("queue"),
        request.query("type"),
        request.query("error_type"),
        query_moment_ms(request, "since"),
        query_moment_ms(request, "until"),
    )


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {
        "matched": outcome.matched,
        "succeeded": outcome.succeeded,
        "failed": outcome.matched - outcome.succeeded,
        "errors": [{"job_id": job_id, "error": message} for job_id, message in outcome.errors],
    }


_TEXTS = ("queue", "type", "error_type")
_TIMES = ("since", "until", "older_than")


def _confirmed(request: Request) -> DeadFilter:
    """The filter in the body of a request about many (ojs-dead-letter section 6.2). Raises InvalidRequest."""
    body = request.json() if request.body else {}
    if body.get("confirm") is not True:
        raise invalid_field("confirm", body.get("confirm"), "true: it concerns every dead letter that matches")
    given = body.get("filter", {})
    if not isinstance(given, dict):
        raise invalid_field("filter", given, "an object")
    beside = {name: value for name, value in body.items() if name not in ("confirm", "filter")}
    for name, value in (*beside.items(), *given.items()):
        if name not in _TEXTS + _TIMES:
            raise invalid_field(name, value, f"only {', '.join(_TEXTS + _TIMES)}")
        if not isinstance(value, str):
            raise invalid_field(name, value, "a string")
    for name in beside.keys() & given.keys() & set(_TIMES):
        moment_ms(name, beside[name])  # that of the filter goes first; this one must be sound all the same
    given = {**beside, **given}
    times = {name: moment_ms(name, given[name]) for name in _TIMES if name in given}
    until = [times[name] for name in ("until", "older_than") if name in times]
    queue, type_, error_type = (given.get(name, "") for name in _TEXTS)
    return DeadFilter(queue, type_, error_type, times.get("since", 0), min(until, default=0))
