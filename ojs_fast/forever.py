"""Loops that a node depends on: a defect in one is told, and does not end it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

AGAIN_S = 1.0


async def forever(loop: Callable[[], Awaitable[None]]) -> None:
    """Run an endless loop until its task is cancelled; it begins anew, a second later, when it raises."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s failed and begins anew", getattr(loop, "__qualname__", loop))
        await asyncio.sleep(AGAIN_S)
