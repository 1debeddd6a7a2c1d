"""Server-sent events: GET /jobs/{id}/events, /queues/{name}/events, /events/stream (ojs-realtime section 2)."""

from collections.abc import AsyncGenerator

import orjson

from ojs_fast import _core
from ojs_fast.api.channels import Channels
from ojs_fast.api.http import Reply, Request
from ojs_fast.core.live import LiveEvent, LiveEvents

EVENT_STREAM = b"text/event-stream"
HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
RETRY = b"retry: 3000\n\n"
HEARTBEAT = b":heartbeat\n\n"


class LiveHandlers:
    """Streams that end when the client goes or the server stops."""

    def __init__(self, live: LiveEvents, channels: Channels) -> None:
        self._live = live
        self._channels = channels

    async def of_job(self, request: Request) -> Reply:
        """GET /jobs/{id}/events; a job that has ended tells its state once."""
        return await self._listen(request, f"job:{request.params['id']}")

    async def of_queue(self, request: Request) -> Reply:
        """GET /queues/{name}/events."""
        return await self._listen(request, f"queue:{request.params['name']}")

    async def of_channel(self, request: Request) -> Reply:
        """GET /events/stream?channel=job:ID or queue:NAME, without a channel everything (EXTENSIONS 2.2)."""
        return await self._listen(request, request.query("channel"))

    async def _listen(self, request: Request, asked: str) -> Reply:
        channel = await self._channels.check(asked)
        types = frozenset(request.query_list("event_types") or request.query_list("types"))
        after = request.headers.get(b"last-event-id", b"").decode("latin-1") or request.query("last_event_id")
        groups = self._live.listen(channel, types, after)
        first = await anext(groups)  # here trouble still becomes an error reply
        last = await self._channels.last_event(channel)
        if last is None:
            return self._stream(groups, first, ends_with_job=channel.startswith("job:"))
        await groups.aclose()
        return Reply(200, RETRY + _encode(last), HEADERS, content_type=EVENT_STREAM)

    def _stream(self, groups: AsyncGenerator[list[LiveEvent]], first: list[LiveEvent], *, ends_with_job: bool) -> Reply:
        async def chunks() -> AsyncGenerator[bytes]:
            try:
                yield RETRY + b"".join(map(_encode, first))
                async for events in groups:
                    yield b"".join(map(_encode, events)) or HEARTBEAT
                    if ends_with_job and any(_ends(event) for event in events):
                        return
            finally:
                await groups.aclose()

        return Reply(200, b"", HEADERS, content_type=EVENT_STREAM, stream=chunks())


def _ends(event: LiveEvent) -> bool:
    return event.data.get("to") in _core.TERMINAL_STATES


def _encode(event: LiveEvent) -> bytes:
    head = b":events-dropped %d\n\n" % event.data["dropped_count"] if event.type == "system.events_dropped" else b""
    return b"%sid: %s\nevent: %s\ndata: %s\n\n" % (
        head, event.id.encode(), event.type.encode(), orjson.dumps(event.data),
    )  # fmt: skip
