"""Time: the wall clock that tests may replace, a steady one, and deadlines that fire when they are due.

Moments that people name (scheduled jobs, cron, expiry) follow the wall clock. How long something may take
(a reservation, an execution, a worker's silence) follows the steady one: a wall clock that is put right by
an hour must not take running jobs from their workers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from ojs_fast import _core
from ojs_fast.forever import forever

log = logging.getLogger(__name__)

# A jump of the wall clock is noticed within this time, whatever the next deadline is.
LONGEST_NAP_S = 1.0
FIRED_AT_ONCE = 400

NowMs = Callable[[], int]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def steady_ms() -> int:
    """Milliseconds of a clock that never jumps; its zero means nothing."""
    return time.monotonic_ns() // 1_000_000


class Deadlines:
    """A heap of keys with due times; `fire(keys)` is awaited when they are due, in order, in batches."""

    def __init__(self, clock: NowMs, fire: Callable[[list[str]], Awaitable[None]]) -> None:
        self._clock = clock
        self._fire = fire
        self._heap = _core.TimerHeap()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._heap)

    async def open(self) -> None:
        """Start to fire."""
        self._task = asyncio.create_task(forever(self._run))

    async def close(self) -> None:
        """Stop; nothing fires any more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def set(self, key: str, due_ms: int) -> None:
        """Arm or move one deadline (ms of the clock given)."""
        # A steady clock may begin at the boot of the machine, and what is long overdue was due before that.
        due_ms = max(due_ms, 0)
        first = self._heap.next_due_ms()
        self._heap.push(key, due_ms)
        if first < 0 or due_ms < first:
            self._changed.set()

    def drop(self, key: str) -> None:
        """Disarm one deadline, if there is one."""
        self._heap.remove(key)

    def clear(self) -> None:
        """Disarm all."""
        self._heap.clear()

    async def _run(self) -> None:
        while True:
            due = self._heap.next_due_ms()
            nap_s = LONGEST_NAP_S if due < 0 else min(LONGEST_NAP_S, (due - self._clock()) / 1000)
            if nap_s > 0:
                await self._nap(nap_s if due >= 0 else None)
                continue
            keys = self._heap.pop_due(self._clock(), FIRED_AT_ONCE)
            try:
                await self._fire(keys)
            except Exception:
                # One bad batch must not end all time-driven work; its keys come back by reconcile.
                log.exception("deadlines could not be handled")

    async def _nap(self, nap_s: float | None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(nap_s):
                await self._changed.wait()
        except TimeoutError:
            pass
