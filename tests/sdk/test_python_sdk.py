"""The official Python SDK works with its option `headers={"Accept": "application/json"}`, and nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sdk.wire_python import OJS_JSON, Body, ParsingHook, PythonSdk, SdkError, moment, request
from tests.support.api import unique_queue
from tests.support.processes import poll
from tests.support.server import Server

TWICE = "/ojs/v1/ojs/v1"


@pytest.fixture
def sdk(server: Server) -> Iterator[PythonSdk]:
    """Give a client with the documented option."""
    with PythonSdk(server.url, {"Accept": "application/json"}) as client:
        yield client


@pytest.fixture
def queue() -> str:
    """Give a queue of the test's own."""
    return unique_queue("pysdk")


def test_its_headers_go_out_as_they_are_described(sdk: PythonSdk, queue: str) -> None:
    """The test client sends what the SDK sends, or the other tests prove nothing."""
    sdk.enqueue("email.send", ["a"], queue=queue)
    sent = sdk.requests[-1]
    assert sent.headers["content-type"] == OJS_JSON
    assert sent.headers["ojs-version"] == "1.0"
    assert len(sent.headers["x-request-id"]) == 36
    assert json.loads(sent.content) == {"type": "email.send", "args": ["a"], "options": {"queue": queue}}


def test_without_the_option_the_specification_wins_and_it_parses_nothing(server: Server, queue: str) -> None:
    """What the README warns of; a transport that renames the media type helps as well."""
    with PythonSdk(server.url) as bare:
        assert isinstance(bare.send("GET", "/queues"), str)
    with PythonSdk(server.url, transport=ParsingHook()) as hooked:
        assert hooked.enqueue("email.send", [1], queue=queue).queue == queue


def test_enqueue_get_and_cancel_return_jobs(sdk: PythonSdk, queue: str) -> None:
    """Every option key of the SDK is taken."""
    job = sdk.enqueue(
        "report.make",
        [1, {"a": None}],
        meta={"trace": "x"},
        queue=queue,
        priority=7,
        timeout_ms=60_000,
        delay_until="2099-01-01T00:00:00Z",
        expires_at="2099-01-02T00:00:00Z",
        retry={"max_attempts": 5, "initial_interval": "PT1S", "backoff_coefficient": 2.0, "jitter": True},
        tags=["a", "b"],
    )
    assert (job.state, job.priority, job.max_attempts, job.meta) == ("scheduled", 7, 5, {"trace": "x"})
    assert sdk.get(job.id) == job
    assert sdk.cancel(job.id).state == "cancelled"


def test_a_batch_returns_its_jobs(sdk: PythonSdk, queue: str) -> None:
    """POST /jobs/batch."""
    jobs = sdk.enqueue_batch([request("a.b", [n], None, {"queue": queue}) for n in range(3)])
    assert [job.args for job in jobs] == [[0], [1], [2]]


def test_errors_map_to_its_classes(sdk: PythonSdk, queue: str) -> None:
    """By `error.code`, in lower case."""
    unique = {"key": ["type", "queue"], "period": "PT1H", "on_conflict": "reject"}
    sdk.enqueue("one.only", [], queue=queue, unique=unique)
    kinds: list[Any] = []
    for attempt in (
        lambda: sdk.enqueue("one.only", [], queue=queue, unique=unique),
        lambda: sdk.get("01900000-0000-7000-8000-000000000000"),
        lambda: sdk.send("POST", "/jobs", {"type": "Not Valid", "args": []}),
    ):
        with pytest.raises(SdkError) as raised:
            attempt()
        kinds.append((raised.value.kind, raised.value.status, raised.value.retryable))
    assert kinds == [("DuplicateJobError", 409, False), ("JobNotFoundError", 404, False), ("OJSAPIError", 400, False)]


def test_a_worker_fetches_beats_reports_and_acknowledges(sdk: PythonSdk, queue: str) -> None:
    """The whole of a handler's life."""
    assert sdk.fetch(queue, "py-1") is None
    sdk.enqueue("email.send", ["a"], queue=queue)
    job = sdk.fetch(queue, "py-1")
    assert job is not None
    assert (job.state, job.attempt) == ("active", 1)
    assert sdk.heartbeat("py-1", [job.id]) == "running"
    sdk.progress(job.id, 40, "nearly half", {"rows": 40})
    told = sdk.send("GET", f"/jobs/{job.id}/progress")
    assert (told["progress"], told["percentage"], told["data"]) == (0.4, 40.0, {"rows": 40})
    sdk.ack(job.id, {"sent": True})
    done = sdk.get(job.id)
    assert (done.state, done.raw["result"]) == ("completed", {"sent": True})
    assert moment(done.raw["completed_at"]) is not None


