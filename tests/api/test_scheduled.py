"""Scheduled jobs that are cancelled while they wait, and in the very instant in which they are due."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from tests.support.api import Api, job_request, unique_queue
from tests.support.processes import poll

JOBS = 120


def test_a_job_can_be_cancelled_in_the_instant_of_its_promotion(api: Api) -> None:
    """Cancel and promotion race for each job: every cancel succeeds, and no worker ever gets one of them."""
    queue = unique_queue()
    due = time.time() + 0.6
    moment = datetime.fromtimestamp(due, UTC).isoformat(timespec="milliseconds")
    jobs = api.enqueue_batch([job_request(queue, scheduled_at=moment) for _ in range(JOBS)])
    assert {job["state"] for job in jobs} == {"scheduled"}
    poll(lambda: time.time() > due - 0.03, deadline_s=3, pause_s=0.002, what="the due time is near")
    with ThreadPoolExecutor(8) as pool:
        cancelled = list(pool.map(lambda job: api.cancel(job["id"]), jobs))
    assert {job["state"] for job in cancelled} == {"cancelled"}
    assert {job["previous_state"] for job in cancelled} <= {"scheduled", "available"}
    poll(lambda: time.time() > due + 0.5, deadline_s=3, what="it is over")
    assert api.fetch(queue, count=JOBS) == []
    assert {api.get(job["id"])["state"] for job in jobs} == {"cancelled"}
    stats = api.call("GET", f"/queues/{queue}/stats")["queue"]
    assert (stats["scheduled"], stats["available"], stats["cancelled"]) == (0, 0, JOBS)


def test_a_cancelled_job_never_becomes_due(api: Api) -> None:
    """Cancelled long before, it stays cancelled when its time comes."""
    queue = unique_queue()
    job = api.enqueue(queue, scheduled_at="+PT0.5S")
    assert api.cancel(job["id"])["previous_state"] == "scheduled"
    began = time.monotonic()
    poll(lambda: time.monotonic() - began > 1.0, deadline_s=3, what="its time is over")
    assert api.get(job["id"])["state"] == "cancelled"
    assert api.fetch(queue) == []
