"""Every operation, killed before each of its writes to NATS and behind the last one: another node sets it right.

Each scenario prepares, acts on a server that dies (the first `yield` arms it, the second waits for its death), and says
what must hold afterwards. Which writes there are is counted, not listed, so whatever an operation writes is covered.

OJS_DEATHS sets how many of a scenario's writes are tried (0 = all); OJS_KILL_SEED repeats a choice.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.support.api import Api, Body, job_request, unique_queue
from tests.support.doomed import Doomed
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

T = TypeVar("T")

DEATHS = int(os.environ.get("OJS_DEATHS", "1"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
AT_ONCE = 4
# What follows an answer is written by then: index entries, acknowledgements, counts.
WRITTEN_S = 1.2
DIES_S = 5.0
# A lease counts as dead after 4 s, the leader looks once a second, a reservation lasts 1.5 s.
REPAIRED_S = 30.0
RESERVATION_MS = 1500
RETRY = {"max_attempts": 50, "initial_interval_ms": 100, "max_interval_ms": 200}
LIVE = ("available", "active", "scheduled", "retryable", "pending")
ENDED = ("completed", "discarded", "cancelled")
COUNTED = ("available", "active", "scheduled", "retryable", *ENDED)


class Stage:
    """One death: a queue of its own, a server that dies and one that survives."""

    def __init__(self, doomed: Api, survivor: Api) -> None:
        self.doomed = doomed
        self.survivor = survivor
        self.queue = unique_queue("write")
        self.acknowledged: set[str] = set()
        #: what was told and what is true, by state
        self.seen: dict[str, tuple[int, int]] = {}

    def attempt(self, act: Callable[[], T]) -> T | None:
        """Ask the server that dies; None when no answer came."""
        try:
            return act()
        except httpx.TransportError:
            return None

    def job(self, **fields: Any) -> Body:
        """A request for a job in this queue that outlives many deaths."""
        return job_request(self.queue, **({"retry": RETRY} | fields))

    def put(self, api: Api | None = None, **fields: Any) -> str:
        """Enqueue one by the survivor, unless told otherwise; its id."""
        made = (api or self.survivor).call("POST", "/jobs", self.job(**fields))["job"]["id"]
        self.acknowledged.add(made)
        return str(made)

    def take(self, count: int = 1, api: Api | None = None) -> list[str]:
        """Fetch by the server that dies, unless told otherwise; the ids."""
        jobs = (api or self.doomed).fetch(self.queue, count=count, visibility_timeout_ms=RESERVATION_MS)
        return [job["id"] for job in jobs]

    def jobs(self) -> dict[str, Body]:
        """Every job of the queue by its id."""
        listed = self.survivor.call("GET", "/admin/jobs", params={"queue": self.queue, "limit": 200})
        return {job["id"]: job for job in listed["items"]}

    def states(self) -> Counter[str]:
        """How many jobs are in each state."""
        return Counter(job["state"] for job in self.jobs().values())

    def drain(self) -> None:
        """Work until every job has ended; then nothing is left over and the statistics are right."""
        done: set[str] = set()

        def is_over() -> bool:
            for id_ in self.take(100, self.survivor):
                assert id_ not in done, f"{id_} is completed and comes again"
                self.survivor.ack(id_)
                done.add(id_)
            jobs = self.jobs()
            return all(job["state"] in ENDED for job in jobs.values()) and jobs.keys() >= self.acknowledged

        def agree() -> bool:
            answer = self.survivor.request("GET", f"/queues/{self.queue}/stats")
            if answer.status_code == 404:  # it has never had a job
                return not self.jobs()
            told = answer.json()["stats"]
            states = self.states()
            self.seen = {state: (told[state], states[state]) for state in COUNTED}
            return all(one == other for one, other in self.seen.values())

        poll(is_over, deadline_s=REPAIRED_S, pause_s=0.1, what="every job ends")
        poll(agree, deadline_s=REPAIRED_S, pause_s=0.1, what="the statistics agree with the jobs")
        assert self.take(100, self.survivor) == []


Scenario = Callable[[Stage], Iterator[None]]


# -- producers -------------------------------------------------------------------------------------


def enqueue(stage: Stage) -> Iterator[None]:
    """What was answered exists and runs; what was not may."""
    yield
    stage.attempt(lambda: stage.put(stage.doomed))
    yield
    stage.drain()
    assert stage.states()["completed"] == len(stage.jobs()) <= 1


def enqueue_scheduled(stage: Stage) -> Iterator[None]:
    """It runs in time, wherever its index entry is."""
    yield
    stage.attempt(lambda: stage.put(stage.doomed, delay_until="+PT2S"))
    yield
    stage.drain()
    assert stage.states()["completed"] == len(stage.jobs()) <= 1


def enqueue_expiring(stage: Stage) -> Iterator[None]:
    """It is discarded in time, although nobody looks at it."""
    yield
    stage.attempt(lambda: stage.put(stage.doomed, expires_at="+PT1.5S"))
    yield
    poll(lambda: stage.states().keys() <= {"discarded"}, deadline_s=REPAIRED_S, pause_s=0.2, what="it expires")
    stage.drain()


def enqueue_at_a_new_priority(stage: Stage) -> Iterator[None]:
    """A level is opened before its first job, so the job is found."""
    stage.put()
    yield
    stage.attempt(lambda: stage.put(stage.doomed, priority=7))
    yield
    stage.put(priority=7)
    stage.drain()


def batch(stage: Stage) -> Iterator[None]:
    """All or none."""
    yield
    jobs = [stage.job() for _ in range(5)]
    made = stage.attempt(lambda: stage.doomed.enqueue_batch(jobs))
    yield
    stage.drain()
    assert stage.states()["completed"] == len(stage.jobs()) in ({5} if made else {0, 5})


def bulk(stage: Stage) -> Iterator[None]:
    """Each for itself, and the same request under its key once more creates nothing twice."""
    body = {"jobs": [stage.job() for _ in range(3)]}
    again = {"Idempotency-Key": stage.queue}
    yield
    stage.attempt(lambda: stage.doomed.call("POST", "/jobs/bulk", body, headers=again))
    yield
    stage.survivor.call("POST", "/jobs/bulk", body, headers=again)
    stage.drain()
    assert stage.states() == {"completed": 3}


def idempotent(stage: Stage) -> Iterator[None]:
    """The client's repeat finds the job or makes it."""
    body = stage.job()
    again = {"Idempotency-Key": stage.queue}
    yield
    made = stage.attempt(lambda: stage.doomed.call("POST", "/jobs", body, headers=again))
    yield
    told = stage.survivor.call("POST", "/jobs", body, headers=again)["job"]["id"]
    assert made is None or made["job"]["id"] == told
    stage.drain()
    assert set(stage.jobs()) == {told}


