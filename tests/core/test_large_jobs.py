"""Jobs whose records are not in their work messages: a fetch reads them, and none gets lost on the way."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.core.fetch import LARGE_AT_ONCE
from ojs_fast.core.propagate import LARGEST_TOLD
from ojs_fast.core.retry import Failure
from ojs_fast.node import Node
from tests.core.test_time import enqueue, eventually, fails_at_a_read, fetch

LARGE = "x" * LARGEST_TOLD


async def test_large_and_small_ones_come_whole_and_in_their_order(node: Node) -> None:
    """Only small records are in their messages, and nobody who fetches can tell."""
    args: list[list[Any]] = [[LARGE, 1], [2], [LARGE, 3], [4]]
    ids = [await enqueue(node, *one) for one in args]
    sizes = [len(payload) for _, _, payload in await node.work.messages({"seq": 1})]
    assert max(sizes) < 1000
    jobs = await fetch(node)
    assert [(job["id"], job["args"]) for job in jobs] == list(zip(ids, args, strict=True))
    for job_id, one in zip(ids, args, strict=True):
        await node.settler.ack(job_id, "w", b"")
        assert orjson.loads(await node.jobs.get(job_id))["args"] == one


async def test_more_than_are_read_at_once(node: Node) -> None:
    """Several reads, one fetch."""
    ids = [await enqueue(node, LARGE) for _ in range(LARGE_AT_ONCE + 1)]
    assert [job["id"] for job in await fetch(node)] == ids


async def test_a_retried_one_comes_with_its_history(node: Node) -> None:
    """What was added since it was enqueued is not in its message either."""
    job_id = await enqueue(node, LARGE, retry={"initial_interval": "PT0.01S", "jitter": False})
    await fetch(node)
    await node.settler.nack(job_id, "w", Failure("e", "e", "it failed"), requeue=False)
    [job] = await eventually(lambda: fetch(node), "it comes again")
    assert (job["attempt"], len(job["errors"]), job["args"]) == (2, 1, [LARGE])


async def test_a_stale_message_gives_nothing_and_goes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job was cancelled after its message had been pulled."""
    cancelled, kept = await enqueue(node, LARGE), await enqueue(node, LARGE)
    get_many = node.stores.records.get_many

    async def cancel_first(job_ids: Any) -> Any:
        monkeypatch.undo()
        await node.jobs.cancel(cancelled)
        return await get_many(job_ids)

    monkeypatch.setattr(node.stores.records, "get_many", cancel_first)
    assert [job["id"] for job in await fetch(node)] == [kept]

    async def is_alone() -> bool:
        left = [payload for _, _, payload in await node.work.messages({"seq": 1})]
        return [_core.Record.parse(_core.split_work_message(payload)[1]).id for payload in left] == [kept]

    await eventually(is_alone, "its message goes")


@pytest.mark.parametrize("how", ["unavailable", "cancelled"])
async def test_a_read_that_fails_gives_all_back(node: Node, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """NATS does not answer, or whoever fetches is gone: large and small ones can be fetched again."""
    ids = {await enqueue(node, LARGE), await enqueue(node)}
    await fails_at_a_read(monkeypatch, node.stores.records, "get_many", how, fetch(node))
    found: set[str] = set()

    async def all_come() -> bool:
        found.update(job["id"] for job in await fetch(node))
        return found == ids

    await eventually(all_come, "all are there again")


@pytest.mark.parametrize("is_replicated", [True, False])
async def test_a_read_that_lags_loses_no_job(
    node: Node, monkeypatch: pytest.MonkeyPatch, *, is_replicated: bool
) -> None:
    """A NATS server of several that begins to lead does not know the record yet that another acknowledged."""
    job_id = await enqueue(node, LARGE)
    get_many = node.stores.records.get_many
    monkeypatch.setattr(node.connection, "is_replicated", is_replicated)

    async def lag(_: Any) -> Any:
        monkeypatch.setattr(node.stores.records, "get_many", get_many)
        return {}

    monkeypatch.setattr(node.stores.records, "get_many", lag)
    assert await fetch(node) == []
    [job] = await eventually(lambda: fetch(node), "it is delivered again")
    assert job["id"] == job_id
