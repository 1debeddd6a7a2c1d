"""Server-sent events: what listeners get, from any node, after a cut, when they are slow, when the server stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from ojs_fast.core import live
from ojs_fast.core.live import Listener, LiveEvent
from tests.support.api import Api, unique_queue
from tests.support.nats import Nats
from tests.support.openapi import acheck
from tests.support.plain import PLAIN
from tests.support.processes import poll
from tests.support.server import Server

Event = dict[str, Any]
UNKNOWN = "01900000-0000-7000-8000-000000000000"


class Stream:
    """The events of one connection, parsed."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> Event:
        """The next event with `id`, `event`, `data`; {} at the end of the stream."""
        found: Event = {}
        async with asyncio.timeout(20):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name in ("id", "event", "data"):
                    found[name] = orjson.loads(value) if name == "data" else value
                elif not line and found:
                    return found
        return found

    async def changes(self, count: int) -> list[tuple[str | None, str]]:
        """`(from, to)` of the next changes of state."""
        return [(one["data"]["from"], one["data"]["to"]) for one in [await self.next() for _ in range(count)]]


@asynccontextmanager
async def listening(url: str, path: str, **headers: str) -> AsyncIterator[Stream]:
    """Open a stream and wait until it runs."""
    async with (
        httpx.AsyncClient(timeout=30, event_hooks={"response": [acheck]}, **PLAIN) as client,
        client.stream("GET", f"{url}/ojs/v1{path}", headers=headers) as reply,
    ):
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.aiter_lines()
        assert await anext(lines) == "retry: 3000"
        yield Stream(lines)


async def test_a_job_is_followed_to_its_end(api: Api, server: Server) -> None:
    """Each change with the state before, growing ids; the stream ends with the job."""
    queue = unique_queue()
    job = await asyncio.to_thread(api.enqueue, queue, retry={"max_attempts": 2, "initial_interval": "PT0.05S"})
    await asyncio.to_thread(api.events)  # has the event written that is gathered still
    async with listening(server.url, f"/jobs/{job['id']}/events") as stream:
        await asyncio.to_thread(api.fetch, queue)
        await asyncio.to_thread(api.nack, job["id"])
        events = [one for one in [await stream.next() for _ in range(4)] if one["event"] == "job.state_changed"]
        assert {one["data"]["job_id"] for one in events} == {job["id"]}
        assert [(one["data"]["from"], one["data"]["to"]) for one in events] == [
            ("available", "active"),
            ("active", "retryable"),
            ("retryable", "available"),
        ]
        ids = [tuple(map(int, one["id"].split("."))) for one in events]
        assert ids == sorted(ids)
        await asyncio.to_thread(api.fetch, queue)
        await asyncio.to_thread(api.ack, job["id"])
        assert await stream.changes(2) == [("available", "active"), ("active", "completed")]
        assert await stream.next() == {}, "the stream goes on though the job has ended"


async def test_a_job_that_has_ended_tells_its_state_once(api: Api, server: Server) -> None:
    """One event, then the end."""
    job = await asyncio.to_thread(api.enqueue, unique_queue())
    await asyncio.to_thread(api.cancel, job["id"])
    async with listening(server.url, f"/jobs/{job['id']}/events") as stream:
        assert (await stream.next())["data"]["to"] == "cancelled"
        assert await stream.next() == {}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/jobs/{UNKNOWN}/events", 404),
        ("/queues/nobody-has-it/events", 404),
        ("/queues/NOT%20A%20NAME/events", 400),
        (f"/events/stream?channel=job:{UNKNOWN}", 404),
        ("/events/stream?channel=jobs", 400),
    ],
)
def test_what_does_not_exist_is_an_error_and_no_stream(api: Api, path: str, status: int) -> None:
    """The usual body, as JSON."""
    reply = api.request("GET", path)
    assert reply.status_code == status
    assert reply.json()["error"]["code"]


async def test_a_queue_is_followed_from_another_node() -> None:
    """Changes made at one server reach listeners at the other: of the queue, of everything, of chosen types."""
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(Nats())
        first, second = (stack.enter_context(Server(nats_url=nats.url)) for _ in range(2))
        api = stack.enter_context(Api(first.url))
        queue, other = unique_queue(), unique_queue()
        api.enqueue(queue)
        api.events()  # has the event written that is gathered still
        async with (
            listening(second.url, f"/events/stream?channel=queue:{queue}") as of_queue,
            listening(second.url, "/events/stream") as of_all,
            listening(second.url, f"/queues/{queue}/events?event_types=queue.paused") as of_type,
        ):
            elsewhere = await asyncio.to_thread(api.enqueue, other)
            here = await asyncio.to_thread(api.enqueue, queue)
            await asyncio.to_thread(api.call, "POST", f"/queues/{queue}/pause")
            everything = [await of_all.next() for _ in range(3)]
            assert {one["data"].get("job_id") for one in everything} == {elsewhere["id"], here["id"], None}
            mine = [await of_queue.next() for _ in range(2)]
            assert {one["event"] for one in mine} == {"job.state_changed", "queue.paused"}
            assert {one["data"].get("job_id") for one in mine} == {here["id"], None}
            assert (await of_type.next())["event"] == "queue.paused"


