"""The process of a `Doomed` server: production code knows nothing of the fuse in its wire.

Imports no more than it needs, because each such server runs this module twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

FUSE = "/test/fuse"
LEAVES_S = 0.05  # for what was queued to leave the process
ALL = sys.maxsize
# Requests to JetStream that change something, or hand something over.
_CHANGES = ("$JS.API.CONSUMER.MSG.NEXT.", "$JS.API.STREAM.PURGE.", "$JS.API.STREAM.MSG.DELETE.")
_LEASES, _EVENTS = "$KV.ojs-nodes.", "ojs.events."

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Fuse:
    """Counts the writes of this process, and ends it."""

    def __init__(self) -> None:
        self.left = ALL
        self.written: list[str] = []
        self.is_blown = False

    def lets(self, frame: bytes) -> bool:
        """Whether a frame may leave; from the first one that may not on none may."""
        if self.is_blown:
            return False
        name = write_of(frame)
        if not name:
            return True
        if not self.left:
            self.is_blown = True
            asyncio.get_running_loop().call_later(LEAVES_S, os.killpg, 0, signal.SIGKILL)
            return False
        self.left -= 1
        self.written.append(name)
        return True

    def arm(self, writes: int) -> None:
        """Begin to count."""
        self.left = writes
        self.written = []


def write_of(frame: bytes) -> str:
    """What a frame writes or takes, "" when it does neither or does not count (leases, events)."""
    verb, _, rest = frame.partition(b" ")
    if verb not in (b"PUB", b"HPUB"):
        return ""
    subject = rest.partition(b" ")[0].decode()
    if subject.startswith("$KV."):
        return "" if subject.startswith(_LEASES) else subject.split(".")[1]
    if subject.startswith("$JS.ACK."):
        return frame.partition(b"\r\n")[2].partition(b"\r\n")[0].partition(b" ")[0].decode()
    if subject.startswith("$JS.API."):
        return subject.removeprefix("$JS.API.") if subject.startswith(_CHANGES) else ""
    if subject.startswith("ojs.queue."):
        return "work message"
    return "" if subject.startswith(_EVENTS) else subject


def create_app() -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Make the application that Granian loads: the server's own with the fuse in its wire and in its answers."""
    from ojs_fast import app
    from ojs_fast.storage.wire import Wire

    fuse, send_frame, application = Fuse(), Wire.send_frame, app.create_app()

    def send_if_alive(wire: Wire, frame: bytes) -> None:
        if fuse.lets(frame):
            send_frame(wire, frame)

    async def serve_one(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: dict[str, Any]) -> None:
            if fuse.is_blown:
                await asyncio.get_running_loop().create_future()
            await send(message)

        if scope["type"] == "http" and scope["path"] == FUSE:
            if scope["method"] == "POST":
                fuse.arm(orjson.loads((await receive())["body"]))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": orjson.dumps(fuse.written)})
            return
        await application(scope, receive, answer if scope["type"] == "http" else send)

    Wire.send_frame = send_if_alive  # type: ignore[method-assign, assignment]
    return serve_one


if __name__ == "__main__":
    from ojs_fast import serve
    from ojs_fast.config import Settings

    sys.exit(serve.run(Settings.from_env(os.environ), target="tests.support.fuse:create_app"))
