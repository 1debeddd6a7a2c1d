"""Batches written ahead (ojs_fast/storage/intents.py): whole or not there, whoever dies, stops or is cut off.

OJS_BATCH_KILLS sets how many kills the load has to survive; OJS_KILL_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.storage import names, topology
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.intents import IntentLog
from ojs_fast.storage.records import Records
from tests.support.api import Api, unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

KILLS = int(os.environ.get("OJS_BATCH_KILLS", "3"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
SIZE = 40
PRODUCERS = 4
BATCHES_PER_KILL = 150
REPAIRED_S = 15

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + 5 * KILLS)]

Batch = list[tuple[str, bytes]]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def new_batch(size: int = 5, queue: str = "ahead", node_id: str = "") -> Batch:
    """Records that wait for a worker, under new ids."""
    batch = []
    for number in range(size):
        record = _core.Record(_core.uuid7(now_ms(), os.urandom(10)), "a.b", queue, b',"args":[%d],"meta":{}' % number)
        record.created_ms = record.enqueued_ms = now_ms()
        record.node_id = node_id
        batch.append((record.id, record.serialize()))
    return batch


class Owner:
    """A node's access to NATS, as far as batches go."""

    def __init__(self) -> None:
        self.connection = Connection()
        self.records = Records(self.connection)
        self.node_id = os.urandom(6).hex()
        self.log = IntentLog(self.connection, self.records, self.node_id)

    async def stored(self, batch: Batch) -> list[int]:
        """The revisions of those records of a batch that exist with the right bytes."""
        found = await self.records.get_many(job_id for job_id, _ in batch)
        assert all(found[job_id][0] == stored for job_id, stored in batch if job_id in found)
        return [found[job_id][1] for job_id, _ in batch if job_id in found]

    async def keys(self) -> list[str]:
        """The intents that lie in the bucket."""
        answer = await self.connection.api("STREAM.INFO.KV_ojs-jobs", {"subjects_filter": "$KV.ojs-jobs.intent.>"})
        return sorted(answer["state"].get("subjects") or {})

    def send(self, key: str, value: bytes, *, slot: str, fence: int) -> None:
        """Write one message of a slot's batch."""
        header = (
            f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {fence}\r\n"
            f"Nats-Expected-Last-Subject-Sequence-Subject: $KV.ojs-jobs.done.{slot}\r\n\r\n"
        )
        self.connection.send(names.bucket_subject(names.JOBS, key), value, "", header.encode())

    async def leave(self, batch: Batch, written: int, *, slot: str = "0", fence: int = 0, number: int = 1) -> str:
        """Send an intent and the first `written` of its records, as a flush that was cut off does; the slot's key."""
        key = f"{self.node_id}.{slot}"
        head = orjson.dumps([number, [job_id for job_id, _ in batch], [len(stored) for _, stored in batch]])
        self.send(f"intent.{key}", head + b"\n" + b"".join(stored for _, stored in batch), slot=key, fence=fence)
        for job_id, stored in batch[:written]:
            self.send(job_id, stored, slot=key, fence=fence)
        await self.handled()
        assert len(await self.stored(batch)) == written
        return key

    async def handled(self) -> None:
        """Wait until NATS has handled all that was sent."""
        _, code, _ = await self.connection.write("$KV.ojs-jobs.test.barrier", b"0")
        assert code == 0


@asynccontextmanager
async def owners(url: str, count: int) -> AsyncIterator[list[Owner]]:
    """Several nodes' worth of access, with the streams made."""
    made = [Owner() for _ in range(count)]
    for one in made:
        await one.connection.open([url], name="test")
    await topology.ensure(made[0].connection, topology.streams(1, 3600, 2**20))
    try:
        yield made
    finally:
        for one in made:
            await one.connection.close()


# -- on the store itself -------------------------------------------------------------------------


async def test_a_batch_gets_its_revisions_and_a_slot_is_used_again() -> None:
    """Each record has the revision that was told, also when two nodes write at the same time."""
    with Nats() as nats:
        async with owners(nats.url, 2) as pair:
            batches = [new_batch() for _ in range(40)]
            told = await asyncio.gather(*(pair[n % 2].log.create_all(one) for n, one in enumerate(batches)))
            for batch, revisions in zip(batches, told, strict=True):
                assert await pair[0].stored(batch) == revisions
            before = await pair[0].keys()
            for _ in range(5):
                await pair[0].log.create_all(new_batch())
            assert await pair[0].keys() == before, "a new slot was made although there were free ones"
            for one in pair:
                await one.log.close()
            assert await pair[0].keys() == []


