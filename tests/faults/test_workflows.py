"""Many workflows while servers and NATS are killed at random: every one ends as it must, each step once.

OJS_WORKFLOWS sets how many chains, groups and batches there are of each, OJS_WORKFLOW_KILLS how many kills;
OJS_KILL_SEED repeats a run. The short form has smaller workflows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.api import unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.server import Server

OF_EACH = int(os.environ.get("OJS_WORKFLOWS", "8"))
KILLS = int(os.environ.get("OJS_WORKFLOW_KILLS", "2"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
IS_LONG = OF_EACH > 100
CHAIN, GROUP, BATCH = (10, 50, 20) if IS_LONG else (5, 8, 6)
WORKERS = 12
ACKS, ROUNDS = 20, 5
DRAINED_S = 900 if IS_LONG else 60

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(DRAINED_S + 120 + 10 * KILLS)]

Body = dict[str, Any]


def job(queue: str, place: str, *, fails: bool = False) -> Body:
    """A job that says where in its workflow it stands and how it ends."""
    options = {"queue": queue, "retry": {"max_attempts": 5, "initial_interval": "PT0.05S"}}
    return {"type": "wf.job", "args": [place, fails], "options": options}


def requests(queue: str) -> list[tuple[Body, str]]:
    """`(request, state it must end in)` of all workflows; every fifth has a job that fails for good."""
    made: list[tuple[Body, str]] = []
    for number in range(OF_EACH):
        fails = number % 5 == 4
        steps = [job(queue, f"s{i}", fails=fails and i == CHAIN // 2) for i in range(CHAIN)]
        jobs = [job(queue, f"j{i}", fails=fails and i == number % GROUP) for i in range(GROUP)]
        members = [job(queue, f"j{i}", fails=fails and i == number % BATCH) for i in range(BATCH)]
        callbacks = {name: job(queue, name) for name in ("on_complete", "on_success", "on_failure")}
        ends = "failed" if fails else "completed"
        made.append(({"type": "chain", "name": f"chain {ends}", "steps": steps}, ends))
        made.append(({"type": "group", "name": f"group {ends}", "jobs": jobs}, ends))
        batch = {"type": "batch", "name": f"batch {ends}", "jobs": members, "callbacks": callbacks}
        made.append((batch, "completed"))
    return made


@dataclass
class Seen:
    """What the workers saw: the jobs of each place of each workflow, and what was acknowledged to them."""

    jobs: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    settled: Counter[str] = field(default_factory=Counter)
    states: dict[str, str] = field(default_factory=dict)

    async def work(self, http: Http, queue: str, until: Callable[[], bool]) -> None:
        """Fetch and settle until told to stop, over any number of broken requests."""
        while not until():
            try:
                jobs = await http.fetch(queue, 5, visibility_timeout_ms=2000)
            except Broken:
                jobs = []
            for one in jobs:
                place, fails = one["args"]
                self.jobs[one["workflow_id"], place].add(one["id"])
                with contextlib.suppress(Broken):
                    await self._settle(http, one["id"], fails=fails)
            if not jobs:
                await asyncio.sleep(0.02)

    async def _settle(self, http: Http, job_id: str, *, fails: bool) -> None:
        body: Body = {"job_id": job_id, "worker_id": http.worker_id}
        if fails:
            body["error"] = {"code": "handler_error", "message": "as planned", "retryable": False}
        else:
            body["result"] = {"of": job_id}
        status, _ = await http.call("POST", "/workers/nack" if fails else "/workers/ack", body)
        if status == 200:
            self.settled[job_id] += 1

    async def create(self, https: list[Http], wanted: list[tuple[Body, str]], chance: random.Random) -> None:
        """Create workflows; one whose outcome stays unknown is created again, and must end well too if it exists."""
        for request, state in wanted:
            while True:
                try:
                    status, body = await chance.choice(https).call("POST", "/workflows", request)
                except Broken:
                    await asyncio.sleep(0.05)
                    continue
                assert status in (201, 503), body
                if status == 201:
                    self.states[body["workflow"]["id"]] = state
                    break


async def listed(http: Http) -> dict[str, Body]:
    """All workflows by id."""
    found: dict[str, Body] = {}
    cursor = ""
    while True:
        status, body = await http.call("GET", f"/workflows?limit=200&cursor={cursor}")
        assert status == 200, body
        found |= {one["id"]: one for one in body["workflows"]}
        cursor = body["pagination"].get("next_cursor", "")
        if not cursor:
            return found


async def all_ended(http: Http) -> dict[str, Body]:
    """Wait until no workflow runs any more; all of them by id."""
    end = time.monotonic() + DRAINED_S
    while True:
        with contextlib.suppress(Broken):
            status, body = await http.call("GET", "/workflows?state=running&limit=1")
            if status == 200 and not body["workflows"]:
                return await listed(http)
        if time.monotonic() > end:
            _, body = await http.call("GET", "/workflows?state=running&limit=5")
            pytest.fail(f"stuck (OJS_KILL_SEED={SEED}): {body}")
        await asyncio.sleep(0.2)


async def check(http: Http, workflow: Body, seen: Seen) -> None:
    """Each place of the workflow had one job, which ended once and as planned."""
    status, body = await http.call("GET", f"/workflows/{workflow['id']}?steps_limit=10000")
    assert status == 200, body
    whole = body["workflow"]
    ends = whole["name"].split()[1]
    expected = "completed" if whole["type"] == "batch" else ends
    assert whole["state"] == expected == seen.states.get(whole["id"], expected), whole
    for step in whole["steps"]:
        place = f"{'s' if whole['type'] == 'chain' else 'j'}{step['index']}"
        met = seen.jobs.pop((whole["id"], place), set())
        if step["state"] == "cancelled":
            assert whole["type"] == "chain"
            assert ends == "failed"
            assert (step["job_id"], met) == (None, set()), "a step ran behind a failed one"
            continue
        assert met == {step["job_id"]}, f"{place} ran as {met}"
    for name, callback in whole.get("callbacks", {}).items():
        met = seen.jobs.pop((whole["id"], name), set())
        is_due = name in ("on_complete", "on_failure" if ends == "failed" else "on_success")
        assert callback["state"] == ("completed" if is_due else "skipped"), callback
        assert met == ({callback["job_id"]} if is_due else set()), f"{name} was enqueued as {met}"


async def test_workflows_survive_kills_among_two_servers(fresh_server: Callable[..., Server]) -> None:
    """Now one of two servers dies, now the other, now NATS: no workflow is stuck, no step or callback has two jobs."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance = random.Random(SEED)
    queue, seen, stopped = unique_queue(), Seen(), False
    with Nats() as nats:
        pair = [await asyncio.to_thread(fresh_server, nats_url=nats.url) for _ in range(2)]
        async with contextlib.AsyncExitStack() as stack:
            https = [
                (await stack.enter_async_context(connections(pair[number % 2].url, 1, timeout_s=20)))[0]
                for number in range(WORKERS + 4)
            ]
            wanted = requests(queue)
            chance.shuffle(wanted)
            creators = [
                asyncio.create_task(seen.create([https[number]], wanted[number::4], chance)) for number in range(4)
            ]
            workers = [asyncio.create_task(seen.work(http, queue, lambda: stopped)) for http in https[4:]]
            try:
                for _ in range(KILLS):
                    await asyncio.sleep(chance.uniform(0.05, 1.5))
                    victim = chance.choice([*pair, *pair, None])
                    if victim is None:
                        await asyncio.to_thread(nats.kill)
                        continue
                    await asyncio.to_thread(victim.kill)
                    await asyncio.to_thread(victim.start)
                await asyncio.gather(*creators)
                await https[0].close()
                found = await all_ended(https[0])
            finally:
                stopped = True
                await asyncio.gather(*workers)
            assert set(seen.states) <= set(found), "an acknowledged workflow is gone"
            assert [id_ for id_, times in seen.settled.items() if times > 1] == []
            for workflow in found.values():
                await check(https[0], workflow, seen)
            assert seen.jobs == {}, "jobs of workflows that nobody knows"
            sys.stdout.write(f"{len(found)} workflows, {len(seen.settled)} jobs, {KILLS} kills\n")
        for server in pair:
            await asyncio.to_thread(server.stop)


