"""Claims that nobody must lose: whatever fails while one is settled, a job that stays active has a holder."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from ojs_fast.config import Settings
from ojs_fast.errors import BackendUnavailable
from ojs_fast.node import Node
from ojs_fast.storage.errors import RevisionConflict
from tests.core.conftest import WallClock
from tests.core.test_time import enqueue, eventually, fails_at_a_read, fetch, state
from tests.support.nats import Nats


async def write_over(node: Node, job_id: str) -> None:
    """As the leader does when it takes the claim of a dead node over: the same record at a new revision."""
    _, stored, revision = await node.jobs.load(job_id)
    await node.stores.records.replace(job_id, stored, revision)


async def held_again(node: Node, job_id: str) -> None:
    """Wait until the job has a holder, with a deadline that still works."""
    await eventually(lambda: node.claims.get(job_id), "the claim is held again")
    await eventually(lambda: state(node, job_id, "available"), "its reservation ends")


async def leave_to_nobody(node: Node, job_id: str) -> None:
    """Let the job be one that a node has claimed which is gone, lease and all."""
    node.claims.take(job_id)
    record, _, revision = await node.jobs.load(job_id)
    record.node_id = "gone"
    await node.stores.records.replace(job_id, record.serialize(), revision)


@pytest.mark.parametrize("how", ["unavailable", "cancelled"])
async def test_a_read_that_fails_behind_a_conflict(node: Node, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The revision was not the last one, and NATS does not tell what is."""
    await enqueue(node, visibility_timeout_ms=1000)
    [job] = await fetch(node)
    await write_over(node, job["id"])
    await fails_at_a_read(monkeypatch, node.jobs, "load", how, node.settler.ack(job["id"], "w", b""))
    await held_again(node, job["id"])


async def test_a_job_that_others_change_each_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after some tries, and so is not its claim."""
    await enqueue(node, visibility_timeout_ms=1000)
    [job] = await fetch(node)

    async def lose(job_id: str, *_: Any) -> int:
        raise RevisionConflict(job_id)

    monkeypatch.setattr(node.stores.records, "replace", lose)
    with pytest.raises(BackendUnavailable):
        await node.settler.ack(job["id"], "w", b"")
    monkeypatch.undo()
    await held_again(node, job["id"])


async def test_a_read_that_lags_ends_no_claim(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NATS server that begins to lead may tell what was before the claim."""
    job_id = await enqueue(node, visibility_timeout_ms=500)
    before = await node.stores.records.get(job_id)
    await fetch(node)
    get, lagging = node.stores.records.get, 2

    async def lag(asked: str) -> Any:
        nonlocal lagging
        lagging -= 1
        return before if lagging >= 0 else await get(asked)

    monkeypatch.setattr(node.stores.records, "get", lag)
    await eventually(lambda: lagging < 0, "it looks again")
    await eventually(lambda: state(node, job_id, "available"), "its reservation ends")


async def test_a_claim_that_got_lost_is_found(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever went wrong: the sweep finds an active job of this node that nobody holds, and leaves held ones alone."""
    for _ in range(2):
        await enqueue(node, visibility_timeout_ms=1500)
    lost, kept = await fetch(node)
    node.claims.take(lost["id"])
    claim = node.claims.get(kept["id"])
    node.reconciler._sweep_due = 0
    await node.reconciler.sweep()
    assert "a claim that nobody held is held again" in caplog.text
    assert node.claims.get(kept["id"]) is claim
    await held_again(node, lost["id"])


async def test_a_refused_ack_moves_no_deadline(node: Node, wall: WallClock) -> None:
    """The clock was put back since the claim, and another worker's acknowledgement made the node hold it anew."""
    wall.jump(1)
    await enqueue(node, visibility_timeout_ms=1000)
    [job] = await fetch(node)
    wall.jump(-1)
    with pytest.raises(Exception, match="held by another worker"):
        await node.settler.ack(job["id"], "somebody else", b"")
    await eventually(lambda: state(node, job["id"], "available"), "its reservation ends")


async def test_a_heartbeat_extends_though_the_clock_jumped(node: Node, wall: WallClock) -> None:
    """Neither the reservation nor the execution time follows the wall clock, whichever way it goes."""
    for hours in (1, -1, -1, 1):
        job_id = await enqueue(node, visibility_timeout_ms=600, timeout_ms=60_000)
        await fetch(node)
        wall.jump(hours)
        await node.workers.heartbeat("w", [job_id], 60_000, {})
        await asyncio.sleep(0.7)  # longer than the reservation was
        assert orjson.loads(await node.jobs.get(job_id))["state"] == "active"
        await node.settler.ack(job_id, "w", b"")


async def test_the_leader_finds_what_a_dead_node_held(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Its lease is gone, so no reconcile looks for it, and yet the record names it."""
    await enqueue(node, visibility_timeout_ms=500)
    [job] = await fetch(node)
    await leave_to_nobody(node, job["id"])
    await eventually(lambda: node.leases.is_leader, "it leads")
    node.reconciler._sweep_due = 0
    await node.reconciler.sweep()
    assert "a dead node's claim had no holder" in caplog.text
    await held_again(node, job["id"])


@pytest.mark.parametrize("how", ["ack", "cancel"])
async def test_who_adopted_a_claim_hears_of_its_end(node: Node, nats: Nats, how: str) -> None:
    """The record still names the dead node, so whoever settles the job does not know who holds it."""
    job_id = await enqueue(node, visibility_timeout_ms=60_000)
    await fetch(node)
    await leave_to_nobody(node, job_id)
    record, _, revision = await node.jobs.load(job_id)
    await node.settler.adopt_record(record, revision)
    assert node.claims.get(job_id)
    other = Node(Settings.from_env({}))
    await other.open([nats.url])
    try:
        await (other.settler.ack(job_id, "w", b"") if how == "ack" else other.jobs.cancel(job_id))
        await eventually(lambda: not node.claims.get(job_id), "it lets go")
    finally:
        await other.close()


async def test_a_node_that_hands_over_renews_nothing(node: Node, nats: Nats) -> None:
    """Its last lease is seen as it is closed, and others adopt its claims at once: they are told, not it."""
    other = Node(Settings.from_env({}))
    await other.open([nats.url])
    try:
        await eventually(lambda: node.leases.renews(other.node_id), "it renews")
    finally:
        await other.close()
    await eventually(lambda: other.node_id not in node.leases.live_nodes(), "it is seen to end")
    assert not node.leases.renews(other.node_id)
