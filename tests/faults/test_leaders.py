"""The scheduler leader dies, again and again: cron ticks and promotions go on, and none happens twice.

OJS_LEADER_TICKS and OJS_LEADER_JOBS set how long; OJS_KILL_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.support.api import unique_queue
from tests.support.load import Broken, Http, Ledger, connections
from tests.support.nats import Nats
from tests.support.nodes import nodes
from tests.support.server import Server

TICKS = int(os.environ.get("OJS_LEADER_TICKS", "20"))
JOBS = int(os.environ.get("OJS_LEADER_JOBS", "1000"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
SERVERS = 3
TAKEOVER_S = 5

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(120 + 2 * TICKS)]


def leader(servers: list[Server]) -> Server:
    """The running server that was the last to say that it leads."""
    told = [(match[-1], one) for one in servers if one.is_running and (match := leaderships(one))]
    return max(told, key=lambda pair: pair[0], default=("", servers[0]))[1]


def leaderships(server: Server) -> list[str]:
    """When it told that it leads."""
    return re.findall(r"^(\S+) INFO  this node is the scheduler leader", server.log(), re.MULTILINE)


async def schedule(http: Http, queue: str, count: int, over_s: float) -> list[str]:
    """Enqueue jobs that come due evenly over a time."""
    ids: list[str] = []
    start = time.time() + 1
    for first in range(0, count, 100):
        numbers = range(first, min(count, first + 100))
        dues = [datetime.fromtimestamp(start + over_s * n / count, UTC) for n in numbers]
        jobs = [
            {
                "type": "s.j",
                "args": [],
                "options": {"queue": queue, "scheduled_at": due.isoformat(), "retry": {"max_attempts": 1000}},
            }
            for due in dues
        ]
        status, body = await http.call("POST", "/jobs/batch", {"jobs": jobs})
        assert status == 201, body
        ids += [job["id"] for job in body["jobs"]]
    return ids


async def collect(http: Http, queue: str, runs: dict[str, dict[str, Any]], until: Callable[[], bool]) -> None:
    """Fetch and acknowledge the cron job's runs."""
    while not until():
        with contextlib.suppress(Broken):
            for job in await http.fetch(queue, 20, visibility_timeout_ms=2000):
                runs[job["id"]] = job
                await http.ack(job["id"])
        await asyncio.sleep(0.02)


async def test_a_dying_leader_neither_loses_nor_repeats_anything(fresh_server: Callable[..., Server]) -> None:
    """One tick a second and many scheduled jobs while the leader is killed at random.

    Each occurrence has one run; those that came due while nobody led have one catch-up run; every
    scheduled job is completed once.
    """
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance = random.Random(SEED)
    ticks, scheduled = unique_queue("ticks"), unique_queue("scheduled")
    runs: dict[str, dict[str, Any]] = {}
    ledger, stopped, kills = Ledger(), False, 0
    with Nats() as nats:
        servers = [await asyncio.to_thread(fresh_server, nats_url=nats.url) for _ in range(SERVERS)]
        async with contextlib.AsyncExitStack() as stack:
            https = [
                (await stack.enter_async_context(connections(servers[n % SERVERS].url, 1, timeout_s=10)))[0]
                for n in range(2 * SERVERS)
            ]
            ledger.enqueued.update(await schedule(https[0], scheduled, JOBS, TICKS))
            template = {"type": "cron.tick", "options": {"queue": ticks, "retry": {"max_attempts": 1000}}}
            cron = {"name": ticks, "expression": "* * * * * *", "overlap_policy": "allow", "job_template": template}
            assert (await https[0].call("POST", "/cron", cron))[0] == 201
            began = time.monotonic()
            working = [asyncio.create_task(collect(http, ticks, runs, lambda: stopped)) for http in https[:SERVERS]]
            working += [asyncio.create_task(ledger.work(http, scheduled, lambda: stopped)) for http in https[SERVERS:]]
            try:
                while time.monotonic() - began < TICKS:
                    await asyncio.sleep(chance.uniform(1, 6))
                    victim = leader(servers)
                    await asyncio.to_thread(victim.kill)
                    kills += 1
                    await asyncio.sleep(chance.uniform(0, 3))
                    await asyncio.to_thread(victim.start)
                # The last leader's successor, its catch-up run, and what dead servers had claimed.
                await asyncio.sleep(TAKEOVER_S + 3)
            finally:
                stopped = True
                await asyncio.gather(*working)
            await ledger.finish(https, scheduled, deadline_s=60)
            await ledger.check(https[0], scheduled)
        for server in servers:
            await asyncio.to_thread(server.stop)
    occurrences = Counter(run["meta"]["cron_triggered_at"] for run in runs.values())
    assert set(occurrences.values()) == {1}, f"an occurrence fired twice: {occurrences.most_common(3)}"
    seconds = sorted(datetime.fromisoformat(one).timestamp() for one in occurrences)
    gaps = [later - before for before, later in pairwise(seconds) if later - before > 1]
    assert len(gaps) <= kills, f"{kills} kills and {len(gaps)} gaps: {gaps}"
    assert max(gaps, default=0) <= TAKEOVER_S + 1, f"a takeover took too long: {gaps}"


async def test_a_node_that_leaves_begins_to_lead_no_more() -> None:
    """The leader may leave at the same time: what a leader does would go on in a node that has stopped it already."""
    async with nodes(2) as both:
        leader, other = sorted(both, key=lambda node: not node.leases.is_leader)
        assert leader.leases.is_leader
        await other.leases.withdraw()
        await leader.leases.close()
        for _ in range(2):
            await other.leases._stand()
        assert not other.leases.is_leader