def idempotent_batch(stage: Stage) -> Iterator[None]:
    """The same for a batch whose answer is too long for its entry."""
    body = {"jobs": [stage.job(args=["x" * 30_000]) for _ in range(4)]}
    again = {"Idempotency-Key": stage.queue}
    yield
    stage.attempt(lambda: stage.doomed.call("POST", "/jobs/batch", body, headers=again))
    yield
    told = stage.survivor.call("POST", "/jobs/batch", body, headers=again)["jobs"]
    stage.drain()
    assert set(stage.jobs()) == {job["id"] for job in told}


UNIQUE = {"keys": ["queue", "args"]}


def unique(stage: Stage) -> Iterator[None]:
    """Exactly one waits, and the next one may come when it has ended."""
    yield
    stage.attempt(lambda: stage.put(stage.doomed, unique=UNIQUE))
    yield
    assert stage.survivor.request("POST", "/jobs", stage.job(unique=UNIQUE)).status_code in {201, 409}
    assert stage.states() == {"available": 1}
    stage.drain()
    stage.put(unique=UNIQUE)
    stage.drain()
    assert stage.states() == {"completed": 2}


def unique_replace(stage: Stage) -> Iterator[None]:
    """Neither both nor none are left, at no time."""
    stage.put(unique=UNIQUE)
    yield
    stage.attempt(lambda: stage.put(stage.doomed, unique={**UNIQUE, "on_conflict": "replace"}))
    yield
    assert stage.states()["available"] == 1
    stage.put(unique={**UNIQUE, "on_conflict": "replace"})
    assert stage.states()["available"] == 1
    stage.drain()
    assert stage.states()["completed"] == 1


