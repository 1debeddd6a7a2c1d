"""WebSocket `/ojs/v1/ws`: live events of channels that the client chooses as it goes (ojs-realtime section 3).

One task reads what the client says, one for each subscription sends; a client that is too slow loses the oldest events,
as with server-sent events. Granian answers pings of the client; an application cannot send any (ASGI), so the sign of
life is a message.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from ojs_fast import _core
from ojs_fast.api.channels import Channels
from ojs_fast.api.http import V1, Gate, Receive, Reply, Request, error_reply, reply_headers
from ojs_fast.api.keys import Scope
from ojs_fast.core.clock import now_ms
from ojs_fast.core.live import GOODBYE, GRACE_MS, HEARTBEAT_S, LiveEvent, LiveEvents, Position, parse_id
from ojs_fast.errors import BackendUnavailable, Forbidden, InvalidRequest, NotFound, OJSError, invalid_field
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

PATHS = (V1 + "/ws", "/ws")
PROTOCOL = "ojs.v1"
#: A browser cannot send headers: it names the key, in base64url, as one more subprotocol.
KEY_PROTOCOL = "ojs.bearer."
SOCKETS_MAX = 10_000
SUBSCRIPTIONS_MAX = 20
EVENT_TYPES_MAX = 50
MESSAGE_BYTES = 16 * 1024
#: A client that takes nothing for so long is given up.
SEND_S = 20.0
#: For Granian to take note that a connection has ended.
CLOSED_S = 0.05

GOING_AWAY, POLICY, TOO_BIG, TROUBLE = 1001, 1008, 1009, 1011

Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Over(Exception):
    """The connection is to be closed with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class SocketHandlers:
    """Lets clients in and runs their sessions."""

    def __init__(self, gate: Gate, live: LiveEvents, channels: Channels, scope: Scope) -> None:
        self._gate = gate
        self._live = live
        self._channels = channels
        self._scope = scope
        self._sessions: set[asyncio.Task[Any]] = set()
        self._none = asyncio.Event()

    @property
    def count(self) -> int:
        """How many are connected."""
        return len(self._sessions)

    async def gone(self) -> None:
        """Wait until every session has ended, which the end of the live events makes them do; cancel the last ones."""
        for limit_s in (2 * GRACE_MS / 1000, 1.0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    while self._sessions:
                        self._none.clear()
                        await self._none.wait()
            for one in self._sessions:
                one.cancel()
        await asyncio.sleep(CLOSED_S)

    async def without_upgrade(self, request: Request) -> Reply:
        """GET /ws as plain HTTP."""
        raise InvalidRequest(
            "This endpoint speaks WebSocket; expected a request with 'Upgrade: websocket'.",
            hint="GET /ojs/v1/events/stream gives the same events as server-sent events.",
        )

    async def serve(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection from handshake to close."""
        await receive()  # websocket.connect
        request = Request(scope, receive)
        offered = [str(one) for one in scope.get("subprotocols") or ()]
        try:
            self._admit(scope, request, offered)
        except OJSError as error:
            await _refuse(error, request, scope, send)
            return
        accepted = PROTOCOL if PROTOCOL in offered else None
        await send({"type": "websocket.accept", "subprotocol": accepted, "headers": []})
        session = asyncio.create_task(Session(self._live, self._channels, receive, send).run())
        self._sessions.add(session)
        try:
            await asyncio.wait((session,))
        finally:
            self._sessions.discard(session)
            self._none.set()

    def _admit(self, scope: dict[str, Any], request: Request, offered: list[str]) -> None:
        if scope["path"] not in PATHS:
            raise NotFound(f"There is no WebSocket at {scope['path'][:200]}; expected {PATHS[0]}.")
        if b"authorization" not in request.headers:
            key = next((one.removeprefix(KEY_PROTOCOL) for one in offered if one.startswith(KEY_PROTOCOL)), "")
            with contextlib.suppress(binascii.Error, ValueError):
                request.headers[b"authorization"] = b"Bearer " + base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
        self._gate.admit(request, self._scope)
        origin = request.headers.get(b"origin")
        # With keys no foreign page gets in. Without, a page that somebody visits here must not read along.
        if self._gate.is_open and origin is not None:
            host = request.headers.get(b"host", b"").decode("latin-1")
            if urlsplit(origin.decode("latin-1")).netloc != host:
                raise Forbidden("Pages of other origins may not connect to a server without API keys.")
        if self._live.ended.is_set() or self.count >= SOCKETS_MAX:
            raise BackendUnavailable("This server takes no further connections; try another one, or later.")


async def _refuse(error: OJSError, request: Request, scope: dict[str, Any], send: Send) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": POLICY})
        return
    reply = error_reply(error, request)
    headers = reply_headers(request, reply)
    await send({"type": "websocket.http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": reply.body})


@dataclass(slots=True)
class _Subscription:
    channel: str
    event_types: list[str] | None
    groups: AsyncGenerator[list[LiveEvent]]
    sent: Position = (0, 0)
    task: "asyncio.Task[None] | None" = None

    @property
    def facts(self) -> dict[str, Any]:
        """What acknowledgements tell of it."""
        return {"channel": self.channel} | ({} if self.event_types is None else {"event_types": self.event_types})


@dataclass(slots=True)
class Session:
    """One connection."""

    live: LiveEvents
    channels: Channels
    receive: Receive
    send: Send
    _subscriptions: dict[str, _Subscription] = field(default_factory=dict)
    _sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    _trouble: asyncio.Queue[_Over] = field(default_factory=asyncio.Queue)
    _after: str = ""

    async def run(self) -> None:
        """Serve until the client goes, breaks a rule, or the server stops."""
        over = _Over(GOING_AWAY, "")
        try:
            await self._serve()
        except _Over as error:
            over = error
        except Exception:
            log.exception("unexpected error")
            over = _Over(TROUBLE, "unexpected server error")
        finally:
            await self._end_all()
        if over.code:
            with contextlib.suppress(TimeoutError, RuntimeError, OSError):  # it may be gone
                async with asyncio.timeout(GRACE_MS / 1000):
                    await self.send({"type": "websocket.close", "code": over.code, "reason": over.reason})

    async def _serve(self) -> None:
        heard, ending = asyncio.create_task(self._next()), asyncio.create_task(self.live.ended.wait())
        trouble = asyncio.create_task(self._trouble.get())
        try:
            while True:
                await asyncio.wait((heard, ending, trouble), timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
                if trouble.done():
                    raise trouble.result()
                if ending.done():
                    await self._say_goodbye()
                    raise _Over(GOING_AWAY, "the server stops")
                if not heard.done():
                    if not self._sending.locked():  # else the client hears something anyway
                        await self._say({"type": "heartbeat", "timestamp": _core.format_rfc3339_ms(now_ms())})
                    continue
                message = heard.result()
                if message["type"] == "websocket.disconnect":
                    raise _Over(0, "the client left")
                await self._hear(message)
                heard = asyncio.create_task(self._next())
        finally:
            for one in (heard, ending, trouble):
                one.cancel()
            await asyncio.gather(heard, ending, trouble, return_exceptions=True)

    async def _next(self) -> dict[str, Any]:
        # A task of its own: Granian can only close once it no longer receives, and what it gives is no real future.
        return await self.receive()

    async def _say_goodbye(self) -> None:
        # Behind what came before: every listener has ended.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_MS / 1000):
                await asyncio.gather(*(one.task for one in self._subscriptions.values() if one.task))
                await self._say(_message("all", GOODBYE))

    # -- what the client says --------------------------------------------------------------------

    async def _hear(self, message: dict[str, Any]) -> None:
        raw = message.get("text") or message.get("bytes") or ""
        if len(raw) > MESSAGE_BYTES:
            raise _Over(TOO_BIG, f"a message may have {MESSAGE_BYTES} bytes")
        said: dict[str, Any] = {}
        try:
            parsed = orjson.loads(raw)
            said = parsed if isinstance(parsed, dict) else {}
            action = said.get("action")
            acts = {"subscribe": self._subscribe, "unsubscribe": self._unsubscribe, "resume": self._resume}
            act = acts.get(action) if isinstance(action, str) else None
            if action == "ping":
                await self._say({"type": "pong"})
            elif act is None:
                raise invalid_field("action", action, "subscribe, unsubscribe, resume or ping")
            else:
                await act(said)
        except orjson.JSONDecodeError:
            await self._refuse("invalid_payload", "The message is not valid JSON.")
        except OJSError as error:
            await self._refuse(error.code, error.message, said.get("channel"))
        except Unavailable:
            await self._refuse("backend_error", "The backend is not available; try again shortly.")

    async def _refuse(self, code: str, message: str, channel: object = None) -> None:
        about = {"channel": channel[:200]} if isinstance(channel, str) else {}
        await self._say({"type": "error", "code": code, "message": message, **about})

    async def _subscribe(self, said: dict[str, Any]) -> None:
        channel = await self.channels.check(said.get("channel"))
        types = said.get("event_types")
        if types is not None and not (
            isinstance(types, list) and len(types) <= EVENT_TYPES_MAX and all(isinstance(one, str) for one in types)
        ):
            raise invalid_field("event_types", types, f"a list of at most {EVENT_TYPES_MAX} event types")
        before = self._subscriptions.get(channel)
        if before is None and len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise InvalidRequest(f"This connection has {SUBSCRIPTIONS_MAX} subscriptions; no more are possible.")
        after = said.get("last_event_id") or self._after
        if before is not None and not after and before.sent != (0, 0):
            after = f"{before.sent[0]}.{before.sent[1]}"  # only the filter changes: nothing in between is lost
        await self._start(channel, types, self._checked(after) if after else "", tell="subscribed")

    async def _start(self, channel: str, types: list[str] | None, after: str, *, tell: str = "") -> None:
        groups = self.live.listen(channel, frozenset(types or ()), after)
        first = await anext(groups)
        await self._stop(channel)
        subscription = self._subscriptions[channel] = _Subscription(channel, types, groups)
        if tell:
            await self._say({"type": tell, **subscription.facts})
        last = await self.channels.last_event(channel)
        await self._send_group(subscription, [*first, *([last] if last and not after else [])])
        subscription.task = asyncio.create_task(self._pump(subscription))

    async def _unsubscribe(self, said: dict[str, Any]) -> None:
        channel = said.get("channel")
        if not isinstance(channel, str) or channel not in self._subscriptions:
            raise NotFound("This connection has no subscription to that channel.")
        await self._stop(channel)
        await self._say({"type": "unsubscribed", "channel": channel})

    async def _resume(self, said: dict[str, Any]) -> None:
        after = self._checked(said.get("last_event_id"))
        # Nothing is known of an earlier connection: what this one subscribes to, before or after, goes on from there.
        self._after = after
        await self._say({"type": "resumed", "last_event_id": after, "channels": list(self._subscriptions)})
        for subscription in list(self._subscriptions.values()):
            await self._start(subscription.channel, subscription.event_types, after)

    def _checked(self, after: object) -> str:
        if not isinstance(after, str) or parse_id(after) is None:
            raise UnknownEventId("Event ID not found in buffer. Perform a full state sync.")
        return after

    # -- what the server says --------------------------------------------------------------------

    async def _pump(self, subscription: _Subscription) -> None:
        try:
            async for events in subscription.groups:
                await self._send_group(subscription, events)
        except _Over as error:
            self._trouble.put_nowait(error)
        except Unavailable as error:
            self._trouble.put_nowait(_Over(TROUBLE, str(error)[:100]))
        finally:
            await subscription.groups.aclose()

    async def _send_group(self, subscription: _Subscription, events: list[LiveEvent]) -> None:
        for event in events:
            if event is GOODBYE:
                continue  # said once for all subscriptions
            if event.type == "system.events_dropped":
                names = ("channel", "oldest_dropped_id", "newest_dropped_id")
                lost = {name: event.data[name] for name in names}
                await self._say(
                    {"type": "warning", "code": "events_dropped", "count": event.data["dropped_count"], **lost}
                )
            await self._say(_message(subscription.channel, event))
            subscription.sent = max(subscription.sent, event.position)

    async def _say(self, message: dict[str, Any]) -> None:
        """Send one message. Raises _Over when the client does not take it."""
        async with self._sending:
            if not self._trouble.empty():
                raise _Over(POLICY, "the client reads nothing")
            try:
                async with asyncio.timeout(SEND_S):
                    await self.send({"type": "websocket.send", "text": orjson.dumps(message).decode()})
            except TimeoutError:
                raise _Over(POLICY, "the client reads nothing") from None
            except (RuntimeError, OSError):  # Granian's way to say that the connection is closed
                raise _Over(0, "the client left") from None

    async def _stop(self, channel: str) -> None:
        subscription = self._subscriptions.pop(channel, None)
        if subscription is None:
            return
        if subscription.task is not None:
            subscription.task.cancel()
            await asyncio.gather(subscription.task, return_exceptions=True)
        await subscription.groups.aclose()

    async def _end_all(self) -> None:
        for channel in list(self._subscriptions):
            await self._stop(channel)


class UnknownEventId(OJSError):
    """An id that this server never gave (ojs-realtime section 5.5.2)."""

    code = "unknown_event_id"


def _message(channel: str, event: LiveEvent) -> dict[str, Any]:
    return {
        "type": "event",
        "channel": channel,
        "event": event.type,
        "data": event.data,
        "id": event.id,
        "timestamp": event.data.get("timestamp") or _core.format_rfc3339_ms(now_ms()),
    }
