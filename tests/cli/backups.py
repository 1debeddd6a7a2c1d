"""What the tests of backups share: load while one is made, and what must be there after a restore."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats

from tests.cli.command import COMMAND, Cli
from tests.support.api import Api
from tests.support.load import Ledger, connections
from tests.support.processes import poll
from tests.support.server import Server

STATES = ("available", "active", "scheduled", "retryable", "completed", "discarded", "cancelled")
QUEUE = "q"
LOAD_S = 0.5


@dataclass
class Before:
    """What was acknowledged when a backup began."""

    enqueued: set[str]
    completed: set[str]


def cli_of(data_dir: Path, **env: str) -> Cli:
    """Give the command with the settings of a server on that directory."""
    return Cli(OJS_DATA_DIR=str(data_dir), **{"OJS_DURABILITY": "interval", **env})


def counts(api: Api, queue: str) -> dict[str, int]:
    """Give the numbers of a queue's jobs by state."""
    stats = api.call("GET", f"/queues/{queue}/stats")["stats"]
    return {state: stats[state] for state in STATES}


def reconciled(server: Server) -> None:
    """Wait until the server has repaired what the dead nodes of the backup left."""
    poll(lambda: "reconciled:" in server.log(), what="the restored jobs are taken over")


async def back_up_under_load(server: Server, cli: Cli, file: Path) -> Before:
    """Produce and work, and make a backup meanwhile."""
    ledger, stopped = Ledger(), False
    async with connections(server.url, 4) as https:
        loads = [asyncio.create_task(ledger.produce(http, QUEUE, lambda: stopped, 100_000)) for http in https[:2]]
        loads += [asyncio.create_task(ledger.work(http, QUEUE, lambda: stopped)) for http in https[2:]]
        await asyncio.sleep(LOAD_S)
        before = Before(set(ledger.enqueued), set(ledger.acknowledged))
        process = await asyncio.create_subprocess_exec(*COMMAND, "backup", str(file), env=cli.env)
        assert await process.wait() == 0
        during = ledger.enqueued - before.enqueued
        stopped = True
        await asyncio.gather(*loads)
    assert before.completed
    assert during, "there was load while the backup was made"
    return before


async def compare_and_drain(restored: Server, before: Before) -> None:
    """All of before is there, what was completed is not delivered, everything else completes, the numbers agree."""
    reconciled(restored)
    with Api(restored.url) as api:
        jobs = {one["id"]: one["state"] for one in api_jobs(api)}
        assert before.enqueued <= set(jobs)
        assert {jobs[job_id] for job_id in before.completed} == {"completed"}
        done = {job_id for job_id, state in jobs.items() if state == "completed"}
        # Delivered again, one that is acknowledged already fails.
        rest = Ledger(enqueued=set(jobs), completed=set(done), acknowledged=set(done))
        async with connections(restored.url, 4) as https:
            await rest.finish(https, QUEUE, 30)
        assert {one["state"] for one in api_jobs(api)} == {"completed"}
        expected = {**dict.fromkeys(STATES, 0), "completed": len(jobs)}
        poll(lambda: counts(api, QUEUE) == expected, what="the numbers are those of the jobs")


def api_jobs(api: Api) -> list[dict[str, Any]]:
    """Give all jobs of the queue."""
    found: list[dict[str, Any]] = []
    while True:
        query = {"queue": QUEUE, "per_page": 100, "page": len(found) // 100 + 1, "order": "asc"}
        page = api.call("GET", "/admin/jobs", params=query)
        found += page["items"]
        if len(page["items"]) < 100:
            return found


async def delete_streams(servers: list[str]) -> None:
    """Delete all streams."""
    client = await nats.connect(servers)
    jetstream = client.jetstream()
    for info in await jetstream.streams_info():
        assert info.config.name
        await jetstream.delete_stream(info.config.name)
    await client.close()
