"""Counters and histograms of one node, for Prometheus (ojs-observability section 8).

Fed by the events that the node announces anyway, so a change that no client sees twice is counted once. Every series
carries its node, because a node's counters begin anew with it; whoever is scraped answers for all nodes.
"""

import bisect
from collections.abc import Callable
from typing import Any

from ojs_fast import _core

# Pairs of queue and type that get series of their own; the jobs of all others count as type "other".
SERIES_LIMIT = 1000
OTHER = "other"
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
# Event → counter (ojs-observability section 8.1).
COUNTED = {
    "job.enqueued": "enqueued",
    "job.scheduled": "enqueued",
    "job.completed": "completed",
    "job.discarded": "failed",
    "job.retrying": "retried",
    "job.cancelled": "cancelled",
    "job.expired": "expired",
}


class Histogram:
    """How often a time (s) fell into each bucket; the last one is without bound."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, time_s: float) -> None:
        """Count one time."""
        self.counts[bisect.bisect_left(BUCKETS_S, time_s)] += 1
        self.sum_s += time_s


class Metrics:
    """What happened on this node since it started."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._counters: dict[tuple[str, str, str], int] = {}
        self._histograms: dict[tuple[str, str, str], Histogram] = {}
        #: name → what it is now
        self.gauges: dict[str, Callable[[], int]] = {}

    def observe(self, event_type: str, record: _core.Record, *, is_new: bool = True) -> None:
        """Take notice of a change of a job; one that was enqueued before is not enqueued again."""
        name = COUNTED.get(event_type)
        if name is not None and (is_new or name != "enqueued"):
            key = (name, record.queue, record.type)
            count = self._counters.get(key)
            if count is None:
                key = _bounded(key, len(self._counters))
                count = self._counters.get(key, 0)
            self._counters[key] = count + 1
        if event_type == "job.completed":
            self._time("duration", record, record.ended_ms - record.started_ms)
        elif event_type == "job.started" and record.attempt <= 1:
            self._time("queue_time", record, record.started_ms - record.enqueued_ms)

    def _time(self, name: str, record: _core.Record, milliseconds: int) -> None:
        key = (name, record.queue, record.type)
        histogram = self._histograms.get(key)
        if histogram is None:
            key = _bounded(key, len(self._histograms))
            histogram = self._histograms.setdefault(key, Histogram())
        histogram.observe(max(0, milliseconds) / 1000)

    def report(self) -> dict[str, Any]:
        """All of it, for another node to tell: `{node, gauges, counters, histograms}`."""
        return {
            "node": self._node_id,
            "gauges": [[name, gauge()] for name, gauge in self.gauges.items()],
            "counters": [[*key, count] for key, count in self._counters.items()],
            "histograms": [[*key, one.counts, one.sum_s] for key, one in self._histograms.items()],
        }


def _bounded(key: tuple[str, str, str], series: int) -> tuple[str, str, str]:
    return key if series < SERIES_LIMIT else (key[0], OTHER, OTHER)
