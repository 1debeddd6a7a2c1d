"""Time that jumps, stands still or passes while nobody leads: what fires, and what does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import orjson
import pytest

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.core import retry
from ojs_fast.core.claims import Claim
from ojs_fast.errors import Conflict
from ojs_fast.node import Node
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import Unavailable
from tests.core.conftest import WallClock
from tests.support.nats import Nats

Body = dict[str, Any]
QUEUE = "q"
#: Deadlines look at the clock at least once a second.
NOTICED_S = 4.0


async def eventually(holds: Callable[[], Any], what: str) -> Any:
    """Wait until something holds."""
    end = time.monotonic() + NOTICED_S
    while True:
        result = holds()
        result = await result if asyncio.iscoroutine(result) else result
        if result:
            return result
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


async def fetch(node: Node, count: int = 100) -> list[Body]:
    """Fetch what there is."""
    stored = await node.fetcher.fetch([QUEUE], count, "w", 0, lambda: False)
    return [orjson.loads(_core.public_job(one)) for one in stored]


async def fails_at_a_read(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, how: str, work: Coroutine[Any, Any, Any]
) -> None:
    """Do work whose first call of `owner.name` is "unavailable", or never answers until the work is "cancelled"."""
    reading = asyncio.Event()

    async def fail(_: Any) -> Any:
        monkeypatch.undo()
        reading.set()
        if how == "unavailable":
            raise Unavailable("no answer")
        await asyncio.Event().wait()

    monkeypatch.setattr(owner, name, fail)
    doing = asyncio.create_task(work)
    await asyncio.wait_for(reading.wait(), 4)
    if how == "cancelled":
        doing.cancel()
    with pytest.raises((Unavailable, asyncio.CancelledError)):
        await doing


async def register(node: Node, expression: str, **fields: Any) -> None:
    """Register one cron job whose runs overlap as they like."""
    template = {"type": "a.b", "args": [], "options": {"queue": QUEUE}}
    body = {"name": "c", "expression": expression, "overlap_policy": "allow", "job_template": template, **fields}
    await node.cron.register(orjson.dumps(body))


def occurrences(jobs: list[Body]) -> list[str]:
    """What the runs were for."""
    return [job["meta"]["cron_triggered_at"] for job in jobs]


async def enqueue(node: Node, *args: Any, **options: Any) -> str:
    """Enqueue one job with these arguments."""
    body = {"type": "a.b", "args": args, "options": {"queue": QUEUE, **options}}
    return (await node.jobs.enqueue(orjson.dumps(body)))[0]


async def test_hours_that_were_missed_fire_once(node: Node, wall: WallClock) -> None:
    """The clock goes on by six hours: one catch-up run, then the schedule goes on from now (ojs-cron section 7.3)."""
    await register(node, "0 * * * *")
    due = (await node.cron.get("c")).next_ms
    wall.jump(6)
    await eventually(lambda: node.cron.all()[0].run_count == 1, "the catch-up run")
    entry = await eventually(lambda: node.cron.all()[0] if not node.cron.all()[0].pending else None, "it is created")
    assert due + 5 * 3_600_000 <= entry.next_ms - 3_600_000 <= wall() < entry.next_ms
    jobs = await fetch(node)
    assert occurrences(jobs) == [_core.format_rfc3339_ms(due)]


async def test_a_clock_that_is_put_back_fires_nothing_twice(node: Node, wall: WallClock) -> None:
    """The hour that the clock names again has had its runs; the scheduler goes on with the others."""
    await register(node, "* * * * * *")
    jobs: list[Body] = []

    async def run() -> bool:
        jobs.extend(await fetch(node))
        return len(jobs) >= 2

    await eventually(run, "two runs")
    wall.jump(-1)
    before = (await node.cron.get("c")).run_count
    # The scheduler lives: what is due now in the hour that came back fires.
    scheduled = await enqueue(node, scheduled_at="+PT0.2S")
    await eventually(lambda: state(node, scheduled, "available"), "a scheduled job is promoted")
    entry = await node.cron.get("c")
    assert entry.run_count <= before + 1
    assert entry.next_ms > wall() + 3_500_000
    wall.jump(1)
    count = len(jobs)

    async def more() -> bool:
        jobs.extend(job for job in await fetch(node) if "cron_name" in job["meta"])
        return len(jobs) >= count + 2

    await eventually(more, "the schedule goes on")
    told = occurrences(jobs)
    assert told == sorted(set(told)), "an occurrence fired twice"


@pytest.mark.parametrize(("expression", "hours"), [("@every 1s", -1), ("@every 1s", -100), ("* * * * * *", -100)])
async def test_a_clock_that_is_put_back_stops_nothing(
    node: Node, wall: WallClock, expression: str, hours: float
) -> None:
    """Intervals go on at once; after a large correction so does everything else."""
    await register(node, expression)
    await eventually(lambda: fetch(node), "a run")
    wall.jump(hours)
    before = node.cron.all()[0].run_count
    await eventually(lambda: node.cron.all()[0].run_count >= before + 2, "it goes on")


async def state(node: Node, job_id: str, expected: str) -> bool:
    """Whether a job is in a state."""
    return bool(orjson.loads(await node.jobs.get(job_id))["state"] == expected)


async def test_scheduled_jobs_follow_the_wall_clock(node: Node, wall: WallClock) -> None:
    """An hour on: what is due within it is promoted at once and once; what is later waits."""
    soon, later = await enqueue(node, scheduled_at="+PT30M"), await enqueue(node, scheduled_at="+PT3H")
    wall.jump(1)
    await eventually(lambda: state(node, soon, "available"), "it is due")
    assert await state(node, later, "scheduled")
    assert [job["id"] for job in await fetch(node)] == [soon]
    wall.jump(-1)
    assert await fetch(node) == []


@pytest.mark.parametrize("hours", [1, -1])
async def test_running_jobs_stay_with_their_workers(node: Node, wall: WallClock, hours: int) -> None:
    """Reservations and execution times are lengths of time: a clock put right by an hour ends none early or late."""
    await enqueue(node, visibility_timeout_ms=1_800_000)
    await enqueue(node, visibility_timeout_ms=1_500)
    await enqueue(node, timeout_ms=1_500, retry={"max_attempts": 1})
    held, short, timed = await fetch(node)
    wall.jump(hours)
    await eventually(lambda: state(node, short["id"], "available"), "the short reservation ends")
    await eventually(lambda: state(node, timed["id"], "discarded"), "the execution time ends")
    assert orjson.loads(await node.jobs.get(timed["id"]))["error"]["type"] == "timeout"
    assert await state(node, held["id"], "active")
    await node.settler.ack(held["id"], "w", b"")


async def test_what_was_due_before_the_machine_started_is_due_now(
    nats: Nats, wall: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power came back after hours: the steady clock is at seconds, and the claims of before ended long ago."""
    booted_ms = time.monotonic_ns() // 1_000_000 - 5_000
    monkeypatch.setattr("ojs_fast.node.steady_ms", lambda: time.monotonic_ns() // 1_000_000 - booted_ms)
    node = Node(Settings.from_env({}), clock=wall)
    await node.open([nats.url])
    try:
        await enqueue(node, visibility_timeout_ms=1_800_000)
        [job] = await fetch(node)
        claim = node.claims.take(job["id"])
        assert claim is not None
        wall.jump(3)
        node.claims.hold(Claim(claim.record, claim.revision, claim.visible_ms))
        await eventually(lambda: state(node, job["id"], "available"), "its reservation has ended")
    finally:
        await node.close()


async def test_retries_come_though_the_clock_goes_on(node: Node, wall: WallClock) -> None:
    """A retry that waits is promoted once when the clock passes its time."""
    job_id = await enqueue(node, retry={"initial_interval": "PT30M", "jitter": False})
    await fetch(node)
    await node.settler.nack(job_id, "w", retry.Failure("x", "x", "it failed"), requeue=False)
    wall.jump(1)
    await eventually(lambda: state(node, job_id, "available"), "the retry is due")
    [job] = await fetch(node)
    assert job["attempt"] == 2


async def test_expired_jobs_are_discarded_without_anybody_asking(node: Node, wall: WallClock) -> None:
    """`expires_at` ends what waits in any state, long before a scheduled job would be due; running jobs go on."""
    available = await enqueue(node, expires_at="+PT10M")
    [running] = await fetch(node)
    assert running["id"] == available
    available = await enqueue(node, expires_at="+PT10M")
    scheduled = await enqueue(node, scheduled_at="+PT10H", expires_at="+PT10M")
    later = await enqueue(node, expires_at="+PT10H")
    wall.jump(0.5)
    for job_id in (available, scheduled):
        await eventually(partial(stored_state, node, job_id, "discarded"), "it is discarded")
    job = orjson.loads(await node.jobs.get(scheduled))
    assert "discarded_at" in job
    assert "completed_at" not in job

    async def told() -> bool:
        events, _, _ = await node.events.read(after="", types=["job.expired"], queues=[], job_types=[], limit=10)
        return {event["subject"] for event in events} == {available, scheduled}

    await eventually(told, "job.expired is announced")
    assert [job["id"] for job in await fetch(node)] == [later]
    # Given back too late it has no more time.
    await node.settler.nack(running["id"], "w", retry.Failure("x", "x", "it failed"), requeue=True)
    await eventually(partial(stored_state, node, running["id"], "discarded"), "it is discarded")
    assert await fetch(node) == []


@pytest.mark.parametrize("how", ["fetch", "read"])
async def test_nobody_gets_an_expired_job(nats: Nats, wall: WallClock, how: str) -> None:
    """A fetch and a read look at `expires_at` themselves, also on a node that does not lead."""
    leader, node = (Node(Settings.from_env({}), clock=clock) for clock in (lambda: 1_700_000_000_000, wall))
    await leader.open([nats.url])
    await node.open([nats.url])
    try:
        job_id = await enqueue(node, expires_at="+PT10M")
        wall.jump(0.5)
        if how == "read":
            assert await state(node, job_id, "discarded")
        assert await fetch(node) == []
        await eventually(partial(stored_state, node, job_id, "discarded"), "it is discarded")
    finally:
        await node.close()
        await leader.close()


async def stored_state(node: Node, job_id: str, expected: str) -> bool:
    """The state as it lies in the store, without the look that a read takes at `expires_at`."""
    found = await node.stores.records.get(job_id)
    return found is not None and _core.Record.parse(found[0]).state == expected


async def test_a_run_that_was_allotted_is_created_by_the_next_leader(nats: Nats, wall: WallClock) -> None:
    """Died between the entry's change and the job's creation: the job comes, once, under the allotted id."""
    first = Node(Settings.from_env({}), clock=wall)
    await first.open([nats.url])
    await register(first, "0 0 1 1 *")
    job_id = _core.UuidV7Generator().next(wall())
    entry = await first.cron.get("c")
    await first.close()

    second = Node(Settings.from_env({}), clock=wall)
    bucket = Bucket(second.connection, names.CRON)
    await second.connection.open([nats.url], name="dead leader")
    value = {**entry.value(), "pending": job_id, "fired_ms": wall(), "run_count": 1, "instances": [job_id]}
    await bucket.put("c", value)
    await second.connection.close()

    third = Node(Settings.from_env({}), clock=wall)
    await third.open([nats.url])
    try:
        jobs: list[Body] = []

        async def run() -> bool:
            jobs.extend(await fetch(third))
            return bool(jobs)

        await eventually(run, "the allotted run")
        assert [job["id"] for job in jobs] == [job_id]
        await eventually(lambda: not third.cron.all()[0].pending, "the entry is settled")
        assert await fetch(third) == []
    finally:
        await third.close()


async def test_what_lies_in_the_bucket_and_is_no_entry_is_left_alone(nats: Nats, node: Node) -> None:
    """A foreign value neither stops the watch nor the schedule of others."""
    bucket = Bucket(node.connection, names.CRON)
    await bucket.put("foreign", {"not": "ours"})
    await register(node, "* * * * * *")
    await eventually(lambda: fetch(node), "runs all the same")
    with pytest.raises(Conflict):
        await node.cron.get("foreign")
    with pytest.raises(Conflict):
        await node.cron.patch("foreign", b"{}")


async def test_many_cron_jobs_due_at_once_all_fire(node: Node, wall: WallClock) -> None:
    """A thousand hourly jobs: each fires once, within seconds."""
    template = {"type": "a.b", "options": {"queue": QUEUE}}
    bodies = [{"name": f"c-{n}", "expression": "0 * * * *", "job_template": template} for n in range(1000)]
    for start in range(0, 1000, 100):
        await asyncio.gather(*(node.cron.register(orjson.dumps(one)) for one in bodies[start : start + 100]))
    wall.jump(1)
    jobs: list[Body] = []

    async def run() -> bool:
        jobs.extend(await fetch(node, 1000))
        return len(jobs) >= 1000

    await eventually(run, "all of them fire")
    assert len({job["meta"]["cron_name"] for job in jobs}) == len(jobs) == 1000
