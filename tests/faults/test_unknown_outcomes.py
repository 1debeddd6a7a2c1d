"""Writes whose outcome nobody tells: they may land at any time, and what they did is followed up all the same.

The wire to NATS is silent for longer than a node waits for an answer, while the connections stand. What was sent then
lies in buffers, and is written when the client has long been told 503.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import orjson
import pytest

from ojs_fast.config import Settings
from ojs_fast.core.propagate import FIRST_LOOK_S
from ojs_fast.node import Node
from ojs_fast.storage.connection import ANSWER_TIMEOUT_S
from ojs_fast.storage.errors import Unavailable
from tests.support.api import unique_queue
from tests.support.nats import Nats
from tests.support.relay import Relay

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(90)]

FOLLOWED_S = 15.0


@pytest.fixture
async def relay() -> AsyncIterator[tuple[Relay, Node]]:
    """Give a node, and its only way to NATS."""
    with Nats() as nats:
        async with Relay(nats.port) as one:
            node = Node(Settings.from_env({}))
            await node.open([nats.url.replace(str(nats.port), str(one.port))])
            yield one, node
            await node.close()


def request(queue: str) -> bytes:
    """A job."""
    return orjson.dumps({"type": "a.b", "args": [], "options": {"queue": queue}})


async def fetch(node: Node, queue: str) -> list[str]:
    """The ids of the jobs that a worker gets."""
    return [orjson.loads(one)["id"] for one in await node.fetcher.fetch([queue], 10, "w", 60_000, lambda: False)]


async def test_what_lands_late_is_followed_up(relay: tuple[Relay, Node]) -> None:
    """An enqueue and an acknowledgement get no answer; later the one job runs, and the other is counted."""
    wire, node = relay
    queue, other = unique_queue(), unique_queue()
    done, _, _ = await node.jobs.enqueue(request(other))
    await node.jobs.enqueue(request(queue))
    assert await fetch(node, other) == [done]
    [first] = await fetch(node, queue)
    await node.settler.ack(first, "w", b"")
    wire.silence()
    answers = [
        asyncio.create_task(node.jobs.enqueue(request(queue))),
        asyncio.create_task(node.settler.ack(done, "w", b"")),
    ]
    await asyncio.wait(answers, timeout=4 * ANSWER_TIMEOUT_S)
    assert [type(one.exception()) for one in answers] == [Unavailable] * 2
    wire.heal()
    found: list[str] = []

    async def look() -> None:
        while not found:
            found.extend(await fetch(node, queue))
            await asyncio.sleep(FIRST_LOOK_S / 10)

    await asyncio.wait_for(look(), FOLLOWED_S)
    assert len(found) == 1
    assert await fetch(node, queue) == []
    states = {orjson.loads(await node.jobs.get(done))["state"]}
    assert states <= {"active", "completed"}
    if states == {"active"}:  # it was refused, for good: the worker still has the job
        await node.settler.ack(done, "w", b"")

    named = await node.queues.find(other)
    assert named is not None
    end = time.monotonic() + FOLLOWED_S
    while (await node.stats.of([named]))[0].states()["completed"] != 1:
        assert time.monotonic() < end, "it is not counted"
        await asyncio.sleep(0.1)
