"""Counters of one node."""

from __future__ import annotations

import pytest

from ojs_fast import _core
from ojs_fast.core import metrics
from ojs_fast.core.metrics import BUCKETS_S, Histogram, Metrics


def record(queue: str = "q", type_: str = "a.b") -> _core.Record:
    """Make a job that ran for 30 ms after it had waited for 2 s."""
    one = _core.Record("01900000-0000-7000-8000-000000000000", type_, queue, b"")
    one.enqueued_ms, one.started_ms, one.ended_ms = 1000, 3000, 3030
    return one


@pytest.mark.parametrize(("time_s", "bucket"), [(0.0, 0), (0.005, 0), (0.0051, 1), (1800.0, 14), (1800.1, 15)])
def test_a_time_falls_into_the_first_bucket_that_holds_it(time_s: float, bucket: int) -> None:
    """Bounds are inclusive, as `le` says."""
    histogram = Histogram()
    histogram.observe(time_s)
    assert histogram.counts.index(1) == bucket
    assert histogram.sum_s == time_s


def test_events_are_counted_by_queue_and_type() -> None:
    """Scheduled jobs are enqueued ones; starts are timed at the first attempt."""
    node = Metrics("n")
    for event in ("job.enqueued", "job.scheduled", "job.started", "job.completed", "job.heartbeat"):
        node.observe(event, record())
    report = node.report()
    assert report["node"] == "n"
    assert sorted(report["counters"]) == [["completed", "q", "a.b", 1], ["enqueued", "q", "a.b", 2]]
    times = {name: (counts.index(1), sum_s) for name, _, _, counts, sum_s in report["histograms"]}
    assert times == {"duration": (BUCKETS_S.index(0.05), 0.03), "queue_time": (BUCKETS_S.index(2.5), 2.0)}
    again = record()
    again.attempt = 2
    node.observe("job.started", again)
    assert sum(sum(counts) for _, _, _, counts, _ in node.report()["histograms"]) == 2


def test_the_number_of_series_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it, jobs count under `other`; those that have a series keep it."""
    monkeypatch.setattr(metrics, "SERIES_LIMIT", 3)
    node = Metrics("n")
    for number in range(10):
        node.observe("job.enqueued", record(f"q{number}"))
        node.observe("job.started", record(f"q{number}"))
    node.observe("job.enqueued", record("q0"))
    counted = {queue: count for _, queue, _, count in node.report()["counters"]}
    assert counted == {"q0": 2, "q1": 1, "q2": 1, "other": 7}
    assert [queue for _, queue, *_ in node.report()["histograms"]] == ["q0", "q1", "q2", "other"]
