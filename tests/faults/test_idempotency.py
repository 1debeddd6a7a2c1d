"""Requests that come twice because the answer to the first was lost: by a kill, by a cut, by two nodes at once.

OJS_IDEMPOTENCY_KILLS sets how many kills the load has to survive; OJS_KILL_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.core.idempotency import ANSWER_BYTES, Answer, DerivedIds, enqueue_batch_once, enqueue_once
from ojs_fast.errors import QueueFull
from ojs_fast.node import Node
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from tests.support.api import unique_queue
from tests.support.load import RETRY, Broken, Http, connections
from tests.support.nodes import nodes
from tests.support.server import Server

KILLS = int(os.environ.get("OJS_IDEMPOTENCY_KILLS", "3"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
PRODUCERS = 6
REQUESTS_PER_KILL = 150
BATCH = 7

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + 10 * KILLS)]

Body = dict[str, Any]


def single(queue: str) -> bytes:
    """The body of an enqueue."""
    return orjson.dumps({"type": "a.b", "args": [], "options": {"queue": queue}})


def batch(queue: str, count: int) -> bytes:
    """The body of a batch."""
    job = {"type": "a.b", "args": [], "options": {"queue": queue}}
    return orjson.dumps({"jobs": [job] * count})


def long_unique(queue: str) -> bytes:
    """The body of a batch with unique jobs whose answer is too long for an entry."""
    jobs: list[Body] = [
        {"type": mode, "args": [], "options": {"queue": queue, "unique": {"keys": ["type"], "on_conflict": mode}}}
        for mode in ("replace", "ignore", "reject")
    ]
    jobs += [{"type": "a.b", "args": [os.urandom(ANSWER_BYTES).hex()], "options": {"queue": queue}}] * (BATCH - 3)
    return orjson.dumps({"jobs": jobs})


BODIES = {
    "jobs": single("q"),
    "batch": batch("q", BATCH),
    "bulk": batch("q", BATCH),
    "long-batch": long_unique("q"),
    "long-bulk": long_unique("q"),
}


async def entry_of_a_dead_node(node: Node, operation: str, key: str, body: bytes) -> None:
    """Leave what a node writes before it creates anything."""
    name = f"idempotency.{operation}.{hashlib.sha256(key.encode()).hexdigest()}"
    value = {"digest": hashlib.sha256(body).hexdigest(), "at_ms": time.time_ns() // 1_000_000 - 5000}
    await Bucket(node.connection, names.UNIQUE).put(name, value)


async def enqueued(node: Node, key: str, body: bytes, operation: str = "jobs") -> list[str]:
    """Enqueue under a key; the ids of the answer."""

    async def act(ids: DerivedIds) -> Answer:
        if operation.endswith("batch"):
            stored = await enqueue_batch_once(node.jobs, body, None, ids)
        elif operation.endswith("bulk"):
            outcome = await node.bulk.enqueue([orjson.dumps(one) for one in orjson.loads(body)["jobs"]], None, ids)
            assert outcome.failed == 0
            assert {item.status for item in outcome.items} == {"done"}
            stored = [item.stored for item in outcome.items]
        else:
            stored = [(await enqueue_once(node.jobs, body, None, ids))[1]]
        return Answer(201, b"[%s]" % b",".join(_core.public_job(one) for one in stored))

    answer = await node.idempotent.run(operation, key, body, act)
    return [job["id"] for job in orjson.loads(answer.body)]


async def fetched(node: Node, queue: str) -> list[str]:
    """The ids of all waiting jobs."""
    return [orjson.loads(one)["id"] for one in await node.fetcher.fetch([queue], 1000, "w", 0, lambda: False)]


@pytest.mark.parametrize("died", ["before-the-jobs", "behind-the-jobs", "behind-the-pieces"])
@pytest.mark.parametrize("operation", BODIES)
async def test_death_between_entry_and_answer(operation: str, died: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next node finds the entry: it creates the jobs, or finds them; either way they are there once."""
    async with nodes(2) as [dead, living]:
        body = BODIES[operation]
        await entry_of_a_dead_node(living, operation, "k", body)
        if died != "before-the-jobs":

            async def dies(*_: Any) -> None:
                raise asyncio.CancelledError

            monkeypatch.setattr(dead.idempotent, "_body" if died == "behind-the-jobs" else "_keep", dies)
            with pytest.raises(asyncio.CancelledError):
                await enqueued(dead, "k", body, operation)
            monkeypatch.undo()
        first = await enqueued(living, "k", body, operation)
        assert await enqueued(dead, "k", body, operation) == first
        assert sorted(await fetched(living, "q")) == sorted(first)
        assert len(set(first)) == (1 if operation == "jobs" else BATCH)


