"""One test for each way in which a node can die half way (docs/design.md, crash windows).

The half-done state is written into NATS by hand, in the name of a node that does not exist, before a
server starts. `recent`: the dead node's lease says that it may just have written all that, so the
records written lately are replayed. `old`: its lease was renewed long after (16 s), so only `ojs-active` and
the delivered work messages tell.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import nats
import orjson
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from ojs_fast import _core
from ojs_fast.core.claims import active_entry
from ojs_fast.core.reconciler import MARGIN_MS
from ojs_fast.storage import names
from tests.support.api import Api, unique_queue
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

pytestmark = pytest.mark.faults

# A lease that nobody renews counts as dead after 4 s; then the leader looks once a second.
REPAIRED_S = 10
RESERVATION_MS = 1500
# Records that were written so long before a lease was renewed are not replayed.
LONG_AGO_S = MARGIN_MS / 1000 + 1
HOUR_MS = 3_600_000

Build = Callable[["Scene", Client], Awaitable[None]]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass
class Aftermath:
    """What a node of the name `node_id` left behind when it died."""

    js: JetStreamContext
    node_id: str = field(default_factory=lambda: os.urandom(6).hex())

    async def record(
        self, queue: str, change: Callable[[_core.Record], None] | None = None
    ) -> tuple[_core.Record, int]:
        """Write a record of this node; its revision."""
        record = _core.Record(_core.uuid7(now_ms(), os.urandom(10)), "half.done", queue, b',"args":[1],"meta":{}')
        record.created_ms = record.enqueued_ms = now_ms()
        record.node_id = self.node_id
        if change is not None:
            change(record)
        ack = await self.js.publish(names.bucket_subject(names.JOBS, record.id), record.serialize())
        return record, ack.seq

    async def replace(self, record: _core.Record) -> None:
        """Write a record again."""
        await self.js.publish(names.bucket_subject(names.JOBS, record.id), record.serialize())

    async def work_message(self, record: _core.Record, revision: int) -> None:
        """Publish a job's work message."""
        payload = _core.work_message(revision, record.serialize())
        await self.js.publish(names.work_subject(record.queue, record.priority), payload)

    async def pull(self, client: Client, queue: str) -> str:
        """Let one work message of a queue be delivered to nobody; its ack subject."""
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.OJS.{names.consumer_name(queue, 0)}"
        await client.publish(subject, b'{"batch":1,"no_wait":true}', reply=inbox)
        message = await subscription.next_msg(5)
        assert message.reply.startswith("$JS.ACK.OJS."), message.headers
        await subscription.unsubscribe()
        return message.reply

    async def enter_active(self, record: _core.Record) -> None:
        """Write the entry of `ojs-active` that claims get after a second."""
        value = active_entry("w", self.node_id, record.started_ms + record.reservation_ms, record.started_ms)
        key = names.attempt_key(record.id, record.attempt)
        await self.js.publish(names.bucket_subject(names.ACTIVE, key), orjson.dumps(value))

    async def lease(self, *, renewed_ms: int) -> None:
        """Write the lease that nobody renews."""
        value = {"node_id": self.node_id, "boot_id": "", "started_ms": 0, "renewed_ms": renewed_ms, "closed": False}
        await self.js.publish(names.bucket_subject(names.NODES, f"node.{self.node_id}"), orjson.dumps(value))


FAILURE = b'{"code":"x","message":"y","type":"x","attempt":1,"occurred_at":"2026-01-01T00:00:00Z"}'


def claimed(record: _core.Record) -> None:
    """Make a record active, with a worker that will never answer."""
    record.claim(now_ms(), "w", RESERVATION_MS, HOUR_MS)


def retryable(record: _core.Record) -> None:
    """Make a record wait for its next attempt."""
    claimed(record)
    record.fail(FAILURE)
    record.schedule_retry(now_ms(), 500)


def scheduled(record: _core.Record) -> None:
    """Make a record wait for its time."""
    record.state = "scheduled"
    record.enqueued_ms = 0
    record.scheduled_ms = now_ms() + 500


