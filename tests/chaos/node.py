"""A server whose wall clock can be moved: `POST /test/clock` with the milliseconds to add."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import orjson

from ojs_fast.core import clock
from tests.support.plain import PLAIN
from tests.support.server import Server

CLOCK = "/test/clock"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ChaosServer(Server):
    """The same from the test's side."""

    def __init__(self, nats_url: str, env: dict[str, str]) -> None:
        super().__init__(nats_url=nats_url, env=env, module=__name__)

    def move_clock(self, ahead_ms: int) -> None:
        """Let its wall clock be so far ahead of ours."""
        httpx.post(self.url + CLOCK, json=ahead_ms, timeout=5, **PLAIN).raise_for_status()


def create_app() -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Make the application that Granian loads."""
    from ojs_fast import app  # not above: the main process runs this module too, and needs none

    ahead_ms = 0

    def time_ns() -> int:
        return time.time_ns() + ahead_ms * 1_000_000

    clock.time = SimpleNamespace(time_ns=time_ns, monotonic_ns=time.monotonic_ns)  # type: ignore[attr-defined, assignment]
    application = app.create_app()

    async def serve_one(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal ahead_ms
        if scope["type"] == "http" and scope["path"] == CLOCK:
            ahead_ms = orjson.loads((await receive())["body"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await application(scope, receive, send)

    return serve_one


if __name__ == "__main__":
    from ojs_fast import serve
    from ojs_fast.config import Settings

    sys.exit(serve.run(Settings.from_env(os.environ), target="tests.chaos.node:create_app"))