@pytest.mark.parametrize("operation", ["batch", "bulk"])
async def test_jobs_that_are_gone_when_a_dead_node_s_request_comes_again(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job gave way to another (`ignore`), one was deleted, one ended: all are told, none is made again."""
    async with nodes(2) as [dead, living]:
        ignoring = {"type": "i", "args": [], "options": {"queue": "q", "unique": {"on_conflict": "ignore"}}}
        plain = {"type": "a.b", "args": [], "options": {"queue": "q"}}
        holder, _, _ = await living.jobs.enqueue(orjson.dumps(ignoring))
        body = orjson.dumps({"jobs": [ignoring, plain, plain, plain]})
        told: list[list[str]] = []

        async def keep(_name: str, answer: bytes) -> dict[str, Any]:
            told.append([job["id"] for job in orjson.loads(answer)])
            raise asyncio.CancelledError

        async def enqueue(node: Node) -> list[str]:
            if operation == "batch":
                return await enqueued(node, "k", body, operation)

            async def act(ids: DerivedIds) -> Answer:
                outcome = await node.bulk.enqueue([orjson.dumps(one) for one in orjson.loads(body)["jobs"]], None, ids)
                assert [item.status for item in outcome.items] == ["duplicate", "done", "done", "done"]
                return Answer(201, b"[%s]" % b",".join(_core.public_job(item.stored) for item in outcome.items))

            return [job["id"] for job in orjson.loads((await node.idempotent.run(operation, "k", body, act)).body)]

        monkeypatch.setattr(dead.idempotent, "_body", keep)
        with pytest.raises(asyncio.CancelledError):
            await enqueue(dead)
        [first] = told
        assert first[0] == holder
        await living.jobs.cancel(first[1])
        record, _, revision = await living.jobs.load(first[1])
        await living.jobs.remove(record, revision)
        await living.jobs.cancel(first[2])
        assert await enqueue(living) == first
        assert sorted(await fetched(living, "q")) == sorted([holder, first[3]])


async def test_many_at_once_on_two_nodes_create_one_set() -> None:
    """The same request 40 times at the same moment: one set of jobs, and everybody is told of it."""
    async with nodes(2) as pair:
        for operation, body in (("jobs", single("q")), ("batch", batch("r", BATCH))):
            answers = await asyncio.gather(*(enqueued(pair[n % 2], "k", body, operation) for n in range(40)))
            assert all(answer == answers[0] for answer in answers)
        assert len(await fetched(pair[0], "q")) == 1
        assert len(await fetched(pair[0], "r")) == BATCH


async def test_a_refused_rival_does_not_free_the_key() -> None:
    """Two at once under one key, the second is refused: the first one's entry stays, so a third creates nothing."""
    async with nodes(1) as [node]:
        started, go_on = asyncio.Event(), asyncio.Event()

        async def slow(ids: DerivedIds) -> Answer:
            started.set()
            await go_on.wait()
            return Answer(201, (await enqueue_once(node.jobs, single("q"), None, ids))[0].encode())

        async def refused(_: DerivedIds) -> Answer:
            raise QueueFull("full", details={})

        first = asyncio.create_task(node.idempotent.run("jobs", "k", single("q"), slow))
        await started.wait()
        with pytest.raises(QueueFull):
            await node.idempotent.run("jobs", "k", single("q"), refused)
        go_on.set()
        made = await first
        again = await node.idempotent.run("jobs", "k", single("q"), refused)
        assert (again.body, again.is_replay) == (made.body, True)
        assert await fetched(node, "q") == [made.body.decode()]


async def test_a_refused_rival_does_not_make_other_jobs() -> None:
    """Two at once under one key, the first is refused: what the second creates is found by a third."""
    async with nodes(1) as [node]:
        started, go_on = asyncio.Event(), asyncio.Event()

        async def refused(_: DerivedIds) -> Answer:
            started.set()
            await go_on.wait()
            raise QueueFull("full", details={})

        first = asyncio.create_task(node.idempotent.run("jobs", "k", single("q"), refused))
        await started.wait()

        async def luckier(ids: DerivedIds) -> Answer:
            made = (await enqueue_once(node.jobs, single("q"), None, ids))[0]
            go_on.set()
            with pytest.raises(QueueFull):
                await first
            return Answer(201, made.encode())

        made = await node.idempotent.run("jobs", "k", single("q"), luckier)
        again = await node.idempotent.run("jobs", "k", single("q"), refused)
        assert (again.body, again.is_replay) == (made.body, True)
        assert await fetched(node, "q") == [made.body.decode()]


# -- under load, with kills ----------------------------------------------------------------------


class Client:
    """A producer that repeats each request under its key until it is answered."""

    def __init__(self, http: Http, queue: str) -> None:
        self._http = http
        self._queue = queue
        self.answered: dict[str, list[str]] = {}

    async def send(self, tag: str, until: float) -> None:
        """One request, a single job or a batch; its jobs carry the tag."""
        job = {"type": "a.b", "args": [tag], "options": {"queue": self._queue, "retry": RETRY}}
        path, body = ("/jobs", job) if hash(tag) % 2 else ("/jobs/batch", {"jobs": [job] * BATCH})
        while time.monotonic() < until:
            try:
                status, answer = await self._http.call("POST", path, body, {"Idempotency-Key": tag})
            except Broken:
                await asyncio.sleep(0.02)
                continue
            if status == 503:
                continue
            assert status == 201, answer
            self.answered[tag] = [one["id"] for one in answer.get("jobs") or [answer["job"]]]
            return
        raise AssertionError(f"{tag} was not answered")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "nats"])
