"""Which thread of a worker runs when and where: who is woken waits for its turn, and what shares a lock shares a core.

Only hints for the operating system (docs/performance.md, "Who runs when"); where they are not permitted, speed is all
that is lost. Must not know what the threads do.
"""

import asyncio
import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

log = logging.getLogger(__name__)

TICK_S = 0.01
# Requests within a tick that came while others were under way: from so many on threads are in each other's way.
BUSY = 20
ANY_CORE = -1
# Where Granian's second Python thread comes from when it hands a request over.
HANDS_OVER = "granian._futures"


def run_as_batch() -> None:
    """Let each thread finish its turn: whatever it hands over wakes another one, which would take its core at once.

    Threads that start later, Granian's among them, do the same.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return  # an operator's policy stays
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        log.info("the scheduling policy SCHED_BATCH is not permitted, which costs some speed: %s", error)


class HandOver:
    """Keeps the thread that hands requests over to the event loop on the loop's core, while requests are many.

    Both need the GIL, so they never work at the same time; on two cores each waits for the other one to be woken.
    The event loop itself goes where the operating system puts it.
    """

    def __init__(self) -> None:
        # Unset until the first request comes, or for good where it is not to be had.
        self._thread_id = 0
        self._core = ANY_CORE
        self._under_way = 0
        self._crowding = 0
        self._is_ticking = False

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Find out which thread it is: by the first request that comes."""
        if sys.platform != "linux":
            return
        self._current_core: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
        self._loop = loop
        call = loop.call_soon_threadsafe

        def learn(callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
            if not self._thread_id and getattr(callback, "__module__", "") == HANDS_OVER:
                self._thread_id = threading.get_native_id()
                del loop.call_soon_threadsafe  # the loop's own is back
            return call(callback, *args, context=context)

        loop.call_soon_threadsafe = learn  # type: ignore[method-assign, assignment]

    def enter(self) -> None:
        """A request has come."""
        self._under_way += 1
        if self._under_way > 1:
            self._crowding += 1
            if not self._is_ticking and self._thread_id:
                self._is_ticking = True
                self._loop.call_later(TICK_S, self._tick)

    def leave(self) -> None:
        """It is done."""
        self._under_way -= 1

    def _tick(self) -> None:
        is_busy = self._crowding >= BUSY
        self._crowding = 0
        self._is_ticking = is_busy
        core = self._current_core() if is_busy else ANY_CORE
        if core != self._core:
            self._core = core
            self._move()
        if self._is_ticking:
            self._loop.call_later(TICK_S, self._tick)

    def _move(self) -> None:
        try:
            allowed = os.sched_getaffinity(0) if self._core == ANY_CORE else {self._core}
            os.sched_setaffinity(self._thread_id, allowed)
        except OSError as error:
            log.info("requests are handed over from another core, which costs some speed: %s", error)
            self._thread_id = 0
            self._is_ticking = False
