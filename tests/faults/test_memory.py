"""Waiting jobs cost NATS disk, not the server memory. OJS_MEMORY_JOBS sets how many wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from loadtest.cpu import rss_bytes
from tests.support.api import unique_queue
from tests.support.load import connections
from tests.support.server import Server

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

JOBS = int(os.environ.get("OJS_MEMORY_JOBS", "200000"))
BATCH = 1000
WARM_UP_BATCHES = 10
LIMIT_BYTES = 30_000_000


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
