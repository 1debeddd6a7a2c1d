"""Live events (ojs-realtime): who listens to which channel, replay, slow listeners.

Channels are `job:<id>`, `queue:<name>` and `all`. Every node follows the event stream while anybody listens at it, so
it does not matter where a change was made. An event's id is `<sequence>.<number>` in that stream: it grows, and a
listener that comes back says how far it got.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.errors import BackendUnavailable
from ojs_fast.storage.event_feed import EventFeed
from ojs_fast.storage.event_log import EventLog

log = logging.getLogger(__name__)

ALL = "all"
BUFFER_EVENTS = 1000
LISTENERS_MAX = 20_000
HEARTBEAT_S = 15.0
GRACE_MS = 5000
STATE_CHANGED = "job.state_changed"
# What a job was before, where the event does not tell.
_BEFORE = {"job.started": "available", "job.completed": "active", "job.retrying": "active", "job.discarded": "active"}
_CHANGES = frozenset({*_BEFORE, "job.enqueued", "job.scheduled", "job.cancelled", "job.expired"})

Position = tuple[int, int]


@dataclass(slots=True, frozen=True)
class LiveEvent:
    """One event as listeners get it. `position` 0.0: it tells about the connection and has no place in the stream."""

    type: str
    data: dict[str, Any]
    position: Position = (0, 0)

    @property
    def id(self) -> str:
        """What a listener that comes back names."""
        return f"{self.position[0]}.{self.position[1]}"


GOODBYE = LiveEvent("server.shutdown", {"reason": "shutdown", "grace_period_ms": GRACE_MS})


class Listener:
    """One client's events, waiting to be sent; the oldest go first when it is too slow."""

    def __init__(self, channel: str, event_types: frozenset[str]) -> None:
        self.channel = channel
        self._types = event_types
        self._events: deque[LiveEvent] = deque()
        self._dropped: list[LiveEvent] = []
        self._dropped_count = 0
        self._wake = asyncio.Event()
        self._is_closed = False

    def offer(self, event: LiveEvent) -> None:
        """Queue an event unless the client did not ask for its type."""
        if self._types and event.type not in self._types:
            return
        if len(self._events) >= BUFFER_EVENTS:
            oldest = self._events.popleft()
            self._dropped_count += 1
            self._dropped = [self._dropped[0] if self._dropped else oldest, oldest]
        self._events.append(event)
        self._wake.set()

    def close(self) -> None:
        """End the stream behind what is queued."""
        self._is_closed = True
        self._wake.set()

    async def take(self, now_ms: int) -> list[LiveEvent] | None:
        """What came since the last call, an empty list when nothing came for HEARTBEAT_S, None at the end."""
        if not self._events and not self._is_closed:
            self._wake.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                return []
        if not self._events:
            return None
        events, self._events = list(self._events), deque()
        if self._dropped_count:
            events.insert(0, self._loss(now_ms))
        return events

    def _loss(self, now_ms: int) -> LiveEvent:
        first, last = self._dropped
        data = {
            "channel": self.channel,
            "dropped_count": self._dropped_count,
            "oldest_dropped_id": first.id,
            "newest_dropped_id": last.id,
            "timestamp": _core.format_rfc3339_ms(now_ms),
        }
        self._dropped, self._dropped_count = [], 0
        return LiveEvent("system.events_dropped", data, last.position)


