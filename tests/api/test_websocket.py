"""WebSocket: what clients may say, what they hear, after a cut, when they are slow, when the server stops."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from ojs_fast.api import websocket
from ojs_fast.api.keys import Scope, create_key
from ojs_fast.core import live
from tests.api.test_live import listeners
from tests.support.api import Api, job_request, unique_queue
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

Message = dict[str, Any]
UNKNOWN = "01900000-0000-7000-8000-000000000000"


class Socket:
    """One connection, with parsed messages."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, **message: Any) -> None:
        """Send a message."""
        await self.connection.send(orjson.dumps(message).decode())

    async def hear(self) -> Message:
        """The next message."""
        async with asyncio.timeout(20):
            message: Message = orjson.loads(await self.connection.recv())
        return message

    async def ask(self, **message: Any) -> Message:
        """Send a message and return the next one that comes."""
        await self.say(**message)
        return await self.hear()

    async def subscribe(self, channel: str, **more: Any) -> None:
        """Subscribe, and see it acknowledged."""
        told = await self.ask(action="subscribe", channel=channel, **more)
        expected = {"type": "subscribed", "channel": channel}
        expected |= {"event_types": more["event_types"]} if "event_types" in more else {}
        assert told == expected

    async def closed(self) -> int | None:
        """The code with which the server closes."""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.connection.recv()
        return self.connection.close_code


@asynccontextmanager
async def connected(url: str, path: str = "/ojs/v1/ws", **more: Any) -> AsyncIterator[Socket]:
    """Open a connection; `more` is for `connect`."""
    async with connect(f"ws{url.removeprefix('http')}{path}", proxy=None, max_size=2**24, **more) as connection:
        yield Socket(connection)


async def settled(api: Api, queue: str) -> None:
    """Make a queue that exists, and have the event of it behind us."""
    await asyncio.to_thread(api.enqueue, queue)
    await asyncio.to_thread(api.events)


@pytest.mark.parametrize("path", ["/ojs/v1/ws", "/ws"])
async def test_channels_are_subscribed_to_and_left(api: Api, server: Server, path: str) -> None:
    """Events of a queue, in the shape of section 3.4; none after unsubscribe, and the connection stays."""
    queue = unique_queue()
    await settled(api, queue)
    async with connected(server.url, path, subprotocols=[Subprotocol("ojs.v1")]) as socket:
        assert socket.connection.subprotocol == "ojs.v1"
        await socket.subscribe(f"queue:{queue}")
        job = await asyncio.to_thread(api.enqueue, queue)
        event = await socket.hear()
        assert set(event) == {"type", "channel", "event", "data", "id", "timestamp"}
        assert (event["type"], event["channel"], event["event"]) == ("event", f"queue:{queue}", "job.state_changed")
        assert (event["data"]["job_id"], event["data"]["to"]) == (job["id"], "available")
        told = await socket.ask(action="unsubscribe", channel=f"queue:{queue}")
        assert told == {"type": "unsubscribed", "channel": f"queue:{queue}"}
        await asyncio.to_thread(api.enqueue, queue)
        await asyncio.to_thread(api.events)
        assert await socket.ask(action="ping") == {"type": "pong"}


async def test_one_connection_hears_several_channels_from_another_node() -> None:
    """Of a job, a queue and everything, each under its channel; changes are made at the other node."""
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(Nats())
        first, second = (stack.enter_context(Server(nats_url=nats.url)) for _ in range(2))
        api = stack.enter_context(Api(first.url))
        queue = unique_queue()
        job = api.enqueue(queue)
        api.events()
        async with connected(second.url) as socket:
            for channel in (f"job:{job['id']}", f"queue:{queue}", "all"):
                await socket.subscribe(channel)
            await asyncio.to_thread(api.fetch, queue)
            heard = [await socket.hear() for _ in range(3)]
            assert {one["channel"] for one in heard} == {f"job:{job['id']}", f"queue:{queue}", "all"}
            assert {(one["data"]["job_id"], one["data"]["to"]) for one in heard} == {(job["id"], "active")}


async def test_a_job_that_has_ended_tells_its_state(api: Api, server: Server) -> None:
    """Right behind the acknowledgement."""
    job = await asyncio.to_thread(api.enqueue, unique_queue())
    await asyncio.to_thread(api.cancel, job["id"])
    async with connected(server.url) as socket:
        await socket.subscribe(f"job:{job['id']}")
        assert (await socket.hear())["data"]["to"] == "cancelled"


