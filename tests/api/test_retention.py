"""Finished jobs leave the store by themselves: by their state's setting, or by their own `result_ttl`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.api import Api, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

SHORT = {
    "OJS_RETENTION_COMPLETED": "PT1S",
    "OJS_RETENTION_CANCELLED": "PT1S",
    "OJS_RETENTION_DISCARDED": "PT1S",
    "OJS_RETENTION_DEAD_LETTER": "PT2S",
}


@pytest.fixture(scope="module")
def forgetful() -> Iterator[Api]:
    """Give a client of a server that keeps finished jobs for a second."""
    with Server(env=SHORT) as server, Api(server.url) as client:
        yield client


def gone(api: Api, job_id: str) -> bool:
    """Whether nobody knows the job any more."""
    return api.request("GET", f"/jobs/{job_id}").status_code == 404


def completed(api: Api, **options: Any) -> str:
    """Complete a job with a result and return its id."""
    queue = unique_queue()
    job_id: str = api.enqueue(queue, **options)["id"]
    api.fetch(queue)
    api.ack(job_id, result={"r": 1})
    return job_id


def test_finished_jobs_go_and_others_stay(forgetful: Api) -> None:
    """Completed, cancelled and discarded jobs go after their time; a dead letter and a waiting job do not."""
    queue, dead_queue = unique_queue(), unique_queue()
    waiting = forgetful.enqueue(queue)["id"]
    cancelled = forgetful.enqueue(unique_queue())["id"]
    forgetful.cancel(cancelled)
    finished = completed(forgetful)
    discarded = forgetful.enqueue(dead_queue, retry={"max_attempts": 1})["id"]
    dead = forgetful.enqueue(dead_queue, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})["id"]
    for _ in range(2):
        [job] = forgetful.fetch(dead_queue)
        forgetful.nack(job["id"])
    for job_id in (cancelled, finished, discarded):
        poll(partial(gone, forgetful, job_id), deadline_s=5, what="it goes")
    assert forgetful.get(waiting)["state"] == "available"
    poll(lambda: gone(forgetful, dead), deadline_s=5, what="the dead letter goes")
    poll(lambda: forgetful.dead_letters(dead_queue) == [], deadline_s=5, what="it is listed no more")
    assert [job["id"] for job in forgetful.fetch(queue)] == [waiting]


def test_a_job_has_its_own_time(forgetful: Api, api: Api) -> None:
    """`result_ttl` in seconds wins over the setting, shorter or longer; -1 is for ever (ojs-results section 7.1)."""
    longer, forever = completed(forgetful, result_ttl=3600), completed(forgetful, result_ttl=-1)
    shorter, usual = completed(api, result_ttl=1), completed(forgetful)
    poll(lambda: gone(forgetful, usual), deadline_s=5, what="the usual one goes")
    poll(lambda: gone(api, shorter), deadline_s=5, what="the short one goes")
    assert forgetful.get(longer)["result"] == forgetful.get(forever)["result"] == {"r": 1}
    assert forgetful.get(longer)["result_ttl"] == 3600


def test_a_result_may_be_kept_not_at_all(api: Api) -> None:
    """With `result_ttl: 0` the acknowledgement counts and its result is dropped; the job stays as long as others."""
    job = api.get(completed(api, result_ttl=0))
    assert job["state"] == "completed"
    assert "result" not in job
