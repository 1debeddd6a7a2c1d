"""Unique stays unique: many producers, several servers, a creator that dies or is slow at any point.

OJS_UNIQUE_ROUNDS sets how many jobs are fought over, OJS_UNIQUE_KILLS how many kills the load has to survive;
OJS_KILL_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.core import unique
from ojs_fast.errors import Duplicate
from ojs_fast.node import Node
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import KeyTaken
from tests.support.api import unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.nodes import nodes
from tests.support.server import Server

ROUNDS = int(os.environ.get("OJS_UNIQUE_ROUNDS", "10"))
KILLS = int(os.environ.get("OJS_UNIQUE_KILLS", "3"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
SERVERS = 3
CLIENTS = 201
KEYS = 4

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + ROUNDS + 10 * KILLS)]

Body = dict[str, Any]


def request(queue: str, key: object, on_conflict: str = "reject") -> Body:
    """A job that is unique by its argument."""
    policy = {"keys": ["queue", "args"], "on_conflict": on_conflict}
    return {
        "type": "a.b",
        "args": [key],
        "options": {"queue": queue, "unique": policy, "retry": {"max_attempts": 1000}},
    }


async def test_of_many_at_once_exactly_one_gets_through() -> None:
    """200 producers over three servers, again and again: one 201, and every other is told of that job."""
    queue = unique_queue()
    with Nats() as nats, contextlib.ExitStack() as servers:
        urls = [servers.enter_context(Server(nats_url=nats.url)).url for _ in range(SERVERS)]
        async with contextlib.AsyncExitStack() as stack:
            pools = [await stack.enter_async_context(connections(url, CLIENTS // SERVERS)) for url in urls]
            https = [http for pool in pools for http in pool]
            for number in range(ROUNDS):
                job = request(queue, number, random.choice(("reject", "ignore")))
                answers = await asyncio.gather(*(http.call("POST", "/jobs", job) for http in https))
                made = [answer["job"]["id"] for status, answer in answers if status == 201]
                assert len(made) == 1, (number, Counter(status for status, _ in answers))
                others = [answer for status, answer in answers if status != 201]
                told = {a["job"]["id"] if "job" in a else a["error"]["details"]["existing_job_id"] for a in others}
                assert told == set(made)
            jobs = [job for _ in range(-(-ROUNDS // 100)) for job in await https[0].fetch(queue, 100)]
            assert sorted(job["args"][0] for job in jobs) == list(range(ROUNDS))


async def test_one_of_many_replacements_stays() -> None:
    """150 producers replace one another over three servers: each is answered, and one job is left waiting."""
    queue = unique_queue()
    with Nats() as nats, contextlib.ExitStack() as servers:
        urls = [servers.enter_context(Server(nats_url=nats.url)).url for _ in range(SERVERS)]
        async with contextlib.AsyncExitStack() as stack:
            pools = [await stack.enter_async_context(connections(url, 10)) for url in urls]
            https = [http for pool in pools for http in pool]
            answers = [
                await asyncio.gather(*(http.call("POST", "/jobs", request(queue, 0, "replace")) for http in https))
                for _ in range(5)
            ]
            statuses = Counter(status for some in answers for status, _ in some)
            assert set(statuses) <= {201, 503}, statuses
            made = {answer["job"]["id"] for some in answers for status, answer in some if status == 201}
            waiting = await https[0].fetch(queue, 100)
            assert len(waiting) == 1
            assert waiting[0]["id"] in made
            states = Counter([(await https[0].get(job_id))["state"] for job_id in made])
            assert states == {"active": 1, "cancelled": len(made) - 1}


# -- a creator that dies or is slow, at each point ------------------------------------------------


def parsed(body: Body) -> tuple[_core.Record, unique.Wish]:
    """A record as an enqueue makes it, and its policy."""
    record = _core.parse_enqueue(
        orjson.dumps(body), time.time_ns() // 1_000_000, lambda ms: _core.uuid7(ms, os.urandom(10))
    )
    return record, unique.wish_of(record)


async def lock_by_a_dead_node(node: Node, body: Body, age_ms: int) -> str:
    """Leave a lock whose creator died before it wrote the record; the id that the record was to have."""
    record, wish = parsed(body)
    value = {"job_id": record.id, "at_ms": time.time_ns() // 1_000_000 - age_ms}
    await Bucket(node.connection, names.UNIQUE).put(wish.fingerprint, value)
    return record.id


@pytest.mark.parametrize("age_ms", [0, 60_000], ids=["just-now", "a-minute-ago"])
async def test_a_lock_without_a_job_heals(age_ms: int) -> None:
    """Whoever comes next gets it, and what the dead creator may still send is refused."""
    async with nodes(1) as [node]:
        body = request("q", 1)
        dead_id = await lock_by_a_dead_node(node, body, age_ms)
        began = time.monotonic()
        job_id, _, is_new = await node.jobs.enqueue(orjson.dumps(body))
        assert is_new
        assert age_ms == 0 or time.monotonic() - began < 1, "it waited for a creator that is long dead"
        with pytest.raises(KeyTaken):
            await node.stores.records.create(dead_id, b"late")
        with pytest.raises(Duplicate) as refused:
            await node.jobs.enqueue(orjson.dumps(body))
        assert (refused.value.details or {})["existing_job_id"] == job_id


@asynccontextmanager
async def asleep(node: Node, body: Body) -> AsyncIterator[asyncio.Task[tuple[str, bytes, bool]]]:
    """An enqueue that has its lock and stands before its record; it goes on when the block ends."""
    create = node.stores.records.create
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def sleepy(job_id: str, stored: bytes) -> int:
        reached.set()
        await go_on.wait()
        return await create(job_id, stored)

    node.stores.records.create = sleepy  # type: ignore[method-assign]
    sleeping = asyncio.create_task(node.jobs.enqueue(orjson.dumps(body)))
    await reached.wait()
    yield sleeping
    node.stores.records.create = create  # type: ignore[method-assign]
    go_on.set()


async def test_a_slow_creator_that_was_fenced_starts_over() -> None:
    """It has the lock, sleeps, another takes it over: when it wakes up it finds the other job in its way."""
    async with nodes(2) as [slow, quick]:
        body = request("q", 1)
        async with asleep(slow, body) as sleeping:
            job_id, _, is_new = await quick.jobs.enqueue(orjson.dumps(body))
            assert is_new
        with pytest.raises(Duplicate) as refused:
            await sleeping
        assert (refused.value.details or {})["existing_job_id"] == job_id
        await quick.jobs.cancel(job_id)
        again, _, is_new = await slow.jobs.enqueue(orjson.dumps(body))
        assert is_new
        assert again != job_id


async def test_a_slow_creator_that_was_fenced_may_still_win() -> None:
    """The job that took the lock over has ended when it wakes up: it writes its own, over the fence."""
    async with nodes(2) as [slow, quick]:
        body = request("q", 1)
        async with asleep(slow, body) as sleeping:
            other, _, _ = await quick.jobs.enqueue(orjson.dumps(body))
            await quick.jobs.cancel(other)
        job_id, _, is_new = await sleeping
        assert is_new
        with pytest.raises(Duplicate) as refused:
            await quick.jobs.enqueue(orjson.dumps(body))
        assert (refused.value.details or {})["existing_job_id"] == job_id


async def test_death_between_taking_a_lock_over_and_replacing_keeps_the_old_job_in_the_way() -> None:
    """The lock names a job that never came to be, but the one it was to replace still counts."""
    async with nodes(1) as [node]:
        old, _, _ = await node.jobs.enqueue(orjson.dumps(request("q", 1)))
        record, wish = parsed(request("q", 1, "replace"))
        bucket = Bucket(node.connection, names.UNIQUE)
        _, revision = await bucket.last(wish.fingerprint)
        long_ago = time.time_ns() // 1_000_000 - 60_000
        await bucket.put(wish.fingerprint, {"job_id": record.id, "at_ms": long_ago, "replaces": old}, revision)
        with pytest.raises(Duplicate) as refused:
            await node.jobs.enqueue(orjson.dumps(request("q", 1)))
        assert (refused.value.details or {})["existing_job_id"] == old
        new, _, _ = await node.jobs.enqueue(orjson.dumps(request("q", 1, "replace")))
        assert orjson.loads(await node.jobs.get(old))["state"] == "cancelled"
        assert orjson.loads(await node.jobs.get(new))["state"] == "available"


async def test_a_lock_is_not_given_back_by_a_job_that_lost_it() -> None:
    """The period freed it, another took it over; then the first job ends: the second stays unique."""
    async with nodes(1) as [node]:
        body = request("q", 1)
        body["options"]["unique"]["period"] = "PT0.2S"
        first, _, _ = await node.jobs.enqueue(orjson.dumps(body))
        await asyncio.sleep(0.25)  # the period is what passes here
        second, _, is_new = await node.jobs.enqueue(orjson.dumps(body))
        assert is_new
        await node.jobs.cancel(first)
        await node.stores.outbox.flushed()
        del body["options"]["unique"]["period"]
        with pytest.raises(Duplicate) as refused:
            await node.jobs.enqueue(orjson.dumps(body))
        assert (refused.value.details or {})["existing_job_id"] == second


# -- under load, with kills ----------------------------------------------------------------------


class Rivals:
    """Producers that want the same few jobs, and workers that run them; at most one job of a key may be open."""

    def __init__(self) -> None:
        self.completed: Counter[int] = Counter()
        self.unsure = 0

    async def produce(self, http: Http, queue: str, until: asyncio.Event) -> None:
        """Ask for one key after the other."""
        number = 0
        while not until.is_set():
            number += 1
            try:
                status, answer = await http.call("POST", "/jobs", request(queue, number % KEYS))
            except Broken:
                await asyncio.sleep(0.02)
                continue
            assert status in (201, 409, 503), answer

    async def work(self, http: Http, queue: str, until: asyncio.Event, running: Counter[int]) -> None:
        """Run jobs; `running` counts by key what workers are at that were told so."""
        while not until.is_set():
            try:
                jobs = await http.fetch(queue, 1, visibility_timeout_ms=3000)
            except Broken:
                await asyncio.sleep(0.02)
                continue
            for job in jobs:
                key = job["args"][0]
                running[key] += 1
                assert running[key] == 1, f"two jobs of key {key} run at once"
                await asyncio.sleep(0.002)
                running[key] -= 1
                while True:
                    try:
                        status = await http.ack(job["id"])
                    except Broken:
                        self.unsure += 1
                        await asyncio.sleep(0.02)
                        continue
                    if status != 503:
                        break
                self.completed[key] += 1


@pytest.mark.slow
async def test_unique_stays_unique_whoever_is_killed() -> None:
    """Three servers and NATS killed at random: never two jobs of one key at once, and every key gets on."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance, queue, rivals, stopped = random.Random(SEED), unique_queue(), Rivals(), asyncio.Event()
    running: Counter[int] = Counter()
    with Nats() as nats, contextlib.ExitStack() as servers:
        alive = [servers.enter_context(Server(nats_url=nats.url)) for _ in range(SERVERS)]

        def kill() -> None:
            victim = chance.randrange(SERVERS + 1)
            if victim == SERVERS:
                nats.kill()
                return
            alive[victim].kill()
            alive[victim].start()

        async with contextlib.AsyncExitStack() as stack:
            https = [
                (await stack.enter_async_context(connections(alive[n % SERVERS].url, 1, timeout_s=20)))[0]
                for n in range(12)
            ]
            tasks = [asyncio.create_task(rivals.produce(http, queue, stopped)) for http in https[:9]]
            tasks += [asyncio.create_task(rivals.work(http, queue, stopped, running)) for http in https[9:]]
            try:
                for _ in range(KILLS):
                    await asyncio.sleep(chance.uniform(0.1, 1.0))
                    await asyncio.to_thread(kill)
                before = Counter(rivals.completed)
                end = time.monotonic() + 40
                while any(rivals.completed[key] <= before[key] for key in range(KEYS)):
                    assert time.monotonic() < end, f"a key is stuck: {rivals.completed - before}"
                    for task in tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.02)
            finally:
                stopped.set()
                await asyncio.gather(*tasks)
        for server in alive:
            await asyncio.to_thread(server.await_ready)
