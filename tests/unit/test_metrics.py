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


@pytest.mark.parametrize(("time_s", "bucket"), [(0.0, 0), (0.01, 0), (0.0101, 1), (3600.0, 12), (3600.1, 13)])
def test_a_time_falls_into_the_first_bucket_that_holds_it(time_s: float, bucket: int) -> None:
    """Bounds are inclusive, as `le` says."""
    histogram = Histogram(BUCKETS_S["queue_time"])
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
    times = {name: (counts.index(1), sum_s) for name, *_, counts, sum_s in report["histograms"]}
    assert times == {
        "duration": (BUCKETS_S["duration"].index(0.05), 0.03),
        "queue_time": (BUCKETS_S["queue_time"].index(5.0), 2.0),
    }
    again = record()
    again.attempt = 2
    node.observe("job.started", again)
    assert sum(sum(counts) for *_, counts, _ in node.report()["histograms"]) == 2


def test_the_end_of_a_running_job_is_timed_by_its_state() -> None:
    """Jobs that ended while they waited have not run, or were timed before."""
    node = Metrics("n")
    never_ran, running = record(), record()
    never_ran.started_ms = 0
    running.state = "discarded"
    node.observe("job.discarded", running)
    node.observe("job.cancelled", running, "retryable")
    node.observe("job.cancelled", never_ran, "available")
    assert [row[:4] for row in node.report()["histograms"]] == [["duration", "q", "a.b", "discarded"]]


def test_requests_are_timed_by_operation_and_status() -> None:
    """Each status that occurred has a histogram."""
    node = Metrics("n")
    times = node.requests("ack")
    for status in (200, 200, 409):
        times[status].observe(0.002)
    assert node.requests("ack") is times
    told = [(operation, status, sum(counts)) for operation, status, counts, _ in node.report()["requests"]]
    assert told == [("ack", 200, 2), ("ack", 409, 1)]


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