async def test_who_comes_back_misses_nothing(api: Api, server: Server) -> None:
    """Behind Last-Event-ID comes what happened meanwhile, once, and then what happens."""
    queue = unique_queue()
    await asyncio.to_thread(api.enqueue, queue)
    await asyncio.to_thread(api.events)  # has the event written that is gathered still
    path = f"/queues/{queue}/events"
    async with listening(server.url, path) as stream:
        first = await asyncio.to_thread(api.enqueue, queue)
        seen = await stream.next()
        assert seen["data"]["job_id"] == first["id"]
    missed = [(await asyncio.to_thread(api.enqueue, queue))["id"] for _ in range(5)]
    await asyncio.to_thread(api.events)  # whatever is gathered has been written
    async with listening(server.url, path, **{"Last-Event-ID": seen["id"]}) as stream:
        then = (await asyncio.to_thread(api.enqueue, queue))["id"]
        assert [(await stream.next())["data"]["job_id"] for _ in range(6)] == [*missed, then]


@pytest.mark.parametrize("after", ["evt_0042", "x", "9" * 60])
async def test_an_id_that_is_not_ours_is_a_gap(api: Api, server: Server, after: str) -> None:
    """The listener is told to look for itself, and then hears what happens."""
    queue = unique_queue()
    await asyncio.to_thread(api.enqueue, queue)
    await asyncio.to_thread(api.events)
    async with listening(server.url, f"/queues/{queue}/events", **{"Last-Event-ID": after}) as stream:
        gap = await stream.next()
        assert (gap["event"], gap["data"]["channel"]) == ("system.gap", f"queue:{queue}")
        job = await asyncio.to_thread(api.enqueue, queue)
        assert (await stream.next())["data"]["job_id"] == job["id"]


async def test_the_end_of_the_server_is_told(fresh_server: Callable[..., Server]) -> None:
    """`server.shutdown`, then the stream ends, and the server has not waited for its listeners."""
    server = await asyncio.to_thread(fresh_server)
    async with listening(server.url, "/events/stream") as stream:
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        assert (await stream.next())["event"] == "server.shutdown"
        assert await stream.next() == {}
        async with asyncio.timeout(10):
            await stopping


def listeners(url: str) -> int:
    """How many the server counts."""
    text = httpx.get(f"{url}/metrics", **PLAIN).text
    [line] = [one for one in text.splitlines() if one.startswith("ojs_node_live_listeners{")]
    return int(float(line.rpartition(" ")[2]))


async def test_a_client_that_hangs_up_is_forgotten(fresh_server: Callable[..., Server]) -> None:
    """Whatever it listened to, and whether anything happens or not."""
    server = await asyncio.to_thread(fresh_server)
    with Api(server.url) as api:
        job = await asyncio.to_thread(api.enqueue, "q")
        for path in ("/events/stream", "/queues/q/events", f"/jobs/{job['id']}/events"):
            async with listening(server.url, path), listening(server.url, path):
                assert await asyncio.to_thread(listeners, server.url) == 2
            await asyncio.to_thread(poll, lambda: listeners(server.url) == 0, what="the server notices")


async def test_streams_need_the_key(fresh_server: Callable[..., Server]) -> None:
    """As every other endpoint."""
    server = await asyncio.to_thread(fresh_server, env={"OJS_API_KEY": "secret"})
    async with httpx.AsyncClient(**PLAIN) as client:
        assert (await client.get(f"{server.url}/ojs/v1/events/stream")).status_code == 401
    async with listening(server.url, "/events/stream", Authorization="Bearer secret"):
        pass


# -- slow listeners ------------------------------------------------------------------------------


async def test_a_slow_listener_loses_the_oldest_and_is_told() -> None:
    """With the buffer full the newest stay; the first thing it hears is how many are gone, and which."""
    listener = Listener("all", frozenset())
    for number in range(live.BUFFER_EVENTS + 7):
        listener.offer(LiveEvent("x", {}, (number, 1)))
    events = await listener.take(0)
    assert events is not None
    loss, *rest = events
    assert loss.type == "system.events_dropped"
    expected = {"dropped_count": 7, "oldest_dropped_id": "0.1", "newest_dropped_id": "6.1"}
    assert expected.items() <= loss.data.items()
    assert [event.position[0] for event in rest] == list(range(7, live.BUFFER_EVENTS + 7))
    listener.offer(LiveEvent("x", {}, (5000, 1)))
    assert [event.type for event in await listener.take(0) or []] == ["x"]
    listener.close()
    assert await listener.take(0) is None


async def test_a_quiet_stream_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty group when nothing came for a while."""
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.01)
    assert await Listener("all", frozenset()).take(0) == []