class LiveEvents:
    """All listeners of this node."""

    def __init__(
        self, event_log: EventLog, make_feed: Callable[[Callable[[int, bytes], None]], EventFeed], clock: NowMs
    ) -> None:
        self._log = event_log
        self._feed = make_feed(self._received)
        self._clock = clock
        self._listeners: dict[str, set[Listener]] = {}
        self._opening = asyncio.Lock()
        #: set once the server stops
        self.ended = asyncio.Event()

    @property
    def count(self) -> int:
        """How many listen."""
        return sum(map(len, self._listeners.values()))

    def end(self) -> None:
        """Tell every listener that the server goes, and end its stream."""
        self.ended.set()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.offer(GOODBYE)
                listener.close()

    async def close(self) -> None:
        """Follow the event stream no longer."""
        self.end()
        await self._feed.close()

    async def listen(self, channel: str, event_types: frozenset[str], after: str) -> AsyncGenerator[list[LiveEvent]]:
        """Events of a channel in groups, an empty one as a sign of life; behind the id `after` unless "".

        Ends when the server stops. Raises BackendUnavailable, Unavailable before the first group.
        """
        listener = await self._register(channel, event_types)
        try:
            position = (0, 0)
            if after:
                async for event in self._replayed(after, channel):
                    position = max(position, event.position)
                    if not event_types or event.type in event_types or event.type == "system.gap":
                        yield [event]
            yield []
            while (events := await listener.take(self._clock())) is not None:
                yield [event for event in events if event.position > position or event.position == (0, 0)]
        finally:
            await self._unregister(listener)

    async def _register(self, channel: str, event_types: frozenset[str]) -> Listener:
        if self.ended.is_set() or self.count >= LISTENERS_MAX:
            raise BackendUnavailable("This server takes no further listeners; try another one, or later.")
        listener = Listener(channel, event_types)
        self._listeners.setdefault(channel, set()).add(listener)
        try:
            async with self._opening:
                if not self._feed.is_open:
                    await self._feed.open()
        except BaseException:
            await self._unregister(listener)
            raise
        return listener

    async def _unregister(self, listener: Listener) -> None:
        listeners = self._listeners.get(listener.channel, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(listener.channel, None)
        if not self._listeners:
            async with self._opening:
                if not self._listeners:
                    await self._feed.close()

    def _received(self, sequence: int, payload: bytes) -> None:
        for event, channels in _events(sequence, payload, self._listeners):
            for channel in channels:
                for listener in self._listeners[channel]:
                    listener.offer(event)

    async def _replayed(self, after: str, channel: str) -> AsyncIterator[LiveEvent]:
        asked = parse_id(after)
        first = await self._log.first_sequence()
        if asked is None or asked[0] < first - 1:
            now = _core.format_rfc3339_ms(self._clock())
            yield LiveEvent("system.gap", {"channel": channel, "gap_start": None, "gap_end": now}, (first - 1, 0))
            return
        sequence, number = asked
        sequence -= 1 if number else 0  # the message that the client had begun
        while page := await self._log.read_raw(sequence):
            for sequence, payload in page:
                for event, _ in _events(sequence, payload, {channel}):
                    if event.position > asked:
                        yield event


def parse_id(text: str) -> Position | None:
    """The place that an event's id names; None for one that is not ours."""
    sequence, _, number = text.partition(".")
    if sequence.isdigit() and number.isdigit() and len(text) < 40 and text.isascii():
        return int(sequence), int(number)
    return None


def _events(sequence: int, payload: bytes, wanted: Container[str]) -> Iterator[tuple[LiveEvent, list[str]]]:
    """The events of a message that have any of the wanted channels, with those that they have."""
    try:
        envelopes = orjson.loads(payload)
    except orjson.JSONDecodeError:  # not one of ours
        return
    for number, envelope in enumerate(envelopes if isinstance(envelopes, list) else [], 1):
        try:
            data = envelope["data"]
            named = (ALL, f"queue:{data['queue']}" if "queue" in data else "", f"job:{data.get('job_id')}")
            channels = [channel for channel in named if channel in wanted]
            if not channels:
                continue
            event = _live(envelope["type"], data, (sequence, number))
        except (KeyError, TypeError):  # not one of ours
            continue
        yield event, channels


def _live(event_type: str, data: dict[str, Any], position: Position) -> LiveEvent:
    if event_type not in _CHANGES:
        return LiveEvent(event_type, data, position)
    before = data.get("previous_state") or _BEFORE.get(event_type)
    change = {
        "job_id": data["job_id"],
        "queue": data["queue"],
        "type": data["type"],
        "from": before,
        "to": data["state"],
        "event": event_type,
        "attempt": data.get("attempt"),
        "timestamp": data["timestamp"],
    }
    return LiveEvent(STATE_CHANGED, change, position)


def state_now(record: _core.Record) -> LiveEvent:
    """What a listener of a job that has ended gets instead of a stream (ojs-realtime section 2.1)."""
    data = {
        "job_id": record.id,
        "queue": record.queue,
        "type": record.type,
        "from": "active" if record.started_ms else None,
        "to": record.state,
        "attempt": record.attempt,
        "timestamp": _core.format_rfc3339_ms(record.ended_ms),
    }
    return LiveEvent(STATE_CHANGED, data)
