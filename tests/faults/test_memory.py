"""Waiting jobs (OJS_MEMORY_JOBS of them) cost NATS disk, not the server memory, and requests leave nothing there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from loadtest.cpu import rss_bytes
from tests.support.api import unique_queue
from tests.support.load import Http, connections
from tests.support.server import Server

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

JOBS = int(os.environ.get("OJS_MEMORY_JOBS", "200000"))
BATCH = 1000
WARM_UP_BATCHES = 10
LIMIT_BYTES = 30_000_000
FETCHES = 30_000
FETCHES_LIMIT_BYTES = 15_000_000  # half a kilobyte each


async def test_waiting_jobs_take_no_memory_of_the_server(fresh_server: Callable[..., Server]) -> None:
    """Enqueued in batches of 1000, they raise the worker process by less than 30 MB, and all can be fetched."""
    server = await asyncio.to_thread(fresh_server)
    [pid] = server.worker_pids
    async with connections(server.url, 1, timeout_s=60) as [http]:
        # Code, buffers and the allocator's arenas of the first batches are no cost of waiting jobs.
        for _ in range(WARM_UP_BATCHES):
            await http.enqueue_batch(unique_queue(), BATCH)
        before = rss_bytes(pid)
        queue = unique_queue()
        for _ in range(JOBS // BATCH):
            await http.enqueue_batch(queue, BATCH)
        grown = rss_bytes(pid) - before
        assert grown < LIMIT_BYTES, f"{JOBS} waiting jobs cost {grown / 1e6:.1f} MB"
        # They do wait there: the first and many more come out at once.
        assert len(await http.fetch(queue, BATCH)) == BATCH


async def test_fetches_leave_nothing_behind(fresh_server: Callable[..., Server]) -> None:
    """Each of them watches its client; 30,000 from 32 clients at once, of an empty queue."""
    server = await asyncio.to_thread(fresh_server)
    [pid] = server.worker_pids
    queue = unique_queue()
    async with connections(server.url, 32, timeout_s=60) as https:
        await https[0].enqueue(queue)
        assert len(await https[0].fetch(queue)) == 1

        async def fetch(http: Http, times: int) -> None:
            for _ in range(times):
                assert await http.fetch(queue) == []

        async def all_fetch(times: int) -> None:
            await asyncio.gather(*(fetch(http, times // len(https)) for http in https))

        await all_fetch(FETCHES // 10)
        before = rss_bytes(pid)
        await all_fetch(FETCHES)
        grown = rss_bytes(pid) - before
        assert grown < FETCHES_LIMIT_BYTES, f"{FETCHES} fetches cost {grown / 1e6:.1f} MB"