def unique_batch(stage: Stage) -> Iterator[None]:
    """All or none, and each of them once."""
    stage.put(args=["a"], unique=UNIQUE)
    policy = {**UNIQUE, "on_conflict": "replace"}
    jobs = [stage.job(args=[name], unique=policy) for name in "abc"]
    yield
    stage.attempt(lambda: stage.doomed.enqueue_batch(jobs))
    yield
    assert stage.states()["available"] in {1, 3}
    stage.survivor.enqueue_batch(jobs)
    stage.drain()
    assert stage.states()["completed"] == 3


# -- workers ---------------------------------------------------------------------------------------


def fetch(stage: Stage, **fields: Any) -> Iterator[None]:
    """What the dead node's worker may have got comes back when its time is over."""
    for _ in range(3):
        stage.put(**fields)
    yield
    stage.attempt(lambda: stage.take(3))
    yield
    stage.drain()
    assert stage.states() == {"completed": 3}


def fetch_limited(stage: Stage) -> Iterator[None]:
    """The permits come back as well: the jobs behind it run."""
    yield from fetch(stage, rate_limit={"key": stage.queue, "concurrency": 1})


def ack(stage: Stage) -> Iterator[None]:
    """Once it is answered the job never comes again; without an answer it may."""
    stage.put()
    [id_] = stage.take()
    yield
    done = stage.attempt(lambda: stage.doomed.ack(id_))
    yield
    assert done is None or stage.survivor.get(id_)["state"] == "completed"
    stage.drain()
    assert stage.states() == {"completed": 1}


def held(stage: Stage, act: Callable[[str], object], **fields: Any) -> Iterator[None]:
    """A worker of the server that dies has a job, and acts on it; the job is completed in the end, once."""
    stage.put(**fields)
    [id_] = stage.take()
    yield
    stage.attempt(lambda: act(id_))
    yield
    stage.drain()
    assert stage.states() == {"completed": 1}


def ack_unique(stage: Stage) -> Iterator[None]:
    """Its lock is given back."""
    yield from held(stage, stage.doomed.ack, unique=UNIQUE)
    stage.put(unique=UNIQUE)
    stage.drain()
    assert stage.states() == {"completed": 2}


def ack_limited(stage: Stage) -> Iterator[None]:
    """Its permit is given back."""
    for _ in range(2):
        stage.put(rate_limit={"key": stage.queue, "concurrency": 1})
    [id_] = stage.take(2)
    yield
    stage.attempt(lambda: stage.doomed.ack(id_))
    yield
    stage.drain()
    assert stage.states() == {"completed": 2}


def nack(stage: Stage) -> Iterator[None]:
    """The next attempt comes."""
    yield from held(stage, stage.doomed.nack)


def give_back(stage: Stage) -> Iterator[None]:
    """The job can be fetched at once or when its time is over."""
    yield from held(stage, lambda id_: stage.doomed.nack(id_, requeue=True))


def discard(stage: Stage) -> Iterator[None]:
    """Who is discarded is among the dead letters, and can be retried from there."""
    stage.put(retry={"max_attempts": 2, "initial_interval_ms": 100, "on_exhaustion": "dead_letter"})
    [id_] = stage.take()
    yield
    failed = stage.attempt(lambda: stage.doomed.nack(id_, retryable=False))
    yield
    assert failed is None or stage.survivor.get(id_)["state"] == "discarded"

    def is_listed_if_dead() -> bool:
        is_dead: bool = stage.survivor.get(id_)["state"] == "discarded"
        return is_dead == bool(stage.survivor.dead_letters(stage.queue))

    poll(is_listed_if_dead, deadline_s=REPAIRED_S, pause_s=0.1, what="it is listed, or not dead")
    if stage.survivor.get(id_)["state"] == "discarded":
        stage.drain()
        stage.survivor.call("POST", f"/dead-letter/{id_}/retry", {})
    stage.drain()


def heartbeat(stage: Stage) -> Iterator[None]:
    """An extended reservation ends all the same."""
    yield from held(stage, lambda id_: stage.doomed.heartbeat("w", [id_], visibility_timeout_ms=2000))


