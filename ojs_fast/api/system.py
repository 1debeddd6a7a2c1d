"""Handlers about the server itself: manifest, health, events, reset."""

from typing import Any

from ojs_fast import __version__
from ojs_fast.api.http import V1, Reply, Request, json_reply
from ojs_fast.core.events import Events
from ojs_fast.core.health import Health
from ojs_fast.core.reset import Resetter

CONFORMANCE_LEVEL = 4
# Not "full": that asks for gRPC and every optional feature (ojs-conformance section 3.3).
CONFORMANCE_TIER = "runtime"
# Locks by compare-and-set, fences against slow creators, replacement in one atomic batch (ojs-unique-jobs section 8).
UNIQUE_JOB_STRENGTH = "strong"


def manifest() -> dict[str, Any]:
    """The conformance manifest (ojs-http-binding section 21, ojs-conformance section 4.2)."""
    return {
        "specversion": "1.0",
        "ojs_version": "1.0",
        "implementation": {"name": "ojs-fast", "version": __version__, "language": "python"},
        "conformance_level": CONFORMANCE_LEVEL,
        "conformance_tier": CONFORMANCE_TIER,
        "unique_job_strength": UNIQUE_JOB_STRENGTH,
        "protocols": ["http", "websocket"],
        "backend": "nats",
        "capabilities": {
            "batch_enqueue": True,
            "cron_jobs": True,
            "dead_letter": True,
            "delayed_jobs": True,
            "job_ttl": True,
            "priority_queues": True,
            "rate_limiting": True,
            "schema_validation": False,
            "unique_jobs": True,
            "workflows": True,
            "pause_resume": True,
            "queue_stats": True,
            "queue_config": True,
            "backpressure": True,
            "webhooks": True,
            "realtime": True,
        },
        "extensions": [
            "urn:ojs:ext:admin-api",
            "urn:ojs:ext:backpressure",
            "urn:ojs:ext:bulk-operations",
            "urn:ojs:ext:dead-letter",
            "urn:ojs:ext:durable-execution",
            "urn:ojs:ext:progress",
            "urn:ojs:ext:queue-config",
            "urn:ojs:ext:rate-limiting",
            "urn:ojs:ext:webhooks",
        ],
        "endpoints": {
            "base_url": V1,
            "manifest": "/ojs/manifest",
            "health": "/ojs/v1/health",
            "jobs": "/ojs/v1/jobs",
            "workflows": "/ojs/v1/workflows",
            "events": "/ojs/v1/events",
            "webhooks": "/ojs/v1/webhooks/subscriptions",
            "websocket": "/ojs/v1/ws",
            "openapi": "/openapi.json",
        },
    }


class SystemHandlers:
    """Endpoints that are not about one job."""

    def __init__(self, health: Health, events: Events, resetter: Resetter) -> None:
        self._health = health
        self._events = events
        self._resetter = resetter

    async def manifest(self, request: Request) -> Reply:
        """GET /ojs/manifest."""
        return json_reply(manifest())

    async def health(self, request: Request) -> Reply:
        """GET /ojs/v1/health (section 8.1)."""
        report = await self._health.check()
        return json_reply(report, 200 if report["status"] == "ok" else 503)

    async def ready(self, request: Request) -> Reply:
        """GET /ready: whether requests can be served now, for load balancers."""
        report = await self._health.check()
        is_ready = report["status"] == "ok"
        return json_reply({"status": "ready" if is_ready else "not_ready"}, 200 if is_ready else 503)

    async def read_events(self, request: Request) -> Reply:
        """GET /ojs/v1/events (ojs-events section 6.4)."""
        events, cursor, has_more = await self._events.read(
            after=request.query("after"),
            types=request.query_list("types"),
            queues=request.query_list("queues"),
            job_types=request.query_list("job_types"),
            limit=request.query_int("limit", 100, 1, 1000),
        )
        return json_reply({"events": events, "cursor": cursor, "has_more": has_more})

    async def reset(self, request: Request) -> Reply:
        """POST /ojs/v1/admin/reset, only with OJS_ENABLE_RESET=true."""
        await self._resetter.run()
        return json_reply({"reset": True})
