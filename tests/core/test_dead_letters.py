"""Dead letters beyond the number to be kept, or that die again; what NATS does not show yet."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.core.dead_letters import DeadFilter
from ojs_fast.core.retry import Failure
from ojs_fast.errors import BackendUnavailable, NotFound
from ojs_fast.node import Node
from tests.core.test_time import eventually


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
    kept = await node.dead_letters.page(DeadFilter(), 100, "", 0)
    assert [_core.Record.parse(stored).id for stored in kept.jobs] == dead[3:]
    assert kept.total == 4
    assert await node.stores.records.get(dead[0]) is not None, "the job that was retried is no dead letter any more"
    assert [await node.stores.records.get(one) for one in dead[1:3]] == [None, None]
    assert await node.dead_letters.prune(4) == 0
    assert ["dead_letter_pruned", "q", "a.b", 2] in node.metrics.report()["counters"]
    told, _, _ = await node.events.read(after="", types=["dead_letter.pruned"], queues=[], job_types=[], limit=10)
    assert [event["data"]["count"] for event in told] == [2]


async def test_one_that_dies_again_before_its_retry_is_over_stays_listed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is faster than the node that removes the entry of its first death."""
    job_id = await die(node)
    await node.stores.outbox.flushed()
    change = node.jobs.change

    async def change_and_die_again(*arguments: Any) -> Any:
        changed = await change(*arguments)
        await node.fetcher.fetch(["q"], 1, "w", 0, lambda: False)
        await node.settler.nack(job_id, "w", Failure("x", "x", "boom"), requeue=False)
        await node.stores.outbox.flushed()
        return changed

    monkeypatch.setattr(node.jobs, "change", change_and_die_again)
    await node.dead_letters.retry(job_id)
    kept = await node.dead_letters.page(DeadFilter(), 100, "", 0)
    assert ([_core.Record.parse(stored).id for stored in kept.jobs], kept.total) == ([job_id], 1)


async def test_a_workflow_that_nats_does_not_show_yet(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored and runs, but a server that has just begun to lead does not know it: 503, never 404."""

    async def hidden(*_: Any) -> None:
        raise NotFound("hidden")

    step = {"type": "a.b", "args": [], "options": {"queue": "q"}}
    with monkeypatch.context() as patch:
        patch.setattr(node.workflow_store, "members", hidden)
        with pytest.raises(BackendUnavailable, match="is stored"):
            await node.workflows.create(orjson.dumps({"type": "group", "jobs": [step]}), 10)
    await eventually(lambda: fetched(node), "the driver starts it")


async def fetched(node: Node) -> bool:
    """Whether there is a job."""
    return bool(await node.fetcher.fetch(["q"], 1, "w", 0, lambda: False))
