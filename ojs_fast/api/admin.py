"""Handlers of `/admin` for jobs, workers and totals (ojs-admin-api sections 7, 9, 10, 12.2)."""

import time
from collections.abc import Callable
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.api.http import RFC_3339, Reply, Request, json_reply
from ojs_fast.config import Settings
from ojs_fast.core.dead_letters import DeadLetters
from ojs_fast.core.job_search import JobFilter, JobSearch
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.queues import Queues
from ojs_fast.core.stats import Stats
from ojs_fast.core.workers import Workers
from ojs_fast.errors import invalid_parameter

STATES = ("pending", "scheduled", "available", "active", "retryable", "completed", "discarded", "cancelled")
SORTS: dict[str, Callable[[_core.Record], int]] = {
    "created_at": lambda record: record.created_ms,
    "scheduled_at": lambda record: record.scheduled_ms,
    "priority": lambda record: record.priority,
}
PERIODS_MINUTES = {"1m": 1, "5m": 5, "1h": 60}
DEEPEST = 10_000  # pages beyond that many jobs are refused: filters find them sooner


class AdminHandlers:
    """What dashboards and operators ask."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        search: JobSearch,
        dead_letters: DeadLetters,
        queues: Queues,
        workers: Workers,
        stats: Stats,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._search = search
        self._dead_letters = dead_letters
        self._queues = queues
        self._workers = workers
        self._stats = stats
        self._started = time.monotonic()

    # -- jobs ------------------------------------------------------------------------------------

    async def list_jobs(self, request: Request) -> Reply:
        """GET /admin/jobs (section 7.1); `total` is a lower bound when `total_is_exact` is false."""
        wanted = job_filter(request)
        offset, per_page, page = paging(request)
        newest_first = _choice(request, "order", ("asc", "desc"), "desc") == "desc"
        sort = _choice(request, "sort", tuple(SORTS), "created_at")
        found = await self._search.page(
            wanted, offset, per_page, newest_first=newest_first, counts=not wanted.counted_state
        )
        total, is_exact = found.total, found.is_complete
        if wanted.counted_state and not is_exact:
            total, is_exact = await self._counted(wanted), True
        jobs = sorted(found.jobs, key=lambda stored: SORTS[sort](_core.Record.parse(stored)), reverse=newest_first)
        # Spliced, not decoded: a job may hold numbers that no double can.
        items = [orjson.Fragment(_core.public_job(stored)) for stored in jobs]
        pagination = {"total": total, "page": page, "per_page": per_page, "total_is_exact": is_exact}
        return json_reply({"items": items, "pagination": pagination})

    async def _counted(self, wanted: JobFilter) -> int:
        if not wanted.queue:
            return (await self._stats.overall()).states()[wanted.counted_state]
        queue = await self._queues.find(wanted.queue)
        return (await self._stats.of([queue]))[0].states()[wanted.counted_state] if queue else 0

    async def get_job(self, request: Request) -> Reply:
        """GET /admin/jobs/{id} (section 7.2): the whole envelope, flat and as `job`."""
        job = await self._jobs.get(request.params["id"])
        return Reply(200, job[:-1] + b',"job":' + job + b"}")

    async def cancel_job(self, request: Request) -> Reply:
        """POST /admin/jobs/{id}/cancel (section 7.3)."""
        _, stored, previous = await self._jobs.cancel(request.params["id"])
        job = _core.public_job(stored)
        return Reply(200, job[:-1] + b',"previous_state":"%s","job":%s}' % (previous.encode(), job))

    async def retry_job(self, request: Request) -> Reply:
        """POST /admin/jobs/{id}/retry (section 7.4)."""
        _, stored = await self._dead_letters.revive(request.params["id"])
        job = _core.public_job(stored)
        return Reply(200, job[:-1] + b',"job":' + job + b"}")

    # -- workers ---------------------------------------------------------------------------------

    async def list_workers(self, request: Request) -> Reply:
        """GET /admin/workers (section 9.1)."""
        offset, per_page, page = paging(request)
        workers = [_worker(beat) for beat in self._workers.all()]
        states = [worker["state"] for worker in workers]
        summary = {"total": len(workers), **{state: states.count(state) for state in ("running", "quiet", "stale")}}
        return json_reply(
            {
                "items": workers[offset : offset + per_page],
                "summary": summary,
                "pagination": {"total": len(workers), "page": page, "per_page": per_page},
            }
        )

    async def get_worker(self, request: Request) -> Reply:
        """GET /admin/workers/{id} (section 9.2), with the ids of the jobs it told of."""
        beat = self._workers.find(request.params["id"])
        return json_reply({**_worker(beat), "active_job_ids": beat.get("active_job_ids", [])})

    def direct(self, state: str) -> Callable[[Request], Any]:
        """POST /admin/workers/{id}/quiet (section 9.3), /terminate, /resume."""

        async def handler(request: Request) -> Reply:
            await self._workers.direct(request.params["id"], state)
            return json_reply({"worker_id": request.params["id"], "state": state})

        return handler

    async def deregister_worker(self, request: Request) -> Reply:
        """DELETE /admin/workers/{id} (section 9.4)."""
        await self._workers.deregister(request.params["id"])
        return json_reply({"worker_id": request.params["id"], "deregistered": True})

    # -- totals ----------------------------------------------------------------------------------

    async def stats(self, request: Request) -> Reply:
        """GET /admin/stats (section 10.1)."""
        overall = await self._stats.overall()
        return json_reply(
            {
                "queues": len(self._queues.all()),
                "workers": len(self._workers.all()),
                "jobs": overall.states(),
                "throughput": overall.throughput(),
                **overall.counts.percentiles(overall.computed_ms),
                "uptime_seconds": int(time.monotonic() - self._started),
                "computed_at": _core.format_rfc3339_ms(overall.computed_ms),
            }
        )

    async def history(self, request: Request) -> Reply:
        """GET /admin/stats/history (section 10.2); the last hour is kept, minute by minute."""
        period = _choice(request, "period", tuple(PERIODS_MINUTES), "5m")
        since_ms, until_ms = query_moment_ms(request, "since"), query_moment_ms(request, "until")
        name = request.query("queue")
        if name:
            queue = await self._queues.find(name)
            snapshot = (await self._stats.of([queue]))[0] if queue else None
        else:
            snapshot = await self._stats.overall()
        points = snapshot.counts.history(snapshot.computed_ms, PERIODS_MINUTES[period]) if snapshot else []
        data = [
            {"timestamp": _core.format_rfc3339_ms(at_ms), **values}
            for at_ms, values in points
            if since_ms <= at_ms and not (until_ms and at_ms >= until_ms)
        ]
        return json_reply({"period": period, "data": data})

    async def config(self, request: Request) -> Reply:
        """GET /admin/system/config (section 12.2); secrets are masked."""
        described = [
            {"name": one.name, "value": one.value, "is_default": one.is_default} for one in self._settings.describe()
        ]
        return json_reply({"settings": described})


def _worker(beat: dict[str, Any]) -> dict[str, Any]:
    state = beat["directive"] if beat["directive"] != "running" else beat.get("state", "running")
    known = ("worker_id", "beat_ms", "first_beat_ms", "active_job_ids", "is_stale")
    return {
        "id": beat["worker_id"],
        "worker_id": beat["worker_id"],
        "hostname": None,
        "queues": [],
        "concurrency": None,
        **{name: value for name, value in beat.items() if name not in known},
        "state": "stale" if beat["is_stale"] else state,
        "started_at": _core.format_rfc3339_ms(beat["first_beat_ms"]),
        "last_heartbeat_at": _core.format_rfc3339_ms(beat["beat_ms"]),
    }


# -- query parameters ----------------------------------------------------------------------------


def paging(request: Request) -> tuple[int, int, int]:
    """`(offset, per_page, page)` of page/per_page, or of limit/offset as in openapi.yaml. Raises InvalidRequest."""
    per_page = request.query_int("per_page", request.query_int("limit", 20, 1, 100), 1, 100)
    page = request.query_int("page", request.query_int("offset", 0, 0, DEEPEST) // per_page + 1, 1, 10**9)
    offset = (page - 1) * per_page if request.query("page") else request.query_int("offset", 0, 0, DEEPEST)
    if offset > DEEPEST:
        raise invalid_parameter(
            "page", str(page), f"a page within the first {DEEPEST} jobs; narrow the filter for others"
        )
    return offset, per_page, page


def job_filter(request: Request) -> JobFilter:
    """The filter in a query string (ojs-admin-api section 7.1). Raises InvalidRequest."""
    return JobFilter(
        request.query("queue"),
        tuple(filter(None, [_choice(request, "state", STATES, "")])),
        request.query("type"),
        query_moment_ms(request, "since"),
        query_moment_ms(request, "until"),
    )


def _choice(request: Request, name: str, allowed: tuple[str, ...], default: str) -> str:
    value = request.query(name) or default
    if value and value not in allowed:
        raise invalid_parameter(name, value, f"one of {', '.join(allowed)}")
    return value


def query_moment_ms(request: Request, name: str) -> int:
    """A time in a query string as epoch ms, 0 when it is missing. Raises InvalidRequest."""
    value = request.query(name)
    if not value:
        return 0
    try:
        return _core.parse_rfc3339_ms(value) or 1  # 0 stands for no time
    except ValueError:
        raise invalid_parameter(name, value, RFC_3339) from None
