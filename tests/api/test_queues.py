"""Queues as operators see them: stats, configuration, creation, deletion, purge, backpressure."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.api.checks import nothing_enqueued, refusal
from tests.support.api import Api, ApiError, job_request, unique_queue
from tests.support.processes import poll

Body = dict[str, Any]
STATES = ("available", "active", "scheduled", "retryable", "completed", "discarded", "cancelled")
LATER = "2090-01-01T00:00:00Z"
UNKNOWN = "no-such-queue"


def counts(api: Api, queue: str) -> Body:
    """The states that are not zero, after a check that all shapes of the answer agree."""
    answer = api.call("GET", f"/queues/{queue}/stats")
    assert answer["queue"]["name"] == answer["name"] == answer["stats"]["queue"] == queue
    states = {state: answer["stats"][state] for state in STATES}
    assert states == {state: answer[state] for state in STATES} == {state: answer["queue"][state] for state in STATES}
    assert answer["stats"]["depth"] == sum(states[state] for state in STATES[:4])
    return {state: count for state, count in states.items() if count}


# -- stats ---------------------------------------------------------------------------------------


def test_stats_are_exact_right_after_every_change(api: Api) -> None:
    """No change needs a moment to be counted."""
    queue = unique_queue()
    first, second, third, fourth = [api.enqueue(queue)["id"] for _ in range(4)]
    assert counts(api, queue) == {"available": 4}
    for _ in range(3):
        api.fetch(queue)
    assert counts(api, queue) == {"available": 1, "active": 3}
    api.ack(first)
    assert counts(api, queue) == {"available": 1, "active": 2, "completed": 1}
    api.nack(second)
    assert counts(api, queue) == {"available": 1, "active": 1, "retryable": 1, "completed": 1}
    api.nack(third, retryable=False)
    assert counts(api, queue) == {"available": 1, "retryable": 1, "completed": 1, "discarded": 1}
    api.cancel(fourth)
    assert counts(api, queue) == {"retryable": 1, "completed": 1, "discarded": 1, "cancelled": 1}
    api.cancel(second)
    assert counts(api, queue) == {"completed": 1, "discarded": 1, "cancelled": 2}
    later = api.enqueue(queue, delay_until=LATER)["id"]
    assert counts(api, queue) == {"scheduled": 1, "completed": 1, "discarded": 1, "cancelled": 2}
    api.cancel(later)
    assert counts(api, queue) == {"completed": 1, "discarded": 1, "cancelled": 3}


def test_stats_count_batches_and_all_priorities(api: Api) -> None:
    """A batch counts at once, whatever levels it has."""
    queue = unique_queue()
    api.enqueue_batch([job_request(queue, priority=number % 5 - 2) for number in range(100)])
    assert counts(api, queue) == {"available": 100}


def test_a_retried_dead_letter_is_no_discarded_job_any_more(api: Api) -> None:
    """`discarded` counts the jobs that ended there and were not retried."""
    queue = unique_queue()
    job_id = api.enqueue(queue, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})["id"]
    api.fetch(queue)
    api.nack(job_id)
    assert counts(api, queue) == {"discarded": 1}
    api.call("POST", f"/dead-letter/{job_id}/retry", {})
    assert counts(api, queue) == {"available": 1}
    api.fetch(queue)
    api.ack(job_id)
    assert counts(api, queue) == {"completed": 1}


def test_a_given_back_job_counts_once(api: Api) -> None:
    """Requeue moves a job from active to available and nowhere else."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    api.fetch(queue)
    api.nack(job_id, requeue=True)
    assert counts(api, queue) == {"available": 1}


def test_an_expired_job_is_discarded_and_leaves_nothing_behind(api: Api) -> None:
    """A job whose time passed while it waited is counted as discarded once somebody meets it."""
    queue = unique_queue()
    job_id = api.enqueue(queue, expires_at="+PT0.05S")["id"]
    poll(lambda: api.get(job_id)["state"] == "discarded", what="it expires")
    assert counts(api, queue) == {"discarded": 1}


def test_stats_tell_times_and_throughput(api: Api) -> None:
    """Throughput, averages, percentiles and the age of the oldest waiting job."""
    queue = unique_queue()
    for _ in range(3):
        api.enqueue(queue)
    oldest = api.enqueue(queue)
    for _ in range(3):
        api.ack(api.fetch(queue)[0]["id"])
    stats = api.call("GET", f"/queues/{queue}/stats")["stats"]
    assert stats["completed_last_hour"] == 3
    assert stats["throughput"]["processed_per_minute"] == 0.6
    assert stats["oldest_available_at"] == oldest["enqueued_at"]
    for name in ("latency_ms", "wait_ms"):
        assert 0 <= stats[name]["p50"] <= stats[name]["p95"] <= stats[name]["p99"] < 60_000
    assert isinstance(stats["avg_duration_ms"], int)


