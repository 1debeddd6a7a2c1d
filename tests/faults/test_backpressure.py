"""A bound holds over three servers, also when the one that admits is killed.

OJS_BOUND_JOBS sets how many jobs get through, OJS_BOUND_KILLS whether the leader dies half way (a takeover takes 5 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

import pytest

from ojs_fast.storage.connection import Connection
from ojs_fast.storage.queue_counts import QueueCounts
from ojs_fast.storage.recounts import Recounts
from tests.support.api import Api, unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

JOBS = int(os.environ.get("OJS_BOUND_JOBS", "300"))
KILLS = int(os.environ.get("OJS_BOUND_KILLS", "0"))
BOUND = 25
PRODUCERS, WORKERS = 9, 3

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + JOBS // 50)]


class Crowd:
    """Producers that press against the bound, and workers that make room."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.stored = 0
        self.refused = 0
        self.completed = 0
        self.pressed = asyncio.Event()

    async def produce(self, http: Http) -> None:
        """Enqueue until enough is stored; refusals come back at once."""
        body = {"type": "bound.job", "args": [], "options": {"queue": self.queue}}
        while self.stored < JOBS:
            with contextlib.suppress(Broken):
                status, _ = await http.call("POST", "/jobs", body)
                self.stored += status == 201
                if status == 429:
                    self.refused += 1
                    self.pressed.set()

    async def work(self, http: Http) -> None:
        """Complete one job after the other, from the moment on when the queue was full."""
        await self.pressed.wait()
        while self.stored < JOBS:
            with contextlib.suppress(Broken):
                for job in await http.fetch(self.queue, 3):
                    self.completed += await http.ack(job["id"]) == 200


async def watch(connection: Connection, queue: str, until: Callable[[], bool]) -> int:
    """The greatest depth that was ever seen, read past the servers."""
    counts, deepest = QueueCounts(connection, Recounts(connection), 1), 0
    while not until():
        deepest = max(deepest, await counts.depth(queue))
    return deepest


@pytest.mark.slow
async def test_a_bound_is_never_exceeded_over_three_servers(fresh_server: Callable[..., Server]) -> None:
    """Nine producers fill a queue of 25 over three servers while workers empty it."""
    with Nats() as nats:
        servers = [await asyncio.to_thread(fresh_server, nats_url=nats.url) for _ in range(3)]
        crowd = Crowd(unique_queue("bound"))
        with Api(servers[1].url) as api:
            api.call("PUT", f"/queues/{crowd.queue}/config", {"max_size": BOUND})
        async with contextlib.AsyncExitStack() as stack:
            https = [
                (await stack.enter_async_context(connections(servers[number % 3].url, 1, timeout_s=20)))[0]
                for number in range(PRODUCERS + WORKERS)
            ]
            connection = Connection()
            await connection.open([nats.url], name="watch")
            stack.push_async_callback(connection.close)
            work = [asyncio.create_task(crowd.produce(http)) for http in https[:PRODUCERS]]
            work += [asyncio.create_task(crowd.work(http)) for http in https[PRODUCERS:]]
            watching = asyncio.create_task(watch(connection, crowd.queue, lambda: all(task.done() for task in work)))
            await asyncio.to_thread(
                poll, lambda: crowd.stored >= JOBS // 2, deadline_s=60, what="half of the jobs are stored"
            )
            for _ in range(KILLS):
                await asyncio.to_thread(servers[0].kill)  # the first one leads
                await asyncio.to_thread(servers[0].start)
            await asyncio.gather(*work)
            deepest = await watching
        assert BOUND - 3 <= deepest <= BOUND, f"{deepest} jobs at once"
        assert crowd.refused > 0
        assert crowd.completed > 0
        for server in servers:
            await asyncio.to_thread(server.stop)
