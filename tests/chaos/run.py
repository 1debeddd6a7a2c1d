"""One run: everything goes wrong for a while, then nothing does any more, and every promise is looked at."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.records import Records
from tests.chaos import clues
from tests.chaos.clients import ENDED, LIMIT_KEYS, Client, Ledger, Operator, Producer, Violation, Worker
from tests.chaos.faults import World, world
from tests.support.load import Broken

QUEUES = 3
PRODUCERS, WORKERS = 3, 5
CRONS = 2
SETTLED_S = 120.0
AGREED_S = 90.0
LOOK_EVERY_S = 5.0
# No job is put off for so long.
FAR_MS = 10_000
LINES_SHOWN = 100
COUNTED = ("available", "active", "scheduled", "retryable", *ENDED)
# What must be empty when every job has ended.
EMPTY = (names.ACTIVE, names.SCHEDULED, names.RETRY, names.EXPIRY)


@dataclass
class Result:
    """What a run showed."""

    seed: int
    jobs: int = 0
    faults: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    clues: list[str] = field(default_factory=list)
    logs: str = ""


async def run(seed: int, seconds: float, longest_s: float, say: Callable[[str], None]) -> Result:
    """Play one seed; `longest_s` bounds a single fault."""
    result = Result(seed)
    async with world(random.Random(seed), longest_s) as stage:
        play = Play(stage, seed, say)
        try:
            await play.all(seconds)
        except Violation as violation:
            result.violations.append(str(violation))
        except Exception as error:  # noqa: BLE001 - whatever it is, the run failed, and its seed must be told
            result.violations.append(f"{type(error).__name__}: {error}")
        finally:
            await play.close()
        known = play.ledger.violations
        result.violations = list(dict.fromkeys([*known, *result.violations]))
        result.jobs, result.faults, result.answers = len(play.ledger.enqueued), stage.log, play.ledger.answers
        if result.violations:
            result.clues = play.clues
            result.logs = "\n".join(f"--- {node.url}\n{told(node.log())}" for node in stage.nodes)
    return result


def told(log: str) -> str:
    """What a node said of itself, without what became of each job."""
    return "\n".join([line for line in log.splitlines() if "category='lifecycle'" not in line][-LINES_SHOWN:])


def due_ms(job: _core.Record) -> int:
    """When a job is to go on, by the clock of the node that said so: one that was moved may have been far ahead."""
    return {"scheduled": job.scheduled_ms, "retryable": job.next_attempt_ms}.get(job.state, 0)


class Play:
    """Clients, faults, and what is looked at during and after them."""

    def __init__(self, stage: World, seed: int, say: Callable[[str], None]) -> None:
        self._world = stage
        self._say = say
        self._chance = random.Random(seed + 1)
        self.ledger = Ledger()
        #: what lies in NATS about what was broken
        self.clues: list[str] = []
        self._queues = [f"chaos-{number}" for number in range(QUEUES)]
        self._clients: list[Client] = []
        self._connection = Connection()
        self._records = Records(self._connection)

    def _client(self, kind: type[Any]) -> Any:
        urls = [node.url for node in self._world.nodes]
        made = kind(urls, self.ledger, self._queues, random.Random(self._chance.getrandbits(32)))
        self._clients.append(made)
        return made

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients:
            await client.close()
        with contextlib.suppress(AttributeError):  # it was never open
            await self._connection.close()

    async def all(self, seconds: float) -> None:
        """The whole run. Raises Violation."""
        await self._connection.open(self._world.cluster.urls, name="chaos")
        self._asker = self._client(Client)
        await self._register_cron()
        began = time.monotonic()
        producing, working = True, True
        producers = [self._client(Producer).run(lambda: not producing, 0.05) for _ in range(PRODUCERS)]
        producers.append(self._client(Operator).run(lambda: not producing))
        workers = [self._client(Worker) for _ in range(WORKERS)]
        for number, worker in enumerate(workers):
            worker.name = f"chaos-worker-{number}"
        over = lambda: time.monotonic() > began + seconds or bool(self.ledger.violations)  # noqa: E731
        running = [asyncio.create_task(one) for one in producers]
        lasting = [asyncio.create_task(worker.run(lambda: not working)) for worker in workers]
        watching = asyncio.create_task(self._watch(lambda: not producing))
        try:
            await self._world.disturb(over, self._say)
            producing = False
            await asyncio.gather(*running, watching)
            self._say("every fault is over")
            await self._settle(lasting)
            working = False
            await asyncio.gather(*lasting)
            await self._check()
        finally:
            producing = working = False
            await asyncio.gather(*running, *lasting, watching, return_exceptions=True)

    # -- during ------------------------------------------------------------------------------------------

    async def _register_cron(self) -> None:
        for number in range(CRONS):
            template = {"type": f"chaos.cron-{number}", "args": [], "options": {"queue": self._queues[0]}}
            body = {"name": f"chaos-{number}", "expression": "@every 2s", "job_template": template}
            await self._asked("POST", "/cron", {**body, "overlap_policy": "allow"})

    async def _asked(self, method: str, path: str, body: Any = None) -> Any:
        """Ask until somebody answers."""
        async with asyncio.timeout(AGREED_S):
            while True:
                with contextlib.suppress(Broken):
                    return (await self._asker.call(method, path, body))[1]
                await asyncio.sleep(0.2)

    async def _found(self) -> dict[str, tuple[_core.Record, int]]:
        """Every record and its revision, read past the servers."""
        found: dict[str, tuple[_core.Record, int]] = {}
        after = 0
        while page := await self._records.written_since("1970-01-01T00:00:00.000Z", after):
            after = page[-1][2]
            found.update((id_, (_core.Record.parse(stored), revision)) for id_, stored, revision in page)
        return found

    async def _jobs(self) -> dict[str, _core.Record]:
        return {id_: record for id_, (record, _) in (await self._found()).items()}

    async def _watch(self, stopped: Callable[[], bool]) -> None:
        """Look at all records now and then: of a unique job there is one at most."""
        while not stopped():
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                jobs = await self._jobs()
            except Exception as error:  # noqa: BLE001 - NATS is being disturbed
                self._say(f"no look: {error!r}")
                continue
            live = Counter(job.body for job in jobs.values() if job.type == "chaos.unique" and job.state not in ENDED)
            if live and max(live.values()) > 1:
                self.ledger.break_(f"two unique jobs at once: {live.most_common(1)}")

    # -- after -------------------------------------------------------------------------------------------

    async def _settle(self, workers: list[asyncio.Task[None]]) -> None:
        """Stop cron, then wait until every job has ended."""
        for number in range(CRONS):
            await self._asked("PATCH", f"/cron/chaos-{number}", {"enabled": False})
        for queue in self._queues:
            await self._asked("POST", f"/queues/{queue}/resume", {})
        end = time.monotonic() + SETTLED_S
        while True:
            await asyncio.sleep(0.5)
            for worker in workers:
                if worker.done():
                    worker.result()
            jobs = await self._jobs()
            left = {id_: job.state for id_, job in jobs.items() if job.state not in ENDED}
            for id_ in left:
                if due_ms(jobs[id_]) > time.time() * 1000 + FAR_MS:
                    await self._asked("DELETE", f"/jobs/{id_}")
            if not left and not await self._open_workflows():
                return
            if time.monotonic() > end:
                found = await self._found()
                self.clues += await clues.of_stuck(self._connection, {id_: found[id_] for id_ in left})
                self.ledger.break_(f"{len(left)} jobs do not end: {Counter(left.values())}, {sorted(left)[:3]}")

    async def _open_workflows(self) -> list[str]:
        states = {
            id_: (await self._asked("GET", f"/workflows/{id_}"))["workflow"]["state"]
            for id_ in sorted(self.ledger.workflows)
        }
        return [id_ for id_, state in states.items() if state == "running"]

    async def _check(self) -> None:
        jobs = await self._jobs()
        missing = self.ledger.enqueued - jobs.keys()
        if missing:
            self.ledger.break_(f"{len(missing)} acknowledged jobs are gone: {sorted(missing)[:3]}")
        for state, ids in (("completed", set(self.ledger.completed)), ("cancelled", self.ledger.cancelled)):
            others = {id_: jobs[id_].state for id_ in ids if id_ in jobs and jobs[id_].state != state}
            if others:
                self.ledger.break_(f"jobs that were told to be {state} are not: {others}")
        for number in range(CRONS):
            entry = (await self._asked("GET", f"/cron/chaos-{number}"))["cron"]
            fired = sum(job.type == f"chaos.cron-{number}" for job in jobs.values())
            if fired != entry["run_count"]:
                self.ledger.break_(f"chaos-{number} fired {fired} times and counts {entry['run_count']}")
        end = time.monotonic() + AGREED_S
        while wrong := [*await self._statistics(), *await self._leftovers(), *await self._dead_letters()]:
            if time.monotonic() > end:
                self.clues += await clues.of_counts(self._connection, (await self._found()).values())
                self.ledger.break_("; ".join(wrong))
            await asyncio.sleep(0.5)

    async def _statistics(self) -> list[str]:
        true: dict[str, Counter[str]] = {queue: Counter() for queue in self._queues}
        for job in (await self._jobs()).values():
            true[job.queue][job.state] += 1
        wrong: list[str] = []
        for queue in self._queues:
            told = (await self._asked("GET", f"/queues/{queue}/stats"))["stats"]
            pairs = {state: (told[state], true[queue][state]) for state in COUNTED}
            wrong += [f"{queue} {state} {one} instead of {two}" for state, (one, two) in pairs.items() if one != two]
        return wrong

    async def _leftovers(self) -> list[str]:
        left = {names.WORK_STREAM: int((await self._connection.stream_info(names.WORK_STREAM))["state"]["messages"])}
        for bucket in EMPTY:
            stream = names.bucket_stream(bucket)
            batch = await self._connection.get_batch(
                stream, {"next_by_subj": names.bucket_subject(bucket, ">"), "batch": 100, "seq": 1}
            )
            left[bucket] = sum(message.is_live for message in batch)
        locks = await self._connection.get_batch(
            names.bucket_stream(names.UNIQUE),
            {"next_by_subj": names.bucket_subject(names.UNIQUE, ">"), "batch": 500, "seq": 1},
        )
        # One that names no job stays until somebody asks for the same again (docs/design.md).
        named = [orjson.loads(m.data)["job_id"] for m in locks if m.is_live and ".idempotency." not in m.stored_subject]
        left["locks"] = len(await self._records.get_many(named))
        for number in range(LIMIT_KEYS):
            key = f"chaos-{number}"
            told = await self._asked("GET", f"/rate-limits/{key}")
            if "error" not in told:  # else no job had this key
                left[key] = told["concurrency"]["active"] + told["waiting_count"]
        return [f"{count} left in {what}" for what, count in left.items() if count]

    async def _dead_letters(self) -> list[str]:
        listed: set[str] = set()
        cursor = ""
        while True:
            answer = await self._asked("GET", f"/dead-letter?limit=100{f'&cursor={cursor}' if cursor else ''}")
            listed |= {job["id"] for job in answer["jobs"]}
            cursor = answer["pagination"].get("next_cursor", "")
            if not cursor:
                break
        true = {id_ for id_, job in (await self._jobs()).items() if job.dead_letter}
        return [f"dead letter {id_} is {'' if id_ in listed else 'not '}listed" for id_ in sorted(listed ^ true)]