async def test_filters_are_acknowledged_and_replaced_without_a_gap(api: Api, server: Server) -> None:
    """Only the types asked for (section 5.6); a second subscribe to the channel changes them."""
    queue = unique_queue()
    await settled(api, queue)
    async with connected(server.url) as socket:
        await socket.subscribe(f"queue:{queue}", event_types=["queue.paused"])
        await asyncio.to_thread(api.enqueue, queue)
        await asyncio.to_thread(api.call, "POST", f"/queues/{queue}/pause")
        assert (await socket.hear())["event"] == "queue.paused"
        await socket.subscribe(f"queue:{queue}", event_types=["job.state_changed"])
        job = await asyncio.to_thread(api.enqueue, queue)
        assert (await socket.hear())["data"]["job_id"] == job["id"]
        await asyncio.to_thread(api.call, "POST", f"/queues/{queue}/resume")
        await asyncio.to_thread(api.events)
        assert await socket.ask(action="ping") == {"type": "pong"}


@pytest.mark.parametrize("order", ["resume, subscribe", "subscribe, resume", "subscribe with the id"])
async def test_who_comes_back_misses_nothing(api: Api, server: Server, order: str) -> None:
    """Behind the last id comes what happened meanwhile, once, then what happens (section 5.5.2)."""
    queue = unique_queue()
    channel = f"queue:{queue}"
    await settled(api, queue)
    async with connected(server.url) as socket:
        await socket.subscribe(channel)
        await asyncio.to_thread(api.enqueue, queue)
        last = (await socket.hear())["id"]
    missed = [(await asyncio.to_thread(api.enqueue, queue))["id"] for _ in range(5)]
    await asyncio.to_thread(api.events)
    async with connected(server.url) as socket:
        if order == "subscribe with the id":
            await socket.subscribe(channel, last_event_id=last)
        else:
            known = [] if order.startswith("resume") else [channel]
            if known:
                await socket.subscribe(channel)
            told = await socket.ask(action="resume", last_event_id=last)
            assert told == {"type": "resumed", "last_event_id": last, "channels": known}
            if not known:
                await socket.subscribe(channel)
        then = (await asyncio.to_thread(api.enqueue, queue))["id"]
        assert [(await socket.hear())["data"]["job_id"] for _ in range(6)] == [*missed, then]


async def test_what_is_gone_is_a_gap(fresh_server: Callable[..., Server]) -> None:
    """Events that are kept no longer: `system.gap`, then what happens."""
    server = await asyncio.to_thread(fresh_server, env={"OJS_EVENTS_MAX_AGE": "PT1S"})
    with Api(server.url) as api:
        await settled(api, "q")
        async with connected(server.url) as socket:
            await socket.subscribe("queue:q")
            await asyncio.to_thread(api.enqueue, "q")
            last = (await socket.hear())["id"]
        for _ in range(3):
            await asyncio.to_thread(api.enqueue, "q")
            await asyncio.to_thread(api.events)
        await asyncio.to_thread(poll, lambda: not api.events(), what="the events are gone")
        async with connected(server.url) as socket:
            await socket.subscribe("queue:q", last_event_id=last)
            gap = await socket.hear()
            assert (gap["event"], gap["data"]["channel"]) == ("system.gap", "queue:q")
            job = await asyncio.to_thread(api.enqueue, "q")
            assert (await socket.hear())["data"]["job_id"] == job["id"]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"action": "subscribe", "channel": f"job:{UNKNOWN}"}, "not_found"),
        ({"action": "subscribe", "channel": "job:x"}, "not_found"),
        ({"action": "subscribe", "channel": "queue:nobody-has-it"}, "not_found"),
        ({"action": "subscribe", "channel": "queue:NOT A NAME"}, "invalid_request"),
        ({"action": "subscribe", "channel": "jobs"}, "invalid_request"),
        ({"action": "subscribe", "channel": 5}, "invalid_request"),
        ({"action": "subscribe"}, "invalid_request"),
        ({"action": "subscribe", "channel": "all", "event_types": "x"}, "invalid_request"),
        ({"action": "subscribe", "channel": "all", "event_types": [1]}, "invalid_request"),
        ({"action": "subscribe", "channel": "all", "event_types": ["x"] * 51}, "invalid_request"),
        ({"action": "subscribe", "channel": "all", "last_event_id": "evt_0042"}, "unknown_event_id"),
        ({"action": "unsubscribe", "channel": "all"}, "not_found"),
        ({"action": "unsubscribe", "channel": ["all"]}, "not_found"),
        ({"action": "resume"}, "unknown_event_id"),
        ({"action": "resume", "last_event_id": "evt_0042"}, "unknown_event_id"),
        ({"action": "resume", "last_event_id": "9" * 50}, "unknown_event_id"),
        ({"action": "dance"}, "invalid_request"),
        ({"action": ["subscribe"]}, "invalid_request"),
        ({}, "invalid_request"),
        ([], "invalid_request"),
        ("x", "invalid_request"),
    ],
)
async def test_what_cannot_be_done_is_an_error_message(server: Server, said: Any, code: str) -> None:
    """The connection stays, and nothing is subscribed to."""
    async with connected(server.url) as socket:
        await socket.connection.send(orjson.dumps(said).decode())
        told = await socket.hear()
        assert (told["type"], told["code"]) == ("error", code)
        assert told["message"].endswith((".", ">"))
        assert await socket.ask(action="ping") == {"type": "pong"}


