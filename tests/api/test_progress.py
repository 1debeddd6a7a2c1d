"""Progress of running jobs (ojs-progress): reports, what they mean for the reservation, what is kept."""

from __future__ import annotations

import time

import pytest

from tests.api.checks import refusal
from tests.api.test_workers import held
from tests.support.api import Api, Body
from tests.support.processes import poll


def report(api: Api, job_id: str, **body: object) -> Body:
    """Report and return what is known then."""
    return api.call("PUT", f"/jobs/{job_id}/progress", body)


def told(api: Api, job_id: str) -> Body:
    """What anybody is told."""
    return api.call("GET", f"/jobs/{job_id}/progress")


def test_nothing_is_known_before_the_first_report(api: Api) -> None:
    """Nulls, not 404 (section 7.1)."""
    _, job_id = held(api)
    known = told(api, job_id)
    assert (known["state"], known["progress"], known["data"], known["updated_at"]) == ("active", None, None, None)


def test_a_report_is_read_back(api: Api) -> None:
    """Number, message and data; each may be left out, and stays as it was then."""
    _, job_id = held(api)
    report(api, job_id, progress=0.25, message="a quarter", data={"rows": 1})
    known = report(api, job_id, progress=0.5)
    assert (known["progress"], known["message"], known["data"]) == (0.5, "a quarter", {"rows": 1})
    assert told(api, job_id) == known
    answer = api.request("GET", f"/jobs/{job_id}/progress")
    assert answer.headers["x-ojs-progress"] == "0.5"


def test_it_is_clamped_and_never_falls(api: Api) -> None:
    """Section 5.1."""
    _, job_id = held(api)
    seen = [report(api, job_id, progress=value)["progress"] for value in (-1, 0.5, 0.3, 7)]
    assert seen == [0.0, 0.5, 0.5, 1.0]


def test_a_report_renews_the_reservation(api: Api) -> None:
    """It is a heartbeat (section 6.3): the job of a worker that only reports stays its own."""
    _, job_id = held(api, visibility_timeout_ms=1000)
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        report(api, job_id, progress=0.1)
        time.sleep(0.2)  # the worker's own pace
    assert api.get(job_id)["attempt"] == 1
    api.ack(job_id)


def test_a_completed_job_is_done_and_a_failed_one_is_where_it_was(api: Api) -> None:
    """Sections 8.1 and 8.2; a job that never reported has no progress."""
    _, done = held(api)
    report(api, done, progress=0.4)
    api.ack(done)
    assert told(api, done)["progress"] == 1.0
    _, failed = held(api)
    report(api, failed, progress=0.4)
    api.nack(failed, retryable=False)
    assert told(api, failed)["progress"] == 0.4
    _, silent = held(api)
    api.ack(silent)
    assert told(api, silent)["progress"] is None


def test_the_next_attempt_starts_from_nothing(api: Api) -> None:
    """Section 5.3."""
    queue, job_id = held(api)
    report(api, job_id, progress=0.9)
    api.nack(job_id, requeue=True)
    assert told(api, job_id)["progress"] == 0.9
    assert len(api.fetch(queue)) == 1
    assert told(api, job_id)["progress"] is None


def test_a_report_for_a_job_that_does_not_run_is_ignored(api: Api) -> None:
    """200 and no change (section 6.1); an unknown job is 404."""
    _, job_id = held(api)
    api.ack(job_id)
    before = api.get(job_id)
    assert report(api, job_id, progress=0.5)["progress"] is None
    assert api.get(job_id) == before
    missing = api.request("PUT", "/jobs/01900000-0000-7000-8000-000000000000/progress", {"progress": 0.5})
    refusal(missing, 404, code="not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "progress"),
        ({"progress": "half"}, "progress"),
        ({"progress": True}, "progress"),
        ({"data": [1]}, "data"),
        ({"data": {"x": "y" * 20_000}}, "data"),
        ({"message": 5}, "message"),
        ({"progress": 0.5, "worker_id": ""}, "worker_id"),
    ],
)
def test_bad_reports_are_refused(api: Api, body: Body, field: str) -> None:
    """With the field's name; nothing changes."""
    _, job_id = held(api)
    refusal(api.request("PUT", f"/jobs/{job_id}/progress", body), 400, code="invalid_request", field=field)
    assert told(api, job_id)["updated_at"] is None


def test_it_is_told_as_an_event_once_a_second(api: Api) -> None:
    """`job.progress` with what ojs-events and ojs-realtime name (section 6.2)."""
    queue, job_id = held(api, worker="w-progress")
    for value in (0.25, 0.26, 0.27):
        report(api, job_id, progress=value, message="on it")
    poll(lambda: api.events(types="job.progress", queues=queue), what="the event is there")
    [event] = api.events(types="job.progress", queues=queue)
    data = event["data"]
    assert (data["progress_percent"], data["progress"], data["message"]) == (25, 25, "on it")
    assert (data["worker_id"], data["attempt"]) == ("w-progress", 1)
