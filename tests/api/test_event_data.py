"""What events tell of jobs and workflows (ojs-events section 4), and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.api import Api, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

Data = dict[str, Any]
COMMON = {"job_id", "job_type", "type", "queue", "state", "attempt", "timestamp"}
SOON = {"max_attempts": 2, "initial_interval": "PT0.01S"}


def told(api: Api, queue: str, last: str) -> list[tuple[str, Data]]:
    """`(type, data)` of the events of a queue, as soon as one of type `last` is there."""

    def there() -> list[tuple[str, Data]]:
        found = [(one["type"], one["data"]) for one in api.events(queues=queue, limit=1000)]
        return found if last in [kind for kind, _ in found] else []

    return poll(there, what=last)


def one(events: list[tuple[str, Data]], kind: str) -> Data:
    """The data of the only event of a type, without what all events of jobs have."""
    [data] = [data for found, data in events if found == kind]
    assert data.keys() >= COMMON
    return {name: value for name, value in data.items() if name not in COMMON and name != "previous_state"}


def seconds(text: str) -> float:
    """An RFC 3339 time as seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def test_a_job_that_fails(api: Api) -> None:
    """Its worker, each error with its message, what comes next and the last one."""
    queue, text = unique_queue(), 'no "Ä" ' + "x" * 2000
    job = api.enqueue(queue, retry=SOON)
    api.fetch(queue, worker_id="w-1")
    api.nack(job["id"], text, code="smtp", details={"huge": "y" * 5000})
    poll(lambda: api.fetch(queue, worker_id="w-2"), what="the retry")
    api.nack(job["id"], "again", retryable=False)
    events = told(api, queue, "job.discarded")
    error = {"code": "smtp", "message": text[:1000]}
    assert [data["worker_id"] for kind, data in events if kind == "job.started"] == ["w-1", "w-2"]
    first, second = (data["error"] for kind, data in events if kind == "job.failed")
    assert (first, second["retryable"]) == ({**error, "retryable": True}, False)
    retrying = one(events, "job.retrying")
    due = seconds(retrying.pop("next_retry_at"))
    assert 0 <= time.time() - due < 60
    assert retrying == {"max_attempts": 2, "retry_delay_ms": retrying["retry_delay_ms"], "error": error}
    assert one(events, "job.discarded") == {
        "total_attempts": 2,
        "last_error": {"code": "handler_error", "message": "again"},
    }


def test_what_becomes_of_a_dead_letter(api: Api) -> None:
    """It is added, retried (two ways), added again and deleted; each told once, behind the event of its job."""
    queue = unique_queue()
    job_id = api.enqueue(queue, kind="a.b", retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})["id"]
    for retry in (f"/dead-letter/{job_id}/retry", f"/admin/jobs/{job_id}/retry"):
        api.fetch(queue)
        api.nack(job_id, "no", code="smtp")
        api.call("POST", retry, {})
    api.fetch(queue)
    api.nack(job_id, "no", code="smtp")
    api.call("DELETE", f"/dead-letter/{job_id}")
    events = told(api, queue, "dead_letter.deleted")
    kinds = [kind for kind, _ in events if kind.startswith("dead_letter.") or kind == "job.discarded"]
    again = ["job.discarded", "dead_letter.added", "dead_letter.retried"]
    assert kinds == [*again, *again, "job.discarded", "dead_letter.added", "dead_letter.deleted"]
    about = {"job_id": job_id, "job_type": "a.b", "queue": queue}
    of = {kind: data for kind, data in events if data.pop("timestamp")}
    assert of["dead_letter.retried"] == of["dead_letter.deleted"] == about
    last_error = {"code": "smtp", "message": "no"}
    assert of["dead_letter.added"] == about | {"total_attempts": 1, "last_error": last_error}


def test_a_job_that_is_discarded_without_a_dead_letter_is_told_as_none(api: Api) -> None:
    """By default nothing is left of it."""
    queue = unique_queue()
    job_id = api.enqueue(queue, retry={"max_attempts": 1})["id"]
    api.fetch(queue)
    api.nack(job_id, "no")
    assert [kind for kind, _ in told(api, queue, "job.discarded") if kind.startswith("dead_letter.")] == []


@pytest.mark.parametrize(
    ("left", "error", "expected"),
    [
        (2, {}, True),
        (1, {}, True),
        (2, {"retryable": False}, False),
        (2, {"type": "final"}, False),
        (1, {"retryable": False}, False),
    ],
)
def test_whether_an_error_is_retryable(api: Api, left: int, error: Data, expected: bool) -> None:
    """By what the worker says and by the job's policy; having no run left does not make the error final."""
    queue = unique_queue()
    job = api.enqueue(queue, retry={"max_attempts": left, "non_retryable_errors": ["final"]})
    api.fetch(queue)
    api.nack(job["id"], **error)
    assert one(told(api, queue, "job.failed"), "job.failed")["error"]["retryable"] is expected


def test_scheduled_and_expired(api: Api) -> None:
    """When it will run; how long it was good for."""
    queue = unique_queue()
    due = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    api.enqueue(queue, scheduled_at=due)
    assert one(told(api, queue, "job.scheduled"), "job.scheduled") == {"scheduled_at": due}
    job = api.enqueue(queue, expires_at="+PT0.2S")
    expired = one(told(api, queue, "job.expired"), "job.expired")
    assert expired["ttl_ms"] == 200
    assert expired["created_at"] == job["created_at"]
    assert seconds(expired["expired_at"]) - seconds(expired["created_at"]) >= 0.2