def dead_letter(record: _core.Record) -> None:
    """Make a record a dead letter."""
    claimed(record)
    record.fail(FAILURE)
    record.discard(now_ms(), dead_letter=True)


def completed(record: _core.Record) -> None:
    """Make a record completed."""
    claimed(record)
    record.complete(now_ms(), b"")


class Scene:
    """A NATS with the half-done state of a dead node, `rows` by name, and the server that repairs it."""

    rows: dict[str, str]
    queues: dict[str, str]
    api: Api

    def __init__(self, nats_url: str, names_of_rows: list[str], build: Build) -> None:
        self.nats_url = nats_url
        self.rows = {}
        self.queues = {name: unique_queue(name) for name in names_of_rows}
        # The server makes streams, queues and consumers; then it is gone, and the dead node's time comes.
        with Server(nats_url=nats_url) as first, Api(first.url) as api:
            for queue in self.queues.values():
                api.cancel(api.enqueue(queue)["id"])
                assert api.fetch(queue) == []
        asyncio.run(self._write(build))

    async def _write(self, build: Build) -> None:
        client = await nats.connect(self.nats_url)
        try:
            await build(self, client)
        finally:
            await client.close()

    def fetched(self, row: str) -> dict[str, Any]:
        """Wait for the job of a row to reach a worker, once."""
        queue = self.queues[row]
        [job] = poll(lambda: self.api.fetch(queue), deadline_s=REPAIRED_S, pause_s=0.05, what=f"{row} is repaired")
        assert job["id"] == self.rows[row]
        assert self.api.ack(job["id"])["state"] == "completed"
        assert self.api.fetch(queue) == []
        return job


RECENT = ["created", "pulled", "claimed", "claimed-unseen", "retryable", "scheduled", "dead", "stale", "twice"]


async def write_recent(scene: Scene, client: Client) -> None:
    """Leave behind every row of the table, written just before the lease ended."""
    left = Aftermath(client.jetstream())
    await left.js.publish(names.bucket_subject(names.JOBS, "foreign"), b"not a record of ours")
    await left.js.publish("ojs.queue.foreign.jobs", b"not a work message of ours")
    for row in RECENT:
        states = {
            "claimed-unseen": claimed,
            "retryable": retryable,
            "scheduled": scheduled,
            "dead": dead_letter,
        }
        queue = scene.queues[row]
        record, revision = await left.record(queue, states.get(row))
        scene.rows[row] = record.id
        if row in {"pulled", "claimed", "stale", "twice"}:
            await left.work_message(record, revision)
        if row == "twice":
            await left.work_message(record, revision)
        if row in {"pulled", "claimed", "stale"}:
            record.ack_subject = await left.pull(client, queue)
        if row in {"claimed", "stale"}:
            (claimed if row == "claimed" else completed)(record)
            await left.replace(record)
    # Its clock was ahead; what counts is when NATS got the lease.
    await left.lease(renewed_ms=now_ms() + HOUR_MS)


OLD = ["pulled", "claimed-entered", "claimed-ahead", "claimed-delivered"]


async def write_old(scene: Scene, client: Client) -> None:
    """Leave behind what a node that died long after its last write can leave behind."""
    left = Aftermath(client.jetstream())
    for row in OLD:
        queue = scene.queues[row]
        record, revision = await left.record(queue)
        scene.rows[row] = record.id
        if row in {"pulled", "claimed-delivered"}:
            await left.work_message(record, revision)
            record.ack_subject = await left.pull(client, queue)
        if row != "pulled":
            claimed(record)
            if row == "claimed-ahead":
                record.started_ms += HOUR_MS
            await left.replace(record)
        if row in {"claimed-entered", "claimed-ahead"}:
            await left.enter_active(record)
    await asyncio.sleep(LONG_AGO_S)
    await left.lease(renewed_ms=now_ms())


def play(rows: list[str], build: Build) -> Iterator[Scene]:
    """Write the state, start the server, give both."""
    with Nats() as running:
        scene = Scene(running.url, rows, build)
        with Server(nats_url=running.url) as server, Api(server.url) as api:
            scene.api = api
            yield scene


