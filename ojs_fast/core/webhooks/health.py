"""How a subscription's endpoint has fared lately, as this node saw it."""

import asyncio
import contextlib
import time

#: Failures in a row after which new events wait.
TROUBLE = 5
FIRST_BREAK_S = 5.0
LONGEST_BREAK_S = 300.0


class Health:
    """Counts failures in a row; after a few, a break before the next attempt, longer each time."""

    def __init__(self) -> None:
        self.failures = 0
        self._breaks = 0
        self._until = 0.0
        self._well = asyncio.Event()

    @property
    def break_s(self) -> float:
        """How long to wait before anything is sent, 0 when nothing is wrong."""
        return max(0.0, self._until - time.monotonic())

    async def ready(self) -> None:
        """Wait until the break is over, or something went well."""
        while (break_s := self.break_s) > 0:
            self._well.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(break_s):
                    await self._well.wait()

    def succeeded(self) -> None:
        """An attempt went well."""
        self.failures = self._breaks = 0
        self._until = 0.0
        self._well.set()

    def failed(self, *, is_down: bool) -> None:
        """An attempt failed; `is_down`: because of the endpoint, not of this event."""
        self.failures += 1
        if is_down and self.failures >= TROUBLE and not self.break_s:
            self._until = time.monotonic() + min(FIRST_BREAK_S * 2**self._breaks, LONGEST_BREAK_S)
            self._breaks = min(self._breaks + 1, 10)
