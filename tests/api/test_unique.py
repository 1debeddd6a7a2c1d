"""Unique jobs over HTTP: what each way to resolve a conflict answers, and when a lock is given back."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.support.api import Api, job_request, unique_queue
from tests.support.processes import poll

LATER = "2099-01-01T00:00:00Z"
SOONER = "2098-01-01T00:00:00Z"
Body = dict[str, Any]


def body(queue: str, args: Any = (1,), **policy: Any) -> Body:
    """A unique job of a queue, by its arguments unless said otherwise."""
    options = {name: policy.pop(name) for name in ("scheduled_at", "retry", "pending") if name in policy}
    return job_request(queue, args=args, unique={"keys": ["queue", "args"], **policy}, **options)


def post(api: Api, job: Body) -> tuple[int, Body]:
    """`(status, answer)` of an enqueue."""
    reply = api.request("POST", "/jobs", job)
    return reply.status_code, reply.json()


def create(api: Api, job: Body) -> str:
    """Enqueue a job that nothing is in the way of; its id."""
    status, answer = post(api, job)
    assert status == 201, answer
    return str(answer["job"]["id"])


def refused(api: Api, job: Body, existing: str) -> None:
    """The job must be a duplicate of that one."""
    status, answer = post(api, job)
    assert status == 409, answer
    error = answer["error"]
    assert (error["code"], error["details"]["existing_job_id"]) == ("duplicate", existing)
    assert error["details"]["existing_job_state"] == api.get(existing)["state"]


def test_a_duplicate_is_rejected_and_named(api: Api) -> None:
    """The default; another argument is another job; jobs without policy are not asked."""
    queue = unique_queue()
    first = create(api, body(queue))
    refused(api, body(queue), first)
    create(api, body(queue, [2]))
    api.enqueue(queue, args=[1])


@pytest.mark.parametrize("word", ["ignore", "use_existing"])
def test_a_duplicate_is_answered_with_the_job_that_is_there(api: Api, word: str) -> None:
    """200 with `deduplicated`; nothing is written."""
    queue = unique_queue()
    first = create(api, body(queue, on_conflict=word))
    status, answer = post(api, body(queue, on_conflict=word))
    assert (status, answer["job"]["id"], answer["deduplicated"]) == (200, first, True)
    assert len(api.fetch(queue, count=10)) == 1


@pytest.mark.parametrize("state", ["available", "scheduled", "pending", "retryable"])
def test_a_waiting_duplicate_is_replaced(api: Api, state: str) -> None:
    """The old one is cancelled, the new one runs; a third replaces the second."""
    queue = unique_queue()
    by_state: dict[str, Body] = {
        "scheduled": {"scheduled_at": LATER},
        "pending": {"pending": True},
        "retryable": {"retry": {"max_attempts": 3, "initial_interval": "PT1H"}},
    }
    options = by_state.get(state, {})
    old = create(api, body(queue, on_conflict="replace", **options))
    if state == "retryable":
        assert [job["id"] for job in api.fetch(queue)] == [old]
        api.nack(old)
    assert api.get(old)["state"] == state
    new = create(api, body(queue, on_conflict="replace"))
    assert (api.get(old)["state"], api.get(new)["state"]) == ("cancelled", "available")
    third = create(api, body(queue, on_conflict="replace"))
    assert api.get(new)["state"] == "cancelled"
    assert [job["id"] for job in api.fetch(queue, count=10)] == [third]
    types = [event["type"] for event in api.events(queues=queue) if event["subject"] == old]
    assert "job.cancelled" in types


@pytest.mark.parametrize("word", ["reject", "replace", "replace_except_schedule"])
def test_a_job_that_runs_is_not_replaced(api: Api, word: str) -> None:
    """Its worker is at it: 409 as for `reject`."""
    queue = unique_queue()
    old = create(api, body(queue))
    api.fetch(queue)
    refused(api, body(queue, on_conflict=word), old)
    api.ack(old)
    poll(lambda: post(api, body(queue))[0] == 201, what="the lock is given back")


def test_the_schedule_of_the_replaced_job_is_kept(api: Api) -> None:
    """New arguments, old time; for a job that is not scheduled it is a plain replace."""
    queue = unique_queue()
    policy = {"keys": ["queue"], "on_conflict": "replace_except_schedule"}
    old = create(api, body(queue, [1], scheduled_at=SOONER, **policy))
    new = create(api, body(queue, [2], scheduled_at=LATER, **policy))
    assert api.get(old)["state"] == "cancelled"
    job = api.get(new)
    assert (job["state"], job["args"], job["scheduled_at"][:4]) == ("scheduled", [2], "2098")
    plain = create(api, body(queue, [3], keys=["queue"], on_conflict="replace"))
    last = create(api, body(queue, [4], scheduled_at=LATER, **policy))
    assert (api.get(plain)["state"], api.get(last)["scheduled_at"][:4]) == ("cancelled", "2099")


@pytest.mark.parametrize("end", ["completed", "discarded", "cancelled"])
def test_the_end_of_a_job_makes_room(api: Api, end: str) -> None:
    """By default ended jobs are in nobody's way; with their state listed they are."""
    queue = unique_queue()
    everything = {"states": ["available", "active", "scheduled", "retryable", "pending", end]}
    retry = {"max_attempts": 1}
    ids = [create(api, body(queue, [number], retry=retry, **policy)) for number, policy in ((1, {}), (2, everything))]
    if end == "cancelled":
        for one in ids:
            api.cancel(one)
    else:
        assert len(api.fetch(queue, count=2)) == 2
        for one in ids:
            (api.ack if end == "completed" else api.nack)(one)
    create(api, body(queue, [1]))
    refused(api, body(queue, [2], **everything), ids[1])
    status, answer = post(api, body(queue, [2], on_conflict="ignore", **everything))
    assert (status, answer["job"]["state"]) == (200, end)
    replaced = create(api, body(queue, [2], on_conflict="replace", **everything))
    assert api.get(ids[1])["state"] == end, "a job that has ended cannot be cancelled"
    refused(api, body(queue, [2], **everything), replaced)


