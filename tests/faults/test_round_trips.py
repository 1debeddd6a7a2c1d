"""The round-trip budget: how many messages cross the wire to NATS for each operation, no more and no less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.api import unique_queue
from tests.support.load import Http, connections
from tests.support.nats import Nats
from tests.support.proxy import Proxy
from tests.support.server import Server

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def budget_nats() -> Iterator[Nats]:
    """Give a NATS of this module's own."""
    with Nats() as nats:
        yield nats


@pytest.fixture
async def wire(budget_nats: Nats) -> AsyncIterator[tuple[Http, Proxy]]:
    """Give a client of a server that reaches NATS through a counting proxy."""
    async with Proxy(budget_nats.port) as proxy:
        through = budget_nats.url.replace(f":{budget_nats.port}", f":{proxy.port}")
        server = Server(nats_url=through)
        try:
            await asyncio.to_thread(server.start)
            async with connections(server.url, 1) as [http]:
                yield http, proxy
        finally:
            await asyncio.to_thread(server.close)


EVENT = "event"


async def warmed_up(http: Http, proxy: Proxy) -> str:
    """Return a queue whose consumer exists, with nothing under way."""
    queue = unique_queue()
    await http.enqueue(queue)
    [job] = await http.fetch(queue)
    assert await http.ack(job["id"]) == 200
    assert await http.fetch(queue) == []
    await all_crossed(proxy)
    proxy.clear()
    return queue


async def all_crossed(proxy: Proxy) -> list[str]:
    """Wait until what no answer waits for (events, acks of work messages) has crossed as well; all in order."""
    seen: list[str] | None = None
    while seen != (crossed := proxy.crossed()):
        seen = crossed
        await asyncio.sleep(0.05)
    return crossed


def without_events(crossed: list[str]) -> list[str]:
    """Leave out what is written without waiting; there is one message of events at most for each type."""
    assert crossed.count(EVENT) <= 1
    return [kind for kind in crossed if kind != EVENT]


async def test_enqueue_is_two_round_trips(wire: tuple[Http, Proxy]) -> None:
    """The record and then the work message, each acknowledged before the next step, and nothing else."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue(queue)
    assert proxy.crossed().count("work message ok") == 1, "it answered before the work message was acknowledged"
    assert without_events(await all_crossed(proxy)) == ["record", "record ok", "work message", "work message ok"]


async def test_a_batch_is_two_round_trips(wire: tuple[Http, Proxy]) -> None:
    """All records in one atomic batch with one acknowledgement, then all work messages with one."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue_batch(queue, 20)
    assert without_events(await all_crossed(proxy)) == [
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
    assert without_events(await all_crossed(proxy)) == [
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
    assert await all_crossed(proxy) == ["pull", "pull ok"]


async def test_ack_is_one_round_trip(wire: tuple[Http, Proxy]) -> None:
    """The record is written without a read, and the work message is acknowledged without waiting."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue(queue)
    [job] = await http.fetch(queue)
    await all_crossed(proxy)
    proxy.clear()
    assert await http.ack(job["id"]) == 200
    assert without_events(await all_crossed(proxy)) == ["record", "record ok", "+ACK"]


async def test_nack_is_one_round_trip(wire: tuple[Http, Proxy]) -> None:
    """The record; the index entry and the ack of the work message leave without being waited for."""
    http, proxy = wire
    queue = await warmed_up(http, proxy)
    await http.enqueue(queue)
    [job] = await http.fetch(queue)
    await all_crossed(proxy)
    proxy.clear()
    error = {"code": "handler_error", "message": "no"}
    assert (await http.call("POST", "/workers/nack", {"job_id": job["id"], "error": error}))[0] == 200
    crossed = [kind for kind in await all_crossed(proxy) if kind != EVENT]
    assert crossed[:2] == ["record", "record ok"]
    assert sorted(crossed[2:]) == ["+ACK", "retry index", "retry index ok"]