async def test_nonsense(server: Server) -> None:
    """No JSON, in text or binary, is an error; a message that is too long ends the connection."""
    async with connected(server.url) as socket:
        for raw in ("{", "", b"\xff\xfe", "[" * 5000):
            await socket.connection.send(raw)
            assert (await socket.hear())["code"] == "invalid_payload"
        await socket.connection.send(b'{"action":"ping"}')
        assert await socket.hear() == {"type": "pong"}
        await socket.connection.send(" " * (websocket.MESSAGE_BYTES + 1))
        assert await socket.closed() == 1009


async def test_subscriptions_are_bounded(api: Api, server: Server) -> None:
    """So that one connection cannot make the server keep any number of buffers."""
    queues = [unique_queue() for _ in range(websocket.SUBSCRIPTIONS_MAX + 1)]
    await asyncio.to_thread(api.enqueue_batch, [job_request(one) for one in queues])
    await asyncio.to_thread(api.events)
    async with connected(server.url) as socket:
        for one in queues[:-1]:
            await socket.subscribe(f"queue:{one}")
        assert (await socket.ask(action="subscribe", channel=f"queue:{queues[-1]}"))["code"] == "invalid_request"
        await socket.ask(action="unsubscribe", channel=f"queue:{queues[0]}")
        await socket.subscribe(f"queue:{queues[-1]}")


async def test_other_paths_and_plain_http(api: Api, server: Server) -> None:
    """No WebSocket but at its path; its path without an upgrade is an error with a hint."""
    for path in ("/ojs/v1/jobs", "/nowhere"):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(server.url, path):
                pass
        assert refused.value.response.status_code == 404
    reply = await asyncio.to_thread(api.request, "GET", "/ws")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")


# -- who may listen ------------------------------------------------------------------------------


async def refused_with(url: str, **more: Any) -> int:
    """The HTTP status that refuses a handshake."""
    with pytest.raises(InvalidStatus) as refused:
        async with connected(url, **more):
            pass
    response = refused.value.response
    assert orjson.loads(response.body or b"{}")["error"]["code"]
    return response.status_code


async def test_the_key_is_needed_and_must_have_the_scope(tmp_path: Path, fresh_server: Callable[..., Server]) -> None:
    """As a header, or from a browser as a subprotocol; never in the URL."""
    path = tmp_path / "keys.json"
    reader, worker = create_key(path, "reader", Scope.READ), create_key(path, "worker", Scope.WORK)
    server = await asyncio.to_thread(fresh_server, env={"OJS_API_KEYS_FILE": str(path)})

    def bearer(key: str) -> dict[str, Any]:
        return {"additional_headers": {"Authorization": f"Bearer {key}"}}

    def browser(key: str) -> dict[str, Any]:
        name = base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
        return {"subprotocols": ["ojs.v1", f"ojs.bearer.{name}"], "origin": Origin("https://dashboard.example")}

    for make in (bearer, browser):
        assert await refused_with(server.url, **make("wrong")) == 401
        assert await refused_with(server.url, **make(worker)) == 403
        async with connected(server.url, **make(reader)) as socket:
            await socket.subscribe("all")
            assert socket.connection.subprotocol in (None, "ojs.v1")
    assert await refused_with(server.url) == 401
    assert await refused_with(server.url, path=f"/ojs/v1/ws?key={reader}&api_key={reader}") == 401
    assert await refused_with(server.url, subprotocols=["ojs.bearer.!"]) == 401
    assert reader not in server.log()