def checkpoint(stage: Stage) -> Iterator[None]:
    """A checkpoint that was answered is what the next attempt starts from; otherwise it is the one before, or that."""
    stage.put()
    [id_] = stage.take()
    stage.doomed.call("POST", f"/jobs/{id_}/checkpoint", {"state": 1})
    yield
    done = stage.attempt(lambda: stage.doomed.call("POST", f"/jobs/{id_}/checkpoint", {"state": 2}))
    yield
    found: list[Body] = []

    def comes_again() -> bool:
        found.extend(stage.survivor.fetch(stage.queue, visibility_timeout_ms=RESERVATION_MS))
        return bool(found)

    poll(comes_again, deadline_s=REPAIRED_S, pause_s=0.1, what="the job comes again")
    kept = found[0]["checkpoint"]
    assert (kept["sequence"], kept["state"]) in ([(2, 2)] if done else [(1, 1), (2, 2)])
    stage.survivor.ack(id_)
    stage.drain()
    assert "checkpoint" not in stage.survivor.get(id_)


def progress(stage: Stage) -> Iterator[None]:
    """A report changes nothing about the job."""
    yield from held(stage, lambda id_: stage.doomed.call("PUT", f"/jobs/{id_}/progress", {"progress": 0.5}))


def schema(stage: Stage) -> Iterator[None]:
    """What was answered is kept, and registering it once more is no conflict."""
    body = {"uri": stage.queue, "type": "a.b", "version": 1, "schema": {"type": "array"}}
    yield
    made = stage.attempt(lambda: stage.doomed.call("POST", "/schemas", body))
    yield
    assert made is None or stage.survivor.call("GET", f"/schemas/{stage.queue}")["schema"]["version"] == 1
    stage.survivor.call("POST", "/schemas", body)


# -- changes of waiting jobs -----------------------------------------------------------------------


def cancel(stage: Stage) -> Iterator[None]:
    """Cancelled or not, its work message does not count as a job."""
    id_ = stage.put()
    yield
    done = stage.attempt(lambda: stage.doomed.cancel(id_))
    yield
    assert done is None or stage.survivor.get(id_)["state"] == "cancelled"
    stage.drain()


def cancel_scheduled(stage: Stage) -> Iterator[None]:
    """The same for its index entry."""
    id_ = stage.put(delay_until="+PT8S")
    yield
    stage.attempt(lambda: stage.doomed.cancel(id_))
    yield
    stage.drain()


def cancel_active(stage: Stage) -> Iterator[None]:
    """The node that holds the job lets it go."""
    id_ = stage.put()
    assert stage.take(api=stage.survivor) == [id_]
    yield
    stage.attempt(lambda: stage.doomed.cancel(id_))
    yield
    stage.drain()


def activate(stage: Stage) -> Iterator[None]:
    """A pending job that was told to be available runs."""
    id_ = stage.put(pending=True)
    yield
    done = stage.attempt(lambda: stage.doomed.activate(id_))
    yield
    if done is None and stage.survivor.get(id_)["state"] == "pending":
        stage.survivor.activate(id_)
    stage.drain()
    assert stage.states() == {"completed": 1}


def change_of_priority(stage: Stage) -> Iterator[None]:
    """The job is delivered once, at either level."""
    id_ = stage.put(priority=1)
    stage.put(priority=9)
    yield
    stage.attempt(lambda: stage.doomed.call("PATCH", f"/jobs/{id_}", {"priority": 9}))
    yield
    stage.drain()
    assert stage.states() == {"completed": 2}


def dead_letter(stage: Stage) -> str:
    """A job that is one."""
    stage.put(retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})
    [id_] = stage.take(api=stage.survivor)
    stage.survivor.nack(id_)
    return id_


def retry_of_a_dead_letter(stage: Stage) -> Iterator[None]:
    """It runs, or is a dead letter still."""
    id_ = dead_letter(stage)
    yield
    done = stage.attempt(lambda: stage.doomed.call("POST", f"/dead-letter/{id_}/retry", {}))
    yield
    stage.drain()
    assert done is None or stage.states() == {"completed": 1}
    assert [one["id"] for one in stage.survivor.dead_letters(stage.queue)] == (
        [id_] if stage.states()["discarded"] else []
    )


def removal_of_a_dead_letter(stage: Stage) -> Iterator[None]:
    """Whoever is gone is listed no more."""
    id_ = dead_letter(stage)
    stage.acknowledged.clear()
    yield
    stage.attempt(lambda: stage.doomed.request("DELETE", f"/dead-letter/{id_}"))
    yield
    told = stage.survivor.call("GET", "/dead-letter", params={"queue": stage.queue})
    assert [one["id"] for one in told["jobs"]] == list(stage.jobs())
    assert told["pagination"]["total"] == len(stage.jobs())


