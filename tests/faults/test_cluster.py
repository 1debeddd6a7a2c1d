"""Two servers on three replicated nats-servers, one of which is killed or frozen, one after the other.

OJS_CLUSTER_FAULTS sets how often; OJS_KILL_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.node import Node
from ojs_fast.storage.errors import KeyTaken, RevisionConflict, TopologyError
from tests.support.api import Api, unique_queue
from tests.support.load import Ledger, connections
from tests.support.nats_cluster import SIZE, NatsCluster
from tests.support.processes import poll
from tests.support.server import Server

FAULTS = int(os.environ.get("OJS_CLUSTER_FAULTS", "3"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
REPLICAS = {"OJS_NATS_REPLICAS": "3"}
JOBS_PER_FAULT = 2000
FEWEST_PER_FAULT = 35  # however slow the machine is
PRODUCERS, WORKERS = 2, 4
ROUNDS = 50

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(180 + 30 * FAULTS)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[NatsCluster]:
    """Give the cluster that these tests share."""
    with NatsCluster() as running:
        yield running


async def test_what_was_written_is_read_wherever_the_node_asks(cluster: NatsCluster) -> None:
    """Each job is there for another node as soon as its enqueue is answered, for all that reads it."""
    made = [Node(Settings.from_env({"NATS_URL": url, **REPLICAS})) for url in cluster.urls]
    queue = unique_queue()
    async with contextlib.AsyncExitStack() as stack:
        for node, url in zip(made, cluster.urls, strict=True):
            await node.open([url])
            stack.push_async_callback(node.close)
        body = orjson.dumps({"type": "a.b", "args": [], "options": {"queue": queue}})
        for number in range(300):
            job_id, stored, _ = await made[number % SIZE].jobs.enqueue(body)
            reader = made[(number + 1) % SIZE]
            assert (await reader.jobs.load(job_id))[1] == stored
            assert await reader.jobs.existing([job_id]) == {job_id: stored}
            await reader.jobs.cancel(job_id)
            assert orjson.loads(await made[number % SIZE].jobs.get(job_id))["state"] == "cancelled"


async def test_of_writes_at_the_same_moment_one_wins_and_the_others_are_told_so(cluster: NatsCluster) -> None:
    """A cluster refuses a write also because of one that is not replicated yet; that is a conflict, no failure."""
    made = [Node(Settings.from_env({"NATS_URL": url, **REPLICAS})) for url in cluster.urls]
    async with contextlib.AsyncExitStack() as stack:
        for node, url in zip(made, cluster.urls, strict=True):
            await node.open([url])
            stack.push_async_callback(node.close)
        for _ in range(ROUNDS):
            job_id = _core.uuid7(time.time_ns() // 1_000_000, os.urandom(10))
            records = [node.stores.records for node in made]
            tries = [one.create(job_id, b"%d" % number) for number, one in enumerate(records * 2)]
            created = await asyncio.gather(*tries, return_exceptions=True)
            revisions = [one for one in created if isinstance(one, int)]
            assert len(revisions) == 1, created
            assert {type(one) for one in created} == {int, KeyTaken}
            tries = [one.replace(job_id, b"again %d" % number, revisions[0]) for number, one in enumerate(records * 2)]
            replaced = await asyncio.gather(*tries, return_exceptions=True)
            assert sum(isinstance(one, int) for one in replaced) == 1, replaced
            assert {type(one) for one in replaced} == {int, RevisionConflict}


async def test_streams_with_fewer_replicas_are_not_taken_for_replicated_ones() -> None:
    """The start ends, says which stream it is and what to do; more replicas than asked for are welcome."""
    cluster = NatsCluster()

    async def opened(replicas: str) -> None:
        node = Node(Settings.from_env({"NATS_URL": cluster.url, "OJS_NATS_REPLICAS": replicas}))
        await node.open(cluster.urls)
        assert node.connection.is_replicated == (replicas == "3")
        await node.close()

    try:
        await asyncio.to_thread(cluster.__enter__)
        await opened("1")
        with pytest.raises(TopologyError, match=r"OJS exists with 1 replica, but OJS_NATS_REPLICAS asks for 3.*edit"):
            await opened("3")
    finally:
        cluster.close()


async def disturb(cluster: NatsCluster, fault: str, chance: random.Random) -> None:
    """Take one of the three away for a while, then wait until it has caught up."""
    victim = await cluster.leader_of("KV_ojs-jobs") if fault == "kill the leader" else chance.randrange(SIZE)
    if fault == "freeze one":
        cluster.pause(victim)
        await asyncio.sleep(chance.uniform(1, 12))
        cluster.resume(victim)
    else:
        cluster.kill(victim)
        await asyncio.sleep(chance.uniform(0, 3))
        cluster.start(victim)
    for stream in ("KV_ojs-jobs", "OJS"):
        await cluster.await_current(stream)


async def test_what_was_acknowledged_survives_the_loss_of_each_server(
    cluster: NatsCluster, fresh_server: Callable[..., Server]
) -> None:
    """No acknowledged enqueue is lost or stuck, no completed job comes again, and both nodes go on by themselves."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance, queue, ledger, stopped = random.Random(SEED), unique_queue(), Ledger(), False
    pair = [await asyncio.to_thread(fresh_server, nats_url=cluster.url, env=REPLICAS) for _ in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        https = [
            (await stack.enter_async_context(connections(pair[number % 2].url, 1, timeout_s=30)))[0]
            for number in range(PRODUCERS + WORKERS)
        ]
        running = [
            asyncio.create_task(ledger.produce(http, queue, lambda: stopped, JOBS_PER_FAULT * FAULTS))
            for http in https[:PRODUCERS]
        ]
        running += [
            asyncio.create_task(ledger.work(http, queue, lambda: stopped, count=5, visibility_ms=20_000))
            for http in https[PRODUCERS:]
        ]
        try:
            for number in range(FAULTS):
                before = len(ledger.completed)
                await asyncio.sleep(chance.uniform(0.2, 1.5))
                await disturb(cluster, ("kill the leader", "kill one", "freeze one")[number % 3], chance)
                await asyncio.to_thread(
                    poll,
                    lambda: (
                        len(ledger.completed) >= before + FEWEST_PER_FAULT  # noqa: B023
                        or any(task.done() for task in running)
                    ),
                    deadline_s=60,
                    what=f"{FEWEST_PER_FAULT} jobs are completed",
                )
        finally:
            stopped = True
            await asyncio.gather(*running)
        await ledger.finish(https, queue, deadline_s=90)
        await ledger.check(https[0], queue)
        assert len(ledger.completed) >= FEWEST_PER_FAULT * FAULTS
    with Api(pair[0].url) as api:

        def is_quiet() -> bool:
            states = api.call("GET", f"/queues/{queue}/stats")["stats"]
            return bool(states["available"] == states["active"] == 0)

        poll(is_quiet, deadline_s=30, what="nothing of the queue is available or active")
