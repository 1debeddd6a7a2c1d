"""The official JavaScript SDK works unmodified."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sdk.wire_javascript import JavaScriptSdk, JsError
from tests.sdk.wire_python import Body
from tests.support.api import unique_queue
from tests.support.processes import poll
from tests.support.server import Server


@pytest.fixture
def sdk(server: Server) -> Iterator[JavaScriptSdk]:
    """Give a client."""
    with JavaScriptSdk(server.url) as client:
        yield client


@pytest.fixture
def queue() -> str:
    """Give a queue of the test's own."""
    return unique_queue("jssdk")


def test_a_delay_is_a_duration_in_delay_until(sdk: JavaScriptSdk, queue: str) -> None:
    """`delay: "PT5M"` goes out as `delay_until: "PT5M"`."""
    job = sdk.enqueue("email.send", ["a"], queue=queue, delay="PT5M", visibility_timeout_ms=5000, tags=["x"])
    assert job["state"] == "scheduled"


def test_jobs_are_enqueued_in_batches_read_and_cancelled(sdk: JavaScriptSdk, queue: str) -> None:
    """`job` and `jobs`."""
    jobs = sdk.send("POST", "/jobs/batch", {"jobs": [{"type": "a.b", "args": [], "options": {"queue": queue}}]})["jobs"]
    assert sdk.send("GET", f"/jobs/{jobs[0]['id']}")["job"]["state"] == "available"
    assert sdk.send("DELETE", f"/jobs/{jobs[0]['id']}")["job"]["state"] == "cancelled"


def test_errors_map_to_its_classes(sdk: JavaScriptSdk, queue: str) -> None:
    """By status; 404 reads `details.resource_type` and `resource_id`, a duplicate `details.existing_job_id`."""
    unique = {"key": ["type", "queue"], "period": "PT1H", "on_conflict": "reject"}
    first = sdk.enqueue("one.only", [], queue=queue, unique=unique)
    missing = "01900000-0000-7000-8000-000000000000"
    errors: list[JsError] = []
    for attempt in (
        lambda: sdk.enqueue("one.only", [], queue=queue, unique=unique),
        lambda: sdk.send("GET", f"/jobs/{missing}"),
        lambda: sdk.send("POST", "/workers/ack", {"job_id": first["id"]}),
        lambda: sdk.send("POST", "/jobs", {"args": []}),
        lambda: sdk.send("POST", "/jobs", {"type": "a.b", "args": [], "options": {"retry": {"max_attempts": -1}}}),
    ):
        with pytest.raises(JsError) as raised:
            attempt()
        errors.append(raised.value)
    assert [one.kind for one in errors] == [
        "OJSDuplicateError", "OJSNotFoundError", "OJSConflictError", "OJSValidationError", "OJSError",
    ]  # fmt: skip
    assert errors[0].details["existing_job_id"] == first["id"]
    assert errors[1].resource == ("job", missing)


def test_a_worker_takes_ten_and_keeps_them_by_beats_without_a_timeout(sdk: JavaScriptSdk, queue: str) -> None:
    """A number in `active_jobs`; the jobs' own reservation of one second is what each beat renews."""
    for number in range(12):
        sdk.enqueue("email.send", [number], queue=queue)
    jobs = sdk.fetch(queue, "js-1", visibility_timeout_ms=1000)
    assert len(jobs) == 10
    ids = [job["id"] for job in jobs]
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert sdk.heartbeat("js-1", ids) == "running"
        time.sleep(0.3)  # the SDK's timer
    assert {sdk.send("GET", f"/jobs/{one}")["job"]["attempt"] for one in ids} == {1}
    for one in ids:
        sdk.send("POST", "/workers/ack", {"job_id": one, "result": {"ok": True}})


def test_progress_and_nack(sdk: JavaScriptSdk, queue: str) -> None:
    """Answers that it ignores, but that must be no errors."""
    job_id = sdk.enqueue("email.send", [], queue=queue)["id"]
    assert len(sdk.fetch(queue, "js-1")) == 1
    sdk.send("POST", "/workers/progress", {"job_id": job_id, "percentage": 50, "message": "half", "data": {"n": 1}})
    error = {"code": "handler_error", "message": "boom", "retryable": True, "details": {"stack": "at f"}}
    sdk.send("POST", "/workers/nack", {"job_id": job_id, "error": error})
    assert sdk.send("GET", f"/jobs/{job_id}")["job"]["state"] == "retryable"


def test_its_serverless_adapter_acks_without_a_body_and_nacks_with_a_string(sdk: JavaScriptSdk, queue: str) -> None:
    """POST /jobs/{id}/ack and /nack."""
    for _ in range(2):
        sdk.enqueue("email.send", [], queue=queue)
    first, second = sdk.fetch(queue, "js-1")
    assert sdk.send("POST", f"/jobs/{first['id']}/ack")["job"]["state"] == "completed"
    assert sdk.send("POST", f"/jobs/{second['id']}/nack", {"error": "it broke"})["job"]["state"] == "retryable"
    assert sdk.send("GET", f"/jobs/{second['id']}")["job"]["error"]["message"] == "it broke"