@pytest.mark.parametrize("written", [0, 3, 5], ids=["intent-only", "three-of-five", "all-but-done"])
async def test_another_node_completes_what_a_dead_one_left(written: int) -> None:
    """The missing records are written, those that are there are left alone, and the intent goes."""
    with Nats() as nats:
        async with owners(nats.url, 2) as (dead, living):
            batch = new_batch()
            await dead.leave(batch, written)
            there = await living.stored(batch)
            assert await living.log.finish_dead({dead.node_id}) == 0, "it took a living node for dead"
            assert await living.log.finish_dead({living.node_id}) == 1
            assert len(await living.stored(batch)) == len(batch)
            assert (await living.stored(batch))[:written] == there
            assert await living.keys() == []
            assert await living.log.finish_dead({living.node_id}) == 0


async def test_two_nodes_may_complete_the_same_batch() -> None:
    """Both at once, again and again: every record is there once, written by one of them."""
    with Nats() as nats:
        async with owners(nats.url, 3) as (dead, *pair):
            for slot in range(10):
                batch = new_batch(20)
                await dead.leave(batch, 7, slot=str(slot))
                outcomes = await asyncio.gather(
                    *(one.log.finish_dead({one.node_id}) for one in pair), return_exceptions=True
                )
                assert all(isinstance(outcome, int | Unavailable) for outcome in outcomes), outcomes
                await pair[0].log.finish_dead({pair[0].node_id})
                revisions = await pair[0].stored(batch)
                assert len(revisions) == len(batch)
                assert len(await dead.connection.get_batch(
                    "KV_ojs-jobs", {"multi_last": [names.bucket_subject(names.JOBS, i) for i, _ in batch], "batch": 100}
                )) == len(batch)  # fmt: skip
                assert await pair[0].keys() == []


async def test_what_a_stopped_node_sends_after_all_is_refused() -> None:
    """Its batch was completed, its jobs ran and were removed: the rest of its flush must not bring them back."""
    with Nats() as nats:
        async with owners(nats.url, 2) as (stopped, living):
            batch = new_batch()
            key = await stopped.leave(batch, 2)
            await living.log.finish_dead({living.node_id})
            for job_id, _ in batch:
                await living.connection.api(
                    "STREAM.PURGE.KV_ojs-jobs", {"filter": names.bucket_subject(names.JOBS, job_id)}
                )
            for job_id, stored in batch[2:]:
                stopped.send(job_id, stored, slot=key, fence=0)
            await stopped.handled()
            assert await stopped.stored(batch) == []


async def test_a_node_whose_slots_were_taken_goes_on_with_others() -> None:
    """A paused node that was given up finds its slots fenced, and its next batches get through all the same."""
    with Nats() as nats:
        async with owners(nats.url, 2) as (paused, living):
            await asyncio.gather(*(paused.log.create_all(new_batch()) for _ in range(3)))
            assert await living.log.finish_dead({living.node_id}) == 3
            for _ in range(4):
                batch = new_batch()
                assert await paused.log.create_all(batch) == await paused.stored(batch)


async def test_a_batch_whose_request_ends_early_is_settled() -> None:
    """Whoever asked is gone before NATS answers: it is whole or absent, and if it is there, its jobs are named."""
    with Nats() as nats:
        async with owners(nats.url, 1) as [owner]:
            for _ in range(20):
                batch = new_batch(50)
                task = asyncio.create_task(owner.log.create_all(batch))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                settled = await owner.log.settle()
                assert settled in ([], [job_id for job_id, _ in batch])
                assert len(await owner.stored(batch)) == len(settled)


# -- with servers --------------------------------------------------------------------------------


