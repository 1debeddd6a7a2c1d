"""GET /metrics in the text format of Prometheus (ojs-observability section 8)."""

import itertools
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ojs_fast.api.http import Reply, Request
from ojs_fast.core.metrics import BUCKETS_S
from ojs_fast.core.queues import Queues
from ojs_fast.core.stats import LIVE_STATES, Snapshot, Stats
from ojs_fast.core.workers import Workers

# Queues that get series of their own, by name; more would strain Prometheus and this answer.
QUEUES_SHOWN = 500
QUEUES_AT_ONCE = 100
BARE_TYPE = b"text/plain"

# Counter in a node's report → its name and what it tells.
_COUNTERS = {
    "enqueued": ("ojs_job_enqueued", "Jobs enqueued."),
    "completed": ("ojs_job_completed", "Jobs that reached the state completed."),
    "failed": ("ojs_job_failed", "Jobs that reached the state discarded."),
    "retried": ("ojs_job_retried", "Attempts that failed and are tried again."),
    "cancelled": ("ojs_job_cancelled", "Jobs cancelled."),
    "expired": ("ojs_job_expired", "Jobs discarded because expires_at had passed."),
    "dead_letter_added": ("ojs_dead_letter_added", "Jobs that became dead letters."),
    "dead_letter_retried": ("ojs_dead_letter_retried", "Dead letters retried by hand."),
    "dead_letter_pruned": ("ojs_dead_letter_pruned", "Dead letters deleted because there were too many."),
}
_NODE_GAUGES = {
    "claims": "Active jobs whose deadlines a node watches.",
    "leader": "1 at the node that promotes, fires cron jobs and repairs.",
    "live_listeners": "Clients that listen to live events at a node.",
    "parked_jobs": "Jobs that wait at a node for a rate limit.",
    "uptime_seconds": "How long a node has run.",
}
# Outcome of attempts → its gauge in a node's report.
_WEBHOOKS = {"success": "webhook_delivered", "failed": "webhook_failed", "dead": "webhook_dead"}
_HISTOGRAMS = {
    "duration": "Seconds from the start of the last attempt to the end of the job.",
    "queue_time": "Seconds from enqueue to the first start.",
}


class MetricsHandlers:
    """What Prometheus scrapes; any node answers for all of them."""

    def __init__(self, stats: Stats, queues: Queues, workers: Workers) -> None:
        self._stats = stats
        self._queues = queues
        self._workers = workers

    async def metrics(self, request: Request) -> Reply:
        """GET /metrics."""
        queues = self._queues.all()[:QUEUES_SHOWN]
        snapshots: list[Snapshot] = []
        dead_letters: list[int] = []
        for start in range(0, len(queues), QUEUES_AT_ONCE):
            part = queues[start : start + QUEUES_AT_ONCE]
            snapshots += await self._stats.of(part)
            dead_letters += await self._stats.dead_letters(part)
        reports = await self._stats.metrics()
        registry = CollectorRegistry(auto_describe=False)
        of_queues = _gauges(snapshots, dead_letters, self._workers.all())
        gauges = [*of_queues, *_of_nodes(reports), *_of_webhooks(reports)]
        registry.register(_Scrape([*gauges, *_counted(reports), *_timed(reports), _requested(reports)]))
        # Prometheus names no type at all or many; a client that asks for exactly this gets exactly this.
        bare = request.headers.get(b"accept") == BARE_TYPE
        return Reply(
            200, generate_latest(registry), content_type=BARE_TYPE if bare else CONTENT_TYPE_PLAIN_0_0_4.encode()
        )


