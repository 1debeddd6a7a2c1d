"""Producers, workers and operators at random, and the ledger of what they were promised."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.load import Broken, Http

Body = dict[str, Any]
Act = Callable[[], Awaitable[None]]

TIMEOUT_S = 10.0
RETRY = {"max_attempts": 1000, "initial_interval_ms": 200, "max_interval_ms": 1000}
# The states that end a job.
ENDED = ("completed", "discarded", "cancelled")
UNIQUE_ARGUMENTS = 5
LIMIT_KEYS = 3


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Ledger:
    """What the servers answered."""

    enqueued: set[str] = field(default_factory=set)
    #: when the answer to an acknowledgement came, by job
    completed: dict[str, float] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    workflows: set[str] = field(default_factory=set)
    #: who got which attempt of which job
    attempts: dict[tuple[str, int], str] = field(default_factory=dict)
    #: jobs whose attempts count from one again, or may
    revived: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def break_(self, what: str) -> None:
        """Note a broken promise and stop whoever noticed it."""
        self.violations.append(what)
        raise Violation(what)

    def delivered(self, job: Body, worker: str, asked: float) -> None:
        """A fetch that was sent at `asked` handed this job over."""
        id_, attempt = job["id"], job["attempt"]
        if self.completed.get(id_, asked) < asked:
            self.break_(f"{id_} was acknowledged and comes again, attempt {attempt}")
        if id_ in self.revived:
            return
        other = self.attempts.setdefault((id_, attempt), worker)
        if other != worker:
            self.break_(f"attempt {attempt} of {id_} was given to {other} and to {worker}")

    def acknowledged(self, id_: str) -> None:
        """An acknowledgement was answered by success."""
        if id_ in self.completed:
            self.break_(f"{id_} was acknowledged twice")
        self.completed[id_] = time.monotonic()


class Client:
    """Calls one of the nodes, another one after each failure."""

    def __init__(self, urls: list[str], ledger: Ledger, queues: list[str], chance: random.Random) -> None:
        self._https = [Http(url, TIMEOUT_S) for url in urls]
        self._http = chance.choice(self._https)
        self.ledger = ledger
        self.queues = queues
        self.chance = chance

    async def close(self) -> None:
        """Close the connections."""
        for http in self._https:
            await http.close()

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Body]:
        """`(status, body)`. Raises Broken when nobody can tell what became of it."""
        try:
            status, answer = await self._http.call(method, path, body, headers)
        except Broken:
            self.ledger.answers["none"] += 1
            self._http = self.chance.choice(self._https)
            raise
        self.ledger.answers[str(status)] += 1
        if status >= 500:
            self._http = self.chance.choice(self._https)
            if status != 503:
                self.ledger.break_(f"{method} {path} answered {status} {answer}")
            raise Broken(f"503 {answer}")
        return status, answer

    async def until(
        self, stopped: Callable[[], bool], acts: list[Callable[[], Awaitable[None]]], pause_s: float
    ) -> None:
        """Do one of these after the other."""
        while not stopped():
            try:
                await self.chance.choice(acts)()
            except Broken:
                await asyncio.sleep(0.1)
            await asyncio.sleep(self.chance.uniform(0, 2 * pause_s))


class Producer(Client):
    """Makes jobs of every kind."""

    def job(self, **options: Any) -> Body:
        """A request."""
        queue = self.chance.choice(self.queues)
        return {"type": "chaos.job", "args": [1], "options": {"queue": queue, "retry": RETRY, **options}}

    async def _enqueue(self, body: Body, headers: dict[str, str] | None = None) -> str:
        status, answer = await self.call("POST", "/jobs", body, headers)
        if status not in (200, 201, 409):
            self.ledger.break_(f"POST /jobs answered {status} {answer} to {body}")
        if status == 409:
            return ""
        self.ledger.enqueued.add(answer["job"]["id"])
        return str(answer["job"]["id"])

    async def plain(self) -> None:
        """One job."""
        await self._enqueue(self.job(priority=self.chance.choice([0, 0, 0, 5, -5])))

    async def batch(self) -> None:
        """Some at once."""
        status, answer = await self.call("POST", "/jobs/batch", {"jobs": [self.job() for _ in range(5)]})
        if status != 201:
            self.ledger.break_(f"POST /jobs/batch answered {status} {answer}")
        self.ledger.enqueued.update(job["id"] for job in answer["jobs"])

    async def scheduled(self) -> None:
        """One for later."""
        await self._enqueue(self.job(delay_until=f"+PT{self.chance.randint(1, 5)}S"))

    async def expiring(self) -> None:
        """One that may not get its turn."""
        await self._enqueue(self.job(expires_at=f"+PT{self.chance.randint(1, 6)}S"))

    async def limited(self) -> None:
        """One of many that may not run at once."""
        key = f"chaos-{self.chance.randrange(LIMIT_KEYS)}"
        await self._enqueue(self.job(rate_limit={"key": key, "concurrency": 2}))

    async def unique(self) -> None:
        """One of which there may be one."""
        policy = {"keys": ["type", "args"], "on_conflict": self.chance.choice(["reject", "ignore", "replace"])}
        body = self.job(unique=policy)
        body |= {"type": "chaos.unique", "args": [self.chance.randrange(UNIQUE_ARGUMENTS)]}
        await self._enqueue(body)

    async def doomed(self) -> None:
        """One that fails for good."""
        body = self.job(retry={"max_attempts": 2, "initial_interval_ms": 200, "on_exhaustion": "dead_letter"})
        await self._enqueue({**body, "type": "chaos.doomed"})

    async def insistent(self) -> None:
        """One under a key, asked for until somebody answers."""
        body, key = self.job(), f"{self.chance.getrandbits(64):x}"
        ids = set()
        for _ in range(self.chance.choice([1, 1, 2])):
            while True:
                try:
                    ids.add(await self._enqueue(body, {"Idempotency-Key": key}))
                    break
                except Broken:
                    await asyncio.sleep(0.2)
        if len(ids) != 1 or ids == {""}:
            self.ledger.break_(f"one Idempotency-Key made {ids}")

    async def workflow(self) -> None:
        """A chain, a group, or a batch with a callback."""
        step = {**self.job(), "type": "chaos.step"}
        kind = self.chance.choice(["chain", "group", "batch"])
        body: Body = {"type": kind, "steps" if kind == "chain" else "jobs": [step] * 3}
        if kind == "batch":
            body["callbacks"] = {"on_complete": step}
        status, answer = await self.call("POST", "/workflows", body)
        if status != 201:
            self.ledger.break_(f"POST /workflows answered {status} {answer}")
        self.ledger.workflows.add(answer["workflow"]["id"])

    async def run(self, stopped: Callable[[], bool], pause_s: float) -> None:
        """Produce."""
        acts = [self.plain] * 4 + [self.batch, self.scheduled, self.expiring, self.limited, self.unique, self.unique]
        await self.until(stopped, [*acts, self.doomed, self.insistent, self.workflow], pause_s)


class Worker(Client):
    """Fetches and completes; now and then it fails, gives back, or says nothing any more."""

    name = ""

    async def turn(self) -> None:
        """One fetch and what follows."""
        asked = time.monotonic()
        body = {
            "queues": self.chance.sample(self.queues, len(self.queues)),
            "count": self.chance.randint(1, 5),
            "worker_id": self.name,
            "visibility_timeout_ms": 8000,
        }
        _, answer = await self.call("POST", "/workers/fetch", body)
        jobs = answer["jobs"]
        for job in jobs:
            self.ledger.delivered(job, self.name, asked)
        for job in jobs:
            await self._settle(job)
        if not jobs:
            await asyncio.sleep(0.05)

    async def _settle(self, job: Body) -> None:
        kind, about = self.chance.random(), {"job_id": job["id"], "worker_id": self.name}
        if kind < 0.02:
            return
        if kind < 0.2:
            await asyncio.sleep(self.chance.uniform(0, 0.3))
        error = {"code": "handler_error", "message": "it failed"}
        try:
            if job["type"] == "chaos.doomed" or 0.9 < kind < 0.95:
                await self.call("POST", "/workers/nack", {**about, "error": error})
            elif kind >= 0.95:
                await self.call("POST", "/workers/nack", {**about, "requeue": True})
            else:
                status, _ = await self.call("POST", "/workers/ack", about)
                if status == 200:
                    self.ledger.acknowledged(job["id"])
        except Broken:
            return

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Work."""
        await self.until(stopped, [self.turn], 0.005)


