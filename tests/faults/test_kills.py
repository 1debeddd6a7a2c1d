"""kill -9 at random moments under load: what was acknowledged stays true, over and over on the same data.

OJS_KILLS and OJS_NATS_KILLS set how often; OJS_KILL_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable

import pytest

from tests.support.api import unique_queue
from tests.support.load import Ledger, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

KILLS = int(os.environ.get("OJS_KILLS", "4"))
NATS_KILLS = int(os.environ.get("OJS_NATS_KILLS", "3"))
WORKER_KILLS = 2
# Granian gives up when a worker dies again sooner than 5.5 s after its start.
CRASH_LOOP_S = 6.0
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
JOBS_PER_KILL = 3000
PRODUCERS, WORKERS = 2, 4

# One kill with its restart takes 3 s at most, the drain at the end a minute at most.
pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + 5 * max(KILLS, NATS_KILLS))]


async def survive(kills: int, kill: Callable[[], None], *servers: Server) -> None:
    """Kill under load `kills` times, then drain, and compare with the ledger of what was acknowledged."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance = random.Random(SEED)
    queue, ledger, stopped = unique_queue(), Ledger(), False
    async with contextlib.AsyncExitStack() as stack:
        https = [
            (await stack.enter_async_context(connections(servers[number % len(servers)].url, 1, timeout_s=20)))[0]
            for number in range(PRODUCERS + WORKERS)
        ]
        running = [
            asyncio.create_task(ledger.produce(http, queue, lambda: stopped, JOBS_PER_KILL * kills))
            for http in https[:PRODUCERS]
        ]
        running += [
            asyncio.create_task(ledger.work(http, queue, lambda: stopped, count=chance.randint(1, 10)))
            for http in https[PRODUCERS:]
        ]
        try:
            for _ in range(kills):
                before = len(ledger.completed)
                await asyncio.sleep(chance.uniform(0.05, 1.5))
                await asyncio.to_thread(kill)
                await progress(ledger, before, running)
        finally:
            stopped = True
            await asyncio.gather(*running)
        await ledger.finish(https, queue, deadline_s=60)
        # The last kill may have come so late that nobody has used this connection since.
        await https[0].close()
        for server in servers:
            await asyncio.to_thread(server.await_ready)
        await ledger.check(https[0], queue)


async def progress(ledger: Ledger, before: int, running: list[asyncio.Task[None]]) -> None:
    """Wait until jobs get completed again."""
    end = time.monotonic() + 30
    while len(ledger.completed) <= before:
        assert time.monotonic() < end, "no job was completed for 30 s"
        for task in running:
            if task.done():
                task.result()
        await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["interval", "always"])
async def test_what_was_acknowledged_survives_kills_of_the_server(
    fresh_server: Callable[..., Server], durability: str
) -> None:
    """No acknowledged enqueue is lost or stuck, no acknowledged ack undone, no completed job delivered again."""
    server = await asyncio.to_thread(fresh_server, env={"OJS_DURABILITY": durability})

    def kill() -> None:
        server.kill()
        server.start()

    await survive(KILLS, kill, server)


@pytest.mark.slow
async def test_what_was_acknowledged_survives_kills_of_the_worker_process(fresh_server: Callable[..., Server]) -> None:
    """The same when only the process that holds the node dies: the main process starts another one."""
    server = await asyncio.to_thread(fresh_server)
    # Until it has announced itself, the main process takes the end of a worker for a failed start.
    await asyncio.to_thread(poll, lambda: " serves" in server.log(), what="the server announces itself")
    pid, nats_pid = server.pid, server.nats_pid

    def kill() -> None:
        [worker] = server.worker_pids
        os.kill(worker, signal.SIGKILL)
        poll(lambda: server.worker_pids not in ([], [worker]), what="another worker process runs")

    for _ in range(WORKER_KILLS):
        calm = time.monotonic() + CRASH_LOOP_S
        await survive(1, kill, server)
        await asyncio.sleep(max(0.0, calm - time.monotonic()))
    assert (server.pid, server.nats_pid) == (pid, nats_pid), "the server restarted"


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["interval", "always"])
async def test_what_was_acknowledged_survives_kills_of_nats(
    fresh_server: Callable[..., Server], durability: str
) -> None:
    """The same when the embedded nats-server is killed: the server goes on by itself."""
    server = await asyncio.to_thread(fresh_server, env={"OJS_DURABILITY": durability})
    pid = server.pid
    workers = server.worker_pids
    await survive(NATS_KILLS, server.kill_nats, server)
    assert (server.pid, server.worker_pids) == (pid, workers), "the server restarted"


@pytest.mark.slow
async def test_what_was_acknowledged_survives_kills_among_two_servers(fresh_server: Callable[..., Server]) -> None:
    """Two servers on one NATS: now one of them dies, now the other, now NATS; whoever lives repairs the rest."""
    chance = random.Random(SEED)
    with Nats() as nats:
        pair = [await asyncio.to_thread(fresh_server, nats_url=nats.url) for _ in range(2)]

        def kill() -> None:
            victim = chance.randrange(3)
            if victim == 2:
                nats.kill()
                return
            pair[victim].kill()
            pair[victim].start()

        await survive(KILLS, kill, *pair)
        for server in pair:
            await asyncio.to_thread(server.stop)
