"""The server as tests run it: it tells at its end what it left behind, and `Server.stop` fails on it.

Left behind are tasks that still run, exceptions that nobody saw, and coroutines that nobody awaited. Imports no more
than it needs, because each server runs this module twice.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

#: begins each line that tells of something left behind
LEFT = "left behind:"
# Granian's wait for us; nats-py forgets some of its own when connections break while it reconnects.
OTHERS = (f"{os.sep}granian{os.sep}", f"{os.sep}nats{os.sep}aio{os.sep}")

log = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def create_app() -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Make the application that Granian loads."""
    from ojs_fast import app

    application = app.create_app()
    warnings.simplefilter("always", RuntimeWarning)
    warnings.showwarning = _warned

    async def serve_one(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "lifespan.startup.complete":
                asyncio.get_running_loop().set_exception_handler(_unseen)
            elif message["type"] == "lifespan.shutdown.complete":
                await tell_tasks()
            await send(message)

        await application(scope, receive, answer if scope["type"] == "lifespan" else send)

    return serve_one


async def tell_tasks() -> None:
    """Log every task of ours that still runs."""
    await asyncio.sleep(0)  # what was cancelled last ends in this turn
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        code = getattr(task.get_coro(), "cr_code", None)
        if code is None or not any(other in code.co_filename for other in OTHERS):
            log.error("%s task %r", LEFT, task)
    gc.collect()  # a future whose exception nobody saw says so when it goes


def _unseen(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("%s %s %r", LEFT, context.get("message"), context.get("exception") or context)


def _warned(message: Warning | str, *_: Any, **__: Any) -> None:
    log.error("%s %s", LEFT, message)


if __name__ == "__main__":
    from ojs_fast import serve
    from ojs_fast.config import Settings

    sys.exit(serve.run(Settings.from_env(os.environ), target="tests.support.strict:create_app"))
