"""What a node that died half way left of a queue's numbers: totals, index entries, work messages.

As in `test_crash_windows`, the half-done state is written into NATS in the name of a node that never was.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from ojs_fast import _core
from ojs_fast.core.tallies import MARKS
from ojs_fast.storage import names
from tests.faults.test_crash_windows import REPAIRED_S, Aftermath, now_ms
from tests.faults.test_every_write import each_death
from tests.support.api import Api, unique_queue
from tests.support.doomed import Doomed
from tests.support.nats import Nats
from tests.support.processes import freeze, poll
from tests.support.server import Server

pytestmark = pytest.mark.faults

FLUSHED = 7
ROWS = ("counted", "late", "closed", "revived", "alien", "cancelled", "indexed")
DIES_S = 12.0


def marked(left: Aftermath, state: str, *periods: tuple[int, str]) -> Any:
    """Make a record that the dead node ended in these periods."""

    def change(record: _core.Record) -> None:
        record.state = state
        record.ended_ms = now_ms()
        record.extra = {MARKS: [f"{left.node_id}-x {period} {what}" for period, what in periods]}

    return change


async def leave(client: Client, queues: dict[str, str]) -> None:
    """Write the state of a dead node that had counted up to period 7."""
    left = Aftermath(client.jetstream())
    owner = f"{left.node_id}-x"
    counted = queues["counted"]
    value = b'{"completed":3,"discarded":1,"cancelled":2,"minutes":[],"hours":[]}'
    await left.js.publish(names.bucket_subject(names.TALLIES, names.tally_key(counted, owner)), value)
    value = b'{"completed":0,"discarded":2,"cancelled":0,"minutes":[],"hours":[]}'
    await left.js.publish(names.bucket_subject(names.TALLIES, names.tally_key(queues["revived"], owner)), value)
    through = b'{"through":%d}' % FLUSHED
    await left.js.publish(names.bucket_subject(names.TALLIES, names.tally_owner_key(owner)), through)
    # Written before the flush: in the entry already. After it: only the records tell.
    await left.record(counted, marked(left, "completed", (FLUSHED, "completed")))
    await left.record(queues["late"], marked(left, "completed", (FLUSHED + 1, "completed")))
    await left.record(queues["late"], marked(left, "cancelled", (FLUSHED + 2, "cancelled")))
    # Somebody has taken over what the node did under an earlier name; one of these jobs landed behind that.
    closed = b'{"through":%d,"closed_ms":%d}' % (FLUSHED, now_ms())
    earlier = f"{left.node_id}-w"
    await left.js.publish(names.bucket_subject(names.TALLIES, names.tally_owner_key(earlier)), closed)

    def landed_late(record: _core.Record) -> None:
        marked(left, "completed")(record)
        record.extra = {MARKS: [f"{earlier} {FLUSHED + 1} completed"]}

    await left.record(queues["closed"], landed_late)
    history = ((FLUSHED, "discarded"), (FLUSHED + 1, "-discarded"), (FLUSHED + 1, "completed"))
    await left.record(queues["revived"], marked(left, "completed", *history))
    await left.record(queues["alien"], marked(Aftermath(left.js), "completed", (FLUSHED + 1, "completed")))
    record, revision = await left.record(queues["cancelled"])
    await left.work_message(record, revision)
    record.cancel(now_ms())
    await left.replace(record)

    def cancelled(record: _core.Record) -> None:
        record.scheduled_ms = now_ms() + 3_600_000
        record.state = "cancelled"

    record, _ = await left.record(queues["indexed"], cancelled)
    key = names.scheduled_key(record.queue, record.id, 0)
    await left.js.publish(names.bucket_subject(names.SCHEDULED, key), b'{"due_ms":%d}' % record.scheduled_ms)
    await left.lease(renewed_ms=now_ms())


async def write(url: str, queues: dict[str, str]) -> None:
    """`leave` by a connection of its own."""
    client = await nats.connect(url)
    try:
        await leave(client, queues)
    finally:
        await client.close()


EXPECTED: dict[str, dict[str, int]] = {
    "counted": {"completed": 3, "discarded": 1, "cancelled": 2},
    "late": {"completed": 1, "cancelled": 1},
    "closed": {"completed": 1},
    "revived": {"completed": 1, "discarded": 1},
    "alien": {},
    "cancelled": {},
    "indexed": {},
}


def told(api: Api, queue: str) -> dict[str, int]:
    """The states that are not zero."""
    stats = api.call("GET", f"/queues/{queue}/stats")["stats"]
    states = ("available", "active", "scheduled", "retryable", "completed", "discarded", "cancelled")
    return {state: stats[state] for state in states if stats[state]}


def becomes(api: Api, queue: str, wanted: dict[str, int], within_s: float = REPAIRED_S) -> None:
    """Wait for the numbers of a queue."""
    poll(lambda: told(api, queue) == wanted, deadline_s=within_s, pause_s=0.1, what=f"{queue} has {wanted}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whoever_takes_numbers_over_may_die_before_each_write() -> None:
    """The next leader completes them, and counts nothing twice."""

    def one(writes: int | None) -> list[str]:
        queues = {row: unique_queue(row) for row in ROWS}
        with (
            Nats() as server,
            Doomed(nats_url=server.url) as leader,
            Server(nats_url=server.url) as heir,
            Api(heir.url) as api,
        ):
            for queue in queues.values():
                api.call("POST", "/queues", {"name": queue})
            written: list[str] = []
            if writes is None:
                leader.arm()
                asyncio.run(write(server.url, queues))
                for row, queue in queues.items():
                    becomes(api, queue, EXPECTED[row])
                written = leader.written()
                leader.kill()
            else:
                leader.arm(writes)
                asyncio.run(write(server.url, queues))
                leader.await_death(DIES_S)
            for row, queue in queues.items():
                becomes(api, queue, EXPECTED[row], 3 * REPAIRED_S)
            return written

    each_death("taking over", one)


def test_a_dead_nodes_numbers_are_completed_once() -> None:
    """What it had written stays, what it had not is added from its records, leftovers of its jobs go."""
    queues = {row: unique_queue(row) for row in ROWS}
    with Nats() as server:
        with Server(nats_url=server.url) as first, Api(first.url) as api:
            for queue in queues.values():
                api.call("POST", "/queues", {"name": queue})
        asyncio.run(write(server.url, queues))
        with Server(nats_url=server.url) as second, Api(second.url) as api:
            for row, queue in queues.items():
                becomes(api, queue, EXPECTED[row])
        # It was merged for good: the next server finds the same.
        with Server(nats_url=server.url) as third, Api(third.url) as api:
            assert {row: told(api, queue) for row, queue in queues.items()} == EXPECTED


def test_totals_survive_a_kill_right_after_the_answer() -> None:
    """Jobs that ended less than a flush before a kill -9 of everything are counted by the next server."""
    queue = unique_queue()
    server = Server()
    try:
        server.start()
        with Api(server.url) as api:
            api.enqueue_batch([{"type": "a.b", "args": [], "options": {"queue": queue}}] * 20)
            for job in api.fetch(queue, count=10):
                api.ack(job["id"])
        server.kill()
        server.start()
        with Api(server.url) as api:
            wanted = {"available": 10, "completed": 10}
            becomes(api, queue, wanted)
        server.stop()
    finally:
        server.close()


def test_a_node_that_was_taken_for_dead_counts_on() -> None:
    """A server stands still for longer than its lease: nobody's numbers are lost or counted twice."""
    queue = unique_queue()

    def work(api: Api) -> None:
        api.enqueue(queue)
        api.ack(api.fetch(queue)[0]["id"])

    with (
        Nats() as server,
        Server(nats_url=server.url) as one,
        Server(nats_url=server.url) as two,
        Api(one.url) as first,
        Api(two.url) as second,
    ):
        for api in (first, second):
            work(api)
        for pid in two.worker_pids:
            freeze(pid)
        poll(lambda: "reconciled" in one.log(), deadline_s=15, pause_s=0.05, what="the other is taken for dead")
        for pid in two.worker_pids:
            os.kill(pid, signal.SIGCONT)
        for done in (2, 3, 4):
            for api in (first, second):
                becomes(api, queue, {"completed": done})
            work(second)
