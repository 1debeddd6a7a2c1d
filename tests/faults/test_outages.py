"""NATS goes away and comes back: requests get a clear answer, and everything resumes without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ojs_fast import _core
from tests.support.api import Api, Body, unique_queue
from tests.support.load import Ledger, connections
from tests.support.nats import Nats
from tests.support.processes import freeze, poll
from tests.support.proxy import Proxy
from tests.support.server import Server

pytestmark = pytest.mark.faults

LATE_MS = 500
CUTS = 30


@pytest.fixture
def nats() -> Iterator[Nats]:
    """Give a NATS of the test's own: another test's dead node would set off repairs."""
    with Nats() as running:
        yield running


@contextlib.asynccontextmanager
async def behind_a_proxy(nats: Nats, **env: str) -> AsyncIterator[tuple[Server, Proxy]]:
    """Give a server whose way to NATS can be cut."""
    async with Proxy(nats.port) as proxy:
        server = Server(nats_url=nats.url.replace(f":{nats.port}", f":{proxy.port}"), env=env)
        try:
            await asyncio.to_thread(server.start)
            yield server, proxy
            await asyncio.to_thread(server.stop)
        finally:
            await asyncio.to_thread(server.close)


def every_kind_of_request(api: Api, queue: str, held: Body, waiting: Body) -> list[Callable[[], httpx.Response]]:
    """Return one of each request that needs NATS."""
    return [
        lambda: api.request("POST", "/jobs", {"type": "a.b", "args": [], "options": {"queue": queue}}),
        lambda: api.request(
            "POST", "/jobs/batch", {"jobs": [{"type": "a.b", "args": [], "options": {"queue": queue}}] * 3}
        ),
        lambda: api.request("GET", f"/jobs/{waiting['id']}"),
        lambda: api.request("DELETE", f"/jobs/{waiting['id']}"),
        lambda: api.request("POST", "/workers/fetch", {"queues": [queue]}),
        lambda: api.request("POST", "/workers/ack", {"job_id": held["id"]}),
        lambda: api.request("GET", "/dead-letter"),
        lambda: api.request("GET", "/events"),
    ]


def check_refusal(answer: httpx.Response) -> None:
    """A 503 with the OJS error body and the header that says when to try again."""
    assert answer.status_code == 503, f"{answer.request.method} {answer.request.url}: {answer.text}"
    error = answer.json()["error"]
    assert (error["code"], error["retryable"]) == ("backend_error", True)
    assert int(answer.headers["Retry-After"]) >= 1


async def test_requests_without_nats_are_refused_and_then_everything_resumes(nats: Nats) -> None:
    """While NATS is away each request gets 503 soon; afterwards jobs flow, timers fire, watches hear."""
    async with behind_a_proxy(nats, OJS_BACKEND_WAIT_MS="300") as (server, proxy):
        with Api(server.url) as api:
            await asyncio.to_thread(outage, api, proxy, asyncio.get_running_loop())


def outage(api: Api, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
    """Prepare, go away, ask everything, come back, look at everything."""
    queue, timers = unique_queue(), unique_queue("timers")
    held, waiting = [api.enqueue(queue) for _ in range(2)]
    assert api.fetch(queue)[0]["id"] == held["id"]
    retried = api.enqueue(timers, retry={"initial_interval": "PT1S", "jitter": False})
    abandoned = api.enqueue(timers)
    assert len(api.fetch(timers, count=2, visibility_timeout_ms=1500)) == 2
    assert api.nack(retried["id"])["state"] == "retryable"
    later = api.enqueue(timers, scheduled_at="+PT1S")

    loop.call_soon_threadsafe(proxy.down)
    poll(lambda: api.request("GET", "/health").status_code == 503, what="health tells")
    began = time.monotonic()
    for ask in every_kind_of_request(api, queue, held, waiting):
        check_refusal(ask())
    assert time.monotonic() - began < 8 * 1.0
    poll(lambda: time.monotonic() - began > 1.6, what="all deadlines have passed meanwhile")
    asyncio.run_coroutine_threadsafe(proxy.up(), loop).result(5)

    poll(lambda: api.request("GET", "/health").status_code == 200, deadline_s=5, what="it is healthy again")
    # What fell due in the meantime comes at once.
    due: dict[str, Body] = {}

    def all_due() -> bool:
        due.update((job["id"], job) for job in api.fetch(timers, count=10))
        return len(due) == 3

    with contextlib.suppress(AssertionError):
        poll(all_due, deadline_s=5)
    states = {one["id"]: api.get(one["id"])["state"] for one in (retried, abandoned, later)}
    assert states.keys() == due.keys(), states
    assert due[abandoned["id"]]["attempt"] == 2
    # New work: acks of old claims, promotion in time, heartbeats, cancel.
    assert api.ack(held["id"])["state"] == "completed"
    assert api.cancel(waiting["id"])["state"] == "cancelled"
    check_timers(api)
    [job] = [api.enqueue(queue)]
    assert job["id"] in [one["id"] for one in api.fetch(queue, count=100, worker_id="w")]
    assert api.heartbeat("w", [job["id"]])["jobs_extended"] == [job["id"]]
    assert api.ack(job["id"], worker_id="w")["state"] == "completed"


def check_timers(api: Api) -> None:
    """A retry and a scheduled job become available when they are due, not sooner and not much later."""
    queue = unique_queue("in-time")
    retried = api.enqueue(queue, retry={"initial_interval": "PT1S", "jitter": False})
    assert len(api.fetch(queue)) == 1
    due = {retried["id"]: api.nack(retried["id"])["next_attempt_at"]}
    scheduled = api.enqueue(queue, scheduled_at="+PT1S")
    due[scheduled["id"]] = scheduled["scheduled_at"]
    fetched: dict[str, Body] = {}

    def all_fetched() -> bool:
        fetched.update((job["id"], job) for job in api.fetch(queue, count=10))
        return len(fetched) == 2

    with contextlib.suppress(AssertionError):
        poll(all_fetched, deadline_s=10, pause_s=0.005)
    assert fetched.keys() == due.keys(), {job_id: api.get(job_id)["state"] for job_id in due}
    for job_id, at in due.items():
        assert 0 <= milliseconds(fetched[job_id]["started_at"]) - milliseconds(at) <= LATE_MS
        api.ack(job_id)


def milliseconds(timestamp: str) -> int:
    """Epoch milliseconds of an RFC 3339 time."""
    return int(_core.parse_rfc3339_ms(timestamp))


def test_timers_are_in_time(api: Api) -> None:
    """On a healthy server, three times in a row."""
    for _ in range(3):
        check_timers(api)


async def test_a_work_message_lost_on_the_way_comes_again(nats: Nats) -> None:
    """The connection breaks when NATS has handed over a job and the node has not got it: the job is not stuck."""
    async with behind_a_proxy(nats) as (server, proxy):
        with Api(server.url) as api:
            queue = unique_queue()
            assert await asyncio.to_thread(api.fetch, queue) == []
            job = await asyncio.to_thread(api.enqueue, queue)
            proxy.cuts_next_delivery = True
            answer = await asyncio.to_thread(api.request, "POST", "/workers/fetch", {"queues": [queue]})
            assert not proxy.cuts_next_delivery, "no delivery was cut off"
            if answer.status_code == 200 and (jobs := answer.json()["jobs"]):
                assert jobs[0]["id"] == job["id"]
                return
            [again] = await asyncio.to_thread(poll, lambda: api.fetch(queue), deadline_s=10, pause_s=0.05)
            assert (again["id"], again["attempt"]) == (job["id"], 1)


async def test_what_was_acknowledged_survives_broken_connections(nats: Nats) -> None:
    """The way to NATS breaks again and again under load: no job is lost or stuck, none runs after its ack."""
    async with behind_a_proxy(nats) as (server, proxy):
        queue, ledger, stopped = unique_queue(), Ledger(), False
        async with connections(server.url, 6, timeout_s=20) as https:
            running = [
                asyncio.create_task(ledger.produce(http, queue, lambda: stopped, 300 * CUTS)) for http in https[:2]
            ]
            running += [asyncio.create_task(ledger.work(http, queue, lambda: stopped)) for http in https[2:]]
            try:
                for number in range(CUTS):
                    await asyncio.sleep(0.1)
                    if number % 2:
                        proxy.cuts_next_delivery = True
                    else:
                        proxy.cut()
            finally:
                stopped = True
                await asyncio.gather(*running)
            proxy.cuts_next_delivery = False
            await ledger.finish(https, queue, deadline_s=30)
            await ledger.check(https[0], queue)


@pytest.mark.slow
def test_a_frozen_nats_gives_refusals_and_then_everything_resumes(fresh_server: Callable[..., Server]) -> None:
    """NATS keeps its connections but answers nothing: each request gets 503, and later everything goes on."""
    server = fresh_server()
    queue = unique_queue()
    with Api(server.url) as api:
        held, waiting = [api.enqueue(queue) for _ in range(2)]
        assert api.fetch(queue)[0]["id"] == held["id"]
        nats_pid = server.nats_pid
        requests = every_kind_of_request(api, queue, held, waiting)
        with ThreadPoolExecutor(len(requests)) as pool:
            freeze(nats_pid)
            try:
                answers = [one.result() for one in [pool.submit(ask) for ask in requests]]
            finally:
                os.kill(nats_pid, signal.SIGCONT)
        for answer in answers:
            check_refusal(answer)
        assert server.nats_pid == nats_pid
        poll(lambda: api.request("GET", "/health").status_code == 200, what="it is healthy again")
        check_timers(api)
        # The refused requests may have been carried out or not, but all that is there can be fetched.
        jobs = poll(lambda: api.fetch(queue, count=10), deadline_s=5)
        for job in jobs:
            assert api.ack(job["id"])["state"] == "completed"
        assert api.get(held["id"])["state"] in {"active", "completed"}
        assert api.get(waiting["id"])["state"] in {"cancelled", "completed"}
