"""Server-sent events: GET /jobs/{id}/events, /queues/{name}/events, /events/stream (ojs-realtime section 2)."""

from collections.abc import AsyncGenerator

import orjson

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.live import ALL, LiveEvent, LiveEvents, state_now
from ojs_fast.core.queue_admin import QueueAdmin
from ojs_fast.core.refusals import refused
from ojs_fast.errors import InvalidRequest

EVENT_STREAM = b"text/event-stream"
HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
RETRY = b"retry: 3000\n\n"
HEARTBEAT = b":heartbeat\n\n"


class LiveHandlers:
    """Streams that end when the client goes or the server stops."""

    def __init__(self, live: LiveEvents, jobs: Jobs, queue_admin: QueueAdmin) -> None:
        self._live = live
        self._jobs = jobs
        self._queue_admin = queue_admin

    async def of_job(self, request: Request) -> Reply:
        """GET /jobs/{id}/events; a job that has ended tells its state once."""
        return await self._job(request, request.params["id"])

    async def of_queue(self, request: Request) -> Reply:
        """GET /queues/{name}/events."""
        return await self._queue(request, request.params["name"])

    async def of_channel(self, request: Request) -> Reply:
        """GET /events/stream?channel=job:ID or queue:NAME, without a channel everything (EXTENSIONS 2.2)."""
        kind, _, name = request.query("channel").partition(":")
        if kind == "job" and name:
            return await self._job(request, name)
        if kind == "queue" and name:
            return await self._queue(request, name)
        if request.query("channel") not in ("", ALL):
            shown = request.query("channel")[:60]
            raise InvalidRequest(
                f"Parameter 'channel' is '{shown}'; expected job:<id>, queue:<name> or all.",
                details={"field": "channel", "received": shown, "expected": "job:<id>, queue:<name> or all"},
            )
        return self._stream(*await self._begin(request, ALL))

    async def _job(self, request: Request, job_id: str) -> Reply:
        await self._jobs.load(job_id)
        groups, first = await self._begin(request, f"job:{job_id}")
        record, _, _ = await self._jobs.load(job_id)
        if not _core.is_terminal(record.state):
            return self._stream(groups, first, ends_with_job=True)
        await groups.aclose()
        return Reply(200, RETRY + _encode(state_now(record)), HEADERS, content_type=EVENT_STREAM)

    async def _queue(self, request: Request, name: str) -> Reply:
        try:
            _core.check_queue_name(name, "name")
        except ValueError as error:
            raise refused(error) from None
        await self._queue_admin.find(name)
        return self._stream(*await self._begin(request, f"queue:{name}"))

    async def _begin(self, request: Request, channel: str) -> tuple[AsyncGenerator[list[LiveEvent]], list[LiveEvent]]:
        types = frozenset(request.query_list("event_types") or request.query_list("types"))
        after = request.headers.get(b"last-event-id", b"").decode("latin-1") or request.query("last_event_id")
        groups = self._live.listen(channel, types, after)
        return groups, await anext(groups)  # here trouble still becomes an error reply

    def _stream(
        self, groups: AsyncGenerator[list[LiveEvent]], first: list[LiveEvent], *, ends_with_job: bool = False
    ) -> Reply:
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
