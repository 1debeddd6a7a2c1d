"""The event log: stream `OJS_EVENTS`, written without waiting, read by `GET /events`.

Events of one type that happen within a moment share a message, a JSON array: the cost per job is the bytes,
not a message. Best effort by design: an event is lost when the node or NATS dies right after the change.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection

READ_AT_ONCE = 200
# Keep a message well below the 1 MB that NATS allows by default.
EVENTS_PER_MESSAGE = 1000
MESSAGE_BYTES = 512 * 1024
# Each message costs NATS a write of its own, so at a few thousand jobs/s a tick of the event loop is too short.
GATHER_S = 0.02


class _Group:
    # What becomes one message.
    __slots__ = ("event_type", "events", "size")

    def __init__(self, event_type: str) -> None:
        self.event_type = event_type
        self.events: list[bytes] = []
        self.size = 0

    def add(self, event: bytes) -> None:
        self.events.append(event)
        self.size += len(event) + 1


class EventLog:
    """Append events, read them back in order."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending: list[_Group] = []
        # Event type → where it gathers; subject → behind which group its next event must not come before.
        self._open: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def append(self, event_type: str, subject: str, event: bytes) -> None:
        """Queue one event (a JSON object); it leaves within GATHER_S.

        Events of one subject keep their order (ojs-events section 5.2), those of different ones need not.
        """
        if not self._pending:
            asyncio.get_running_loop().call_later(GATHER_S, self.flush)
        place = self._open.get(event_type, -1)
        if (
            place < self._last.get(subject, 0)
            or len(self._pending[place].events) == EVENTS_PER_MESSAGE
            or self._pending[place].size + len(event) > MESSAGE_BYTES
        ):
            place = self._open[event_type] = len(self._pending)
            self._pending.append(_Group(event_type))
        self._last[subject] = place
        self._pending[place].add(event)

    def flush(self) -> None:
        """Send what is queued."""
        for subject, payload in self._take():
            self._connection.send(subject, payload)

    def _take(self) -> Iterator[tuple[str, bytes]]:
        groups = self._pending
        self._pending, self._open, self._last = [], {}, {}
        for group in groups:
            yield f"ojs.events.{group.event_type}", b"[" + b",".join(group.events) + b"]"

    async def read(self, after: int, types: list[str], start_time: str = "") -> list[tuple[int, list[dict[str, Any]]]]:
        """One page of messages behind sequence `after`: `[(sequence, events)]`. Raises Unavailable.

        With `start_time` (RFC 3339) the page starts there instead. Whoever reads sees what this node
        announced before.
        """
        await asyncio.gather(*[self._connection.write(subject, payload) for subject, payload in self._take()])
        subject = f"ojs.events.{types[0]}" if len(types) == 1 else "ojs.events.>"
        query: dict[str, Any] = {"next_by_subj": subject, "batch": READ_AT_ONCE}
        query |= {"start_time": start_time} if start_time else {"seq": after + 1}
        return list(self._decode(await self._connection.get_batch(names.EVENT_STREAM, query)))

    async def read_raw(self, after: int) -> list[tuple[int, bytes]]:
        """One page of messages behind sequence `after` as they lie there: `[(sequence, payload)]`.

        Raises Unavailable.
        """
        query = {"next_by_subj": "ojs.events.>", "seq": after + 1, "batch": READ_AT_ONCE}
        return [(m.sequence, m.data) for m in await self._connection.get_batch(names.EVENT_STREAM, query)]

    async def first_sequence(self) -> int:
        """The sequence of the oldest message that is kept. Raises Unavailable."""
        return int((await self._connection.stream_info(names.EVENT_STREAM))["state"]["first_seq"])

    def _decode(self, batch: list[_core.WireMessage]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        for message in batch:
            try:
                events = orjson.loads(message.data)
            except orjson.JSONDecodeError:
                events = []
            # Whatever is none of ours keeps its place: cursors count.
            yield (
                message.sequence,
                [one if _is_event(one) else {} for one in events] if isinstance(events, list) else [],
            )


def _is_event(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("data"), dict)