def test_a_nack_after_a_lost_ack_is_harmless(sdk: PythonSdk, queue: str) -> None:
    """The SDK acks again, then nacks, when it heard no answer: the job stays completed."""
    sdk.enqueue("email.send", [], queue=queue)
    job = sdk.fetch(queue, "py-1")
    assert job is not None
    sdk.ack(job.id)
    with pytest.raises(SdkError) as again:
        sdk.ack(job.id)
    with pytest.raises(SdkError) as instead:
        sdk.nack(job.id, "no answer")
    assert (again.value.status, instead.value.status) == (409, 409)
    assert sdk.get(job.id).state == "completed"


def test_a_nack_is_retried_and_ends_among_the_dead_letters(sdk: PythonSdk, queue: str) -> None:
    """Dead letters: list by queue, limit and offset, retry, delete."""
    job = sdk.enqueue("email.send", [], queue=queue, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})
    for number in range(2):
        assert sdk.fetch(queue, "py-1") is not None
        sdk.nack(job.id, "it failed")
        listed = sdk.send("GET", "/dead-letter", queue=queue, limit=10, offset=0)
        assert [one["id"] for one in listed["jobs"]] == [job.id]
        if number == 0:
            again = sdk.send("POST", f"/dead-letter/{job.id}/retry", {})["job"]
            assert (again["state"], again["attempt"]) == ("available", 0)
    assert sdk.send("DELETE", f"/dead-letter/{job.id}")["deleted"] is True


def test_a_durable_handler_goes_on_from_its_replay_log(sdk: PythonSdk, queue: str) -> None:
    """At the doubled prefix that the SDK really asks, and at the right one."""
    job = sdk.enqueue("long.one", [], queue=queue)
    assert sdk.fetch(queue, "py-1") is not None
    assert sdk.replay_log(job.id) == []
    log = [{"seq": 1, "name": "now", "result": "2026-01-01"}, {"seq": 2, "name": "random", "result": 0.25}]
    for prefix in (TWICE, "/ojs/v1"):
        body = {"state": {"at": 2}, "metadata": {"_replay_log": log}}
        sdk.send("POST", f"{prefix}/checkpoints/{job.id}", body)
        assert sdk.replay_log(job.id) == log
    sdk.nack(job.id, "crashed")
    poll(lambda: sdk.get(job.id).state == "available", what="the job is available again")
    again = sdk.fetch(queue, "py-2")
    assert again is not None
    assert again.raw["checkpoint"]["sequence"] == 2
    assert sdk.replay_log(job.id) == log
    assert sdk.send("DELETE", f"{TWICE}/checkpoints/{job.id}")["deleted"] is True
    assert sdk.replay_log(job.id) == []


def test_queues_and_their_statistics(sdk: PythonSdk, queue: str) -> None:
    """`queue` stands at the top, as an object (docs/design.md), beside `status`, `stats` and `computed_at`."""
    sdk.enqueue("email.send", [], queue=queue)
    assert sdk.send("POST", f"/queues/{queue}/pause")["paused"] is True
    stats = sdk.send("GET", f"/queues/{queue}/stats")
    assert stats["queue"]["name"] == queue
    assert stats["status"] == "paused"
    assert stats["stats"]["available"] == 1
    assert moment(stats["computed_at"]) is not None
    assert sdk.send("POST", f"/queues/{queue}/resume")["paused"] is False
    listed = sdk.send("GET", "/queues", limit=200)["queues"]
    assert all({"name", "status", "created_at"} <= one.keys() for one in listed)
    assert queue in [one["name"] for one in listed]


def test_a_graph_of_steps_is_a_workflow(sdk: PythonSdk, queue: str) -> None:
    """Steps with `depends_on` and no `type`; get and cancel read the same members."""
    options = {"queue": queue}
    steps: list[Body] = [
        {"id": "a", "type": "step.a", "args": [1], "depends_on": [], "options": options},
        {"id": "b", "type": "step.b", "args": [], "depends_on": ["a"], "options": options},
    ]
    workflow = sdk.workflow("order", steps)
    assert (workflow["name"], workflow["state"]) == ("order", "running")
    assert [step["id"] for step in workflow["steps"]] == ["a", "b"]
    assert sdk.read_workflow(sdk.send("GET", f"/workflows/{workflow['id']}"))["id"] == workflow["id"]
    assert sdk.read_workflow(sdk.send("DELETE", f"/workflows/{workflow['id']}"))["state"] == "cancelled"


