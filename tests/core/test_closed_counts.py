"""What ends under the name of a node that others took for dead is counted once, whoever finds it first."""

from __future__ import annotations

import asyncio

from ojs_fast import _core
from ojs_fast.core.inheritance import Inheritance
from ojs_fast.core.queues import Queue
from ojs_fast.core.tallies import MARKS, Period
from ojs_fast.node import Node
from tests.core.test_time import QUEUE, enqueue, eventually, fetch


async def replay(node: Node, dead: set[str]) -> None:
    """Do what a leader does, with all records."""
    heir = Inheritance(node.stores, node.clock)
    await heir.begin(dead)
    after = 0
    while page := await node.stores.records.written_since("1970-01-01T00:00:00.000Z", after):
        after = page[-1][2]
        for _, stored, _ in page:
            heir.see(_core.Record.parse(stored))
    await heir.take_over()


async def completed(node: Node) -> int:
    """What the statistics of the queue tell."""
    [snapshot] = await node.stats.of([Queue(QUEUE, 0)])
    return snapshot.states()["completed"]


class Ending:
    """A completion in its steps, each of which may come late."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def begin(self) -> None:
        """Stamp the record."""
        self.id = await enqueue(self._node)
        await fetch(self._node)
        self.record, _, self.revision = await self._node.jobs.load(self.id)
        self.record.complete(self._node.clock(), b"null")
        period = self._node.tallies.stamp(self.record, "active")
        assert period is not None
        self.period: Period = period

    async def land(self) -> None:
        """NATS writes it."""
        self.revision = await self._node.stores.records.replace(self.id, self.record.serialize(), self.revision)

    def count(self) -> None:
        """Its node is told."""
        self.period.count(self.record)


async def test_each_mark_counts_once(node: Node) -> None:
    """Ended before others closed the node's counts and behind it, found by the leader and by the node itself."""
    counted, unanswered, late, found = endings = [Ending(node) for _ in range(4)]
    for one in endings:
        await one.begin()
    await counted.land()
    counted.count()
    await unanswered.land()
    owner = node.tallies.owner
    await replay(node, {node.node_id})
    await late.land()
    await found.land()
    marks = (await node.jobs.load(found.id))[0].extra
    assert marks is not None
    assert marks[MARKS][0].startswith(owner)
    # The leader looks again, and finds both; the node learns of three of them only now.
    await replay(node, set())
    for one in (unanswered, late, found):
        one.count()
    await node.tallies.flush()
    assert node.tallies.owner != owner
    for _ in range(2):
        assert await completed(node) == 4
        await replay(node, set())
        await node.tallies.flush()


async def test_a_node_and_a_leader_at_once(node: Node) -> None:
    """Both count the same late marks at the same moment."""
    endings = [Ending(node) for _ in range(20)]
    for one in endings:
        await one.begin()
    await replay(node, {node.node_id})
    for one in endings:
        await one.land()
        one.count()
    await asyncio.gather(node.tallies.flush(), *(replay(node, set()) for _ in range(3)))
    await node.tallies.flush()
    assert await completed(node) == len(endings)


async def test_one_that_ends_twice_between_two_flushes(node: Node) -> None:
    """Two outcomes of one job that nobody knows yet are told apart by their periods."""
    one = Ending(node)
    await one.begin()
    again = node.tallies.stamp(one.record, "active")
    assert again is not None
    assert again.number > one.period.number
    await one.land()  # with both marks: the first landed, and then the second
    node.tallies.doubt(one.period, one.id)
    again.count(one.record)

    async def both() -> bool:
        return await completed(node) == 2

    await eventually(both, "both are counted")
