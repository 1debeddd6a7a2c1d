"""Stats against a ledger: three servers, every kind of change at once, one of them killed; then the numbers agree.

OJS_LEDGER_JOBS sets how many jobs a client makes, OJS_LEDGER_KILLS how often a server dies; OJS_LEDGER_SEED
repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ojs_fast import _core
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.records import Records
from tests.support.api import unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

JOBS = int(os.environ.get("OJS_LEDGER_JOBS", "80"))
KILLS = int(os.environ.get("OJS_LEDGER_KILLS", "1"))
SEED = int(os.environ.get("OJS_LEDGER_SEED") or random.SystemRandom().randrange(10**6))
CLIENTS = 6
AGREED_S = 30
STATES = ("available", "active", "scheduled", "retryable", "completed", "discarded", "cancelled")
LATER = "2090-01-01T00:00:00Z"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180 + JOBS * CLIENTS // 20 + 20 * KILLS)]

Body = dict[str, Any]


class Client:
    """Makes jobs and does to them whatever may happen to a job; a broken request may have had its effect."""

    def __init__(self, http: Http, queue: str, chance: random.Random) -> None:
        self.http = http
        self.queue = queue
        self.chance = chance
        self.ids: set[str] = set()

    async def run(self) -> None:
        """Make `JOBS` jobs, one change after the other."""
        while len(self.ids) < JOBS:
            with contextlib.suppress(Broken):
                await self.chance.choice(
                    [self.make, self.make, self.make_many, self.work, self.work, self.cancel, self.revive]
                )()

    async def make(self) -> None:
        """Enqueue a job that waits, is scheduled, expires soon or fails for good."""
        options: Body = {"queue": self.queue}
        kind = self.chance.randrange(6)
        if kind == 0:
            options["delay_until"] = LATER
        elif kind == 1:
            options["expires_at"] = "+PT0.05S"
        elif kind == 2:
            options["retry"] = {"max_attempts": 1, "on_exhaustion": "dead_letter"}
        elif kind == 3:
            options["priority"] = self.chance.choice([-5, 5])
        body = {"type": "ledger.job", "args": [], "options": options}
        status, answer = await self.http.call("POST", "/jobs", body)
        if status == 201:
            self.ids.add(answer["job"]["id"])

    async def make_many(self) -> None:
        """Enqueue a batch."""
        self.ids.update(await self.http.enqueue_batch(self.queue, self.chance.randint(1, 5)))

    async def work(self) -> None:
        """Fetch, then complete, fail, give back or keep."""
        for job in await self.http.fetch(self.queue, self.chance.randint(1, 5), visibility_timeout_ms=600_000):
            self.ids.add(job["id"])
            about = {"job_id": job["id"], "worker_id": self.http.worker_id}
            error = {"code": "handler_error", "message": "it failed", "retryable": self.chance.random() < 0.5}
            kind = self.chance.randrange(8)
            if kind < 4:
                await self.http.call("POST", "/workers/ack", about)
            elif kind < 6:
                await self.http.call("POST", "/workers/nack", {**about, "error": error})
            elif kind == 6:
                await self.http.call("POST", "/workers/nack", {**about, "requeue": True})

    async def cancel(self) -> None:
        """Cancel whatever job."""
        if self.ids:
            await self.http.call("DELETE", f"/jobs/{self.chance.choice(sorted(self.ids))}")

    async def revive(self) -> None:
        """Retry a dead letter."""
        _, answer = await self.http.call("GET", f"/dead-letter?queue={self.queue}&limit=1")
        for job in answer.get("jobs", ()):
            await self.http.call("POST", f"/dead-letter/{job['id']}/retry", {})


async def ledger_of(connection: Connection, queue: str) -> Body:
    """How many records of a queue are in each state: the truth, read from NATS past the servers."""
    records, after = Records(connection), 0
    found: Counter[str] = Counter()
    while page := await records.written_since("1970-01-01T00:00:00.000Z", after):
        after = page[-1][2]
        jobs = (_core.Record.parse(stored) for _, stored, _ in page)
        found.update(job.state for job in jobs if job.queue == queue)
    return {state: found[state] for state in STATES}


async def agree(http: Http, connection: Connection, queue: str) -> None:
    """One server's stats become the ledger; retries may still be due meanwhile."""
    end = time.monotonic() + AGREED_S
    while True:
        _, answer = await http.call("GET", f"/queues/{queue}/stats")
        stats = {state: answer["stats"].get(state) for state in STATES}
        ledger = await ledger_of(connection, queue)
        if stats == ledger:
            return
        assert time.monotonic() < end, f"{stats} is told, {ledger} is true"
        await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_stats_agree_with_the_ledger_on_every_server_after_kills(fresh_server: Callable[..., Server]) -> None:
    """Once it is quiet, each of three servers counts every job in exactly the state that it is in."""
    sys.stdout.write(f"OJS_LEDGER_SEED={SEED}\n")
    chance = random.Random(SEED)
    queue = unique_queue("ledger")
    with Nats() as nats:
        servers = [await asyncio.to_thread(fresh_server, nats_url=nats.url) for _ in range(3)]
        async with contextlib.AsyncExitStack() as stack:
            https = [
                (await stack.enter_async_context(connections(servers[number % 3].url, 1, timeout_s=20)))[0]
                for number in range(CLIENTS)
            ]
            clients = [Client(http, queue, random.Random(SEED + number)) for number, http in enumerate(https)]
            running = [asyncio.create_task(client.run()) for client in clients]
            for _ in range(KILLS):
                goal = sum(len(client.ids) for client in clients) + JOBS * CLIENTS // (KILLS + 1) // 2
                await asyncio.to_thread(
                    poll,
                    lambda goal=goal: (
                        sum(len(client.ids) for client in clients) >= goal or all(task.done() for task in running)
                    ),
                    deadline_s=120,
                    what="the clients get on",
                )
                victim = chance.choice(servers)
                await asyncio.to_thread(victim.kill)
                await asyncio.to_thread(victim.start)
            await asyncio.gather(*running)
            for http in https:
                await http.close()
            connection = Connection()
            await connection.open([nats.url], name="ledger")
            stack.push_async_callback(connection.close)
            for http in https[:3]:
                await agree(http, connection, queue)
        for server in servers:
            await asyncio.to_thread(server.stop)
