"""Strict priority over three servers on one NATS, also when one is killed.

What strict means for requests that overlap: a fetch F that returned a job K must not have passed over a job J of a
higher priority (or an older one of K's priority) in the same queue, if J could be fetched before F was sent and was
still there when F was answered. From outside: J's enqueue (or the change of its priority, or its give-back) was
answered before F was sent, and J was returned only by a fetch that was sent after F's answer. "Older" means that J's
enqueue was answered before K's was sent.

A fetch that got no answer, because its server was killed, may have held as many jobs as it asked for until they were
repaired; so many may be passed over, and no more.

OJS_PRIORITY_S and OJS_PRIORITY_LEVELS make the runs longer; OJS_KILL_SEED repeats one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import nats
import pytest
from nats.aio.client import Client

from ojs_fast.core.stale import MOVED
from ojs_fast.storage import names
from tests.faults.test_crash_windows import Aftermath, Scene, now_ms
from tests.support.api import Api, unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.nats import Nats
from tests.support.processes import freeze, poll
from tests.support.server import Server

SECONDS = float(os.environ.get("OJS_PRIORITY_S", "2"))
# However slow the machine is, more jobs than that are fetched; but it lasts no longer.
FEWEST, LONGEST_S = round(100 * SECONDS), 30 * SECONDS
NEW_LEVELS = int(os.environ.get("OJS_PRIORITY_LEVELS", "60"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
PRODUCERS, WORKERS, PRIORITIES = 8, 8, 20
CHANGED = 0.2
COUNTS = (1, 1, 2, 5)
# A dead node's lease ends after 4 s; then the leader looks once a second.
REPAIRED_S = 7

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180 + 2 * LONGEST_S)]


@pytest.fixture(scope="module")
def trio() -> Iterator[list[Server]]:
    """Give three servers on one NATS."""
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(Nats())
        yield [stack.enter_context(Server(nats_url=shared.url)) for _ in range(3)]


@dataclass(slots=True)
class Job:
    """One job as its clients saw it: when it became fetchable for certain, when the fetch that returned it began."""

    priority: int
    sent: float
    ready: float = float("inf")
    fetched: float = float("inf")
    fetch: int = -1


@dataclass(slots=True)
class Fetch:
    """One answered fetch."""

    sent: float
    answered: float
    jobs: list[str]


@dataclass
class Model:
    """Everything that was asked and answered, by the clock of the test."""

    jobs: dict[str, Job] = field(default_factory=dict)
    fetches: list[Fetch] = field(default_factory=list)
    #: jobs that fetches without an answer may have held
    lost: int = 0
    changed: int = 0
    began: float = field(default_factory=time.monotonic)
    producing: int = PRODUCERS
    fetched: int = 0

    @property
    def is_over(self) -> bool:
        """Whether it has lasted long enough, with enough jobs to say something."""
        lasted_s = time.monotonic() - self.began
        return lasted_s >= LONGEST_S or (lasted_s >= SECONDS and self.fetched > FEWEST)

    async def produce(self, http: Http, queue: str, chance: random.Random) -> None:
        """Enqueue one job after the other."""
        while not self.is_over:
            priority, sent = chance.randrange(PRIORITIES) - 5, time.monotonic()
            try:
                job_id = await http.enqueue(queue, options={"queue": queue, "priority": priority})
            except Broken:
                await asyncio.sleep(0.02)
                continue
            ready = time.monotonic()
            job = self.jobs.setdefault(job_id, Job(priority, sent))
            if chance.random() < CHANGED:
                await self.change(http, job_id, job, chance.randrange(PRIORITIES) - 5)
            else:
                job.sent, job.ready = sent, ready
            await asyncio.sleep(chance.uniform(0, 0.01))
        self.producing -= 1

    async def change(self, http: Http, job_id: str, job: Job, priority: int) -> None:
        """Change the priority of a job, which counts as new from then on; too late is fine."""
        job.sent = float("inf")
        try:
            status, _ = await http.call("PATCH", f"/jobs/{job_id}", {"priority": priority})
        except Broken:
            return
        assert status in (200, 409, 503), status
        if status == 200:
            assert job.fetch < 0 or job.priority == priority, f"{job_id} was fetched with the priority it had before"
            job.priority, job.ready = priority, time.monotonic()
            self.changed += 1

    async def work(self, http: Http, queue: str, chance: random.Random) -> None:
        """Fetch until nothing was left for a while after the last producer ended."""
        quiet = 0.0
        while True:
            count, all_in, sent = chance.choice(COUNTS), not self.producing, time.monotonic()
            try:
                jobs = await http.fetch(queue, count)
            except Broken as error:
                if not isinstance(error.__cause__, ConnectionRefusedError):
                    self.lost += count
                quiet = time.monotonic() + REPAIRED_S
                await asyncio.sleep(0.02)
                continue
            answered = time.monotonic()
            if jobs:
                quiet = max(quiet, answered + 0.5)
                self.note(sent, answered, [(str(job["id"]), int(job["priority"])) for job in jobs])
                for job in jobs:
                    with contextlib.suppress(Broken):
                        await http.ack(job["id"])
            else:
                self.fetches.append(Fetch(sent, answered, []))
                if all_in and answered >= quiet:
                    return
                await asyncio.sleep(0.005)

    def note(self, sent: float, answered: float, jobs: list[tuple[str, int]]) -> None:
        """One answered fetch with its jobs, in the order of the answer."""
        for job_id, priority in jobs:
            job = self.jobs.setdefault(job_id, Job(priority, float("inf")))
            assert job.fetch < 0, f"{job_id} was delivered twice"
            job.priority = priority
            job.fetched, job.fetch = sent, len(self.fetches)
        self.fetches.append(Fetch(sent, answered, [job_id for job_id, _ in jobs]))
        self.fetched += len(jobs)

    def check(self) -> None:
        """No fetch passed over a job; see the module's text."""
        passed: dict[str, str] = {}
        coming = sorted(self.jobs.items(), key=lambda one: -one[1].ready)
        waiting: dict[str, Job] = {}
        for number, fetch in sorted(enumerate(self.fetches), key=lambda one: one[1].sent):
            got = [self.jobs[job_id].priority for job_id in fetch.jobs]
            assert got == sorted(got, reverse=True), f"an answer is out of order: {got}"
            while coming and coming[-1][1].ready < fetch.sent:
                job_id, job = coming.pop()
                waiting[job_id] = job
            waiting = {job_id: job for job_id, job in waiting.items() if job.fetched > fetch.sent}
            for job_id, job in waiting.items():
                if job.fetch == number or job.fetched <= fetch.answered:
                    continue
                for other_id in fetch.jobs:
                    other = self.jobs[other_id]
                    older = job.priority == other.priority and job.ready < other.sent < float("inf")
                    if job.priority > other.priority or older:
                        passed[job_id] = (
                            f"{other_id} ({other.priority}) was asked for {fetch.sent - job.ready:.4f} s after "
                            f"{job_id} ({job.priority}) was there, {job.fetched - fetch.answered:.4f} s before it came"
                        )
        assert len(passed) <= self.lost, "\n".join([f"{len(passed)} were passed over", *list(passed.values())[:10]])