def test_a_batch_with_callbacks_is_a_graph_with_callback_steps(sdk: PythonSdk, queue: str) -> None:
    """The SDK's batch: steps named `on_complete` and so on, with `options.callback_type`."""
    options = {"queue": queue}
    steps: list[Body] = [
        {"id": "job_0", "type": "member.one", "args": [], "depends_on": [], "options": options},
        {"id": "job_1", "type": "member.two", "args": [], "depends_on": [], "options": options},
        {
            "id": "on_failure",
            "type": "callback.failed",
            "args": [],
            "depends_on": ["job_0", "job_1"],
            "options": {**options, "callback_type": "on_failure"},
        },
        {
            "id": "on_complete",
            "type": "callback.done",
            "args": [],
            "depends_on": ["job_0", "job_1"],
            "options": {**options, "callback_type": "on_complete"},
        },
    ]
    workflow = sdk.workflow("batch", steps)
    for _ in range(2):
        job = sdk.fetch(queue, "py-1")
        assert job is not None
        if job.type == "member.one":
            sdk.nack(job.id, "for good", retryable=False)
        else:
            sdk.ack(job.id)
    seen: set[str] = set()

    def callbacks() -> bool:
        job = sdk.fetch(queue, "py-1")
        if job is not None:
            seen.add(job.type)
            sdk.ack(job.id)
        return len(seen) == 2

    poll(callbacks, what="both callbacks have run")
    assert seen == {"callback.failed", "callback.done"}
    assert workflow["id"]


def test_cron_in_the_form_of_the_binding(sdk: PythonSdk, queue: str) -> None:
    """`{name, cron, type, args, timezone, meta, options}`."""
    body: Body = {
        "name": queue,
        "cron": "0 9 * * *",
        "type": "report.make",
        "args": ["daily"],
        "timezone": "Europe/Berlin",
        "meta": {"by": "sdk"},
        "options": {"queue": queue},
    }
    entry = sdk.send("POST", "/cron", body)["cron_job"]
    assert (entry["cron"], entry["type"], entry["timezone"]) == ("0 9 * * *", "report.make", "Europe/Berlin")
    listed = sdk.send("GET", "/cron", limit=200, offset=0)
    assert queue in [one["name"] for one in listed["cron_jobs"]]
    assert sdk.send("DELETE", f"/cron/{queue}")["deleted"] is True


def test_schemas(sdk: PythonSdk, queue: str) -> None:
    """Register, list, get by a percent-encoded URI, delete."""
    uri = f"urn:ojs:schema:{queue}:v1"
    body = {"uri": uri, "type": "email.send", "version": "1", "schema": {"type": "array", "minItems": 1}}
    assert sdk.send("POST", "/schemas", body)["schema"]["uri"] == uri
    assert uri in [one["uri"] for one in sdk.send("GET", "/schemas", limit=200)["schemas"]]
    path = f"/schemas/{uri.replace(':', '%3A')}"
    assert sdk.send("GET", path)["schema"]["schema"] == {"type": "array", "minItems": 1}
    assert sdk.send("DELETE", path)["deleted"] is True


def test_health_and_manifest(sdk: PythonSdk) -> None:
    """Raw bodies; its own tests want `ok`."""
    assert sdk.send("GET", "/health")["status"] == "ok"
    assert sdk.send("GET", "/ojs/manifest")["specversion"] == "1.0"


@pytest.mark.parametrize("channel", ["job:{job}", "queue:{queue}"])
def test_it_follows_events(sdk: PythonSdk, queue: str, channel: str) -> None:
    """GET /events/stream?channel=…, with a key although none is needed."""
    job = sdk.enqueue("email.send", [], queue=queue)
    with sdk.subscribe(channel.format(job=job.id, queue=queue)) as events:
        sdk.cancel(job.id)
        seen = next((event, event_id) for event, event_id, data in events if data["to"] == "cancelled")
    assert seen[0] == "job.state_changed"
    assert seen[1]


def test_429_and_503_are_tried_again(fresh_server: Any) -> None:
    """`Retry-After` in whole seconds stands on both; the SDK honours it."""
    with PythonSdk(fresh_server().url, {"Accept": "application/json"}) as sdk:
        queue = "bounded"
        sdk.send("PUT", f"/queues/{queue}/config", {"backpressure": {"max_depth": 1, "strategy": "reject"}})
        sdk.enqueue("a.b", [], queue=queue)
        with pytest.raises(SdkError) as raised:
            sdk.enqueue("a.b", [], queue=queue)
        assert raised.value.status == 429
        assert raised.value.retryable is True
        assert len([one for one in sdk.requests if one.url.path == "/ojs/v1/jobs"]) == 1 + 4
