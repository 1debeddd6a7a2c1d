"""How events are gathered: few messages, and one subject's events in their order."""

from __future__ import annotations

import orjson
import pytest

from ojs_fast.node import Node
from ojs_fast.storage import event_log
from ojs_fast.storage.event_log import EventLog


async def messages(node: Node, *events: tuple[str, str]) -> list[tuple[str, list[str]]]:
    """`[(event type, subjects)]` of the messages that these events, `(type, subject)`, become."""
    log = EventLog(node.connection)
    before = max((sequence for sequence, _ in await log.read(0, [])), default=0)
    for kind, subject in events:
        log.append(kind, subject, orjson.dumps({"type": kind, "subject": subject, "data": {}}))
    told = await log.read(before, [])
    return [(found[0]["type"], [event["subject"] for event in found]) for _, found in told]


async def test_different_jobs_share_a_message(node: Node) -> None:
    """Of each type, whatever order they come in."""
    events = [("job.started", "a"), ("job.completed", "a"), ("job.started", "b"), ("job.completed", "b")]
    assert await messages(node, *events) == [("job.started", ["a", "b"]), ("job.completed", ["a", "b"])]


async def test_one_jobs_events_stay_in_order(node: Node) -> None:
    """A message of its type that would leave too early is not the place for it."""
    told = await messages(
        node,
        ("job.started", "a"), ("job.enqueued", "b"), ("job.started", "b"), ("job.completed", "b"),
        ("job.completed", "a"), ("job.started", "c"), ("job.enqueued", "b"),
    )  # fmt: skip
    assert told == [
        ("job.started", ["a"]),
        ("job.enqueued", ["b"]),
        ("job.started", ["b", "c"]),
        ("job.completed", ["b", "a"]),
        ("job.enqueued", ["b"]),
    ]


async def test_a_message_stays_small(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number and by the size of its events; one that is larger alone has a message of its own."""
    monkeypatch.setattr(event_log, "EVENTS_PER_MESSAGE", 3)
    assert [len(found) for _, found in await messages(node, *[("a", str(n)) for n in range(7)])] == [3, 3, 1]
    monkeypatch.setattr(event_log, "MESSAGE_BYTES", 100)
    sizes = [len(found) for _, found in await messages(node, ("a", "x" * 30), ("a", "y" * 30), ("a", "z" * 200))]
    assert sizes == [1, 1, 1]
