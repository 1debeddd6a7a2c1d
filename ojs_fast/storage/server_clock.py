"""The clock that all nodes share: that of the NATS server which leads a stream.

Counted on by this node's monotonic clock, so jumps of its wall clock do not matter; measured anew now and
then. The error is half the quickest round trip of a measurement, plus what NATS' leaders differ among
themselves when the leader changes.
"""

import asyncio
import contextlib
import time

from ojs_fast import _core
from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable

SAMPLES = 5
EVERY_S = 30.0


class ServerClock:
    """Reads the server's time without asking it each time."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self._stream = names.bucket_stream(bucket)
        self._ahead_ms = 0.0
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Measure, and go on measuring. Raises Unavailable."""
        await self._measure()
        self._task = asyncio.create_task(forever(self._loop))

    async def close(self) -> None:
        """Stop measuring."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def now_ms(self) -> float:
        """Milliseconds since the epoch, as the server has it."""
        return time.monotonic() * 1000 + self._ahead_ms

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            with contextlib.suppress(Unavailable):
                await self._measure()

    async def _measure(self) -> None:
        best_ms, ahead_ms = float("inf"), self._ahead_ms
        for _ in range(SAMPLES):
            asked_ms = time.monotonic() * 1000
            answer = await self._connection.stream_info(self._stream)
            answered_ms = time.monotonic() * 1000
            if answered_ms - asked_ms < best_ms:
                best_ms = answered_ms - asked_ms
                ahead_ms = _core.parse_rfc3339_ms(answer["ts"]) + 0.5 - (asked_ms + answered_ms) / 2
        self._ahead_ms = ahead_ms
