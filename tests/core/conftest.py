"""Nodes inside the test process, with a wall clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import pytest

from ojs_fast.config import Settings
from ojs_fast.node import Node
from tests.support.nats import Nats


class WallClock:
    """The wall clock, moved by what the test says; nothing else about time changes."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def __call__(self) -> int:
        """Give epoch ms."""
        return time.time_ns() // 1_000_000 + self.offset_ms

    def jump(self, hours: float) -> None:
        """Put the clock on, or back."""
        self.offset_ms += round(hours * 3_600_000)


@pytest.fixture
def nats() -> Iterator[Nats]:
    """Give a NATS of the test's own."""
    with Nats() as running:
        yield running


@pytest.fixture
def wall() -> WallClock:
    """Give the clock."""
    return WallClock()


@pytest.fixture
async def node(nats: Nats, wall: WallClock) -> AsyncIterator[Node]:
    """Give an open node with that clock."""
    one = Node(Settings.from_env({}), clock=wall)
    await one.open([nats.url])
    try:
        yield one
    finally:
        await one.close()