@pytest.mark.parametrize("kind", ["chain", "group", "batch"])
def test_workflows_are_read_unwrapped(sdk: JavaScriptSdk, queue: str, kind: str) -> None:
    """`id`, `type`, `state` and `metadata` at the top; steps have camelCase retry keys and no ids or names."""
    step: Body = {
        "type": "step.a",
        "args": [1],
        "options": {"queue": queue, "retry": {"maxAttempts": 2, "initialInterval": "PT2S", "backoffCoefficient": 1.5}},
    }
    body: Body = {"type": kind, ("steps" if kind == "chain" else "jobs"): [step, step]}
    if kind == "batch":
        body["callbacks"] = {"on_complete": step}
    made = sdk.send("POST", "/workflows", body)
    assert (made["type"], made["state"]) == (kind, "running")
    assert isinstance(made["metadata"], dict)
    [job, *_] = sdk.fetch(queue, "js-1", count=1)
    assert job["max_attempts"] == 2
    assert sdk.send("GET", f"/workflows/{made['id']}")["id"] == made["id"]
    assert sdk.send("DELETE", f"/workflows/{made['id']}")["state"] == "cancelled"


def test_groups_nest_in_chains(sdk: JavaScriptSdk, queue: str) -> None:
    """A step that is a group itself."""
    step: Body = {"type": "step.a", "args": [], "options": {"queue": queue}}
    made = sdk.send("POST", "/workflows", {"type": "chain", "steps": [step, {"type": "group", "jobs": [step, step]}]})
    [first] = sdk.fetch(queue, "js-1")
    sdk.send("POST", "/workers/ack", {"job_id": first["id"]})
    taken: list[Any] = []

    def both() -> bool:
        taken.extend(sdk.fetch(queue, "js-1"))
        return len(taken) == 2

    poll(both, what="the group's jobs are there")
    assert sdk.send("GET", f"/workflows/{made['id']}")["state"] == "running"


def test_queue_statistics_are_flat(sdk: JavaScriptSdk, queue: str) -> None:
    """Counts and `paused` at the top; the list has `paused` too."""
    sdk.enqueue("email.send", [], queue=queue)
    sdk.send("POST", f"/queues/{queue}/pause")
    stats = sdk.send("GET", f"/queues/{queue}/stats")
    assert (stats["name"], stats["available"], stats["active"], stats["paused"]) == (queue, 1, 0, True)
    listed = {one["name"]: one["paused"] for one in sdk.send("GET", "/queues", limit=200)["queues"]}
    assert listed[queue] is True
    sdk.send("POST", f"/queues/{queue}/resume")


def test_cron_jobs_come_in_pages(sdk: JavaScriptSdk, queue: str) -> None:
    """`cron_job` of a registration, `cron_jobs` and `pagination` by `page` and `per_page`."""
    body = {"name": queue, "cron": "*/5 * * * *", "type": "a.b", "args": [], "options": {"queue": queue}}
    assert sdk.send("POST", "/cron", body)["cron_job"]["name"] == queue
    listed = sdk.send("GET", "/cron", page=1, per_page=1)
    assert len(listed["cron_jobs"]) == 1
    assert listed["pagination"]["total"] >= 1
    sdk.send("DELETE", f"/cron/{queue}")


def test_schemas_and_dead_letters(sdk: JavaScriptSdk, queue: str) -> None:
    """`schema`, `schemas`, `jobs`."""
    uri = f"https://schemas.example/{queue}/v1"
    body = {"uri": uri, "type": "a.b", "version": "1", "schema": {"type": "array"}}
    assert sdk.send("POST", "/schemas", body)["schema"]["uri"] == uri
    path = "/schemas/" + uri.replace(":", "%3A").replace("/", "%2F")
    assert sdk.send("GET", path)["schema"]["version"] == "1"
    assert uri in [one["uri"] for one in sdk.send("GET", "/schemas", limit=200)["schemas"]]
    sdk.send("DELETE", path)
    assert sdk.send("GET", "/dead-letter", queue=queue)["jobs"] == []


def test_a_durable_handler_asks_at_the_doubled_prefix(sdk: JavaScriptSdk, queue: str) -> None:
    """The same as the Python SDK's."""
    job_id = sdk.enqueue("long.one", [], queue=queue)["id"]
    sdk.fetch(queue, "js-1")
    where = f"/ojs/v1/ojs/v1/checkpoints/{job_id}"
    assert sdk.send("GET", f"{where}/resume")["has_checkpoint"] is False
    sdk.send("POST", where, {"metadata": {"_replay_log": [1, 2.50, "x"]}})
    assert sdk.send("GET", f"{where}/resume")["checkpoint"]["metadata"] == {"_replay_log": [1, 2.5, "x"]}
    sdk.send("DELETE", where)
    assert sdk.send("GET", f"{where}/resume")["has_checkpoint"] is False


def test_health_tells_status_and_version(sdk: JavaScriptSdk) -> None:
    """GET /health."""
    health = sdk.send("GET", "/health")
    assert health["status"] == "ok"
    assert health["version"]
