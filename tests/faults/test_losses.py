"""The losses of the OJS reference server that were found by experiment: none of them happens here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import nats
import orjson
import pytest

from ojs_fast import _core
from ojs_fast.storage import names
from tests.support.api import Api, job_request, unique_queue
from tests.support.load import Ledger, connections
from tests.support.processes import freeze, poll
from tests.support.server import Server

pytestmark = pytest.mark.faults

DISCONNECTS = 20
VISIBILITY_MS = 3000


def hang_up_in_mid_fetch(url: str, queue: str) -> socket.socket:
    """Send a complete fetch request; whoever closes the socket hangs up."""
    address = urlsplit(url)
    body = orjson.dumps({"queues": [queue], "count": 1, "visibility_timeout_ms": VISIBILITY_MS})
    head = (
        f"POST /ojs/v1/workers/fetch HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/openjobspec+json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=5)
    connection.sendall(head.encode() + body)
    return connection


def fetch_all(api: Api, queue: str, expected: set[str], deadline_s: float) -> dict[str, int]:
    """Fetch until all expected jobs were seen: `{job id: attempt}`."""
    fetched: dict[str, int] = {}

    def all_there() -> bool:
        fetched.update((job["id"], job["attempt"]) for job in api.fetch(queue, count=DISCONNECTS))
        return fetched.keys() >= expected

    with contextlib.suppress(AssertionError):
        poll(all_there, deadline_s=deadline_s)
    lost = {job_id: api.get(job_id)["state"] for job_id in expected - fetched.keys()}
    assert not lost
    return fetched


def test_a_worker_that_hangs_up_while_its_fetch_is_under_way_loses_no_job(fresh_server: Callable[..., Server]) -> None:
    """Twenty workers hang up before NATS answers their fetch: their jobs are back at once, no attempt is counted."""
    server = fresh_server()
    queue = unique_queue()
    with Api(server.url) as api:
        enqueued = {job["id"] for job in api.enqueue_batch([job_request(queue) for _ in range(DISCONNECTS)])}
        nats_pid = server.nats_pid
        freeze(nats_pid)
        try:
            gone = [hang_up_in_mid_fetch(server.url, queue) for _ in range(DISCONNECTS)]
            # The manifest needs no NATS: when it is answered, the fetches sent before were read.
            api.call("GET", "/ojs/manifest")
            for connection in gone:
                connection.close()
            api.call("GET", "/ojs/manifest")
        finally:
            os.kill(nats_pid, signal.SIGCONT)
        # Much sooner than the reservations run out.
        began = time.monotonic()
        fetched = fetch_all(api, queue, enqueued, deadline_s=VISIBILITY_MS / 1000 - 1)
        assert time.monotonic() - began < VISIBILITY_MS / 1000
        assert fetched == dict.fromkeys(enqueued, 1)


@pytest.mark.parametrize("waits", [True, False], ids=["job-waits", "job-arrives-then"])
def test_a_worker_that_hangs_up_at_once_loses_no_job(api: Api, *, waits: bool) -> None:
    """Twenty workers hang up right after they asked, while a job waits or arrives: each job can be fetched again.

    At once where the server notices; where its answer had left before, when the reservation runs out.
    """
    queue = unique_queue()
    enqueued = set()
    for _ in range(DISCONNECTS):
        if waits:
            enqueued.add(api.enqueue(queue)["id"])
            hang_up_in_mid_fetch(api.url, queue).close()
        else:
            gone = threading.Thread(target=lambda: hang_up_in_mid_fetch(api.url, queue).close())
            gone.start()
            enqueued.add(api.enqueue(queue)["id"])
            gone.join()
    for job_id in fetch_all(api, queue, enqueued, deadline_s=VISIBILITY_MS / 1000 + 3):
        api.ack(job_id)


async def test_a_kill_in_mid_drain_strands_no_job(fresh_server: Callable[..., Server]) -> None:
    """3,000 jobs, 8 workers, kill -9 after a third: the rest is drained after a restart and every job completes."""
    server = await asyncio.to_thread(fresh_server)
    queue, total = unique_queue(), 3000
    ledger = Ledger()
    async with connections(server.url, 9, timeout_s=10) as https:
        for _ in range(6):
            ledger.enqueued.update(await https[0].enqueue_batch(queue, total // 6))
        killed = asyncio.Event()
        end = time.monotonic() + 30
        working = [
            asyncio.create_task(ledger.work(http, queue, lambda: killed.is_set() or time.monotonic() > end))
            for http in https[1:]
        ]
        while len(ledger.completed) < total // 3:
            assert not any(task.done() for task in working), "the workers stopped early"
            await asyncio.sleep(0.001)
        await asyncio.to_thread(server.kill)
        killed.set()
        await asyncio.gather(*working)
        assert len(ledger.completed) < total
        await asyncio.to_thread(server.start)
        await ledger.finish(https, queue, deadline_s=30)
        await ledger.check(https[0], queue)


def test_of_eight_concurrent_acks_one_succeeds(api: Api) -> None:
    """Eight workers acknowledge one job at the same moment, over and over: one 200, seven 409 each time."""
    queue = unique_queue()
    api.enqueue_batch([job_request(queue) for _ in range(25)])
    with ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            [job] = api.fetch(queue)
            together = threading.Barrier(8)

            def ack(job_id: str = job["id"], together: threading.Barrier = together) -> int:
                together.wait(10)
                return api.request("POST", "/workers/ack", {"job_id": job_id}).status_code

            statuses = Counter(one.result() for one in [pool.submit(ack) for _ in range(8)])
            assert statuses == {200: 1, 409: 7}
            assert api.get(job["id"])["state"] == "completed"


@pytest.mark.parametrize("stream", ["OJS", *(f"KV_{name}" for name in names.BUCKETS if name != names.WORKERS)])
async def test_no_stream_drops_what_waits_too_long(server: Server, stream: str) -> None:
    """Neither age nor number nor size makes JetStream drop a waiting job, its work message or an index entry."""
    client = await nats.connect(server.nats_url())
    try:
        answer = await client.request(f"$JS.API.STREAM.INFO.{stream}")
        config = orjson.loads(answer.data)["config"]
    finally:
        await client.close()
    assert (config["max_age"], config["max_msgs"], config["max_bytes"]) == (0, -1, -1)
    assert config["storage"] == "file"
    assert stream == "OJS" or config["discard"] == "new"
    assert stream != "OJS" or config["retention"] == "workqueue"


async def test_a_job_older_than_a_day_is_fetched(server: Server, api: Api) -> None:
    """A record and work message that say they were made a week ago reach the next worker."""
    queue = unique_queue()
    made_ms = int(time.time() * 1000) - 7 * 24 * 3600 * 1000
    job_id = _core.uuid7(made_ms, uuid.uuid4().bytes[:10])
    record = _core.Record(job_id, "old.job", queue, b',"args":[1],"meta":{}')
    record.created_ms = record.enqueued_ms = made_ms
    stored = record.serialize()
    # The server itself must know the queue, which only an enqueue makes it do.
    api.cancel(api.enqueue(queue)["id"])
    client = await nats.connect(server.nats_url())
    try:
        js = client.jetstream()
        revision = (await js.publish(names.bucket_subject(names.JOBS, job_id), stored)).seq
        await js.publish(names.work_subject(queue, 0), _core.work_message(revision, stored))
    finally:
        await client.close()
    [job] = await asyncio.to_thread(poll, lambda: api.fetch(queue), deadline_s=5)
    assert (job["id"], job["created_at"]) == (job_id, _core.format_rfc3339_ms(made_ms))
    assert api.ack(job_id)["state"] == "completed"