def test_a_heartbeat_extends_each_job(api: Api) -> None:
    """Who has it until when; a job that is not the worker's is not told of."""
    queue = unique_queue()
    job, other = api.enqueue(queue), api.enqueue(queue)
    api.fetch(queue, worker_id="w-1")
    api.fetch(queue, worker_id="w-2")
    api.heartbeat("w-1", [job["id"], other["id"]], visibility_timeout_ms=90_000)
    beat = one(told(api, queue, "job.heartbeat"), "job.heartbeat")
    assert beat["worker_id"] == "w-1"
    assert 60 < seconds(beat["visible_until"]) - time.time() <= 90


def test_a_pending_job_is_enqueued_once_it_is_activated(api: Api) -> None:
    """Not before: nobody could fetch it."""
    queue = unique_queue()
    job = api.enqueue(queue, pending=True)
    api.call("POST", f"/jobs/{job['id']}/activate")
    api.fetch(queue)
    kinds = [(kind, data["state"]) for kind, data in told(api, queue, "job.started")]
    assert kinds == [("job.enqueued", "available"), ("job.started", "active")]


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"trace_id": "abc"}, "abc"),
        (
            {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
            "4bf92f3577b34da6a3ce929d0e0e4736",
        ),
        ({"trace_id": "mine", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "mine"),
        ({"trace_id": 7}, None),
        ({"traceparent": "nonsense"}, None),
        ({"inner": {"trace_id": "x"}}, None),
    ],
)
def test_every_event_names_the_trace(api: Api, meta: Data, expected: str | None) -> None:
    """Of the job's `meta`, whichever of the two is there (section 8)."""
    queue = unique_queue()
    job = api.enqueue(queue, meta=meta, args=["trace_id"])
    api.fetch(queue)
    api.ack(job["id"])
    assert [data.get("trace_id") for _, data in told(api, queue, "job.completed")] == [expected] * 3


def test_events_of_a_job_keep_their_order(api: Api) -> None:
    """However many jobs share the moment: enqueued, started, completed (section 9.2)."""
    queue = unique_queue()
    ids = []
    for _ in range(40):
        job = api.enqueue(queue)
        api.fetch(queue)
        api.ack(job["id"])
        ids.append(job["id"])
    poll(lambda: len(api.events(queues=queue, limit=1000)) == 120, what="all are told")
    events = told(api, queue, "job.completed")
    for job_id in ids:
        kinds = [kind for kind, data in events if data["job_id"] == job_id]
        assert kinds == ["job.enqueued", "job.started", "job.completed"]


def of_workflow(api: Api, workflow_id: str, last: str) -> dict[str, Data]:
    """The data of the events of a workflow by type, as soon as one of type `last` is there; steps by their id."""

    def there() -> dict[str, Data]:
        found: dict[str, Data] = {}
        for event in api.events(limit=1000):
            if event["subject"] == workflow_id:
                found[event["data"].get("step_id", event["type"])] = event["data"]
        return found if last in found else {}

    return poll(there, what=last)


def test_a_workflow_that_ends_well(fresh_server: Callable[..., Server]) -> None:
    """How many steps, which of them is done, how many are left."""
    with Api(fresh_server().url) as api:
        queue = unique_queue()
        steps: list[Data] = [
            {"id": name, "type": "a.b", "args": [], "options": {"queue": queue}} for name in ("first", "second")
        ]
        made = api.call("POST", "/workflows", {"type": "chain", "name": "c", "steps": steps})
        workflow_id = made.get("workflow", made)["id"]
        for _ in steps:
            [job] = poll(lambda: api.fetch(queue), what="the next step")
            api.ack(job["id"])
        events = of_workflow(api, workflow_id, "workflow.completed")
        assert list(events) == ["workflow.created", "workflow.started", "first", "second", "workflow.completed"]
        assert events["workflow.started"]["total_steps"] == 2
        assert [events[name]["steps_remaining"] for name in ("first", "second")] == [1, 0]
        assert events["workflow.completed"]["total_steps"] == 2
        assert events["workflow.completed"]["duration_ms"] >= events["second"]["duration_ms"] >= 0


def test_a_workflow_that_fails(fresh_server: Callable[..., Server]) -> None:
    """Which step it was, and why."""
    with Api(fresh_server().url) as api:
        queue = unique_queue()
        options = {"queue": queue, "retry": {"max_attempts": 1}}
        steps: list[Data] = [
            {"id": name, "type": f"a.{name}", "args": [], "options": options} for name in ("first", "second")
        ]
        made = api.call("POST", "/workflows", {"type": "chain", "name": "c", "steps": steps})
        workflow_id = made.get("workflow", made)["id"]
        [job] = poll(lambda: api.fetch(queue), what="the first step")
        api.nack(job["id"], "boom")
        failed = of_workflow(api, workflow_id, "workflow.failed")["workflow.failed"]
        assert failed["failed_step_id"] == "first"
        assert failed["failed_step_type"] == "a.first"
        assert failed["error"] == {"code": "handler_error", "message": "boom"}
