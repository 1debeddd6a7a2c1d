"""The route table: method, path, handler. One line per endpoint."""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cache

from ojs_fast.api.admin import AdminHandlers
from ojs_fast.api.bulk import BulkHandlers
from ojs_fast.api.cron import CronHandlers
from ojs_fast.api.dead_letters import DeadLetterHandlers
from ojs_fast.api.document import DocumentHandlers
from ojs_fast.api.http import V1, Reply, Request
from ojs_fast.api.jobs import JobHandlers
from ojs_fast.api.live import LiveHandlers
from ojs_fast.api.metrics import MetricsHandlers
from ojs_fast.api.queues import QueueHandlers
from ojs_fast.api.rate_limits import RateLimitHandlers
from ojs_fast.api.running import RunningHandlers
from ojs_fast.api.schemas import SchemaHandlers
from ojs_fast.api.system import SystemHandlers
from ojs_fast.api.webhooks import WebhookHandlers
from ojs_fast.api.websocket import SocketHandlers
from ojs_fast.api.workers import WorkerHandlers
from ojs_fast.api.workflows import WorkflowHandlers

Handler = Callable[[Request], Awaitable[Reply]]
#: What ojs-distributed-tracing section 4 names; all others are named after their path.
OPERATIONS = {
    ("POST", "/jobs"): "enqueue",
    ("POST", "/jobs/batch"): "enqueue_batch",
    ("POST", "/workers/fetch"): "fetch",
    ("POST", "/jobs/fetch"): "fetch",
    ("POST", "/workers/ack"): "ack",
    ("POST", "/jobs/{id}/ack"): "ack",
    ("POST", "/workers/nack"): "nack",
    ("POST", "/jobs/{id}/nack"): "nack",
    ("POST", "/workers/heartbeat"): "heartbeat",
    ("POST", "/workers/beat"): "heartbeat",
    ("DELETE", "/jobs/{id}"): "cancel",
    ("POST", "/jobs/{id}/cancel"): "cancel",
    ("GET", "/jobs/{id}"): "get_job",
}


@dataclass(slots=True, frozen=True)
class Route:
    """One endpoint. `is_open`: answered without an API key."""

    method: str
    path: str
    handler: Handler
    is_open: bool = False

    @property
    def operation(self) -> str:
        """Its name in spans and metrics: the specification's, else its path and, but for POST, its method."""
        path = self.path.removeprefix(V1)
        known = OPERATIONS.get((self.method, path))
        if known is not None:
            return known
        words = [word for word in path.split("/") if word and word[0] != "{"]
        return ".".join([*words, *([] if self.method == "POST" else [self.method.lower()])])