async def test_concurrent_acks_of_a_whole_group_on_two_servers_end_it(fresh_server: Callable[..., Server]) -> None:
    """All at once, in several rounds, each job acknowledged at the other server than it was fetched from."""
    with Nats() as nats:
        pair = [await asyncio.to_thread(fresh_server, nats_url=nats.url) for _ in range(2)]
        async with connections(pair[0].url, ACKS) as left, connections(pair[1].url, ACKS) as right:
            for round_ in range(ROUNDS):
                queue = unique_queue()
                request = {"type": "batch", "jobs": [job(queue, f"j{i}") for i in range(2 * ACKS)]}
                callbacks = {"on_complete": job(queue, "all"), "on_success": job(queue, "good")}
                status, body = await left[0].call("POST", "/workflows", request | {"callbacks": callbacks})
                assert status == 201, body
                jobs = [*await left[0].fetch(queue, ACKS), *await right[0].fetch(queue, ACKS)]
                assert len(jobs) == 2 * ACKS
                https = [*right, *left]
                for http in https:
                    http.worker_id = jobs[0]["worker_id"] if http in right else jobs[-1]["worker_id"]
                acks = [http.ack(one["id"]) for http, one in zip(https, jobs, strict=True)]
                assert set(await asyncio.gather(*acks)) == {200}
                called: list[Body] = []
                end = time.monotonic() + 10
                while len(called) < 2:
                    assert time.monotonic() < end, f"round {round_}: the callbacks do not come"
                    called += await right[0].fetch(queue, 5)
                assert sorted(one["args"][0] for one in called) == ["all", "good"]
                assert [len(one["parent_results"]) for one in called] == [2 * ACKS] * 2
                for one in called:
                    assert await right[0].ack(one["id"]) == 200
                status, body = await right[0].call("GET", f"/workflows/{body['id']}")
                assert (body["state"], body["jobs_completed"]) == ("completed", 2 * ACKS)
                assert await left[0].fetch(queue, 5) == []
        for server in pair:
            await asyncio.to_thread(server.stop)