def bulk_cancel(stage: Stage) -> Iterator[None]:
    """Each job is cancelled or runs."""
    ids = [stage.put() for _ in range(3)]
    yield
    stage.attempt(lambda: stage.doomed.call("POST", "/jobs/bulk/cancel", {"job_ids": ids}))
    yield
    stage.drain()
    assert stage.states().keys() <= {"cancelled", "completed"}


def purge(stage: Stage) -> Iterator[None]:
    """What is purged is gone or cancelled, the rest runs."""
    for _ in range(3):
        stage.put()
    stage.acknowledged.clear()
    yield
    stage.attempt(lambda: stage.doomed.call("POST", f"/queues/{stage.queue}/purge", {"confirm": True}))
    yield

    def is_over() -> bool:
        for id_ in stage.take(10, stage.survivor):
            stage.survivor.ack(id_)
        told = stage.survivor.call("GET", f"/queues/{stage.queue}/stats")["stats"]
        return not any(told[state] for state in ("available", "active"))

    poll(is_over, deadline_s=REPAIRED_S, pause_s=0.1, what="nothing is left")


# -- queues ----------------------------------------------------------------------------------------


def removal_of_a_queue(stage: Stage) -> Iterator[None]:
    """A job that comes later is found."""
    stage.survivor.cancel(stage.put())
    stage.acknowledged.clear()
    stage.drain()
    yield
    stage.attempt(lambda: stage.doomed.request("DELETE", f"/queues/{stage.queue}"))
    yield
    id_ = stage.put()
    poll(lambda: stage.take(1, stage.survivor) == [id_], deadline_s=REPAIRED_S, pause_s=0.1, what="the job is found")


def bounded(stage: Stage) -> Iterator[None]:
    """Room that was granted to a dead node comes back."""
    stage.survivor.call("PUT", f"/queues/{stage.queue}/config", {"max_size": 2})
    stage.put()
    yield
    stage.attempt(lambda: stage.put(stage.doomed))
    yield

    def has_room() -> bool:
        waiting = stage.states()["available"]
        assert waiting <= 2
        if waiting == 2:
            return True
        stage.survivor.request("POST", "/jobs", stage.job())
        return False

    poll(has_room, deadline_s=REPAIRED_S, pause_s=0.2, what="the bound is reached")
    stage.drain()


def concurrency(stage: Stage, before: int | None, after: int | None) -> Iterator[None]:
    """The configuration tells the limit that is in force; the same request again brings about what was asked for."""
    path = f"/queues/{stage.queue}/config"
    stage.doomed.call("PUT", path, {"concurrency": before})
    for _ in range(3):
        stage.put()
    yield
    answer = stage.attempt(lambda: stage.doomed.call("PUT", path, {"concurrency": after, "max_size": 9}))
    yield
    told = stage.survivor.call("GET", path)["config"].get("concurrency")
    assert told in ((before, after) if answer is None else (after,))
    assert len(stage.take(3, stage.survivor)) == (told or 3)
    again = stage.survivor.call("PUT", path, {"concurrency": after, "max_size": 9})["config"]
    assert (again.get("concurrency"), again["max_size"]) == (after, 9)
    stage.drain()


def concurrency_set(stage: Stage) -> Iterator[None]:
    """It holds, or none does."""
    yield from concurrency(stage, None, 1)


def concurrency_changed(stage: Stage) -> Iterator[None]:
    """The old or the new one holds."""
    yield from concurrency(stage, 2, 1)


def concurrency_removed(stage: Stage) -> Iterator[None]:
    """It holds, or none does."""
    yield from concurrency(stage, 1, None)


# -- workflows -------------------------------------------------------------------------------------


def step(stage: Stage, name: str) -> Body:
    """A member of a workflow."""
    return {"type": "wf.job", "args": [name], "options": {"queue": stage.queue, "retry": RETRY}}


def create_workflow(stage: Stage, api: Api, **request: object) -> Body:
    """Create one under the queue's name."""
    workflow: Body = api.call("POST", "/workflows", {"name": stage.queue, **request})["workflow"]
    return workflow


