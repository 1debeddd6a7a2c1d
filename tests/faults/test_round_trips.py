"""The round-trip budget: how many messages cross the wire to NATS for each operation, no more and no less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.api import unique_queue
from tests.support.load import Http, connections
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.proxy import Proxy
from tests.support.server import Server

pytestmark = pytest.mark.faults


@pytest.fixture
async def wire() -> AsyncIterator[tuple[Http, Proxy]]:
    """Give a client of a server that leads and reaches a NATS of its own, empty, through a counting proxy."""
    with Nats() as nats:
        async with Proxy(nats.port) as proxy:
            server = Server(nats_url=nats.url.replace(f":{nats.port}", f":{proxy.port}"))
            try:
                await asyncio.to_thread(server.start)
                await asyncio.to_thread(poll, lambda: LEADS in server.log(), what=LEADS)
                async with connections(server.url, 1) as [http]:
                    yield http, proxy
            finally:
                await asyncio.to_thread(server.close)


LEADS = "this node is the scheduler leader"
EVENT = "event"
COUNTS = "counts"
#: long enough for what is sent without being waited for, on a machine that is busy
QUIET_S = 0.2
#: a flush of counts: the entry of the node and the one of the queue
ENTRIES = 2


async def warmed_up(http: Http, proxy: Proxy) -> str:
    """Return a queue whose consumer exists and was looked at once more, with nothing under way."""
    queue = unique_queue()
    await http.enqueue(queue)
    [job] = await http.fetch(queue)
    assert await http.ack(job["id"]) == 200
    assert await http.fetch(queue) == []
    recounted = f"$JS.API.CONSUMER.INFO.OJS.{queue} ok"
    await asyncio.to_thread(poll, lambda: recounted in proxy.crossed(), what=recounted)
    await all_crossed(proxy)
    proxy.clear()
    return queue


async def all_crossed(proxy: Proxy) -> list[str]:
    """Wait until what no answer waits for (events, acks of work messages) has crossed as well; all in order."""
    seen: list[str] | None = None
    while seen != (crossed := proxy.crossed()):
        seen = crossed
        await asyncio.sleep(QUIET_S)
    return crossed


def awaited(crossed: list[str], events: int = 1) -> list[str]:
    """Leave out what timers write behind: a message of each type of event, the counts of one completed job."""
    assert crossed.count(EVENT) <= events
    assert crossed.count(COUNTS) <= ENTRIES
    return [kind for kind in crossed if kind not in {EVENT, COUNTS, f"{COUNTS} ok"}]


async def test_enqueue_is_two_round_trips(wire: tuple[Http, Proxy]) -> None:
    """The record and then the work message, each acknowledged before the next step, and nothing else."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue(queue)
    assert proxy.crossed().count("work message ok") == 1, "it answered before the work message was acknowledged"
    assert awaited(await all_crossed(proxy)) == ["record", "record ok", "work message", "work message ok"]


async def test_a_batch_is_two_round_trips(wire: tuple[Http, Proxy]) -> None:
    """All records in one atomic batch with one acknowledgement, then all work messages with one."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue_batch(queue, 20)
    assert awaited(await all_crossed(proxy)) == [
        *["record"] * 20,
        "record ok",
        *["work message"] * 20,
        "work message ok",
    ]


@pytest.mark.parametrize("waiting", [5, 3, 2], ids=["more-wait", "as-many-wait", "fewer-wait"])
async def test_fetch_is_one_pull_and_its_claims(wire: tuple[Http, Proxy], waiting: int) -> None:
    """Three jobs are asked for: one pull brings them, then all claims leave together; no read, no second pull."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue_batch(queue, waiting)
    await all_crossed(proxy)
    proxy.clear()
    jobs = await http.fetch(queue, 3)
    expected = min(3, waiting)
    assert len(jobs) == expected
    ended = ["pull ok"] if waiting < 3 else []
    assert awaited(await all_crossed(proxy)) == [
        "pull",
        *["delivery"] * expected,
        *ended,
        *["record"] * expected,
        *["record ok"] * expected,
    ]


async def test_an_empty_fetch_is_one_pull(wire: tuple[Http, Proxy]) -> None:
    """It answers on the end of the pull and writes nothing."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    assert await http.fetch(queue, 10) == []
    assert awaited(await all_crossed(proxy)) == ["pull", "pull ok"]


async def test_ack_is_one_round_trip(wire: tuple[Http, Proxy]) -> None:
    """The record is written without a read, and the work message is acknowledged without waiting."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue(queue)
    [job] = await http.fetch(queue)
    await all_crossed(proxy)
    proxy.clear()
    assert await http.ack(job["id"]) == 200
    assert awaited(await all_crossed(proxy)) == ["record", "record ok", "+ACK"]


async def test_nack_is_one_round_trip(wire: tuple[Http, Proxy]) -> None:
    """The record; the index entry and the ack of the work message leave without being waited for."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    much_later = {"retry": {"initial_interval": "PT1M"}}
    await http.enqueue(queue, options={"queue": queue, **much_later})
    [job] = await http.fetch(queue)
    await all_crossed(proxy)
    proxy.clear()
    error = {"code": "handler_error", "message": "no"}
    assert (await http.call("POST", "/workers/nack", {"job_id": job["id"], "error": error}))[0] == 200
    crossed = awaited(await all_crossed(proxy), events=2)  # job.failed, job.retrying
    assert crossed[:2] == ["record", "record ok"]
    assert sorted(crossed[2:]) == ["+ACK", "retry index", "retry index ok"]