class _Scrape(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _gauges(snapshots: list[Snapshot], dead_letters: list[int], workers: list[dict[str, Any]]) -> Iterable[Metric]:
    depth = GaugeMetricFamily("ojs_queue_depth", "Jobs in a queue by state.", labels=["queue", "state"])
    busy = GaugeMetricFamily("ojs_workers_busy", "Jobs that workers run now.", labels=["queue"])
    oldest = GaugeMetricFamily("ojs_queue_oldest_seconds", "How long the oldest job has waited.", labels=["queue"])
    paused = GaugeMetricFamily("ojs_queue_paused", "1 while a queue is paused.", labels=["queue"])
    dead = GaugeMetricFamily("ojs_dead_letter_total", "Dead letters of a queue.", labels=["queue"])
    for one, count in zip(snapshots, dead_letters, strict=True):
        name, states = one.queue.name, one.states()
        for state in LIVE_STATES:
            depth.add_metric([name, state], states[state])
        busy.add_metric([name], one.active)
        waiting_ms = one.computed_ms - one.oldest_ms if one.oldest_ms else 0
        oldest.add_metric([name], max(0, waiting_ms) / 1000)
        paused.add_metric([name], one.queue.paused)
        dead.add_metric([name], count)
    active = GaugeMetricFamily("ojs_workers_active", "Workers that beat lately.", value=len(workers))
    return depth, busy, oldest, paused, dead, active


def _of_nodes(reports: list[dict[str, Any]]) -> Iterable[Metric]:
    info = GaugeMetricFamily("ojs_node_info", "1 for each node.", labels=["node", "version"])
    for report in reports:
        info.add_metric([report["node"], report["version"]], 1)
    yield info
    for name, text in _NODE_GAUGES.items():
        family = GaugeMetricFamily(f"ojs_node_{name}", text, labels=["node"])
        for report in reports:
            family.add_metric([report["node"]], dict(report["gauges"])[name])
        yield family


def _of_webhooks(reports: list[dict[str, Any]]) -> Iterable[Metric]:
    text = "Attempts to deliver an event to a webhook, by what came of them (ojs-webhooks section 11.2)."
    family = CounterMetricFamily("ojs_webhook_delivery_count", text, labels=["status", "node"])
    for report in reports:
        for status, name in _WEBHOOKS.items():
            family.add_metric([status, report["node"]], dict(report["gauges"]).get(name, 0))
    count = max((dict(report["gauges"]).get("webhook_subscriptions", 0) for report in reports), default=0)
    return family, GaugeMetricFamily("ojs_webhook_subscription_count", "Webhook subscriptions.", value=count)


def _counted(reports: list[dict[str, Any]]) -> Iterable[Metric]:
    for counted, (name, text) in _COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=["queue", "type", "node"])
        for report in reports:
            for what, queue, type_, count in report["counters"]:
                if what == counted:
                    family.add_metric([queue, type_, report["node"]], count)
        yield family


def _timed(reports: list[dict[str, Any]]) -> Iterable[Metric]:
    for name, text in _HISTOGRAMS.items():
        has_state = name == "duration"
        labels = ["queue", "type", *(["state"] if has_state else []), "node"]
        family = HistogramMetricFamily(f"ojs_job_{name}_seconds", text, labels=labels)
        for report in reports:
            for what, queue, type_, state, counts, sum_s in report["histograms"]:
                if what == name:
                    values = [queue, type_, *([state] if has_state else []), report["node"]]
                    family.add_metric(values, _buckets(name, counts), sum_s)
        yield family


def _requested(reports: list[dict[str, Any]]) -> Metric:
    family = HistogramMetricFamily(
        "ojs_http_request_duration_seconds",
        "Seconds from the headers of a request to its answer.",
        labels=["operation", "status", "node"],
    )
    for report in reports:
        for operation, status, counts, sum_s in report["requests"]:
            family.add_metric([operation, str(status), report["node"]], _buckets("requests", counts), sum_s)
    return family


def _buckets(name: str, counts: list[int]) -> list[tuple[str, int]]:
    bounds = [*map(str, BUCKETS_S[name]), "+Inf"]
    return list(zip(bounds, itertools.accumulate(counts), strict=True))