def created(stage: Stage) -> list[str]:
    """The ids of the workflows of this queue, whether or not somebody was told."""
    listed = stage.survivor.call("GET", "/workflows", params={"limit": 100})["workflows"]
    return [workflow["id"] for workflow in listed if workflow["name"] == stage.queue]


def end_of(stage: Stage, workflow_id: str) -> str:
    """Work until a workflow has ended; its state."""

    def state() -> str:
        for id_ in stage.take(10, stage.survivor):
            stage.survivor.ack(id_)
        told = str(stage.survivor.call("GET", f"/workflows/{workflow_id}")["workflow"]["state"])
        return told if told != "running" else ""

    return poll(state, deadline_s=REPAIRED_S, pause_s=0.05, what="the workflow ends")


def chain(stage: Stage) -> Iterator[None]:
    """A chain that was answered runs to its end."""
    yield
    steps = [step(stage, name) for name in "abc"]
    made = stage.attempt(lambda: create_workflow(stage, stage.doomed, type="chain", steps=steps))
    yield
    assert made is None or created(stage) == [made["id"]]
    for id_ in created(stage):
        assert end_of(stage, id_) == "completed"
    stage.drain()
    assert len(stage.jobs()) == 3 * len(created(stage))


def workflow_with_all(stage: Stage) -> Iterator[None]:
    """So does a batch with callbacks and a chain inside."""
    inner = {"type": "chain", "steps": [step(stage, "c0"), step(stage, "c1")]}
    yield
    made = stage.attempt(
        lambda: create_workflow(
            stage,
            stage.doomed,
            type="batch",
            jobs=[step(stage, "a"), inner],
            callbacks={"on_success": step(stage, "cb")},
        )
    )
    yield
    assert made is None or created(stage) == [made["id"]]
    for id_ in created(stage):
        assert end_of(stage, id_) == "completed"
    stage.drain()
    assert len(stage.jobs()) == 4 * len(created(stage))


def next_step(stage: Stage) -> Iterator[None]:
    """The next step comes, and comes once."""
    made = create_workflow(stage, stage.survivor, type="chain", steps=[step(stage, name) for name in "ab"])
    [id_] = stage.take()
    yield
    stage.attempt(lambda: stage.doomed.ack(id_))
    yield
    assert end_of(stage, made["id"]) == "completed"
    stage.drain()
    assert stage.states() == {"completed": 2}


def last_of_a_batch(stage: Stage) -> Iterator[None]:
    """The callback comes, and comes once; then the workflow ends."""
    made = create_workflow(
        stage, stage.survivor, type="batch", jobs=[step(stage, "a")], callbacks={"on_complete": step(stage, "cb")}
    )
    [id_] = stage.take()
    yield
    stage.attempt(lambda: stage.doomed.ack(id_))
    yield
    assert end_of(stage, made["id"]) == "completed"
    stage.drain()
    assert stage.states() == {"completed": 2}


def last_of_a_nested_one(stage: Stage) -> Iterator[None]:
    """The outer workflow hears of it."""
    inner = {"type": "group", "jobs": [step(stage, "a")]}
    made = create_workflow(stage, stage.survivor, type="chain", steps=[inner, step(stage, "b")])
    [id_] = stage.take()
    yield
    stage.attempt(lambda: stage.doomed.ack(id_))
    yield
    assert end_of(stage, made["id"]) == "completed"
    stage.drain()
    assert stage.states() == {"completed": 2}


def cancel_of_a_workflow(stage: Stage) -> Iterator[None]:
    """Either it runs to its end, or nothing of it waits any more."""
    made = create_workflow(stage, stage.survivor, type="group", jobs=[step(stage, name) for name in "ab"])
    yield
    done = stage.attempt(lambda: stage.doomed.call("DELETE", f"/workflows/{made['id']}"))
    yield
    state = end_of(stage, made["id"])
    assert state in ({"cancelled"} if done else {"completed", "cancelled"})
    stage.drain()


def retry_of_a_workflow(stage: Stage) -> Iterator[None]:
    """What failed runs again, or the workflow stays failed until somebody asks again."""
    made = create_workflow(stage, stage.survivor, type="chain", steps=[step(stage, name) for name in "ab"])
    [id_] = stage.take(api=stage.survivor)
    stage.survivor.nack(id_, retryable=False)
    poll(lambda: stage.survivor.call("GET", f"/workflows/{made['id']}")["workflow"]["state"] == "failed")
    path = f"/workflows/{made['id']}/retry"
    yield
    stage.attempt(lambda: stage.doomed.call("POST", path, {}))
    yield
    if end_of(stage, made["id"]) == "failed":
        stage.survivor.call("POST", path, {})
    assert end_of(stage, made["id"]) == "completed"
    stage.drain()