@pytest.mark.parametrize(
    ("high", "low", "sent", "is_wrong"),
    [(5, 1, 3.0, True), (1, 1, 3.0, True), (1, 5, 3.0, False), (5, 1, 1.5, False), (1, 1, 1.5, False)],
)
def test_the_model_tells_what_was_passed_over(high: int, low: int, sent: float, *, is_wrong: bool) -> None:
    """A job that was there before the fetch was sent, and still there when it was answered."""
    model = Model()
    model.jobs = {"first": Job(high, 1.0, 2.0), "second": Job(low, 2.1, 2.2)}
    model.note(sent, 3.5, [("second", low)])
    model.note(4.0, 4.5, [("first", high)])
    with pytest.raises(AssertionError, match="1 were passed over") if is_wrong else contextlib.nullcontext():
        model.check()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [False, True], ids=["quiet", "a-server-is-killed"])
async def test_no_fetch_passes_over_a_job_of_higher_priority(trio: list[Server], kills: bool) -> None:
    """8 producers and 8 workers over three servers, 20 priorities, checked against a model of what clients saw."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    queue = unique_queue()
    async with contextlib.AsyncExitStack() as stack:
        https = [
            (await stack.enter_async_context(connections(trio[number % 3].url, 1, timeout_s=20)))[0]
            for number in range(PRODUCERS + WORKERS)
        ]
        model = Model()
        running = [
            asyncio.create_task(
                (model.produce if number < PRODUCERS else model.work)(http, queue, random.Random(SEED + number))
            )
            for number, http in enumerate(https)
        ]
        if kills:
            await asyncio.sleep(SECONDS / 2)
            await asyncio.to_thread(trio[2].kill)
            await asyncio.to_thread(trio[2].start)
        await asyncio.gather(*running)
    missing = [job_id for job_id, job in model.jobs.items() if job.fetch < 0]
    with Api(trio[0].url) as api:
        states = [api.get(job_id)["state"] for job_id in missing[:20]]
    assert "available" not in states, f"{len(missing)} jobs were not fetched"
    assert len(missing) <= model.lost
    sys.stdout.write(
        f"{model.fetched} jobs in {len(model.fetches)} fetches, {model.changed} changed, "
        f"{model.lost} may have been held\n"
    )
    assert model.fetched > FEWEST
    assert kills or not model.lost
    model.check()


async def test_the_first_job_of_a_new_priority_is_fetched_anywhere_at_once(trio: list[Server]) -> None:
    """Enqueued on one server at a priority that its queue never had, fetched on another with the next request."""
    async with contextlib.AsyncExitStack() as stack:
        https = [(await stack.enter_async_context(connections(server.url, 1)))[0] for server in trio]
        queue = ""
        for number in range(NEW_LEVELS):
            priority = number % 100 + 1
            if priority == 1:
                queue = unique_queue()
                left = [await https[0].enqueue(queue) for _ in range(100)]
                for http in https:
                    assert [job["id"] for job in await http.fetch(queue)] == [left.pop(0)]
            job_id = await https[number % 3].enqueue(queue, options={"queue": queue, "priority": priority})
            [job] = await https[(number + 1 + number // 3 % 2) % 3].fetch(queue)
            assert (job["id"], job["priority"]) == (job_id, priority), f"the new priority {priority} was passed over"


async def test_a_new_priority_does_not_wait_for_a_dead_server_for_ever(trio: list[Server]) -> None:
    """Until its lease ends; and the server that was only stopped looks at the queue before it fetches again."""
    queue = unique_queue()
    async with (
        connections(trio[0].url, 1, timeout_s=20) as [first],
        connections(trio[1].url, 1, timeout_s=20) as [other],
    ):
        low = await first.enqueue(queue)
        assert len(await other.fetch(queue)) == 1
        low = await first.enqueue(queue)
        [worker] = trio[1].worker_pids
        freeze(worker)
        try:
            began = time.monotonic()
            high = await first.enqueue(queue, options={"queue": queue, "priority": 9})
            assert 2 < time.monotonic() - began < 9
            fetching = asyncio.create_task(other.fetch(queue))
            await asyncio.sleep(0.05)
        finally:
            os.kill(worker, 18)
        [job] = await fetching
        assert job["id"] == high, "the server that woke up passed over the new priority"
        assert [one["id"] for one in await first.fetch(queue)] == [low]


HALF_DONE = ["moved", "moved-published", "opening"]


async def write_half_done(scene: Scene, client: Client) -> None:
    """Leave behind changes of priority whose node died behind the record, or before the old message was deleted."""
    left = Aftermath(client.jetstream())
    for row in HALF_DONE[:2]:
        record, revision = await left.record(scene.queues[row])
        scene.rows[row] = record.id
        await left.work_message(record, revision)
        record.extra = {MOVED: [now_ms(), 0, record.enqueued_ms]}
        record.priority = 5
        await left.replace(record)
        if row == "moved-published":
            found = await left.js.get_last_msg(
                names.bucket_stream(names.JOBS), names.bucket_subject(names.JOBS, record.id)
            )
            assert found.seq
            await left.work_message(record, found.seq)
    bucket = await left.js.key_value(names.QUEUES)
    for row, level, opening in (*((row, 5, "") for row in HALF_DONE[:2]), ("opening", 7, "7")):
        key = names.encode_token(scene.queues[row])
        before = (await bucket.get(key)).value or b""
        after = before.replace(b'"levels":[0],"opening":[]', f'"levels":[{level},0],"opening":[{opening}]'.encode())
        assert after != before
        await bucket.put(key, after)
    await left.lease(renewed_ms=now_ms())


@pytest.fixture(scope="module")
def half_done() -> Iterator[Scene]:
    """Give a server that repairs what `write_half_done` left."""
    with Nats() as running:
        scene = Scene(running.url, HALF_DONE, write_half_done)
        with Server(nats_url=running.url) as server, Api(server.url) as scene.api:
            yield scene


@pytest.mark.parametrize("row", HALF_DONE[:2])
def test_a_change_of_priority_survives_its_node(half_done: Scene, row: str) -> None:
    """The job comes once, at its new priority, and its queue counts it once, then not at all."""
    queue, api = half_done.queues[row], half_done.api

    def stats() -> dict[str, int]:
        found: dict[str, int] = api.call("GET", f"/queues/{queue}/stats")["stats"]
        return found

    def messages() -> list[str]:
        return asyncio.run(subjects(half_done.nats_url, queue))

    poll(
        lambda: messages() == [names.work_subject(queue, 5)],
        deadline_s=2 * REPAIRED_S,
        what="only the new message is left",
    )
    assert stats()["available"] == 1
    assert half_done.fetched(row)["priority"] == 5
    assert stats()["available"] == 0


def test_a_level_that_was_left_opening_is_opened_by_the_next_job(half_done: Scene) -> None:
    """Nobody enqueues into it before it was announced again."""
    queue, api = half_done.queues["opening"], half_done.api
    low, high = (api.enqueue(queue, priority=p)["id"] for p in (0, 7))
    assert [job["id"] for job in api.fetch(queue, count=2)] == [high, low]


async def subjects(url: str, queue: str) -> list[str]:
    """The subjects of a queue's work messages, once for each."""
    client = await nats.connect(url)
    try:
        info = await client.jetstream().stream_info(
            names.WORK_STREAM, subjects_filter=f"ojs.queue.{names.encode_token(queue)}.>"
        )
        return [subject for subject, count in (info.state.subjects or {}).items() for _ in range(count)]
    finally:
        await client.close()