async def test_retries_create_nothing_twice_whoever_is_killed(fresh_server: Callable[..., Server], victim: str) -> None:
    """SIGKILL under load: each request that was repeated until its answer came has its jobs once."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance, queue = random.Random(SEED), unique_queue()
    server = await asyncio.to_thread(fresh_server)
    until = time.monotonic() + 60 + 10 * KILLS

    def kill() -> None:
        if victim == "nats":
            server.kill_nats()
            return
        server.kill()
        server.start()

    async with contextlib.AsyncExitStack() as stack:
        https = [
            (await stack.enter_async_context(connections(server.url, 1, timeout_s=20)))[0] for _ in range(PRODUCERS)
        ]
        clients = [Client(http, queue) for http in https]

        async def produce(number: int) -> None:
            for turn in range(REQUESTS_PER_KILL * KILLS // PRODUCERS):
                await clients[number].send(f"{number}-{turn}", until)

        producers = [asyncio.create_task(produce(number)) for number in range(PRODUCERS)]
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.1, 0.4))
            await asyncio.to_thread(kill)
        await asyncio.gather(*producers)
        await asyncio.to_thread(server.await_ready)
        await https[0].close()  # the last kill may have come when this connection was idle
        wanted = {job_id for client in clients for ids in client.answered.values() for job_id in ids}
        seen: Counter[str] = Counter()
        quiet_from = time.monotonic()
        while time.monotonic() - quiet_from < 8:
            jobs = await https[0].fetch(queue, 100, visibility_timeout_ms=600_000)
            seen.update(job["id"] for job in jobs)
            quiet_from = time.monotonic() if jobs else quiet_from
            await asyncio.sleep(0 if jobs else 0.05)
        assert set(seen) == wanted
        assert set(seen.values()) == {1}
