"""Counters and histograms of one node, for Prometheus (ojs-observability section 8).

Fed by the events that the node announces anyway, so a change that no client sees twice is counted once. Every series
carries its node, because a node's counters begin anew with it; whoever is scraped answers for all nodes.
"""

import bisect
from collections.abc import Callable
from typing import Any

from ojs_fast import __version__, _core

# Pairs of queue and type that get series of their own; the jobs of all others count as type "other".
SERIES_LIMIT = 1000
OTHER = "other"
# Histogram → upper bounds of its buckets in seconds (section 8.2; of requests, which have none there, our own).
BUCKETS_S = {
    "duration": (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
    "queue_time": (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0),
    "requests": (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
}
# Event → counter (ojs-observability section 8.1, ojs-dead-letter section 11.2).
COUNTED = {
    "job.enqueued": "enqueued",
    "job.scheduled": "enqueued",
    "job.completed": "completed",
    "job.discarded": "failed",
    "job.retrying": "retried",
    "job.cancelled": "cancelled",
    "job.expired": "expired",
    "dead_letter.added": "dead_letter_added",
    "dead_letter.retried": "dead_letter_retried",
    "dead_letter.pruned": "dead_letter_pruned",
}
# What ends a job that did not complete, and the state that it left if it was running (discarded ones do not tell).
ENDED = ("job.discarded", "job.cancelled")
RAN = ("", "active")


class Histogram:
    """How often a time (s) fell into each bucket; the last one is without bound."""

    __slots__ = ("_bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, time_s: float) -> None:
        """Count one time."""
        self.counts[bisect.bisect_left(self._bounds_s, time_s)] += 1
        self.sum_s += time_s


class RequestTimes(dict[int, Histogram]):
    """How long the requests of one operation took, by HTTP status."""

    def __missing__(self, status: int) -> Histogram:
        histogram = self[status] = Histogram(BUCKETS_S["requests"])
        return histogram


class Metrics:
    """What happened on this node since it started."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._counters: dict[tuple[str, str, str], int] = {}
        self._histograms: dict[tuple[str, str, str, str], Histogram] = {}
        self._requests: dict[str, RequestTimes] = {}
        #: name → what it is now
        self.gauges: dict[str, Callable[[], int]] = {}

    def observe(self, event_type: str, record: _core.Record, before: str = "") -> None:
        """Take notice of a change of a job; one that had a state `before` is not enqueued again."""
        name = COUNTED.get(event_type)
        if name is not None and not (before and name == "enqueued"):
            key = (name, record.queue, record.type)
            count = self._counters.get(key)
            if count is None:
                key = _bounded(key, len(self._counters))
                count = self._counters.get(key, 0)
            self._counters[key] = count + 1
        if event_type == "job.started":
            if record.attempt <= 1:
                self._time("queue_time", record, record.started_ms - record.enqueued_ms)
        elif event_type == "job.completed" or (event_type in ENDED and record.started_ms and before in RAN):
            self._time("duration", record, record.ended_ms - record.started_ms, record.state)

    def _time(self, name: str, record: _core.Record, milliseconds: int, state: str = "") -> None:
        key = (name, record.queue, record.type, state)
        histogram = self._histograms.get(key)
        if histogram is None:
            if len(self._histograms) >= SERIES_LIMIT:
                key = (name, OTHER, OTHER, state)
            histogram = self._histograms.setdefault(key, Histogram(BUCKETS_S[name]))
        histogram.observe(max(0, milliseconds) / 1000)

    def requests(self, operation: str) -> RequestTimes:
        """Where the requests of an operation are timed."""
        return self._requests.setdefault(operation, RequestTimes())

    def report(self) -> dict[str, Any]:
        """All of it, for another node to tell: `{node, version, gauges, counters, histograms, requests}`."""
        return {
            "node": self._node_id,
            "version": __version__,
            "gauges": [[name, gauge()] for name, gauge in self.gauges.items()],
            "counters": [[*key, count] for key, count in self._counters.items()],
            "histograms": [[*key, one.counts, one.sum_s] for key, one in self._histograms.items()],
            "requests": [
                [operation, status, one.counts, one.sum_s]
                for operation, times in self._requests.items()
                for status, one in times.items()
            ],
        }


def _bounded(key: tuple[str, str, str], series: int) -> tuple[str, str, str]:
    return key if series < SERIES_LIMIT else (key[0], OTHER, OTHER)