@pytest.fixture(scope="module")
def recent() -> Iterator[Scene]:
    """Give the scene of a node that died right after its writes."""
    yield from play(RECENT, write_recent)


@pytest.fixture(scope="module")
def old() -> Iterator[Scene]:
    """Give the scene of a node whose writes are older than its lease's margin."""
    yield from play(OLD, write_old)


def test_a_record_without_work_message_is_published(recent: Scene) -> None:
    """Died between the record's creation and its work message: the job reaches a worker, first attempt."""
    assert recent.fetched("created")["attempt"] == 1


def test_a_message_that_was_pulled_and_not_claimed_comes_again(recent: Scene) -> None:
    """Died between pull and claim: the job reaches another worker, first attempt."""
    assert recent.fetched("pulled")["attempt"] == 1


def test_a_claim_of_a_dead_node_ends_at_its_deadline(recent: Scene) -> None:
    """Died after the claim: the reservation runs out, the second attempt starts, the history says why."""
    job = recent.fetched("claimed")
    assert job["attempt"] == 2
    assert [error["type"] for error in job["errors"]] == ["visibility_timeout"]


def test_a_claim_whose_work_message_is_gone_ends_at_its_deadline(recent: Scene) -> None:
    """Consumers forget deliveries when NATS is killed, and the message is dropped as stale: the record is enough."""
    assert recent.fetched("claimed-unseen")["attempt"] == 2


def test_a_retryable_record_without_index_entry_is_promoted(recent: Scene) -> None:
    """Died between nack and index entry: the next attempt starts all the same."""
    assert recent.fetched("retryable")["attempt"] == 2


def test_a_scheduled_record_without_index_entry_is_promoted(recent: Scene) -> None:
    """Died between creation and index entry: the job starts all the same."""
    assert recent.fetched("scheduled")["attempt"] == 1


def test_a_dead_letter_without_entry_is_listed(recent: Scene) -> None:
    """Died between the last nack and the dead letter: it is listed and can be retried."""
    [job] = poll(lambda: recent.api.dead_letters(recent.queues["dead"]), deadline_s=REPAIRED_S, what="it is listed")
    assert job["id"] == recent.rows["dead"]
    retried = recent.api.call("POST", f"/dead-letter/{job['id']}/retry", {})["job"]
    assert (retried["state"], retried["attempt"]) == ("available", 0)
    assert recent.fetched("dead")["attempt"] == 1


def test_a_stale_work_message_delivers_nothing_and_goes(recent: Scene) -> None:
    """Died between the record's completion and `+ACK`: the message leaves the stream, the job stays completed."""
    queue = recent.queues["stale"]

    async def left() -> int:
        client = await nats.connect(recent.nats_url)
        try:
            info = await client.jetstream().stream_info("OJS", subjects_filter=names.work_subject(queue, 0))
            return sum((info.state.subjects or {}).values())
        finally:
            await client.close()

    poll(lambda: asyncio.run(left()) == 0, deadline_s=REPAIRED_S, pause_s=0.1, what="the message is removed")
    assert recent.api.fetch(queue) == []
    assert recent.api.get(recent.rows["stale"])["state"] == "completed"


def test_a_work_message_published_twice_delivers_once(recent: Scene) -> None:
    """Died between publish and its acknowledgement, or repaired twice: the revision decides."""
    assert recent.fetched("twice")["attempt"] == 1


def test_an_old_pulled_message_comes_again(old: Scene) -> None:
    """Delivered work messages are walked whenever a node dies, however long ago the record was written."""
    assert old.fetched("pulled")["attempt"] == 1


def test_an_old_claim_without_work_message_is_adopted(old: Scene) -> None:
    """`ojs-active` alone tells of it."""
    assert old.fetched("claimed-entered")["attempt"] == 2


def test_a_claim_of_a_clock_that_was_ahead_lasts_no_longer_than_others(old: Scene) -> None:
    """What counts is how long it was to last; the job is not held for an hour."""
    assert old.fetched("claimed-ahead")["attempt"] == 2


def test_an_old_claim_is_adopted(old: Scene) -> None:
    """The delivered work message alone tells of it."""
    assert old.fetched("claimed-delivered")["attempt"] == 2
