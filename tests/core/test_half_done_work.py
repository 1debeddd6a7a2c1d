"""Work that is cancelled half way, fails for ever or ends with another node takes nobody's job with it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.core.propagate import LISTED
from ojs_fast.core.retry import Failure
from ojs_fast.node import Node
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import Unavailable
from tests.core.conftest import WallClock
from tests.core.test_closed_counts import completed
from tests.core.test_time import QUEUE, enqueue, eventually, fetch
from tests.support.api import Api
from tests.support.nats import Nats
from tests.support.processes import freeze, poll
from tests.support.server import Server

JOBS = 20
MANY_MARKERS = 501


async def test_work_messages_of_one_flush_are_awaited_by_each_alone(node: Node) -> None:
    """Whoever is cancelled while waiting for the shared PubAck does not cancel it for the others."""
    messages = [node.work.publish(QUEUE, 0, b"1 {}") for _ in range(2)]
    assert messages[0] is messages[1]
    gone, other = (asyncio.create_task(node.propagator.published("a", message)) for message in messages)
    await asyncio.sleep(0)
    gone.cancel()
    await other
    assert gone.cancelled()
    assert messages[0].result()[1] == 0


async def test_a_leader_that_is_deposed_in_the_middle_of_a_promotion(
    node: Node, wall: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its promoter is stopped before NATS has answered: jobs that are available get their work messages."""
    at = _core.format_rfc3339_ms(wall() + 3_600_000)
    ids = {await enqueue(node, scheduled_at=at) for _ in range(JOBS)}
    await eventually(lambda: sum(len(due) for due in node.promoter._due.values()) == JOBS, "the deadlines")
    start = node.stores.records.start_replace
    sent = asyncio.Event()

    def start_and_tell(*arguments: Any) -> Any:
        sent.set()
        return start(*arguments)

    monkeypatch.setattr(node.stores.records, "start_replace", start_and_tell)
    wall.jump(2)
    await sent.wait()
    await asyncio.gather(*(due.close() for due in node.promoter._due.values()))
    fetched: set[str] = set()

    async def all_come() -> bool:
        fetched.update(job["id"] for job in await fetch(node))
        return fetched >= {id_ for id_ in ids if await state_of(node, id_) != "scheduled"} != set()

    await eventually(all_come, "every promoted job")
    assert fetched <= ids


async def state_of(node: Node, id_: str) -> str:
    """The state of a job."""
    return str(orjson.loads(await node.jobs.get(id_))["state"])


async def test_a_repair_that_never_works_holds_up_no_other(node: Node) -> None:
    """One action fails each time; another one, and a doubtful job, have their turn."""
    tries = 0

    async def fail() -> None:
        nonlocal tries
        tries += 1
        raise Unavailable("never")

    done = asyncio.Event()

    async def work() -> None:
        done.set()

    id_ = await enqueue(node)
    [job] = await fetch(node)
    node.claims.take(id_)  # as if the answer of the claim had been lost
    node.propagator.call_later(fail)
    node.propagator.call_later(work)
    node.propagator.doubt(id_)
    await asyncio.wait_for(done.wait(), 4)
    [again] = await eventually(lambda: fetch(node), "the job is given back")
    assert (again["id"], again["attempt"]) == (id_, job["attempt"])
    assert tries


