"""Damaged and foreign entries in our streams and buckets: no node dies, no loop stops, no other job is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import nats
import pytest

from ojs_fast.storage import names
from tests.support.api import Api, unique_queue
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

KNOWN_ID = "01900000-0000-7000-8000-000000000000"
JUNK = (
    b"", b"\xff\x00\xfe", b"{", b"null", b"[]", b"{}", b'"x"', b"123", b"1e400", b"true", b'{"id":5}', b'{"at_ms":"x"}',
    b"[[]]", b'{"state":"available"}', b'{"id":"%s","state":"nonsense"}' % KNOWN_ID.encode(), b"x" * 100_000,
    b'{"due_ms":"soon"}', b'{"due_ms":1}', b'{"due_ms":1e400}', b'{"name":1,"levels":"x"}',
    b'{"worker_id":null,"visible_ms":"x"}',
)  # fmt: skip
#: As different kinds of keys look; a queue, a job, an attempt, a digest and things that nobody writes.
KEYS = (
    "x", "fuzz", f"fuzz.{KNOWN_ID}", f"fuzz.{KNOWN_ID}.1", KNOWN_ID, f"{KNOWN_ID}.1", "a.b.c.d.e", "0" * 64, "fuzz.1.x",
    "_", "=", "=ZZ", "node.x", "leader", "beat.x", "directive.x",
)  # fmt: skip

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(180)]


async def litter(url: str) -> int:
    """Leave junk under every kind of key of every bucket, and in the streams; how many NATS took."""
    client = await nats.connect(url)
    pending = []
    for bucket in names.BUCKETS:
        for number, key in enumerate(KEYS):
            for shift in range(3):
                subject = names.bucket_subject(bucket, f"{key}{'' if shift == 0 else shift}")
                pending.append((subject, JUNK[(number * 3 + shift + len(bucket)) % len(JUNK)]))
    for junk in JUNK:
        pending += [(names.work_subject("fuzz", 0), junk), (names.work_subject("fuzz", 7), b"12 " + junk)]
        pending += [("ojs.queue.fuzz.nonsense", junk), ("ojs.queue.=ZZ.jobs", junk), ("ojs.events.job.completed", junk)]
    taken = 0
    for subject, junk in pending:
        try:
            await client.request(subject, junk, timeout=5)
            taken += 1
        except nats.errors.Error:
            continue
    await client.close()
    return taken


def works(api: Api) -> None:
    """Jobs of three kinds go through: one of the littered queue, one with a schedule, one that fails."""
    queue = unique_queue()
    due = datetime.fromtimestamp(time.time() + 0.5, UTC).isoformat(timespec="milliseconds")
    expected = {api.enqueue(queue)["id"], api.enqueue(queue, scheduled_at=due)["id"]}
    littered = api.enqueue("fuzz")["id"]
    seen: set[str] = set()

    def fetched() -> bool:
        seen.update(job["id"] for job in api.fetch(queue, "fuzz", count=10))
        return expected | {littered} <= seen

    poll(fetched, deadline_s=20, what="all jobs are fetched")
    for job_id in expected:
        assert api.ack(job_id)["state"] == "completed"
    api.nack(littered)
    poll(lambda: api.get(littered)["state"] == "retryable", what="the failed job waits for its retry")
    for path in (
        "/queues", "/cron", "/workflows", "/dead-letter", "/rate-limits", "/admin/jobs", "/admin/workers",
        "/admin/stats",
        "/events", "/admin/dead-letter", "/queues/fuzz/stats", "/dead-letter/stats", "/admin/jobs?state=scheduled",
    ):  # fmt: skip
        assert api.request("GET", path).status_code == 200, path
    assert api.http.get("/metrics").status_code == 200


def test_junk_in_nats_is_set_aside(fresh_server: Callable[..., Server]) -> None:
    """Written while a node runs, and found by one that starts, which also has to reconcile after a dead one."""
    with Nats() as nats_server:
        first = fresh_server(nats_url=nats_server.url)
        with Api(first.url) as api:
            works(api)
            assert asyncio.run(litter(nats_server.url)) > 300
            works(api)
        second = fresh_server(nats_url=nats_server.url)
        with Api(second.url) as api:
            works(api)
            first.kill()
            poll(lambda: "reconciled" in second.log(), deadline_s=30, what="the other node is reconciled")
            works(api)
        for server in (first, second):
            lines = server.log().splitlines()
            assert [line for line in lines if "Traceback" in line or "unexpected error" in line] == []
            assert len(lines) < 2000, "something is logged over and over"