def routes(
    jobs: JobHandlers,
    workers: WorkerHandlers,
    dead_letters: DeadLetterHandlers,
    queues: QueueHandlers,
    cron: CronHandlers,
    rate_limits: RateLimitHandlers,
    system: SystemHandlers,
    bulk: BulkHandlers,
    metrics: MetricsHandlers,
    live: LiveHandlers,
    admin: AdminHandlers,
    workflows: WorkflowHandlers,
    running: RunningHandlers,
    schemas: SchemaHandlers,
    webhooks: WebhookHandlers,
    sockets: SocketHandlers,
    document: DocumentHandlers,
    *,
    with_reset: bool,
) -> list[Route]:
    """Every endpoint with its aliases (CONTRACT section 1, EXTENSIONS section 1)."""
    table = [
        Route("GET", "/ojs/manifest", system.manifest, is_open=True),
        Route("GET", V1 + "/health", system.health, is_open=True),
        Route("GET", "/health", system.health, is_open=True),
        Route("GET", "/ready", system.ready, is_open=True),
        Route("GET", V1 + "/ready", system.ready, is_open=True),
        Route("GET", "/openapi.json", document.openapi, is_open=True),
        Route("GET", V1 + "/openapi.json", document.openapi, is_open=True),
        Route("GET", "/docs", document.page, is_open=True),
        Route("GET", "/metrics", metrics.metrics),
        Route("POST", V1 + "/jobs", jobs.enqueue),
        Route("POST", V1 + "/jobs/batch", jobs.enqueue_batch),
        Route("POST", V1 + "/jobs/bulk", bulk.enqueue),
        Route("POST", V1 + "/jobs/bulk/cancel", bulk.on("cancel")),
        Route("POST", V1 + "/jobs/bulk/retry", bulk.on("retry")),
        Route("POST", V1 + "/jobs/bulk/delete", bulk.on("delete")),
        Route("POST", V1 + "/jobs/bulk/get", bulk.on("get")),
        Route("POST", V1 + "/jobs/fetch", workers.fetch),
        Route("GET", V1 + "/jobs/{id}", jobs.get),
        Route("PATCH", V1 + "/jobs/{id}", jobs.patch),
        Route("DELETE", V1 + "/jobs/{id}", jobs.cancel),
        Route("POST", V1 + "/jobs/{id}/cancel", jobs.cancel),
        Route("POST", V1 + "/jobs/{id}/activate", jobs.activate),
        Route("POST", V1 + "/jobs/{id}/ack", workers.ack),
        Route("POST", V1 + "/jobs/{id}/nack", workers.nack),
        Route("GET", V1 + "/jobs/{id}/progress", running.progress),
        Route("PUT", V1 + "/jobs/{id}/progress", running.report),
        Route("GET", V1 + "/jobs/{id}/checkpoint", running.checkpoint),
        Route("PUT", V1 + "/jobs/{id}/checkpoint", running.save),
        Route("POST", V1 + "/jobs/{id}/checkpoint", running.save),
        Route("DELETE", V1 + "/jobs/{id}/checkpoint", running.forget),
        Route("POST", V1 + "/workers/fetch", workers.fetch),
        Route("POST", V1 + "/workers/ack", workers.ack),
        Route("POST", V1 + "/workers/nack", workers.nack),
        Route("POST", V1 + "/workers/heartbeat", workers.heartbeat),
        Route("POST", V1 + "/workers/beat", workers.heartbeat),
        Route("POST", V1 + "/workers/progress", running.report_percentage),
        Route("GET", V1 + "/workers/{id}/health", workers.health),
        Route("GET", V1 + "/dead-letter", dead_letters.list),
        Route("DELETE", V1 + "/dead-letter", dead_letters.purge),
        Route("GET", V1 + "/dead-letter/stats", dead_letters.stats),
        Route("POST", V1 + "/dead-letter/retry", dead_letters.retry_all),
        Route("GET", V1 + "/dead-letter/{id}", dead_letters.get),
        Route("POST", V1 + "/dead-letter/{id}/retry", dead_letters.retry),
        Route("DELETE", V1 + "/dead-letter/{id}", dead_letters.delete),
        Route("GET", V1 + "/queues", queues.list),
        Route("POST", V1 + "/queues", queues.create),
        Route("GET", V1 + "/queues/{name}", queues.get),
        Route("DELETE", V1 + "/queues/{name}", queues.delete),
        Route("GET", V1 + "/queues/{name}/stats", queues.stats),
        Route("GET", V1 + "/queues/{name}/config", queues.get_config),
        Route("PUT", V1 + "/queues/{name}/config", queues.configure),
        Route("PATCH", V1 + "/queues/{name}/config", queues.configure),
        Route("POST", V1 + "/queues/{name}/purge", queues.purge),
        Route("POST", V1 + "/queues/{name}/pause", queues.pause),
        Route("POST", V1 + "/queues/{name}/resume", queues.resume),
        Route("GET", V1 + "/cron", cron.list),
        Route("POST", V1 + "/cron", cron.register),
        Route("GET", V1 + "/cron/{name}", cron.get),
        Route("PATCH", V1 + "/cron/{name}", cron.patch),
        Route("DELETE", V1 + "/cron/{name}", cron.delete),
        Route("GET", V1 + "/schemas", schemas.list),
        Route("POST", V1 + "/schemas", schemas.register),
        Route("GET", V1 + "/schemas/{path:uri}", schemas.get),
        Route("DELETE", V1 + "/schemas/{path:uri}", schemas.delete),
        Route("GET", V1 + "/rate-limits", rate_limits.list),
        Route("GET", V1 + "/rate-limits/{key}", rate_limits.get),
        Route("PUT", V1 + "/rate-limits/{key}", rate_limits.put),
        Route("DELETE", V1 + "/rate-limits/{key}", rate_limits.delete),
        Route("GET", V1 + "/admin/queues", queues.list_in_detail),
        Route("GET", V1 + "/admin/queues/{name}", queues.get_in_detail),
        Route("GET", V1 + "/admin/queues/{name}/config", queues.get_config),
        Route("PUT", V1 + "/admin/queues/{name}/config", queues.configure),
        Route("PATCH", V1 + "/admin/queues/{name}/config", queues.configure),
        Route("DELETE", V1 + "/admin/queues/{name}/jobs", queues.purge),
        Route("POST", V1 + "/admin/queues/{name}/pause", queues.pause),
        Route("POST", V1 + "/admin/queues/{name}/resume", queues.resume),
        Route("PUT", V1 + "/admin/queues/{name}/rate-limit", rate_limits.put_queue),
        Route("DELETE", V1 + "/admin/queues/{name}/rate-limit", rate_limits.delete_queue),
        Route("POST", V1 + "/workflows", workflows.create),
        Route("GET", V1 + "/workflows", workflows.list),
        Route("GET", V1 + "/workflows/{id}", workflows.get),
        Route("DELETE", V1 + "/workflows/{id}", workflows.cancel),
        Route("POST", V1 + "/workflows/{id}/cancel", workflows.cancel),
        Route("POST", V1 + "/workflows/{id}/retry", workflows.retry),
        Route("GET", V1 + "/events", system.read_events),
        Route("GET", V1 + "/events/stream", live.of_channel),
        Route("GET", V1 + "/jobs/{id}/events", live.of_job),
        Route("GET", V1 + "/queues/{name}/events", live.of_queue),
        Route("GET", V1 + "/ws", sockets.without_upgrade),
        Route("GET", "/ws", sockets.without_upgrade),
        Route("GET", V1 + "/webhooks/subscriptions", webhooks.list),
        Route("POST", V1 + "/webhooks/subscriptions", webhooks.create),
        Route("GET", V1 + "/webhooks/subscriptions/{id}", webhooks.get),
        Route("PATCH", V1 + "/webhooks/subscriptions/{id}", webhooks.update),
        Route("DELETE", V1 + "/webhooks/subscriptions/{id}", webhooks.delete),
        Route("POST", V1 + "/webhooks/subscriptions/{id}/test", webhooks.test),
        Route("POST", V1 + "/webhooks/subscriptions/{id}/rotate-secret", webhooks.rotate),
        Route("GET", V1 + "/webhooks/deliveries", webhooks.deliveries),
        Route("GET", V1 + "/webhooks/deliveries/{id}", webhooks.delivery),
        Route("POST", V1 + "/webhooks/deliveries/{id}/retry", webhooks.retry),
        Route("GET", V1 + "/admin/stats", admin.stats),
        Route("GET", V1 + "/admin/stats/history", admin.history),
        Route("GET", V1 + "/admin/system/config", admin.config),
        Route("GET", V1 + "/admin/jobs", admin.list_jobs),
        Route("POST", V1 + "/admin/jobs/bulk/retry", bulk.admin("retry")),
        Route("POST", V1 + "/admin/jobs/bulk/cancel", bulk.admin("cancel")),
        Route("POST", V1 + "/admin/jobs/bulk/delete", bulk.admin("delete")),
        Route("GET", V1 + "/admin/jobs/{id}", admin.get_job),
        Route("POST", V1 + "/admin/jobs/{id}/cancel", admin.cancel_job),
        Route("POST", V1 + "/admin/jobs/{id}/retry", admin.retry_job),
        Route("GET", V1 + "/admin/workers", admin.list_workers),
        Route("GET", V1 + "/admin/workers/{id}", admin.get_worker),
        Route("DELETE", V1 + "/admin/workers/{id}", admin.deregister_worker),
        Route("POST", V1 + "/admin/workers/{id}/quiet", admin.direct("quiet")),
        Route("POST", V1 + "/admin/workers/{id}/terminate", admin.direct("terminate")),
        Route("POST", V1 + "/admin/workers/{id}/resume", admin.direct("running")),
        Route("GET", V1 + "/admin/schemas/{type}", schemas.latest),
        Route("GET", V1 + "/admin/schemas/{type}/versions", schemas.versions),
        Route("GET", V1 + "/admin/schemas/{type}/{version}", schemas.get_version),
        Route("PUT", V1 + "/admin/schemas/{type}/{version}", schemas.put_version),
        Route("DELETE", V1 + "/admin/schemas/{type}/{version}", schemas.delete_version),
        Route("GET", V1 + "/admin/dead-letter", dead_letters.list_in_detail),
        Route("DELETE", V1 + "/admin/dead-letter", dead_letters.purge),
        Route("GET", V1 + "/admin/dead-letter/stats", dead_letters.stats),
        Route("POST", V1 + "/admin/dead-letter/retry", dead_letters.retry_all),
        Route("GET", V1 + "/admin/dead-letter/{id}", dead_letters.get),
        Route("POST", V1 + "/admin/dead-letter/{id}/retry", dead_letters.retry),
        Route("DELETE", V1 + "/admin/dead-letter/{id}", dead_letters.remove),
    ]
    for prefix in (V1, V1 + V1):  # the SDKs put the prefix twice here
        table += [
            Route("GET", prefix + "/checkpoints/{id}/resume", running.resume),
            Route("POST", prefix + "/checkpoints/{id}", running.save_any),
            Route("DELETE", prefix + "/checkpoints/{id}", running.forget),
        ]
    if with_reset:
        table.append(Route("POST", V1 + "/admin/reset", system.reset))
    document.describe(table)
    return table


def methods_of(table: Iterable[Route], path: str) -> list[str]:
    """The methods that a path takes, in the order of the table; none when there is no such path."""
    return list({route.method: None for route in table if _pattern(route.path).fullmatch(path)})


@cache
def _pattern(path: str) -> re.Pattern[str]:
    pattern = re.sub(r"\\{path:\w+\\}", ".+", re.escape(path).replace("\\:", ":"))
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", pattern))
