"""Nodes inside the test process, for what no client can time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ojs_fast.config import Settings
from ojs_fast.node import Node
from tests.support.nats import Nats


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[list[Node]]:
    """Open nodes on one NATS of their own."""
    with Nats() as nats:
        made = [Node(Settings.from_env({})) for _ in range(count)]
        for node in made:
            await node.open([nats.url])
        try:
            yield made
        finally:
            for node in made:
                await node.close()