def test_the_admin_api_lists_queues_with_counts(api: Api) -> None:
    """`GET /admin/queues` pages through all queues; `GET /admin/queues/{name}` shows the configuration."""
    queue = unique_queue()
    api.enqueue(queue)
    items: list[Body] = []
    page = 1
    while (
        len(items)
        < (answer := api.call("GET", "/admin/queues", params={"page": page, "per_page": 100}))["pagination"]["total"]
    ):
        items += answer["items"]
        page += 1
    [mine] = [item for item in items if item["name"] == queue]
    assert (mine["state"], mine["paused"], mine["counts"]["available"]) == ("active", False, 1)
    assert {"processed_per_minute", "failed_per_minute"} == set(mine["throughput"])
    detail = api.call("GET", f"/admin/queues/{queue}")
    assert (detail["name"], detail["counts"], detail["configuration"]) == (queue, mine["counts"], {})


def test_pausing_is_told_in_every_shape_and_announced(api: Api) -> None:
    """Both paths answer flat and wrapped; events tell of it."""
    queue = unique_queue()
    for path, paused in (("queues", True), ("admin/queues", False)):
        answer = api.call("POST", f"/{path}/{queue}/{'pause' if paused else 'resume'}")
        assert answer["paused"] is answer["queue"]["paused"] is paused
        assert answer["queue"]["name"] == answer["name"] == queue
        assert ("paused_at" if paused else "resumed_at") in answer
    told = [event["type"] for event in api.events(types="queue.paused,queue.resumed") if event["subject"] == queue]
    assert told == ["queue.paused", "queue.resumed"]


# -- create, configure, delete -------------------------------------------------------------------


def test_a_queue_is_created_once(api: Api) -> None:
    """201 with the configuration, then 409."""
    queue = unique_queue()
    answer = api.call("POST", "/queues", {"name": queue, "config": {"max_size": 10}})
    assert (answer["name"], answer["state"], answer["config"]) == (queue, "active", {"max_size": 10})
    refusal(api.request("POST", "/queues", {"name": queue}), 409, code="conflict")
    assert api.call("GET", f"/queues/{queue}/config")["config"] == {"max_size": 10}


def test_defaults_of_a_queue_apply_to_its_new_jobs(api: Api) -> None:
    """A job that does not say how often it may run takes its queue's policy."""
    queue = unique_queue()
    api.call("PUT", f"/queues/{queue}/config", {"default_retry": {"max_attempts": 8}, "visibility_timeout": 1})
    assert api.enqueue(queue)["max_attempts"] == 8
    assert api.enqueue(queue, retry={"max_attempts": 2})["max_attempts"] == 2
    [stored] = api.enqueue_batch([job_request(queue)])
    assert stored["max_attempts"] == 8


def test_a_queue_refuses_types_that_it_does_not_take(api: Api) -> None:
    """Single and batch; nothing is stored."""
    queue = unique_queue()
    api.call("PATCH", f"/queues/{queue}/config", {"allowed_job_types": ["mail.*"]})
    api.enqueue(queue, kind="mail.send")
    for path, body in (
        ("/jobs", job_request(queue, kind="pay.now")),
        ("/jobs/batch", {"jobs": [job_request(queue, kind="mail.send"), job_request(queue, kind="pay.now")]}),
    ):
        refusal(api.request("POST", path, body), 422, code="job_type_not_allowed", field="type")
    assert counts(api, queue) == {"available": 1}


def test_retention_of_a_queue_overrules_the_servers(api: Api) -> None:
    """A completed job of a queue with a retention of a second is gone soon; its total stays."""
    queue = unique_queue()
    api.call("PUT", f"/queues/{queue}/config", {"retention": {"completed": "PT1S"}})
    job_id = api.enqueue(queue)["id"]
    api.fetch(queue)
    api.ack(job_id)
    poll(lambda: api.request("GET", f"/jobs/{job_id}").status_code == 404, deadline_s=10, what="it is pruned")
    assert counts(api, queue) == {"completed": 1}


