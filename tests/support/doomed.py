"""A server that dies at a point which the test names: before its n-th write to NATS from a moment on.

What it wrote before has left the process; that write and all later ones have not, no answer reaches a client any
more, and then the whole process group gets SIGKILL.
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from tests.support.fuse import ALL, FUSE
from tests.support.plain import PLAIN
from tests.support.server import Server


class Doomed(Server):
    """A server that can be told when to die, from the test's side."""

    def __init__(self, data_dir: Path | None = None, *, nats_url: str = "", env: dict[str, str] | None = None) -> None:
        super().__init__(data_dir, nats_url=nats_url, env=env, module="tests.support.fuse")

    def arm(self, writes: int = ALL) -> None:
        """From now on let so many writes through, then die."""
        httpx.post(self.url + FUSE, json=writes, **PLAIN).raise_for_status()

    def written(self) -> list[str]:
        """What was written since, as `ojs-jobs`, `work message`, `+ACK`."""
        names: list[str] = httpx.get(self.url + FUSE, **PLAIN).raise_for_status().json()
        return names

    def await_death(self, limit_s: float) -> None:
        """Wait until it has killed itself, and kill it when it does not get so far in that time."""
        end = time.monotonic() + limit_s
        while self.is_running and time.monotonic() < end:
            time.sleep(0.01)
        if self.is_running:
            self.kill()
