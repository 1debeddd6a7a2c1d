"""Checkpoints (ojs-durable-execution): saved while a job runs, delivered with it, gone with its end."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.checks import refusal
from tests.api.test_workers import held
from tests.support.api import CONTENT_TYPE, Api, Body, unique_queue
from tests.support.nats import Nats
from tests.support.plain import PLAIN
from tests.support.processes import poll
from tests.support.server import Server


def save(api: Api, job_id: str, state: object) -> Body:
    """Save one."""
    return api.call("POST", f"/jobs/{job_id}/checkpoint", {"state": state})


def raw_save(api: Api, job_id: str, content: bytes) -> httpx.Response:
    """Send exactly these bytes."""
    url = f"{api.url}/ojs/v1/jobs/{job_id}/checkpoint"
    return httpx.put(url, content=content, headers={"Content-Type": CONTENT_TYPE}, **PLAIN)


def test_the_latest_one_is_kept_and_counted(api: Api) -> None:
    """POST and PUT; the answer has the members at the top and below `checkpoint`."""
    _, job_id = held(api)
    assert save(api, job_id, {"at": 1})["sequence"] == 1
    saved = api.call("PUT", f"/jobs/{job_id}/checkpoint", {"state": {"at": 2}})
    assert saved["checkpoint"]["sequence"] == 2
    read = api.call("GET", f"/jobs/{job_id}/checkpoint")
    assert (read["job_id"], read["state"], read["sequence"]) == (job_id, {"at": 2}, 2)
    assert read["checkpoint"] == {name: value for name, value in read.items() if name != "checkpoint"}


def test_whoever_fetches_the_job_next_gets_it(api: Api) -> None:
    """Across a failure and a requeue (sections 6.1 and 6.3), and not before there is one."""
    queue, job_id = held(api)
    assert "checkpoint" not in api.get(job_id)
    save(api, job_id, ["half", "way"])
    api.nack(job_id, requeue=True)
    [job] = api.fetch(queue)
    assert (job["attempt"], job["checkpoint"]["state"], job["checkpoint"]["sequence"]) == (2, ["half", "way"], 1)
    assert api.get(job_id)["args"] == job["args"]


def test_it_survives_the_end_of_a_reservation(api: Api) -> None:
    """The worker crashed, the job comes back with what it saved."""
    queue, job_id = held(api, visibility_timeout_ms=500)
    save(api, job_id, 7)
    poll(lambda: api.get(job_id)["state"] == "available", what="the reservation ends")
    [job] = api.fetch(queue)
    assert job["checkpoint"]["state"] == 7


def test_the_bytes_come_back_as_they_were(api: Api) -> None:
    """Integers beyond 64 bits, float forms, escapes, a key that is written in an odd way."""
    _, job_id = held(api)
    state = b'{"big":123456789012345678901234567890,"f":1.0e2,"u":"\\u00e4","n":null}'
    assert raw_save(api, job_id, b'{"st\\u0061te":' + state + b"}").status_code == 200
    assert b'"state":' + state in api.request("GET", f"/jobs/{job_id}").content
    assert b'"state":' + state in api.request("GET", f"/jobs/{job_id}/checkpoint").content


def test_a_member_of_that_name_which_the_producer_sent_makes_room(api: Api) -> None:
    """An unknown member stays until there is a checkpoint; it is none itself."""
    made = api.call(
        "POST", "/jobs", {"type": "a.b", "args": [1], "checkpoint": "mine", "x": 2, "options": {"queue": "cp"}}
    )
    job_id = made["job"]["id"]
    assert made["job"]["checkpoint"] == "mine"
    api.fetch("cp")
    refusal(api.request("GET", f"/jobs/{job_id}/checkpoint"), 404, code="not_found")
    save(api, job_id, 1)
    job = api.get(job_id)
    assert (job["checkpoint"]["state"], job["args"], job["x"]) == (1, [1], 2)


@pytest.mark.parametrize("end", ["ack", "discard", "cancel"])
def test_it_goes_when_the_job_ends(api: Api, end: str) -> None:
    """DUR-005; and DUR-007: nothing is saved for a job that does not run."""
    _, job_id = held(api)
    save(api, job_id, {"x": "y" * 1000})
    if end == "ack":
        api.ack(job_id, result={"ok": 1})
    elif end == "discard":
        api.nack(job_id, retryable=False)
    else:
        api.cancel(job_id)
    assert "checkpoint" not in api.get(job_id)
    refusal(api.request("GET", f"/jobs/{job_id}/checkpoint"), 404, code="not_found")
    refusal(api.request("POST", f"/jobs/{job_id}/checkpoint", {"state": 1}), 409, code="conflict")


def test_a_dead_letter_keeps_it_for_its_retry(api: Api) -> None:
    """Section 6.3."""
    queue, job_id = held(api, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})
    save(api, job_id, "before")
    api.nack(job_id)
    api.call("POST", f"/dead-letter/{job_id}/retry", {})
    [job] = api.fetch(queue)
    assert job["checkpoint"]["state"] == "before"


def test_a_limited_job_gives_its_permit_back(api: Api) -> None:
    """What else the server keeps in the record stays there."""
    limit = {"key": unique_queue("limit"), "concurrency": 1}
    queue, job_id = held(api, rate_limit=limit)
    second = api.enqueue(queue, rate_limit=limit)["id"]
    save(api, job_id, 1)
    api.call("PUT", f"/jobs/{job_id}/progress", {"progress": 0.5})
    assert api.fetch(queue) == []
    api.ack(job_id)
    poll(lambda: [job["id"] for job in api.fetch(queue)] == [second], what="the next one may start")


def test_a_step_of_a_workflow_keeps_what_it_was_told(api: Api) -> None:
    """`parent_results` stays, and the workflow goes on."""
    queue = unique_queue()
    steps = [{"type": f"step.{name}", "args": [], "options": {"queue": queue}} for name in "ab"]
    workflow = api.call("POST", "/workflows", {"type": "chain", "name": "w", "steps": steps})["workflow"]
    told: list[Any] = []
    for name in "ab":
        [job] = poll(lambda: api.fetch(queue), what="the step is there")
        save(api, job["id"], name)
        kept = api.get(job["id"])
        assert kept["workflow_id"] == workflow["id"]
        told.append(kept.get("parent_results"))
        api.ack(job["id"], result={"by": name})
    assert told[-1] == [{"by": "a"}]
    poll(lambda: api.call("GET", f"/workflows/{workflow['id']}")["state"] == "completed", what="it is completed")


def test_deleting_it_twice_is_fine(api: Api) -> None:
    """Then the next attempt starts from the beginning."""
    queue, job_id = held(api)
    save(api, job_id, 1)
    for _ in range(2):
        assert api.call("DELETE", f"/jobs/{job_id}/checkpoint") == {"deleted": True, "job_id": job_id}
    api.nack(job_id, requeue=True)
    [job] = api.fetch(queue)
    assert "checkpoint" not in job


def test_a_job_that_waits_has_no_checkpoint_saved(api: Api) -> None:
    """409 with the state, 404 for an unknown job."""
    queue, job_id = held(api)
    api.nack(job_id, requeue=True)
    error = refusal(api.request("POST", f"/jobs/{job_id}/checkpoint", {"state": 1}), 409, code="conflict")
    assert error["details"]["current_state"] == "available"
    missing = "/jobs/01900000-0000-7000-8000-000000000000/checkpoint"
    refusal(api.request("POST", missing, {"state": 1}), 404, code="not_found")
    assert len(api.fetch(queue)) == 1


def test_another_worker_is_refused(api: Api) -> None:
    """Section 4.2, when both sides name one."""
    _, job_id = held(api, worker="w-holder")
    body = {"state": 1, "worker_id": "w-other"}
    refusal(api.request("POST", f"/jobs/{job_id}/checkpoint", body), 409, code="conflict")
    body["worker_id"] = "w-holder"
    assert api.call("POST", f"/jobs/{job_id}/checkpoint", body)["sequence"] == 1
    assert "worker_id" not in api.call("GET", f"/jobs/{job_id}/checkpoint")


def test_a_mebibyte_fits_and_more_is_413(api: Api) -> None:
    """DUR-006; without `state` it is 400."""
    _, job_id = held(api)
    assert raw_save(api, job_id, json.dumps({"state": "x" * 1_048_000}).encode()).status_code == 200
    refusal(raw_save(api, job_id, json.dumps({"state": "x" * 1_048_576}).encode()), 413)
    refusal(raw_save(api, job_id, b'{"other":1}'), 400, field="state")
    refusal(raw_save(api, job_id, b"[1]"), 400)
    assert api.call("GET", f"/jobs/{job_id}/checkpoint")["sequence"] == 1
    api.ack(job_id)


def test_a_checkpoint_leaves_room_for_the_end_of_the_attempt() -> None:
    """With a NATS that takes a megabyte: what is saved is small enough for errors to be added, or refused."""
    with Nats() as nats, Server(nats_url=nats.url) as server, Api(server.url) as api:
        queue, job_id = held(api, retry={"max_attempts": 3, "initial_interval": "PT0.1S"})
        size = 1_048_576
        while raw_save(api, job_id, json.dumps({"state": "x" * size}).encode()).status_code == 413:
            size -= 1000
        assert size < 1_048_000, "this NATS takes everything"
        for _ in range(2):
            assert api.nack(job_id, "e" * 5000)["state"] == "retryable"
            poll(lambda: api.fetch(queue), what="it comes again")
        assert api.call("GET", f"/jobs/{job_id}/checkpoint")["state"] == "x" * size
        api.ack(job_id)