class Operator(Client):
    """Cancels, changes priorities, retries dead letters, pauses queues, looks at numbers."""

    def _some_job(self) -> str:
        known = self.ledger.enqueued
        return self.chance.choice(sorted(known)) if known else "none"

    async def cancel(self) -> None:
        """Any job."""
        id_ = self._some_job()
        status, answer = await self.call("DELETE", f"/jobs/{id_}")
        if status == 200 and answer["job"]["state"] == "cancelled":
            self.ledger.cancelled.add(id_)

    async def raise_(self) -> None:
        """Change a priority."""
        await self.call("PATCH", f"/jobs/{self._some_job()}", {"priority": self.chance.choice([-5, 0, 5])})

    async def revive(self) -> None:
        """Retry a dead letter."""
        _, answer = await self.call("GET", "/dead-letter?limit=5")
        for job in answer["jobs"][:1]:
            self.ledger.revived.add(job["id"])
            await self.call("POST", f"/dead-letter/{job['id']}/retry", {})

    async def pause(self) -> None:
        """Stop a queue for a moment."""
        queue = self.chance.choice(self.queues)
        await self.call("POST", f"/queues/{queue}/pause", {})
        await asyncio.sleep(self.chance.uniform(0, 1))
        while True:
            try:
                await self.call("POST", f"/queues/{queue}/resume", {})
                return
            except Broken:
                await asyncio.sleep(0.2)

    async def look(self) -> None:
        """Read numbers; whether they are right is seen at the end."""
        await self.call("GET", f"/queues/{self.chance.choice(self.queues)}/stats")
        await self.call("GET", "/admin/stats")

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Operate."""
        await self.until(stopped, [self.cancel, self.raise_, self.revive, self.pause, self.look], 0.2)
