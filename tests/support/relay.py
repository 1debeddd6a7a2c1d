"""A TCP relay between a server and NATS: refusing, cut, late, slow, or silent while the connection stands."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from tests.support.processes import free_port

CHUNK = 1 << 20


class Relay:
    """Passes bytes to one port of this machine; the attributes may change at any time."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self.delay_s = 0.0
        #: 0 = as fast as it goes
        self.bytes_per_s = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self.down()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def up(self) -> None:
        """Take connections, always on the same port."""
        self.port = self.port or free_port()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def down(self) -> None:
        """Refuse connections and break those that stand."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection; new ones are welcome."""
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Let nothing through in either direction, but keep the connections."""
        self._passes.clear()

    def heal(self) -> None:
        """Pass everything at once again."""
        self._passes.set()
        self.delay_s, self.bytes_per_s = 0.0, 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for is_sent, source, target in ((True, reader, far_writer), (False, far_reader, writer)):
            task = asyncio.create_task(self._pass(source, target, is_sent=is_sent))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_sent: bool) -> None:
        unseen = b""
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                await self._passes.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                unseen = self._see(unseen + data, is_sent=is_sent)
                if target.transport.is_closing():
                    break
                target.write(data)
                await target.drain()
        self._writers.discard(target)
        target.transport.abort()

    def _see(self, data: bytes, *, is_sent: bool) -> bytes:
        """What passes, `is_sent` towards NATS, for whoever looks at it; returns what is to be seen again."""
        return b""
