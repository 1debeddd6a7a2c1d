"""Workers that die: their jobs come back, and only theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.api import Api, unique_queue
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

pytestmark = pytest.mark.faults

DEAD_AFTER_S = 30


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Api, Api]]:
    """Give clients of two servers on one NATS."""
    with (
        Nats() as nats,
        Server(nats_url=nats.url) as one,
        Server(nats_url=nats.url) as other,
        Api(one.url) as first,
        Api(other.url) as second,
    ):
        yield first, second


@pytest.mark.slow
def test_a_worker_that_beat_and_fell_silent_loses_its_jobs(pair: tuple[Api, Api]) -> None:
    """30 s after its last heartbeat its jobs wait again, whichever servers it spoke to; nobody else's do.

    Their reservations are long: a worker that goes on beating keeps its job, and so does one that never beat.
    """
    first, second = pair
    queues = {worker: unique_queue(worker) for worker in ("silent", "beating", "mute")}
    held: dict[str, set[str]] = {}
    for worker, queue in queues.items():
        for _ in range(2):
            first.enqueue(queue)
        # One job over each server.
        jobs = [api.fetch(queue, worker_id=worker, visibility_timeout_ms=600_000)[0] for api in pair]
        held[worker] = {job["id"] for job in jobs}
    # It beats at one server only; the other one must hear it.
    second.heartbeat("silent", sorted(held["silent"]))
    last = time.monotonic()
    requeued: dict[str, float] = {}
    while len(requeued) < 2 and time.monotonic() < last + DEAD_AFTER_S + 5:
        first.heartbeat("beating", sorted(held["beating"]))
        for job in second.fetch(queues["silent"], count=2, worker_id="other"):
            requeued[job["id"]] = time.monotonic() - last
            assert job["attempt"] == 2
            assert [error["type"] for error in job["errors"]] == ["worker_death"]
        time.sleep(0.2)
    assert requeued.keys() == held["silent"], "its jobs are not back"
    assert min(requeued.values()) >= DEAD_AFTER_S - 1
    for worker in ("beating", "mute"):
        assert first.fetch(queues[worker], worker_id="other") == []
        for job_id in held[worker]:
            assert second.ack(job_id, worker_id=worker)["state"] == "completed"


def test_a_reservation_that_runs_out_gives_the_job_to_another_worker(pair: tuple[Api, Api]) -> None:
    """A worker that never answers loses its job when it said so, and cannot settle it afterwards."""
    first, second = pair
    queue = unique_queue()
    job_id = first.enqueue(queue)["id"]
    assert first.fetch(queue, worker_id="gone", visibility_timeout_ms=500)[0]["id"] == job_id
    [job] = poll(lambda: second.fetch(queue, worker_id="next"), deadline_s=5)
    assert (job["id"], job["attempt"]) == (job_id, 2)
    for api in pair:
        answer = api.request("POST", "/workers/ack", {"job_id": job_id, "worker_id": "gone"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert first.ack(job_id, worker_id="next")["state"] == "completed"
