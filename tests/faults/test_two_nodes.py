"""Several server processes on one NATS share all work and all state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.api import Api, Body, unique_queue
from tests.support.load import Ledger, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

pytestmark = pytest.mark.faults

JOBS, BATCH, WORKERS = 20_000, 500, 16


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """Give two servers on one NATS."""
    with Nats() as nats, Server(nats_url=nats.url) as one, Server(nats_url=nats.url) as other:
        yield one, other


@pytest.mark.slow
async def test_sixteen_workers_on_two_servers_complete_each_job_once(pair: tuple[Server, Server]) -> None:
    """20,000 jobs, enqueued in batches over both, are all delivered exactly once and all completed."""
    queue, ledger = unique_queue(), Ledger()
    end = time.monotonic() + 90
    async with connections(pair[0].url, WORKERS // 2) as left, connections(pair[1].url, WORKERS // 2) as right:

        def done() -> bool:
            return len(ledger.completed) == JOBS or time.monotonic() > end

        workers = [
            asyncio.create_task(ledger.work(http, queue, done, count=10, visibility_ms=120_000))
            for http in [*left, *right]
        ]
        async with connections(pair[0].url, 1) as [first], connections(pair[1].url, 1) as [second]:
            for number in range(JOBS // BATCH):
                ledger.enqueued.update(await (first, second)[number % 2].enqueue_batch(queue, BATCH))
            await asyncio.gather(*workers)
            assert len(ledger.enqueued) == JOBS
            assert ledger.completed == ledger.enqueued
            assert not ledger.unsure
            assert set(ledger.delivered.values()) == {1}
            assert await first.fetch(queue, 10) == await second.fetch(queue, 10) == []


async def test_a_job_claimed_on_one_server_is_settled_on_the_other(pair: tuple[Server, Server]) -> None:
    """Ack, nack and cancel work on any server, and the claiming one forgets the job."""
    queue = unique_queue()
    async with connections(pair[0].url, 1) as [first], connections(pair[1].url, 1) as [second]:
        ids = await first.enqueue_batch(queue, 3)
        jobs = await first.fetch(queue, 3)
        assert [job["id"] for job in jobs] == ids
        second.worker_id = first.worker_id
        assert await second.ack(ids[0]) == 200
        assert await first.ack(ids[0]) == 409
        status, body = await second.call("POST", "/workers/nack", {"job_id": ids[1], "requeue": True})
        assert (status, body["state"]) == (200, "available")
        assert (await second.call("DELETE", f"/jobs/{ids[2]}"))[1]["job"]["state"] == "cancelled"
        [again] = await first.fetch(queue, 3)
        assert again["id"] == ids[1]
        assert await second.ack(ids[1]) == 200


async def test_a_heartbeat_at_another_server_extends_the_reservation(pair: tuple[Server, Server]) -> None:
    """One heartbeat that the claiming server does not hear: the job stays with its worker until the new end."""
    queue = unique_queue()
    async with connections(pair[0].url, 1) as [first], connections(pair[1].url, 1) as [second]:
        second.worker_id = first.worker_id
        [job_id] = await first.enqueue_batch(queue, 1)
        # Beyond the moment, one to two seconds after the claim, when the claiming server enters it in `ojs-active`.
        assert len(await first.fetch(queue, visibility_timeout_ms=2200)) == 1
        claimed = time.monotonic()
        beat = {"worker_id": first.worker_id, "active_jobs": [job_id], "visibility_timeout_ms": 4500}
        assert (await second.call("POST", "/workers/heartbeat", beat))[1]["jobs_extended"] == [job_id]
        while (seen := time.monotonic() - claimed) < 4:
            state = (await second.get(job_id))["state"]
            assert state == "active", f"{state} after {seen:.2f} s"
            await asyncio.sleep(0.05)
        # The extended reservation does end.
        again: list[Body] = []
        while not again:
            assert time.monotonic() - claimed < 10
            again = await second.fetch(queue)
            await asyncio.sleep(0.05)
        assert again[0]["attempt"] == 2
        assert await first.ack(job_id) == 200


def told(url: str, queue: str) -> dict[str, int]:
    """The states of a queue that are not zero, as one server tells them."""
    with Api(url) as api:
        stats = api.call("GET", f"/queues/{queue}/stats")["stats"]
    states = ("available", "active", "scheduled", "retryable", "completed", "discarded", "cancelled")
    return {state: stats[state] for state in states if stats[state]}


async def test_both_servers_count_what_the_other_did_at_once(pair: tuple[Server, Server]) -> None:
    """Stats are exact on any server right after any change on the other."""
    queue = unique_queue()
    async with connections(pair[0].url, 1) as [first], connections(pair[1].url, 1) as [second]:
        for done in range(1, 6):
            await first.enqueue_batch(queue, 3)
            [kept, dropped] = await second.fetch(queue, 2)
            assert await first.call("POST", "/workers/ack", {"job_id": kept["id"]})
            failed = {"job_id": dropped["id"], "error": {"message": "it failed", "code": "DISCARD"}}
            await second.call("POST", "/workers/nack", failed)
            [left] = await second.fetch(queue, 1)
            await first.call("DELETE", f"/jobs/{left['id']}")
            for server in pair:
                assert told(server.url, queue) == {"completed": done, "discarded": done, "cancelled": done}


def counts_only_the_new(url: str, queue: str) -> bool:
    """True when the totals are gone."""
    return told(url, queue) == {"available": 1}


async def test_a_deleted_queue_starts_from_nothing_on_every_server(pair: tuple[Server, Server]) -> None:
    """The totals go with the queue, also those that another server has just counted; jobs that come later are found."""
    queue = unique_queue()
    async with connections(pair[0].url, 1) as [first], connections(pair[1].url, 1) as [second]:
        await first.enqueue(queue)
        [job] = await second.fetch(queue)
        assert await second.ack(job["id"]) == 200
        assert (await first.call("DELETE", f"/queues/{queue}"))[0] == 200
        job_id = await second.enqueue(queue)
        for server in pair:
            poll(partial(counts_only_the_new, server.url, queue), what="only the new job is counted")
        [again] = await first.fetch(queue)
        assert again["id"] == job_id


def test_a_checkpoint_that_was_saved_on_the_other_server_outlives_the_reservation(pair: tuple[Server, Server]) -> None:
    """The holder learns of it before it takes the job back, and does not write over it."""
    queue = unique_queue()
    with Api(pair[0].url) as holder, Api(pair[1].url) as other:
        job_id = holder.enqueue(queue)["id"]
        assert holder.fetch(queue, visibility_timeout_ms=1000)
        for state in (1, 2):
            other.call("POST", f"/jobs/{job_id}/checkpoint", {"state": state})
        other.call("PUT", f"/jobs/{job_id}/progress", {"progress": 0.5})
        poll(lambda: holder.get(job_id)["state"] == "available", deadline_s=10, what="the reservation ends")
        [job] = other.fetch(queue)
        assert (job["attempt"], job["checkpoint"]["state"], job["checkpoint"]["sequence"]) == (2, 2, 2)
        holder.ack(job_id)
        assert other.get(job_id)["state"] == "completed"