def test_half_a_batch_runs_once_it_is_whole() -> None:
    """A server finds an intent with two of its five records: a worker gets all five jobs, each once."""

    async def leave(url: str) -> Batch:
        async with owners(url, 1) as [dead]:
            batch = new_batch(5, queue, dead.node_id)
            await dead.leave(batch, 2)
            value = {"node_id": dead.node_id, "boot_id": "", "started_ms": 0, "renewed_ms": now_ms(), "closed": False}
            lease = names.bucket_subject(names.NODES, f"node.{dead.node_id}")
            await dead.connection.write(lease, orjson.dumps(value))
            return batch

    queue = unique_queue()
    with Nats() as nats:
        with Server(nats_url=nats.url) as first, Api(first.url) as api:
            api.cancel(api.enqueue(queue)["id"])
        batch = asyncio.run(leave(nats.url))
        with Server(nats_url=nats.url) as server, Api(server.url) as api:
            got: list[dict[str, Any]] = []

            def all_came() -> bool:
                got.extend(api.fetch(queue, count=10))
                return len(got) >= len(batch)

            poll(all_came, deadline_s=REPAIRED_S, pause_s=0.05, what="the batch is completed")
            assert sorted(job["id"] for job in got) == sorted(job_id for job_id, _ in batch)
            for job in got:
                api.ack(job["id"])
            assert api.fetch(queue, count=10) == []


class Batches:
    """What producers sent: each batch is known by a tag in its jobs."""

    def __init__(self) -> None:
        self.sent = 0
        self.answered: dict[int, list[str]] = {}
        self.seen: Counter[int] = Counter()
        self.ids: set[str] = set()

    async def produce(self, http: Http, queue: str, limit: int, until: Callable[[], bool]) -> None:
        """Send one batch after the other."""
        while self.sent < limit and not until():
            self.sent += 1
            tag = self.sent
            jobs = [{"type": "load.job", "args": [tag], "options": {"queue": queue}}] * SIZE
            try:
                status, body = await http.call("POST", "/jobs/batch", {"jobs": jobs})
            except Broken:
                await asyncio.sleep(0.02)  # the server may be down just now
                continue
            if status == 503:
                continue
            assert status == 201, body
            self.answered[tag] = [job["id"] for job in body["jobs"]]

    async def drain(self, http: Http, queue: str) -> None:
        """Fetch until every answered job was seen and nothing more comes for a while."""
        quiet_from = time.monotonic()
        deadline = time.monotonic() + 60
        wanted = {job_id for ids in self.answered.values() for job_id in ids}
        while time.monotonic() - quiet_from < 2 * REPAIRED_S / 3:
            assert time.monotonic() < deadline, f"{len(wanted - self.ids)} jobs are missing"
            try:
                jobs = await http.fetch(queue, 100, visibility_timeout_ms=600_000)
            except Broken:
                jobs = []
            for job in jobs:
                assert job["id"] not in self.ids, "a job was delivered twice"
                self.ids.add(job["id"])
                self.seen[job["args"][0]] += 1
            if jobs:
                quiet_from = time.monotonic()
            else:
                await asyncio.sleep(0.05)
        assert wanted <= self.ids

    def check(self) -> None:
        """Every batch is whole; one that was answered is there."""
        assert {tag: count for tag, count in self.seen.items() if count != SIZE} == {}
        assert set(self.answered) <= set(self.seen)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "durability"), [("server", "interval"), ("nats", "interval"), ("nats", "always")])
async def test_batches_are_whole_whoever_is_killed(
    fresh_server: Callable[..., Server], victim: str, durability: str
) -> None:
    """SIGKILL under load, again and again: no batch is there in part, none that was answered is missing."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance, queue, batches, stopped = random.Random(SEED), unique_queue(), Batches(), False
    server = await asyncio.to_thread(fresh_server, env={"OJS_DURABILITY": durability})

    def kill() -> None:
        if victim == "nats":
            server.kill_nats()
            return
        server.kill()
        server.start()

    async with contextlib.AsyncExitStack() as stack:
        https = [
            (await stack.enter_async_context(connections(server.url, 1, timeout_s=20)))[0] for _ in range(PRODUCERS)
        ]
        producers = [
            asyncio.create_task(batches.produce(http, queue, BATCHES_PER_KILL * KILLS, lambda: stopped))
            for http in https
        ]
        try:
            for _ in range(KILLS):
                before = len(batches.answered)
                await asyncio.sleep(chance.uniform(0.05, 0.4))
                await asyncio.to_thread(kill)
                end = time.monotonic() + 30
                while len(batches.answered) == before and batches.sent < BATCHES_PER_KILL * KILLS:
                    assert time.monotonic() < end, "no batch was answered for 30 s"
                    await asyncio.sleep(0.01)
        finally:
            stopped = True
            await asyncio.gather(*producers)
        assert batches.answered
        await asyncio.to_thread(server.await_ready)
        await https[0].close()
        await batches.drain(https[0], queue)
        batches.check()
