"""What webhooks keep: the bound of the delivery log, and subjects of subscriptions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ojs_fast.core.webhooks import deliveries, model
from ojs_fast.core.webhooks.deliveries import DEAD, DONE, Delivery, DeliveryLog, delivery_id
from ojs_fast.core.webhooks.health import Health
from ojs_fast.errors import Conflict
from ojs_fast.outbound import Answer
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from tests.support.nodes import nodes


def subscription(*events: str, **more: Any) -> model.Subscription:
    """One that wants these events."""
    return model.create({"url": "https://example.com", "events": list(events), **more}, "sub_1", 1, 0)


@pytest.mark.parametrize(
    ("events", "subjects"),
    [
        (["*", "job.completed", "job.*"], ["ojs.events.>"]),
        (["job.completed", "job.*", "queue.paused"], ["ojs.events.job.>", "ojs.events.queue.paused"]),
        (["workflow.step.*", "workflow.*"], ["ojs.events.workflow.>"]),
        (["job.failed", "job.fail.*"], ["ojs.events.job.fail.>", "ojs.events.job.failed"]),
    ],
)
def test_no_subject_lies_within_another(events: list[str], subjects: list[str]) -> None:
    """NATS refuses consumers with overlapping filters."""
    assert subscription(*events).subjects() == subjects


def test_webhooks_tell_webhooks_nothing_of_themselves() -> None:
    """Each delivery would make an event that is delivered."""
    event = {"type": "webhook.delivered", "data": {}}
    assert not subscription("*").matches(event)
    assert subscription("*").matches({**event, "type": "job.completed"})


def test_an_id_follows_from_event_and_subscription() -> None:
    """The same at every node, another one for anybody else, in the order of events."""
    events = [f"evt_01900000-000{n}-7000-8000-000000000000" for n in range(3)]
    ids = [delivery_id("sub_1", one) for one in events]
    assert ids == sorted(ids)
    assert ids == [delivery_id("sub_1", one) for one in events]
    assert not set(ids) & {delivery_id("sub_2", one) for one in events}
    assert len(delivery_id("sub_1", "foreign")) == len(ids[0]) == 40


def test_the_plan_of_retries() -> None:
    """Each delay in turn, Retry-After before all, dead behind the last one; a client error at once."""
    one = Delivery("del_1", "sub_1", "evt_1", "x", 0, event=b"{}")
    waits = []
    for retry_after_s in (None, 5.0, None):
        one.note(Answer(500, retry_after_s=retry_after_s), 1000, (30, 120, 600))
        waits.append((one.next_ms - 1000) // 1000)
    assert (waits, one.kind) == ([30, 5, 600], "open")
    one.note(Answer(0, "no answer"), 1000, (30, 120, 600))
    assert (one.kind, one.attempts, len(one.tries)) == (DEAD, 4, 4)
    other = Delivery("del_1", "sub_1", "evt_1", "x", 0, event=b"{}")
    other.note(Answer(404), 1000, (30,))
    assert other.kind == DEAD


async def test_a_break_ends_with_the_first_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """None before five failures that are the endpoint's, then longer and longer ones."""
    health = Health()
    for _ in range(4):
        health.failed(is_down=True)
    assert health.break_s == 0
    health.failed(is_down=False)
    assert health.break_s == 0
    health.failed(is_down=True)
    assert 4 < health.break_s <= 5
    waiting = asyncio.create_task(health.ready())
    await asyncio.sleep(0)
    health.succeeded()
    async with asyncio.timeout(1):
        await waiting
    assert (health.failures, health.break_s) == (0, 0)


async def test_the_log_keeps_the_latest_of_each_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended is bounded by number, for each subscription and outcome; what is to be tried again is not touched."""
    monkeypatch.setattr(deliveries, "KEPT", {DONE: 5, DEAD: 3})
    monkeypatch.setattr(deliveries, "PRUNE_EVERY", 10)
    async with nodes(1) as [node]:
        log, bucket = DeliveryLog(node.connection), Bucket(node.connection, names.DELIVERIES)
        for number in range(20):
            for kind in (DONE, DEAD, "open"):
                for owner in ("sub_1", "sub_2"):
                    await log.enter(Delivery(f"del_{number:02}{kind}", owner, "evt", "x", 0, kind=kind))
        for owner in ("sub_1", "sub_2"):
            for kind, kept in ((DONE, 5), (DEAD, 3), ("open", 20)):
                assert len(await bucket.keys(f"{kind}.{owner}.*")) == kept
        assert [one.id for one in await log.page("sub_1", DONE, "", 2)] == ["del_19done", "del_18done"]
        await log.forget_subscription("sub_1")
        assert len(await bucket.keys("*.sub_1.*")) == 0
        assert len(await bucket.keys("*.sub_2.*")) == 28


async def test_subscriptions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads the whole event stream: beyond the limit there is a 409."""
    monkeypatch.setattr(model, "SUBSCRIPTIONS_MAX", 2)
    async with nodes(1) as [node]:
        body = {"url": "https://192.0.2.1.example/", "events": ["job.completed"], "active": False}
        for _ in range(2):
            await node.webhooks.create(body)
        with pytest.raises(Conflict):
            await node.webhooks.create(body)
