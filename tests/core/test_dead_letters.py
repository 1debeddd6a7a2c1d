"""Dead letters beyond the number to be kept."""

from __future__ import annotations

import orjson

from ojs_fast import _core
from ojs_fast.core.dead_letters import DeadFilter
from ojs_fast.core.retry import Failure
from ojs_fast.node import Node


async def die(node: Node) -> str:
    """Make a dead letter; its id."""
    options = {"queue": "q", "retry": {"max_attempts": 1, "on_exhaustion": "dead_letter"}}
    job_id, _, _ = await node.jobs.enqueue(orjson.dumps({"type": "a.b", "args": [], "options": options}))
    await node.fetcher.fetch(["q"], 1, "w", 0, lambda: False)
    await node.settler.nack(job_id, "w", Failure("x", "x", "boom"), requeue=False)
    return job_id


async def test_the_oldest_are_pruned_first(node: Node) -> None:
    """Of 7 the newest 4 stay; a retried one whose entry was left counts for nothing."""
    dead = [await die(node) for _ in range(7)]
    await node.stores.outbox.flushed()
    await node.jobs.change(dead[0], "retry", lambda record, now: record.revive(now))  # its entry stays behind
    assert await node.dead_letters.prune(4) == 3
    kept, total = await node.dead_letters.search(DeadFilter(), 0, 100)
    assert [_core.Record.parse(stored).id for stored in kept] == dead[3:]
    assert total == 4
    assert await node.stores.records.get(dead[0]) is not None, "the job that was retried is no dead letter any more"
    assert [await node.stores.records.get(one) for one in dead[1:3]] == [None, None]
    assert await node.dead_letters.prune(4) == 0
