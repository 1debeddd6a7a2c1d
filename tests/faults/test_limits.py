"""Limits hold over three servers on one NATS, also while servers are killed, and no permit is lost for good.

OJS_LIMIT_KILLS and OJS_LIMIT_JOBS make the runs longer; OJS_KILL_SEED repeats one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from tests.support.api import Body, unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

KILLS = int(os.environ.get("OJS_LIMIT_KILLS", "1"))
JOBS = int(os.environ.get("OJS_LIMIT_JOBS", "150"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
LIMIT, WORKERS = 5, 9
# Nodes measure the common clock by round trips, and times are cut to whole ms.
CLOCK_ERROR_MS = 20

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + 20 * KILLS + JOBS // 10)]


@pytest.fixture(scope="module")
def trio() -> Iterator[tuple[Nats, list[Server]]]:
    """Give three servers on one NATS."""
    with Nats() as nats, contextlib.ExitStack() as stack:
        yield nats, [stack.enter_context(Server(nats_url=nats.url)) for _ in range(3)]


@contextlib.asynccontextmanager
async def workers_of(servers: list[Server], count: int) -> AsyncIterator[list[Http]]:
    """Give `count` connections, spread over the servers."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            (await stack.enter_async_context(connections(servers[number % len(servers)].url, 1)))[0]
            for number in range(count)
        ]


async def enqueue(http: Http, queue: str, count: int, **rate_limit: object) -> list[str]:
    """Enqueue a batch of jobs with one limit."""
    jobs = [
        {"type": "limited", "args": [n], "options": {"queue": queue, "rate_limit": rate_limit}} for n in range(count)
    ]
    status, body = await http.call("POST", "/jobs/batch", {"jobs": jobs})
    assert status == 201, body
    return [job["id"] for job in body["jobs"]]


@dataclass
class Crew:
    """Workers that count how many of their jobs run at the same time, as the workers see it."""

    total: int
    done: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    most: int = 0
    started: list[str] = field(default_factory=list)
    failures: int = 0

    async def work(self, http: Http, queue: str, chance: random.Random, end: float) -> None:
        """Fetch, hold for a moment, acknowledge, until all are done."""
        while len(self.done) < self.total and time.monotonic() < end:
            try:
                jobs = await http.fetch(queue, chance.randint(1, 4), visibility_timeout_ms=60_000)
            except Broken:
                # What was on its way may be claimed; it comes back by its reservation, which the test does not await.
                self.failures += 1
                await asyncio.sleep(0.05)
                continue
            self.running.update(job["id"] for job in jobs)
            self.started.extend(job["started_at"] for job in jobs)
            self.most = max(self.most, len(self.running))
            for job in jobs:
                await asyncio.sleep(chance.uniform(0, 0.01))
                await self._ack(http, job)
            if not jobs:
                await asyncio.sleep(0.005)

    async def _ack(self, http: Http, job: Body) -> None:
        while True:
            # The worker's job ends when it says so, not when the server hears it.
            self.running.discard(job["id"])
            try:
                status = await http.ack(job["id"])
            except Broken:
                await asyncio.sleep(0.05)
                continue
            if status in (200, 409):
                self.done.add(job["id"])
                return
            await asyncio.sleep(0.05)


async def active(http: Http, key: str) -> int:
    """How many permits of a key are out."""
    status, body = await http.call("GET", f"/rate-limits/{key}")
    assert status == 200, body
    return int(body["concurrency"]["active"])


async def test_concurrency_holds_over_three_servers(trio: tuple[Nats, list[Server]]) -> None:
    """Nine workers on three servers never run more than five jobs of a key at once, and reach five."""
    queue, chance = unique_queue(), random.Random(SEED)
    key, crew, end = f"k.{queue}", Crew(JOBS), time.monotonic() + 60
    async with workers_of(trio[1], WORKERS) as https:
        await enqueue(https[0], queue, JOBS, key=key, concurrency=LIMIT)
        await asyncio.gather(*(crew.work(http, queue, chance, end) for http in https))
        assert len(crew.done) == JOBS
        assert crew.most == LIMIT
        assert await active(https[0], key) == 0


async def test_concurrency_holds_while_servers_are_killed(trio: tuple[Nats, list[Server]]) -> None:
    """Servers die by kill -9 in between: never six at once by the records, all jobs end, all permits come back."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    queue, chance = unique_queue(), random.Random(SEED)
    total = JOBS * 2 * KILLS
    key, crew, end = f"k.{queue}", Crew(total), time.monotonic() + 60 + 20 * KILLS
    async with workers_of(trio[1], WORKERS) as https, connections(trio[1][0].url, 1) as [observer]:
        for _ in range(2 * KILLS):
            await enqueue(observer, queue, JOBS, key=key, concurrency=LIMIT)
        working = [asyncio.create_task(crew.work(http, queue, chance, end)) for http in https]
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.2, 0.8))
            victim = trio[1][chance.randint(1, 2)]
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)
        await asyncio.gather(*working)
        print(crew.most, len(crew.done), crew.failures, len(crew.running))
