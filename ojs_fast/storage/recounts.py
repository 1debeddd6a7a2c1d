"""Looks at new consumers again: nats-server may count one message too few, and then hides it.

When a message is deleted while a consumer is made, nats-server (2.15.1) subtracts it twice from what is pending. A pull
with `no_wait` goes by that number, so the last message would stay where it is, unseen, until another one comes
(docs/design.md). So a moment later each new consumer is compared with its stream, and made anew if it is short.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

# Whatever was being deleted when the consumer was made is gone by then.
SETTLED_S = 1.0
# Messages come and go between two questions; a number that is wrong stays wrong.
LOOKS = 3
PAUSE_S = 0.1
# Beyond every subject: NATS then tells only how many there are.
NO_LIST = 2**31


class Recounts:
    """The consumers of this node that were made lately."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._made: dict[tuple[str, str], tuple[str, Callable[[], None]]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to look."""
        self._task = asyncio.create_task(self._loop())

    async def close(self) -> None:
        """Stop looking."""
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
            for (stream, consumer), (subject, removed) in made.items():
                try:
                    if await self._is_short(stream, consumer, subject):
                        log.warning(
                            "NATS counts too few messages for consumer %s of %s; it is made anew", consumer, stream
                        )
                        await self._connection.api(f"CONSUMER.DELETE.{stream}.{consumer}")
                        removed()
                except Unavailable as error:
                    # Whoever uses it after a cut makes it again, and it comes here again.
                    log.info("consumer %s was not looked at: %s", consumer, error)

    async def _is_short(self, stream: str, consumer: str, subject: str) -> bool:
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(PAUSE_S)
            before = await self._stored(stream, subject)
            info: dict[str, Any] = await self._connection.api(f"CONSUMER.INFO.{stream}.{consumer}")
            if "error" in info or info["num_pending"] + info["num_ack_pending"] >= before:
                return False
            if info["num_pending"] + info["num_ack_pending"] >= await self._stored(stream, subject):
                return False
        return True

    async def _stored(self, stream: str, subject: str) -> int:
        is_wildcard = subject.endswith(">")
        query = {"subjects_filter": subject, **({"offset": NO_LIST} if is_wildcard else {})}
        info = await self._connection.stream_info(stream, query)
        if is_wildcard:
            return int(info.get("total", 0))
        return int((info["state"].get("subjects") or {}).get(subject, 0))
