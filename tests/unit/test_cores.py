"""Which thread runs where: only hints, so nothing may depend on them (on a server: tests/api/test_processes.py)."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading

import pytest

from ojs_fast.cores import BUSY, HANDS_OVER, HandOver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hints for Linux")


class Told(logging.Handler):
    """Hears that something was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        self.heard.set()


async def test_a_thread_that_cannot_be_kept_is_left_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told once; requests go on, and the event loop has its own method back."""
    caplog.set_level(logging.INFO, logger="ojs_fast.cores")
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    hand_over = HandOver()
    hand_over.open(loop)

    def granians() -> None:
        came.set()

    granians.__module__ = HANDS_OVER
    for _ in range(2):
        came.clear()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(granians,))
        thread.start()
        await came.wait()
        thread.join()  # so it is gone when it is to be moved
    assert "call_soon_threadsafe" not in vars(loop)
    told = Told()
    monkeypatch.setattr(logging.getLogger("ojs_fast.cores"), "handlers", [told])
    for _ in range(2):
        for _ in range(2 * BUSY):
            hand_over.enter()
        async with asyncio.timeout(5):
            await told.heard.wait()
    [record] = caplog.records
    assert "handed over from another core" in record.getMessage()