async def test_a_broken_repair_is_told_and_the_rest_goes_on(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """A defect in one action ends neither the loop nor the next action."""

    async def break_() -> None:
        raise LookupError("a defect")

    done = asyncio.Event()

    async def work() -> None:
        done.set()

    node.propagator.call_later(break_)
    await eventually(lambda: "could not be repaired" in caplog.text, "the defect is told")
    node.propagator.call_later(work)
    await asyncio.wait_for(done.wait(), 4)


async def test_records_behind_many_deletions_are_found(node: Node) -> None:
    """A page of markers is not the end."""
    records = node.stores.records
    ids = [_core.uuid7(1, number.to_bytes(10, "big")) for number in range(MANY_MARKERS)]
    revisions = await asyncio.gather(*(records.create(id_, b"{}") for id_ in ids))
    await asyncio.gather(*(records.delete(id_, at) for id_, at in zip(ids, revisions, strict=True)))
    last = await enqueue(node)
    found = await records.written_since("1970-01-01T00:00:00.000Z", 0)
    assert [id_ for id_, _, _ in found] == [last]


async def test_a_job_that_another_node_wrote_over_before_it_died(node: Node) -> None:
    """The record names a node that lives, its message is of an older revision: the leader publishes another."""
    id_ = await enqueue(node)
    _, stored, revision = await node.jobs.load(id_)
    await node.stores.records.replace(id_, stored, revision)
    [(sequence, _, _)] = await node.work.messages({"seq": 1})
    await node.work.delete(sequence)
    lease = {"node_id": "gone", "boot_id": "", "started_ms": 1, "renewed_ms": node.clock(), "closed": True}
    await Bucket(node.connection, names.NODES).put("node.gone", lease)
    [job] = await eventually(lambda: fetch(node), "the job is there again")
    assert job["id"] == id_


@pytest.mark.parametrize("state", ["scheduled", "retryable", "discarded"])
async def test_an_entry_that_a_repair_made_too_late_goes(
    node: Node, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """The repair read the record before another node changed it, and writes the entry after that one's erasure."""
    bucket = Bucket(node.connection, {"discarded": names.DEAD, **LISTED}[state])
    retry = {"max_attempts": 2, "initial_interval": "PT1H", "on_exhaustion": "dead_letter"}
    waits: dict[str, Any] = {"scheduled_at": "+PT1H"} if state == "scheduled" else {"retry": retry}
    kept, changed = [await enqueue(node, **waits) for _ in range(2)]
    for job in await fetch(node):
        failure = Failure("e", "e", "it failed", retryable=state == "retryable")
        await node.settler.nack(job["id"], "w", failure, requeue=False)
    read = [await node.stores.records.get(job_id) for job_id in (kept, changed)]
    await (node.dead_letters.retry(changed) if state == "discarded" else node.jobs.cancel(changed))
    await node.stores.outbox.flushed()
    [key] = await bucket.keys()
    later: list[Callable[[], Awaitable[None]]] = []
    monkeypatch.setattr(node.propagator, "call_later", later.append)
    for one in read:
        assert one
        await node.propagator.repair(*one)
    await node.stores.outbox.flushed()
    assert len(await bucket.keys()) == 2
    for action in later:
        await action()
    await node.stores.outbox.flushed()
    assert kept in key
    assert await bucket.keys() == [key]


@pytest.mark.slow
async def test_a_node_that_wakes_up_while_it_is_repaired_and_dies_then(node: Node, nats: Nats) -> None:
    """It died a second time, and what it did in between is set right as well."""
    await eventually(lambda: node.leases.is_leader, "it leads")
    repaired: list[set[str]] = []
    again = asyncio.Event()

    def wake_work_and_die() -> None:
        os.kill(worker, signal.SIGCONT)
        poll(lambda: repaired[0] <= node.leases.live_nodes(), what="it takes its lease again")
        for _ in range(JOBS):
            api.enqueue(QUEUE)
            api.ack(api.fetch(QUEUE)[0]["id"])
        other.kill()

    async def meanwhile(dead: set[str]) -> None:
        repaired.append(dead)
        if len(repaired) == 1:
            await asyncio.to_thread(wake_work_and_die)
        else:
            again.set()

    node.reconciler.on_dead.append(meanwhile)
    with Server(nats_url=nats.url) as other, Api(other.url) as api:
        [worker] = other.worker_pids
        await asyncio.to_thread(freeze, worker)
        await asyncio.wait_for(again.wait(), 60)  # its lease ends after 4 s, twice
    assert repaired == [repaired[0]] * 2

    async def is_counted() -> bool:
        return await completed(node) == JOBS

    await eventually(is_counted, "all that it did is counted")