def test_a_retry_never_asks_again(api: Api) -> None:
    """A job that failed still has its lock; promoted, it runs; a dead letter that is retried does not ask either."""
    queue = unique_queue()
    policy = {"retry": {"max_attempts": 2, "initial_interval": "PT0.05S", "on_exhaustion": "dead_letter"}}
    first = create(api, body(queue, **policy))
    api.fetch(queue)
    api.nack(first)
    refused(api, body(queue), first)
    poll(lambda: api.get(first)["state"] == "available", what="it is promoted")
    refused(api, body(queue), first)
    api.fetch(queue)
    api.nack(first)
    second = create(api, body(queue))
    assert api.call("POST", f"/dead-letter/{first}/retry")["job"]["state"] == "available"
    assert {job["id"] for job in api.fetch(queue, count=10)} == {first, second}


def test_the_period_frees_a_waiting_job_too(api: Api) -> None:
    """From the creation of the job that is there."""
    queue = unique_queue()
    first = create(api, body(queue, period="PT0.5S"))
    refused(api, body(queue, period="PT0.5S"), first)
    poll(lambda: post(api, body(queue, period="PT0.5S"))[0] == 201, what="the period is over")
    assert api.get(first)["state"] == "available"


def test_a_purged_or_deleted_job_is_in_nobodys_way(api: Api) -> None:
    """A lock that names no job is taken over without waiting for it."""
    queue = unique_queue()
    states = {"states": ["available", "discarded"]}
    dead = create(api, body(queue, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"}, **states))
    api.fetch(queue)
    api.nack(dead)
    refused(api, body(queue, **states), dead)
    api.call("DELETE", f"/dead-letter/{dead}")
    create(api, body(queue, **states))


# -- batches -------------------------------------------------------------------------------------


def batch(api: Api, *jobs: Body) -> tuple[int, Body]:
    """`(status, answer)` of a batch."""
    reply = api.request("POST", "/jobs/batch", {"jobs": list(jobs)})
    return reply.status_code, reply.json()


def test_one_duplicate_refuses_the_batch_and_leaves_no_lock(api: Api) -> None:
    """Neither its jobs nor its locks are there; without the duplicate it is taken."""
    queue = unique_queue()
    first = create(api, body(queue, [3]))
    jobs = [body(queue, [1]), job_request(queue, args=[0]), body(queue, [2]), body(queue, [3])]
    status, answer = batch(api, *jobs)
    assert (status, answer["error"]["details"]["existing_job_id"]) == (409, first)
    assert [job["id"] for job in api.fetch(queue, count=10)] == [first]
    status, answer = batch(api, *jobs[:3])
    assert (status, [job["args"] for job in answer["jobs"]]) == (201, [[1], [0], [2]])


def test_ignored_and_replaced_jobs_of_a_batch(api: Api) -> None:
    """The answer has the jobs in the order given: new ones and those that were there; twins are duplicates."""
    queue = unique_queue()
    kept, gone = create(api, body(queue, [1])), create(api, body(queue, [2]))
    status, answer = batch(
        api,
        body(queue, [1], on_conflict="ignore"),
        body(queue, [2], on_conflict="replace"),
        body(queue, [3], on_conflict="ignore"),
        body(queue, [3], on_conflict="ignore"),
    )
    assert status == 201
    ids = [job["id"] for job in answer["jobs"]]
    assert (ids[0], ids[2]) == (kept, ids[3])
    assert api.get(gone)["state"] == "cancelled"
    assert {job["id"] for job in api.fetch(queue, count=10)} == {kept, ids[1], ids[2]}
    assert batch(api, body(queue, [9]), body(queue, [9]))[0] == 409


def test_a_bad_policy_in_a_batch_is_named(api: Api) -> None:
    """With its place."""
    queue = unique_queue()
    status, answer = batch(api, body(queue), body(queue, [2], on_conflict="x"))
    assert (status, answer["error"]["details"]["field"]) == (400, "jobs[1].options.unique.on_conflict")
    create(api, body(queue))


# -- what the server enqueues itself -------------------------------------------------------------


def test_an_occurrence_of_a_cron_is_skipped_while_its_job_is_there(api: Api) -> None:
    """Its template is unique: as long as the first job waits, no second comes."""
    queue = unique_queue()
    template = {"type": "a.b", "args": [], "options": {"queue": queue, "unique": {"keys": ["queue"]}}}
    request = {"name": queue, "expression": "@every 1s", "overlap_policy": "allow", "job_template": template}
    api.call("POST", "/cron", request)
    [job] = poll(lambda: api.fetch(queue, count=10), what="the first occurrence")
    poll(partial(ran, api, queue, 3), deadline_s=20, what="two more occurrences")
    assert api.fetch(queue, count=10) == []
    api.ack(job["id"])
    poll(lambda: api.fetch(queue, count=10), what="the next one")
    api.call("DELETE", f"/cron/{queue}")


def ran(api: Api, name: str, times: int) -> bool:
    """Whether a cron has come round so often."""
    fired = [event for event in api.events(types="cron.triggered,cron.skipped", limit=1000) if event["subject"] == name]
    assert all(event["data"].get("reason", "duplicate") == "duplicate" for event in fired)
    return len(fired) >= times


def test_the_steps_of_a_workflow_always_run(api: Api) -> None:
    """A policy on a step does not stop the workflow."""
    queue = unique_queue()
    create(api, body(queue, [], keys=["queue"]))
    step = {"type": "a.b", "args": [], "options": {"queue": queue, "unique": {"keys": ["queue"]}}}
    api.call("POST", "/workflows", {"type": "group", "name": "g", "jobs": [step, step]})
    got: list[Body] = []

    def all_came() -> bool:
        got.extend(api.fetch(queue, count=10))
        return len(got) == 3

    poll(all_came, what="the job and both steps come")
