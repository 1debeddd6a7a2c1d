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

import nats
import orjson
import pytest
from nats.aio.client import Client

from ojs_fast import _core
from ojs_fast.core.limit_state import Limit, LimitState
from ojs_fast.storage import names
from tests.faults.test_crash_windows import Aftermath, Scene, claimed, completed, now_ms, play
from tests.support.api import Api, Body, job_request, unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

KILLS = int(os.environ.get("OJS_LIMIT_KILLS", "1"))
JOBS = int(os.environ.get("OJS_LIMIT_JOBS", "200"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
LIMIT, WORKERS = 5, 9
RESERVATION_MS = 4000
# A dead node's lease ends after 4 s; then the leader looks once a second.
REPAIRED_S = 15
# Nodes measure the common clock by round trips on a busy machine, and times are cut to whole ms.
CLOCK_ERROR_MS = 25

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + 40 * KILLS + JOBS * KILLS // 10)]


@pytest.fixture(scope="module")
def shared_nats() -> Iterator[Nats]:
    """Give the NATS of the three servers."""
    with Nats() as running:
        yield running


@pytest.fixture(scope="module")
def trio(shared_nats: Nats) -> Iterator[list[Server]]:
    """Give three servers on one NATS."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(nats_url=shared_nats.url)) for _ in range(3)]


@contextlib.asynccontextmanager
async def workers_of(servers: list[Server], count: int) -> AsyncIterator[list[Http]]:
    """Give `count` connections, spread over the servers."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            (await stack.enter_async_context(connections(servers[number % len(servers)].url, 1)))[0]
            for number in range(count)
        ]


async def enqueue(http: Http, queue: str, count: int, **rate_limit: object) -> None:
    """Enqueue a batch of jobs with one limit."""
    status, body = await http.call("POST", "/jobs/batch", {"jobs": [job_request(queue, rate_limit=rate_limit)] * count})
    assert status == 201, body


def ms(text: str) -> float:
    """Return an RFC 3339 time as milliseconds."""
    return datetime.fromisoformat(text).timestamp() * 1000


@dataclass
class Crew:
    """Workers that count how many of their jobs run at the same time."""

    total: int
    hold_s: float = 0.01
    done: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    started_ms: list[float] = field(default_factory=list)
    most: int = 0
    broken: int = 0

    async def work(self, http: Http, queue: str, chance: random.Random, end: float) -> None:
        """Fetch, hold for a moment, acknowledge, until all are done."""
        while len(self.done) < self.total and time.monotonic() < end:
            try:
                jobs = await http.fetch(queue, chance.randint(1, 4), visibility_timeout_ms=RESERVATION_MS)
            except Broken:
                self.broken += 1
                await asyncio.sleep(0.02)
                continue
            self.running.update(job["id"] for job in jobs)
            self.started_ms.extend(ms(job["started_at"]) for job in jobs)
            self.most = max(self.most, len(self.running))
            for number, job in enumerate(jobs):
                await asyncio.sleep(chance.uniform(0, self.hold_s))
                await self._ack(http, job, jobs[number:])
            if not jobs:
                await asyncio.sleep(0.002)

    async def _ack(self, http: Http, job: Body, left: list[Body]) -> None:
        # A job ends when its worker says so, not when the server hears it; without a server all of them end.
        self.running.discard(job["id"])
        while True:
            try:
                status = await http.ack(job["id"])
            except Broken:
                status = 503
            if status in (200, 409):
                self.done.add(job["id"])
                return
            self.running.difference_update(one["id"] for one in left)
            await asyncio.sleep(0.02)


async def permits(http: Http, key: str) -> int:
    """How many permits of a key are out, asked on a new connection."""
    await http.close()
    status, body = await http.call("GET", f"/rate-limits/{key}")
    assert status == 200, body
    return int(body["concurrency"]["active"])


async def test_concurrency_holds_over_three_servers(trio: list[Server]) -> None:
    """Nine workers on three servers never run more than five jobs of a key at once, and reach five."""
    queue, chance = unique_queue(), random.Random(SEED)
    key, crew, end = f"k.{queue}", Crew(JOBS), time.monotonic() + 60
    async with workers_of(trio, WORKERS) as https:
        await enqueue(https[0], queue, JOBS, key=key, concurrency=LIMIT)
        await asyncio.gather(*(crew.work(http, queue, chance, end) for http in https))
        assert len(crew.done) == JOBS
        assert crew.most == LIMIT
        assert await permits(https[0], key) == 0


async def test_concurrency_holds_while_servers_are_killed(trio: list[Server], shared_nats: Nats) -> None:
    """Now one, now another, now NATS dies by kill -9: never six jobs at once, all jobs end, all permits come back."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    queue, chance = unique_queue(), random.Random(SEED)
    total = 2 * JOBS * KILLS
    key, crew, end = f"k.{queue}", Crew(total, hold_s=0.002), time.monotonic() + 60 + 40 * KILLS
    async with workers_of(trio, WORKERS) as https, connections(trio[0].url, 1) as [observer]:
        for _ in range(2 * KILLS):
            await enqueue(observer, queue, JOBS, key=key, concurrency=LIMIT)
        working = [asyncio.create_task(crew.work(http, queue, chance, end)) for http in https]
        for number in range(KILLS):
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            if number % 3 == 2:
                await asyncio.to_thread(shared_nats.kill)
                continue
            victim = trio[chance.randint(1, 2)]
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)
            assert await permits(observer, key) <= LIMIT
        await asyncio.gather(*working)
        assert len(crew.done) == total
        assert crew.most <= LIMIT
        while left := await permits(observer, key):
            assert time.monotonic() < end + REPAIRED_S, f"{left} permits do not come back"
            await asyncio.sleep(0.1)


async def test_a_rate_holds_over_three_servers(trio: list[Server]) -> None:
    """20 per half second: no half second, wherever it begins, sees 21 starts; and the rate is reached."""
    queue, chance, rate, period_ms, count = unique_queue(), random.Random(SEED), 20, 500, 61
    key, crew, end = f"k.{queue}", Crew(count, hold_s=0), time.monotonic() + 60
    async with workers_of(trio, WORKERS) as https:
        await enqueue(https[0], queue, count, key=key, rate={"limit": rate, "period": "PT0.5S"})
        await asyncio.gather(*(crew.work(http, queue, chance, end) for http in https))
    starts = sorted(crew.started_ms)
    assert len(starts) == count
    for early, late in zip(starts, starts[rate:], strict=False):
        assert late - early >= period_ms - CLOCK_ERROR_MS
    # Three windows must pass; a machine that stands still for long may make it more.
    assert starts[-1] - starts[0] < 20 * period_ms


async def test_a_throttle_holds_over_three_servers(trio: list[Server]) -> None:
    """Two starts are 50 ms apart, whichever servers they come from."""
    queue, chance, count = unique_queue(), random.Random(SEED), 12
    key, crew, end = f"k.{queue}", Crew(count, hold_s=0), time.monotonic() + 60
    async with workers_of(trio, WORKERS) as https:
        await enqueue(https[0], queue, count, key=key, throttle={"limit": 20, "period": "PT1S"})
        await asyncio.gather(*(crew.work(http, queue, chance, end) for http in https))
    starts = sorted(crew.started_ms)
    assert len(starts) == count
    for early, late in itertools.pairwise(starts):
        assert late - early >= 50 - CLOCK_ERROR_MS


def test_a_permit_that_ends_on_one_server_wakes_jobs_that_wait_on_another(trio: list[Server]) -> None:
    """At once: waiting jobs are parked where they were refused, and a third server's worker gets them."""
    queue, took = unique_queue(), []
    with Api(trio[0].url) as first, Api(trio[1].url) as second, Api(trio[2].url) as third:
        for _ in range(7):
            first.enqueue(queue, rate_limit={"key": f"k.{queue}", "concurrency": 1})
        [job] = first.fetch(queue)
        for _ in range(6):
            assert second.fetch(queue) == []
            acked = time.monotonic()
            first.ack(job["id"])
            [job] = poll(lambda: third.fetch(queue), pause_s=0.001, what="a waiting job starts")
            took.append(time.monotonic() - acked)
        # Nothing that is done now and then would be as quick.
        assert min(took) < 0.5


def test_jobs_that_wait_on_a_killed_server_start_elsewhere(trio: list[Server]) -> None:
    """What it had pulled and parked is found when its lease ends."""
    queue = unique_queue()
    with Api(trio[0].url) as api:
        ids = [api.enqueue(queue, rate_limit={"key": f"k.{queue}", "concurrency": 1})["id"] for _ in range(3)]
        assert [job["id"] for job in api.fetch(queue)] == ids[:1]
        with Api(trio[1].url) as doomed:
            assert doomed.fetch(queue, count=5) == []
        trio[1].kill()
        started = ids[:1]
        for _ in range(2):
            api.ack(started[-1])
            [job] = poll(lambda: api.fetch(queue), deadline_s=REPAIRED_S, what="a waiting job starts")
            started.append(job["id"])
        assert sorted(started) == sorted(ids)
        trio[1].start()


def test_an_orderly_stop_gives_waiting_jobs_back(trio: list[Server]) -> None:
    """At once, without waiting for a lease to end."""
    queue = unique_queue()
    with Api(trio[0].url) as api:
        ids = [api.enqueue(queue, rate_limit={"key": f"k.{queue}", "concurrency": 1})["id"] for _ in range(2)]
        assert [job["id"] for job in api.fetch(queue)] == ids[:1]
        with Api(trio[1].url) as stopping:
            assert stopping.fetch(queue, count=5) == []
        trio[1].stop()
        api.ack(ids[0])
        [job] = poll(lambda: api.fetch(queue), deadline_s=REPAIRED_S, what="the waiting job starts")
        assert job["id"] == ids[1]
        trio[1].start()


def test_a_stale_waiting_message_does_not_hold_up_those_behind_it(trio: list[Server], shared_nats: Nats) -> None:
    """A parked message that NATS no longer has takes nobody's place for long."""
    queue = unique_queue()

    async def remove_message_of(job_id: str) -> None:
        client = await nats.connect(shared_nats.url)
        try:
            js = client.jetstream()
            for sequence in range((await js.stream_info("OJS")).state.last_seq, 0, -1):
                with contextlib.suppress(nats.js.errors.NotFoundError):
                    if job_id.encode() in ((await js.get_msg("OJS", sequence)).data or b""):
                        with contextlib.suppress(nats.js.errors.BadRequestError):  # the cancel was faster
                            await js.delete_msg("OJS", sequence)
                        return
        finally:
            await client.close()

    with Api(trio[0].url) as api:
        ids = [api.enqueue(queue, rate_limit={"key": f"k.{queue}", "concurrency": 1})["id"] for _ in range(3)]
        assert [job["id"] for job in api.fetch(queue, count=3)] == ids[:1]
        api.cancel(ids[1])
        asyncio.run(remove_message_of(ids[1]))
        api.ack(ids[0])
        [job] = poll(lambda: api.fetch(queue), deadline_s=REPAIRED_S, what="the job behind starts")
        assert job["id"] == ids[2]


# -- half-done states of a dead node ---------------------------------------------------------------

ROWS = ["before-the-claim", "after-the-claim", "after-the-end", "of-no-job"]


@dataclass
class Left:
    """What a row left behind."""

    revision: int = 0
    stored: bytes = b""


LEFT: dict[str, Left] = {}


async def leave_permits(scene: Scene, client: Client) -> None:
    """Write what a node leaves behind that dies at each step between permit and return."""
    left = Aftermath(client.jetstream())
    for row in ROWS:
        queue = scene.queues[row]
        permit, key = f"{left.node_id}.7", f"k.{queue}"

        def change(record: _core.Record, row: str = row, permit: str = permit, key: str = key) -> None:
            record.extra = {"limits": [Limit(key, 1).stored()]}
            if row in {"after-the-claim", "after-the-end"}:
                record.extra["permit"] = [permit, key]
                (claimed if row == "after-the-claim" else completed)(record)

        record, revision = await left.record(queue, change)
        scene.rows[row] = record.id
        if row == "before-the-claim":
            await left.work_message(record, revision)
            await left.pull(client, queue)
            LEFT[row] = Left(revision, record.serialize())
        holder = record.id if row != "of-no-job" else _core.uuid7(now_ms(), os.urandom(10))
        state = LimitState(Limit(key, 1), holders={holder: (permit, now_ms())}, last_ms=now_ms())
        await left.js.publish(
            names.bucket_subject(names.LIMITS, names.encode_token(key)), orjson.dumps(state.as_json())
        )
    await left.lease(renewed_ms=now_ms())


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Give the scene of a node that died with permits in its hands."""
    yield from play(ROWS, leave_permits)


def test_a_permit_without_claim_is_dropped_and_its_late_claim_fails(scene: Scene) -> None:
    """Died between permit and claim: the job starts, and a claim that was still on its way does not count."""
    job = scene.fetched("before-the-claim")
    assert job["attempt"] == 1
    left = LEFT["before-the-claim"]

    async def claim_late() -> None:
        client = await nats.connect(scene.nats_url)
        try:
            await client.jetstream().publish(
                names.bucket_subject(names.JOBS, job["id"]),
                left.stored,
                headers={"Nats-Expected-Last-Subject-Sequence": str(left.revision)},
            )
        finally:
            await client.close()

    with pytest.raises(nats.js.errors.BadRequestError):
        asyncio.run(claim_late())


def test_a_permit_with_its_claim_stays_until_the_reservation_ends(scene: Scene) -> None:
    """Died after the claim: the worker may be at it, so the permit counts until the job is taken back."""
    assert scene.fetched("after-the-claim")["attempt"] == 2


@pytest.mark.parametrize("row", ["after-the-end", "of-no-job"])
def test_a_permit_that_was_not_returned_is_dropped(scene: Scene, row: str) -> None:
    """Died between the job's end and the return, or the job is gone: the next job starts."""
    queue = scene.queues[row]
    if row == "of-no-job":
        scene.fetched(row)
        return
    job_id = scene.api.enqueue(queue, rate_limit={"key": f"k.{queue}", "concurrency": 1})["id"]
    [job] = poll(lambda: scene.api.fetch(queue), deadline_s=REPAIRED_S, pause_s=0.05, what="the next job starts")
    assert job["id"] == job_id