# -- what only the leader does ---------------------------------------------------------------------


def promotion(stage: Stage) -> Iterator[None]:
    """A scheduled job whose time has come runs once."""
    for _ in range(2):
        stage.put(stage.doomed, delay_until="+PT1.5S")
    yield
    yield
    stage.drain()
    assert stage.states() == {"completed": 2}


def promotion_of_a_retry(stage: Stage) -> Iterator[None]:
    """So does the next attempt of one that failed."""
    stage.put(retry={**RETRY, "initial_interval_ms": 1500, "max_interval_ms": 1500})
    [id_] = stage.take()
    stage.doomed.nack(id_)
    yield
    yield
    stage.drain()
    assert stage.states() == {"completed": 1}


def expiry(stage: Stage) -> Iterator[None]:
    """A job is discarded in time."""
    stage.put(stage.doomed, expires_at="+PT1.5S")
    yield
    yield
    poll(lambda: stage.states() == {"discarded": 1}, deadline_s=REPAIRED_S, pause_s=0.2, what="it expires")
    stage.drain()


def occurrence(stage: Stage) -> Iterator[None]:
    """A cron job fires once for each occurrence that was counted."""
    body = {
        "name": stage.queue,
        "expression": "@every 3s",
        "overlap_policy": "allow",
        "job_template": {"type": "cron.job", "args": [], "options": {"queue": stage.queue, "retry": RETRY}},
    }
    stage.doomed.call("POST", "/cron", body)
    yield
    yield
    poll(lambda: len(stage.jobs()) >= 3, deadline_s=REPAIRED_S, pause_s=0.1, what="it fires")
    stage.survivor.request("DELETE", f"/cron/{stage.queue}")
    stage.drain()


def end_of_a_reservation(stage: Stage) -> Iterator[None]:
    """Whoever holds the claim dies while it takes the job back."""
    stage.put()
    stage.take()
    yield
    yield
    stage.drain()
    assert stage.states() == {"completed": 1}


OF_ANY_NODE: list[Scenario] = [
    enqueue, enqueue_scheduled, enqueue_expiring, enqueue_at_a_new_priority, batch, bulk, idempotent, idempotent_batch,
    unique, unique_replace, unique_batch,
    fetch, fetch_limited, ack, ack_unique, ack_limited, nack, give_back, discard, heartbeat, end_of_a_reservation,
    checkpoint, progress, schema,
    cancel, cancel_scheduled, cancel_active, activate, change_of_priority, retry_of_a_dead_letter,
    removal_of_a_dead_letter, bulk_cancel, purge, removal_of_a_queue, bounded,
    concurrency_set, concurrency_changed, concurrency_removed,
    chain, workflow_with_all, next_step, last_of_a_batch, last_of_a_nested_one, cancel_of_a_workflow,
    retry_of_a_workflow,
]  # fmt: skip
# Batches are written ahead here (`interval`) or in groups (`always`).
ON_DISK: list[Scenario] = [enqueue, batch, unique_replace, ack]
OF_THE_LEADER: list[Scenario] = [promotion, promotion_of_a_retry, expiry, occurrence]


# -- playing them ----------------------------------------------------------------------------------

#: These act by themselves when their time comes.
TIMED: list[Scenario] = [*OF_THE_LEADER, end_of_a_reservation]


def each_death(name: str, one: Callable[[int | None], list[str]]) -> None:
    """`one(writes)` lets a server die after so many writes, None = behind the last; it tells what was written."""
    written = one(None)
    assert written, f"{name} writes nothing"
    sys.stdout.write(f"{name}: {written}\nOJS_KILL_SEED={SEED}\n")
    numbers = range(len(written))
    chosen = sorted(random.Random(SEED).sample(numbers, min(DEATHS or len(written), len(written))))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        plays = {number: pool.submit(one, number) for number in chosen}
    failures = [
        f"before write {number} ({written[number]}): {failure!r} {getattr(failure, '__notes__', '')}"
        for number, play in plays.items()
        if (failure := play.exception()) is not None
    ]
    assert not failures, "\n".join([f"{name}, which writes {written}", *failures])


