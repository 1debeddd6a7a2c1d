"""Looks at new consumers again: nats-server may count one message too few, and then hides it.

When a message is deleted while a consumer is made, nats-server (2.15.1) subtracts it twice from what is pending. A pull
with `no_wait` goes by that number, so the last message would stay where it is, unseen, until another one comes
(docs/design.md). So a moment later each new consumer is compared with its stream, and made anew if it is short.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ojs_fast.forever import forever
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

# Whatever was being deleted when the consumer was made is gone by then.
SETTLED_S = 1.0
# Numbers of different servers are compared only when they stand still for so many looks.
LOOKS = 3
PAUSE_S = 0.2
# A consumer that is in use hides nothing while it is; it is looked at again.
AGAIN_S = 5.0
# Beyond every subject: NATS then tells only how many there are.
NO_LIST = 2**31


class Recounts:
    """The consumers of this node that were made lately."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._made: dict[tuple[str, str], tuple[str, Callable[[], None]]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Start to look."""
        self._task = asyncio.create_task(forever(self._loop))

    async def close(self) -> None:
        """Stop looking."""
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def made(self, stream: str, consumer: str, subject: str, removed: Callable[[], None]) -> None:
        """A consumer of this subject (or wildcard, with one message per subject) was made or found.

        `removed` is called when it was removed again because it was short: the next use makes it anew.
        """
        self._made[stream, consumer] = (subject, removed)
        self._wake.set()

    async def _loop(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(SETTLED_S)
            self._wake.clear()
            made, self._made = self._made, {}
            busy: dict[tuple[str, str], tuple[str, Callable[[], None]]] = {}
            for place, (subject, removed) in made.items():
                try:
                    missing = await self._missing(*place, subject)
                    if missing is None:
                        busy[place] = (subject, removed)
                    elif missing > 0:
                        log.warning(
                            "consumer %s of %s counts %d messages too few and is made anew", *reversed(place), missing
                        )
                        await self._connection.api("CONSUMER.DELETE." + ".".join(place))
                        removed()
                except Unavailable as error:
                    # Whoever uses it after a cut makes it again, and it comes here again.
                    log.info("consumer %s was not looked at: %s", place[1], error)
            if busy:
                self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self._look_again, busy)

    def _look_again(self, busy: dict[tuple[str, str], tuple[str, Callable[[], None]]]) -> None:
        self._made = {**busy, **self._made}
        self._wake.set()

    async def _missing(self, stream: str, consumer: str, subject: str) -> int | None:
        """How many messages the consumer does not know of; None when it is in use."""
        seen: tuple[int, ...] | None = None
        missing = 0
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(PAUSE_S)
            stored = await self._stored(stream, subject)
            info: dict[str, Any] = await self._connection.api(f"CONSUMER.INFO.{stream}.{consumer}")
            if "error" in info:
                return 0
            missing = stored - info["num_pending"] - info["num_ack_pending"]
            now = (stored, missing, info["delivered"]["consumer_seq"], info["ack_floor"]["consumer_seq"])
            if seen is not None and now != seen:
                return None
            seen = now
            if missing <= 0:
                return 0
        return missing

    async def _stored(self, stream: str, subject: str) -> int:
        is_wildcard = subject.endswith(">")
        query = {"subjects_filter": subject, **({"offset": NO_LIST} if is_wildcard else {})}
        info = await self._connection.stream_info(stream, query)
        if is_wildcard:
            return int(info.get("total", 0))
        return int((info["state"].get("subjects") or {}).get(subject, 0))