def test_only_an_empty_queue_is_deleted_and_it_may_come_back(api: Api) -> None:
    """409 with the counts as long as a job has not ended; afterwards the totals start from nothing."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    error = refusal(api.request("DELETE", f"/queues/{queue}"), 409, code="conflict")
    assert error["details"]["available"] == 1
    api.fetch(queue)
    api.ack(job_id)
    assert api.call("DELETE", f"/queues/{queue}")["deleted"] is True
    refusal(api.request("GET", f"/queues/{queue}"), 404, code="not_found")
    refusal(api.request("DELETE", f"/queues/{queue}"), 404, code="not_found")
    again = api.enqueue(queue)["id"]
    assert counts(api, queue) == {"available": 1}
    assert [job["id"] for job in api.fetch(queue)] == [again]


# -- purge ---------------------------------------------------------------------------------------


def test_a_purge_cancels_what_waits_and_leaves_what_runs(api: Api) -> None:
    """Waiting jobs of all levels and indexes are cancelled; the active one stays with its worker."""
    queue = unique_queue()
    failed, running = [api.enqueue(queue)["id"] for _ in range(2)]
    assert [job["id"] for job in api.fetch(queue, count=2)] == [failed, running]
    api.nack(failed)
    api.enqueue_batch([job_request(queue, priority=number % 3) for number in range(30)])
    later = api.enqueue(queue, delay_until=LATER)["id"]
    answer = api.call("POST", f"/queues/{queue}/purge", {"confirm": True})
    assert answer["purged_count"] == 32
    assert counts(api, queue) == {"active": 1, "cancelled": 32}
    assert api.get(later)["state"] == "cancelled"
    assert api.fetch(queue) == []
    assert api.ack(running)["state"] == "completed"


def test_a_purge_of_ended_jobs_deletes_them(api: Api) -> None:
    """By state and age; the totals stay."""
    queue = unique_queue()
    done, gone = [api.enqueue(queue)["id"] for _ in range(2)]
    api.cancel(gone)
    api.fetch(queue)
    api.ack(done)
    body = {"states": ["completed", "cancelled"], "confirm": True}
    old = api.call("DELETE", f"/admin/queues/{queue}/jobs?x=1", {**body, "older_than": "2020-01-01T00:00:00Z"})
    assert old["purged_count"] == 0
    assert api.call("DELETE", f"/admin/queues/{queue}/jobs", body)["purged_count"] == 2
    assert api.request("GET", f"/jobs/{done}").status_code == 404
    assert counts(api, queue) == {"completed": 1, "cancelled": 1}


def test_a_purge_does_not_meet_what_it_has_just_cancelled(api: Api) -> None:
    """Each job once, though a cancelled one moves to where the purge has yet to look."""
    queue = unique_queue()
    gone = api.enqueue(queue)["id"]
    api.cancel(gone)
    waiting = api.enqueue_batch([job_request(queue) for _ in range(700)])
    body = {"states": ["available", "pending", "cancelled"], "confirm": True}
    assert api.call("POST", f"/queues/{queue}/purge", body)["purged_count"] == 701
    assert {api.get(job["id"])["state"] for job in waiting[::100]} == {"cancelled"}
    assert api.request("GET", f"/jobs/{gone}").status_code == 404
    assert counts(api, queue) == {"cancelled": 701}


# -- backpressure --------------------------------------------------------------------------------


def bounded(api: Api, depth: int, **more: Any) -> str:
    """Make a queue with a bound."""
    queue = unique_queue("bound")
    api.call("PUT", f"/admin/queues/{queue}/config", {"backpressure": {"max_depth": depth, **more}})
    return queue


def test_a_full_queue_refuses_and_takes_again_at_once(api: Api) -> None:
    """429 with the headers of ojs-backpressure section 7; room is seen as soon as a job has ended."""
    queue = bounded(api, 2)
    first, _ = [api.enqueue(queue)["id"] for _ in range(2)]
    answer = api.request("POST", "/jobs", job_request(queue))
    error = refusal(answer, 429, code="QUEUE_FULL")
    assert (error["queue"], error["depth"], error["bound"], error["strategy"]) == (queue, 2, 2, "reject")
    assert int(answer.headers["retry-after"]) >= 1
    assert (answer.headers["x-ojs-queue-depth"], answer.headers["x-ojs-queue-bound"]) == ("2", "2")
    api.cancel(first)
    api.enqueue(queue)
    refusal(api.request("POST", "/jobs", job_request(queue)), 429)
    [event] = api.events(types="backpressure.rejected", queues=queue, limit=1)
    assert (event["data"]["depth"], event["data"]["job_type"]) == (2, "test.job")


def test_waiting_retryable_and_scheduled_jobs_fill_a_queue(api: Api) -> None:
    """Depth is every job that has not ended."""
    queue = bounded(api, 3)
    failed = api.enqueue(queue)["id"]
    api.fetch(queue)
    api.nack(failed)
    api.enqueue(queue, delay_until=LATER)
    api.enqueue(queue)
    refusal(api.request("POST", "/jobs", job_request(queue, delay_until=LATER)), 429)


def test_a_batch_fits_in_whole_or_not_at_all(api: Api) -> None:
    """Nothing of a batch that is too large is stored (section 9.3)."""
    queue, other = bounded(api, 3), bounded(api, 5)
    api.enqueue_batch([job_request(queue)] * 2)
    both = {"jobs": [job_request(other), job_request(queue), job_request(queue)]}
    refusal(api.request("POST", "/jobs/batch", both), 429)
    assert counts(api, queue) == {"available": 2}
    assert counts(api, other) == {}
    api.enqueue_batch([job_request(queue), *[job_request(other)] * 5])


def test_a_filling_queue_warns(api: Api) -> None:
    """Above the threshold an enqueue answers how full the queue is (section 7.3)."""
    queue = bounded(api, 10, warning_threshold=0.5)
    seen = [api.request("POST", "/jobs", job_request(queue)).headers.get("x-ojs-queue-pressure") for _ in range(7)]
    assert seen == [None] * 5 + ["0.60", "0.70"]
    assert [event["data"]["depth"] for event in api.events(types="backpressure.warning", queues=queue)] == [6]


def test_block_waits_for_room(api: Api) -> None:
    """With OJS-Block-Timeout the request is held until a job ends; without, it is refused at once."""
    queue = bounded(api, 1, strategy="block")
    job_id = api.enqueue(queue)["id"]
    refusal(api.request("POST", "/jobs", job_request(queue)), 429)
    refusal(api.request("POST", "/jobs", job_request(queue), headers={"OJS-Block-Timeout": "1"}), 429)
    answers: list[int] = []

    def produce() -> None:
        answer = api.request("POST", "/jobs", job_request(queue), headers={"OJS-Block-Timeout": "20"})
        answers.append(answer.status_code)

    producer = threading.Thread(target=produce)
    producer.start()
    api.fetch(queue)
    api.ack(job_id)
    producer.join(20)
    assert answers == [201]


def test_drop_oldest_makes_room(api: Api) -> None:
    """The oldest waiting job is discarded, never an active or a scheduled one; with none to drop it is refused."""
    queue = bounded(api, 3, strategy="drop_oldest")
    running = api.enqueue(queue)["id"]
    api.fetch(queue)
    later = api.enqueue(queue, delay_until=LATER)["id"]
    oldest = api.enqueue(queue)["id"]
    newest = api.enqueue(queue)["id"]
    dropped = api.get(oldest)
    assert (dropped["state"], dropped["error"]["code"]) == ("discarded", "overflow")
    assert api.get(running)["state"] == "active"
    assert api.get(later)["state"] == "scheduled"
    assert counts(api, queue) == {"available": 1, "active": 1, "scheduled": 1, "discarded": 1}
    assert [job["id"] for job in api.fetch(queue)] == [newest]
    refusal(api.request("POST", "/jobs", job_request(queue)), 429)
    assert [event["data"]["job_id"] for event in api.events(types="backpressure.dropped", queues=queue)] == [oldest]


def test_lifting_a_bound_opens_the_queue(api: Api) -> None:
    """A new configuration counts at once."""
    queue = bounded(api, 1)
    api.enqueue(queue)
    refusal(api.request("POST", "/jobs", job_request(queue)), 429)
    api.call("PUT", f"/admin/queues/{queue}/config", {"backpressure": None})
    api.enqueue(queue)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["", "/stats", "/config"])
def test_an_unknown_queue_is_not_found(api: Api, method: str, path: str) -> None:
    """404 that says how a queue comes to be."""
    if method == "DELETE" and path:
        return
    error = refusal(api.request(method, f"/queues/{UNKNOWN}{path}"), 404, code="not_found")
    assert error["details"]["resource_id"] == UNKNOWN


@pytest.mark.parametrize("name", ["Upper", "a_b", "-a", "q" * 129, "a%20b", "%00", "a*"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/queues/{}/stats", None),
        ("GET", "/admin/queues/{}", None),
        ("PUT", "/queues/{}/config", {}),
        ("DELETE", "/queues/{}", None),
        ("POST", "/queues/{}/purge", {"confirm": True}),
        ("POST", "/queues/{}/pause", {}),
    ],
)
def test_a_name_that_no_queue_can_have_is_refused(api: Api, method: str, path: str, body: Any, name: str) -> None:
    """400 naming it."""
    refusal(api.request(method, path.format(name), body), 400, code="invalid_request", field="name")


BAD: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/queues", {}, 400, "name"),
    ("POST", "/queues", {"name": 5}, 400, "name"),
    ("POST", "/queues", {"name": "Bad Name"}, 400, "name"),
    ("POST", "/queues", {"name": "bad-create", "config": []}, 400, "config"),
    ("POST", "/queues", {"name": "bad-create", "config": {"max_size": "x"}}, 400, "config.max_size"),
    ("POST", "/queues", {"name": "bad-create", "config": {"concurrency": "x"}}, 400, "config.concurrency"),
    ("POST", "/queues", {"name": "bad-create", "config": {"producers": ["x"]}}, 422, "config.producers"),
    ("PUT", "/queues/bad-create/config", {"concurrency": -1}, 400, "concurrency"),
    ("PATCH", "/queues/bad-create/config", {"concurrency": 5, "max_size": -1}, 400, "max_size"),
    ("POST", "/queues", {"name": "bad-create", "surprise": 5}, 400, "surprise"),
    ("PUT", "/queues/bad-create/config", {"surprise": 5}, 400, "surprise"),
    ("PUT", "/queues/bad-create/config", {"config": {"max_size": -1}}, 400, "config.max_size"),
    ("PATCH", "/admin/queues/bad-create/config", {"backpressure": {"max_depth": "x"}}, 400, "backpressure.max_depth"),
    ("PUT", "/queues/bad-create/config", {"default_retry": {"max_attempts": "x"}}, 422, "default_retry.max_attempts"),
    ("POST", "/queues/bad-create/purge", {}, 400, "confirm"),
    ("POST", "/queues/bad-create/purge", None, 400, "confirm"),
    ("POST", "/queues/bad-create/purge", {"confirm": "true"}, 400, "confirm"),
    ("POST", "/queues/bad-create/purge", {"confirm": True, "states": "available"}, 400, "states"),
    ("POST", "/queues/bad-create/purge", {"confirm": True, "states": []}, 400, "states"),
    ("POST", "/queues/bad-create/purge", {"confirm": True, "states": ["active"]}, 400, "states[0]"),
    ("POST", "/queues/bad-create/purge", {"confirm": True, "older_than": "soon"}, 400, "older_than"),
    ("POST", "/queues/bad-create/purge", {"confirm": True, "older_than": 5}, 400, "older_than"),
    ("POST", "/queues/bad-create/purge", {"confirm": True, "surprise": 5}, 400, "surprise"),
    ("DELETE", "/admin/queues/bad-create/jobs", {"states": ["completed"]}, 400, "confirm"),
    ("DELETE", "/queues/bad-create", {"strategy": "panic"}, 400, "strategy"),
    ("DELETE", "/queues/bad-create", {"strategy": "move", "target_queue": "x"}, 422, "strategy"),
    ("DELETE", "/queues/bad-create", {"surprise": 5}, 400, "surprise"),
    ("GET", "/admin/queues?page=x", None, 400, "page"),
    ("GET", "/admin/queues?per_page=-1", None, 400, "per_page"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "field"), BAD, ids=[f"{b[0]} {b[1]} {b[2]}" for b in BAD])
def test_a_bad_request_names_the_field_and_changes_nothing(
    api: Api, method: str, path: str, body: Any, status: int, field: str
) -> None:
    """4xx, and no queue comes to be."""
    with nothing_enqueued(api, "bad-create"):
        refusal(api.request(method, path, body), status, field=field)


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "999999999", ""])
def test_a_bad_block_timeout_is_refused(api: Api, value: str) -> None:
    """Whole seconds only."""
    queue = unique_queue()
    answer = api.request("POST", "/jobs", job_request(queue), headers={"OJS-Block-Timeout": value})
    refusal(answer, 400, field="OJS-Block-Timeout")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b'{"max_size":1e400}', b'"x"'])
def test_a_configuration_that_is_no_object_is_refused(api: Api, content: bytes) -> None:
    """400, and no queue comes to be."""
    answer = api.http.put("/ojs/v1/queues/bad-create/config", content=content)
    refusal(answer, 400)
    with pytest.raises(ApiError):
        api.call("GET", "/queues/bad-create")