class Play:
    """One scenario, again and again: behind its last write first, then before each of them (or of some)."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._is_timed = scenario in TIMED

    def all(self, one: Callable[[int | None], list[str]]) -> None:
        """See `each_death`."""
        each_death(self._scenario.__name__, one)

    def until_death(self, doomed: Doomed, acts: Iterator[None], writes: int | None) -> list[str]:
        """Prepare, act, and die; what was written (only if `writes` is None)."""
        next(acts)
        if writes is not None:
            doomed.arm(writes)
            next(acts)
            doomed.await_death(DIES_S)
            return []
        doomed.arm()
        next(acts)
        time.sleep(DIES_S if self._is_timed else WRITTEN_S)
        written = doomed.written()
        doomed.kill()
        return written

    def check(self, stage: Stage, acts: Iterator[None], writes: int | None) -> None:
        """What the scenario says at its end."""
        try:
            next(acts, None)
        except AssertionError as failure:
            states = {id_: job["state"] for id_, job in stage.jobs().items()}
            failure.add_note(
                f"{self._scenario.__name__} died after {writes} writes; acknowledged {sorted(stage.acknowledged)}, "
                f"now {states}, statistics {stage.seen}"
            )
            raise

    def on_nats(self, nats_url: str, survivor: Callable[[ExitStack], Api], writes: int | None) -> list[str]:
        """Let a node die beside others."""
        with ExitStack() as stack:
            doomed = stack.enter_context(Doomed(nats_url=nats_url))
            stage = Stage(stack.enter_context(Api(doomed.url)), survivor(stack))
            acts = self._scenario(stage)
            written = self.until_death(doomed, acts, writes)
            self.check(stage, acts, writes)
            return written

    def on_disk(self, data_dir: Path, durability: str, writes: int | None) -> list[str]:
        """Let a server die together with its embedded NATS, and start it again on the same data."""
        env = {"OJS_DURABILITY": durability}
        with ExitStack() as stack:
            doomed = stack.enter_context(Doomed(data_dir, env=env))
            api = stack.enter_context(Api(doomed.url))
            stage = Stage(api, api)
            acts = self._scenario(stage)
            written = self.until_death(doomed, acts, writes)
            stage.survivor = stack.enter_context(Api(stack.enter_context(Server(data_dir, env=env)).url))
            self.check(stage, acts, writes)
            return written


@pytest.fixture(scope="module")
def shared_nats() -> Iterator[Nats]:
    """Give the NATS that servers die on."""
    with Nats() as running:
        yield running


@pytest.fixture(scope="module")
def survivor(shared_nats: Nats) -> Iterator[Server]:
    """Give the server that survives, and leads."""
    with Server(nats_url=shared_nats.url) as running:
        yield running


@pytest.mark.parametrize("scenario", OF_ANY_NODE, ids=lambda one: one.__name__)
def test_a_node_may_die_before_each_write(scenario: Scenario, shared_nats: Nats, survivor: Server) -> None:
    """Another node, which leads, sets right what is left."""
    play = Play(scenario)
    play.all(lambda writes: play.on_nats(shared_nats.url, lambda stack: stack.enter_context(Api(survivor.url)), writes))


@pytest.mark.parametrize("scenario", OF_THE_LEADER, ids=lambda one: one.__name__)
def test_the_leader_may_die_before_each_write(scenario: Scenario) -> None:
    """The next leader goes on."""
    play = Play(scenario)

    def one(writes: int | None) -> list[str]:
        def follower(stack: ExitStack) -> Api:
            return stack.enter_context(Api(stack.enter_context(Server(nats_url=nats.url)).url))

        with Nats() as nats:
            return play.on_nats(nats.url, follower, writes)

    play.all(one)


@pytest.mark.parametrize("durability", ["interval", "always"])
@pytest.mark.parametrize("scenario", ON_DISK, ids=lambda one: one.__name__)
def test_everything_may_die_before_each_write(scenario: Scenario, durability: str, tmp_path: Path) -> None:
    """The server that is started again on the same data sets right what is left."""
    play = Play(scenario)
    play.all(lambda writes: play.on_disk(tmp_path / str(writes), durability, writes))
