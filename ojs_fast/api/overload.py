"""How many requests may be under way: about as many as get done in 0.3 s, so that none of them waits for long.

More would only wait for each other, in memory; whoever comes on top is told to come again. Knows no HTTP.
"""

import time
from collections.abc import Callable

# What a request may wait for those before it.
TARGET_S = 0.3
WINDOW_S = 0.25
# Never fewer, however slow the disk is; more than a burst of the largest worker pools.
FEWEST = 500
START = 2000
MOST = 8000


class Load:
    """Counts what is under way, and learns from what gets done how much may be."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.limit = START
        self.under_way = 0
        self._clock_s = clock_s
        self._done = 0
        self._peak = 0
        self._since = clock_s()

    def enter(self) -> bool:
        """Count a request in, unless there are too many; then `leave` must not be called."""
        if self.under_way >= self.limit:
            return False
        self.under_way += 1
        self._peak = max(self._peak, self.under_way)
        return True

    def leave(self) -> None:
        """A request is done."""
        self.under_way -= 1
        self._done += 1
        now = self._clock_s()
        if now - self._since < WINDOW_S:
            return
        if self._peak > FEWEST:  # else the rate says how much was asked, not how much can be done
            wanted = self._done / (now - self._since) * TARGET_S
            self.limit = round(min(max(wanted, FEWEST), MOST))
        self._done, self._peak, self._since = 0, self.under_way, now
