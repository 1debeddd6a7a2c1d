"""A consumer that NATS counts wrong hides no message for long (ojs_fast/storage/recounts.py)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ojs_fast.storage import names, topology
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.queue_counts import QueueCounts
from ojs_fast.storage.recounts import LOOKS, PAUSE_S, SETTLED_S, Recounts
from ojs_fast.storage.server import EmbeddedNats
from ojs_fast.storage.work import WorkQueue

TRIES = 2000
# About the time that a deletion with fsync takes.
APART_S = 0.006
HEALED_S = SETTLED_S + LOOKS * PAUSE_S + 5

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    """Give a connection to a NATS that syncs each write."""
    embedded = EmbeddedNats(tmp_path, durability="always")
    await asyncio.to_thread(embedded.start)
    one = Connection()
    try:
        await one.open([embedded.url], name="test")
        await topology.ensure(one, topology.streams(1, 3600, 2**20))
        yield one
        await one.close()
    finally:
        await asyncio.to_thread(embedded.stop)


async def hidden_message(connection: Connection, work: WorkQueue) -> str:
    """Delete a message while a consumer is made, until NATS hides the other one; its queue."""
    for number in range(TRIES):
        queue = f"hidden-{number}"
        subject = names.work_subject(queue, 0)
        (first, _, _), _ = await asyncio.gather(connection.write(subject, b"1 {}"), connection.write(subject, b"2 {}"))

        async def delete(sequence: int = first) -> None:
            await asyncio.sleep(random.uniform(0, APART_S))
            await work.delete(sequence)

        async def take(queue: str = queue) -> int:
            await asyncio.sleep(random.uniform(0, APART_S))
            return len(await work.take(queue, (0,), 10))

        _, taken = await asyncio.gather(delete(), take())
        if taken == 0 and not await work.take(queue, (0,), 10):
            return queue
    pytest.skip(f"this nats-server counted right {TRIES} times")


async def test_a_message_that_nats_hides_is_delivered_soon(connection: Connection) -> None:
    """The consumer is made anew, and the next fetch finds the message."""
    recounts = Recounts(connection)
    work = WorkQueue(connection, recounts)
    work.open()
    queue = await hidden_message(connection, work)
    assert await work.take(queue, (0,), 10) == []
    await recounts.open()
    end = time.monotonic() + HEALED_S
    while not (found := await work.take(queue, (0,), 10)):
        assert time.monotonic() < end, "it stays hidden"
        await asyncio.sleep(PAUSE_S)
    assert [message.payload for message in found] == [b"2 {}"]
    await recounts.close()


async def test_a_consumer_that_was_made_long_ago_is_recounted_when_asked(connection: Connection) -> None:
    """As a leader does when a consumer may have got another NATS server: whoever made it has looked and is gone."""
    maker = WorkQueue(connection, Recounts(connection))
    maker.open()
    queue = await hidden_message(connection, maker)
    recounts = Recounts(connection)
    work = WorkQueue(connection, recounts)
    work.open()
    await recounts.open()
    await work.recount()
    end = time.monotonic() + HEALED_S
    while any(info["config"]["filter_subject"] == names.work_subject(queue, 0) for info in await work.consumers()):
        assert time.monotonic() < end, "nobody looks at it"
        await asyncio.sleep(PAUSE_S)
    found = await work.take(queue, (0,), 10)
    assert [message.payload for message in found] == [b"2 {}"]
    await recounts.close()


async def test_what_is_counted_right_stays(connection: Connection) -> None:
    """Consumers of queues that are in use, or counted, are left alone."""
    recounts = Recounts(connection)
    work, counts = WorkQueue(connection, recounts), QueueCounts(connection, recounts, 1)
    work.open()
    await recounts.open()
    subject = names.work_subject("busy", 0)
    for number in range(10):
        await connection.write(subject, b"%d {}" % number)
        await connection.write(names.bucket_subject(names.SCHEDULED, f"busy.{number}"), b"{}")
    assert len(await work.take("busy", (0,), 3)) == 3
    assert await counts.indexed(names.SCHEDULED, "busy") == 10
    made = [await created(connection, *place) for place in PLACES]
    await asyncio.sleep(SETTLED_S + LOOKS * PAUSE_S + 0.5)  # nothing tells that nothing was done
    assert [await created(connection, *place) for place in PLACES] == made
    await recounts.close()


PLACES = ((names.WORK_STREAM, "busy"), (names.bucket_stream(names.SCHEDULED), names.counting_consumer("busy")))


async def created(connection: Connection, stream: str, consumer: str) -> str:
    """When a consumer was made."""
    return str((await connection.api(f"CONSUMER.INFO.{stream}.{consumer}"))["created"])