async def test_without_keys_no_foreign_page_gets_in(server: Server) -> None:
    """A page that somebody on this machine visits could read along otherwise (section 6)."""
    assert await refused_with(server.url, origin=Origin("https://evil.example")) == 403
    assert await refused_with(server.url, origin=Origin("null")) == 403
    async with connected(server.url, origin=Origin(server.url)) as socket:
        assert await socket.ask(action="ping") == {"type": "pong"}


# -- the end -------------------------------------------------------------------------------------


async def test_the_end_of_the_server_is_told(fresh_server: Callable[..., Server]) -> None:
    """`server.shutdown` once, then 1001, with any number of subscriptions; the server stops without waiting."""
    server = await asyncio.to_thread(fresh_server)
    async with connected(server.url) as none, connected(server.url) as many:
        await many.subscribe("all")
        with Api(server.url) as api:
            await settled(api, "q")
        assert (await many.hear())["event"] == "job.state_changed"
        await many.subscribe("queue:q")
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        for socket in (none, many):
            goodbye = await socket.hear()
            assert (goodbye["event"], goodbye["data"]["grace_period_ms"]) == ("server.shutdown", live.GRACE_MS)
            assert await socket.closed() == 1001
        async with asyncio.timeout(10):
            await stopping


async def test_a_client_that_goes_is_forgotten(fresh_server: Callable[..., Server]) -> None:
    """With a close, or without a word."""
    server = await asyncio.to_thread(fresh_server)
    with Api(server.url) as api:
        await settled(api, "q")
    async with connected(server.url) as polite, connected(server.url) as rude:
        for socket in (polite, rude):
            await socket.subscribe("all")
            await socket.subscribe("queue:q")
        assert await asyncio.to_thread(listeners, server.url) == 4
        await polite.connection.close()
        await asyncio.to_thread(poll, lambda: listeners(server.url) == 2, what="the polite one is forgotten")
        rude.connection.transport.abort()
        await asyncio.to_thread(poll, lambda: listeners(server.url) == 0, what="the rude one is forgotten")


async def test_a_slow_client_loses_the_oldest_and_the_server_stops_in_time(
    fresh_server: Callable[..., Server],
) -> None:
    """What it does not read is buffered up to a bound; then it is warned. Another client hears everything."""
    server = await asyncio.to_thread(fresh_server)
    with Api(server.url) as api:
        await settled(api, "q")
        kind = "x" * 240  # fills the buffers between the two sooner
        async with connected(server.url, max_queue=1) as slow, connected(server.url) as quick:
            await slow.subscribe("all")
            await quick.subscribe("all", event_types=["queue.paused"])
            for _ in range(30):
                await asyncio.to_thread(api.enqueue_batch, [job_request("q", kind=kind)] * 1000)
            await asyncio.to_thread(api.call, "POST", "/queues/q/pause")
            assert (await quick.hear())["event"] == "queue.paused"
            heard: list[Message] = []
            while not heard or heard[-1]["type"] != "warning":
                heard.append(await slow.hear())
            warning, told = heard[-1], await slow.hear()
            assert (warning["code"], told["event"]) == ("events_dropped", "system.events_dropped")
            assert warning["count"] == told["data"]["dropped_count"] > 0
            last = told
            while last.get("event") != "queue.paused":
                last = await slow.hear()
            # Again full, and nobody reads: the server stops all the same.
            for _ in range(15):
                await asyncio.to_thread(api.enqueue_batch, [job_request("q", kind=kind)] * 1000)
            async with asyncio.timeout(25):
                await asyncio.to_thread(server.stop)


async def test_a_quiet_connection_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message now and then, though nothing happens."""
    monkeypatch.setattr(websocket, "HEARTBEAT_S", 0.01)
    said: list[Message] = []
    heard = asyncio.Event()

    async def receive() -> Message:
        await heard.wait()
        return {"type": "websocket.disconnect"}

    async def send(message: Message) -> None:
        said.append(orjson.loads(message["text"]))
        if len(said) == 2:
            heard.set()

    class Quiet:
        ended = asyncio.Event()

    await websocket.Session(Quiet(), None, receive, send).run()  # type: ignore[arg-type]
    assert [one["type"] for one in said] == ["heartbeat", "heartbeat"]
