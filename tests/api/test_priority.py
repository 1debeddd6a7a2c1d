"""Priority: the order of fetches, and a change of it while a job waits (ojs-priority; CONTRACT section 7)."""

from __future__ import annotations

import pytest

from tests.api.checks import job_untouched, refusal
from tests.support.api import Api, ApiError, Body, unique_queue
from tests.support.processes import poll

UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"
CHANGEABLE = "available|scheduled|retryable|pending"


def change(api: Api, job_id: str, priority: int) -> dict[str, object]:
    """Change a job's priority and return the answer."""
    return api.call("PATCH", f"/jobs/{job_id}", {"priority": priority})


def drained(api: Api, *queues: str, count: int = 1) -> list[str]:
    """Fetch until nothing is left; the ids in the order they came."""
    found: list[str] = []
    while jobs := api.fetch(*queues, count=count):
        found += [job["id"] for job in jobs]
    return found


@pytest.mark.parametrize("count", [1, 3, 100])
def test_higher_priorities_come_first_and_older_jobs_within_one(api: Api, count: int) -> None:
    """Whatever number a fetch asks for, and whatever the order of the enqueues."""
    queue = unique_queue()
    priorities = [0, -100, 7, 100, 7, -1, 0, 100, -100, 3, 3, 0]
    ids = [api.enqueue(queue, priority=priority)["id"] for priority in priorities]
    expected = [ids[at] for at in sorted(range(len(ids)), key=lambda at: (-priorities[at], at))]
    assert drained(api, queue, count=count) == expected


def test_the_first_queue_goes_before_a_higher_priority_in_the_second(api: Api) -> None:
    """Queues in the order of the request, then priorities."""
    first, second = unique_queue(), unique_queue()
    ids = [api.enqueue(queue, priority=p)["id"] for queue, p in ((second, 100), (first, -5), (second, 0), (first, 5))]
    assert drained(api, first, second, count=3) == [ids[3], ids[1], ids[0], ids[2]]


def test_levels_that_emptied_are_looked_at_again(api: Api) -> None:
    """A level that was empty for many fetches is not passed over once it has a job."""
    queue = unique_queue()
    for priority in range(10):
        api.enqueue(queue, priority=priority)
    assert len(drained(api, queue, count=10)) == 10
    low = [api.enqueue(queue, priority=0)["id"] for _ in range(30)]
    for number in range(20):
        assert [job["id"] for job in api.fetch(queue)] == [low.pop(0)]
        high = api.enqueue(queue, priority=1 + number % 9)["id"]
        assert [job["id"] for job in api.fetch(queue)] == [high]


def test_an_available_job_goes_behind_those_of_its_new_level(api: Api) -> None:
    """It takes its new place at once, and the message of its old place does not count."""
    queue = unique_queue()
    low, high, other, last = (api.enqueue(queue, priority=p)["id"] for p in (1, 5, 1, -7))
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 4
    answer = change(api, other, 5)
    job = answer["job"]
    assert isinstance(job, dict)
    assert (answer["id"], answer["priority"], answer["previous_priority"]) == (other, 5, 1)
    assert (job["id"], job["state"], job["priority"]) == (other, "available", 5)
    assert api.get(other) == job
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 4
    change(api, last, 33)
    assert drained(api, queue) == [last, high, other, low]
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 0
    assert api.ack(other)["state"] == "completed"


def test_a_job_can_go_back_to_where_it_was(api: Api) -> None:
    """There and back again, many times: it is fetched once, counted once, and cancelled for good."""
    queue = unique_queue()
    kept, dropped = (api.enqueue(queue)["id"] for _ in range(2))
    for priority in (5, 0, -5, 0, 5, 0):
        for job_id in (kept, dropped):
            change(api, job_id, priority)
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 2
    api.cancel(dropped)
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 1
    assert drained(api, queue) == [kept]
    assert api.nack(kept, requeue=True)["state"] == "available"
    assert drained(api, queue) == [kept]


def test_the_same_priority_changes_nothing(api: Api) -> None:
    """The job keeps its place, and no event tells of it."""
    queue = unique_queue()
    ids = [api.enqueue(queue, priority=2)["id"] for _ in range(2)]
    with job_untouched(api, ids[0]):
        assert change(api, ids[0], 2)["previous_priority"] == 2
    assert drained(api, queue) == ids


@pytest.mark.parametrize("field", ["scheduled_at", "delay_until"])
def test_a_scheduled_job_comes_with_its_new_priority(api: Api, field: str) -> None:
    """It stays scheduled until it is due."""
    queue = unique_queue()
    later = api.enqueue(queue, priority=-3, **{field: "+PT1S"})["id"]
    assert change(api, later, 9)["previous_priority"] == -3
    assert (api.get(later)["state"], api.get(later)["priority"]) == ("scheduled", 9)
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["scheduled"] == 1
    poll(lambda: api.get(later)["state"] == "available", what="the job is due")
    now = api.enqueue(queue, priority=8)["id"]
    assert drained(api, queue) == [later, now]


def test_a_retryable_job_comes_with_its_new_priority(api: Api) -> None:
    """It waits for its next attempt all the same."""
    queue = unique_queue()
    again = api.enqueue(queue, retry={"initial_interval": "PT0.5S", "jitter": False})["id"]
    assert drained(api, queue) == [again]
    assert api.nack(again)["state"] == "retryable"
    assert change(api, again, 4)["previous_priority"] == 0
    assert api.get(again)["state"] == "retryable"
    poll(lambda: api.get(again)["state"] == "available", what="the backoff ends")
    other = api.enqueue(queue, priority=3)["id"]
    assert drained(api, queue) == [again, other]


def test_a_pending_job_comes_with_its_new_priority(api: Api) -> None:
    """Once it is activated."""
    queue = unique_queue()
    pending = api.enqueue(queue, pending=True)["id"]
    assert change(api, pending, 4)["previous_priority"] == 0
    other = api.enqueue(queue, priority=3)["id"]
    assert api.activate(pending)["state"] == "available"
    assert drained(api, queue) == [pending, other]


@pytest.mark.parametrize("state", ["active", "completed", "discarded", "cancelled", "expired"])
def test_other_states_are_refused(api: Api, state: str) -> None:
    """409 that names the state; the job stays as it is."""
    queue = unique_queue()
    job_id = api.enqueue(queue, **({"expires_at": "+PT0.05S"} if state == "expired" else {}))["id"]
    if state == "cancelled":
        api.cancel(job_id)
    elif state == "expired":
        poll(lambda: api.get(job_id)["state"] == "discarded", what="the job expires")
    else:
        assert drained(api, queue) == [job_id]
    if state == "completed":
        api.ack(job_id)
    elif state == "discarded":
        api.nack(job_id, retryable=False)
    with job_untouched(api, job_id):
        reply = api.request("PATCH", f"/jobs/{job_id}", {"priority": 50})
        error = refusal(reply, 409, code="conflict")
    assert error["details"]["current_state"] == ("discarded" if state == "expired" else state)
    assert error["details"]["expected_state"] == CHANGEABLE


@pytest.mark.parametrize("text", ["101", "-101", "1.0", "1e1", "true", '"5"', "[]", "{}", "null", "9" * 40, "1e400"])
def test_a_bad_priority_is_refused(api: Api, text: str) -> None:
    """400 that names the field; the job stays as it is."""
    job_id = api.enqueue(unique_queue(), priority=3)["id"]
    with job_untouched(api, job_id):
        reply = api.request("PATCH", f"/jobs/{job_id}", content=b'{"priority":' + text.encode() + b"}")
        refusal(reply, 400, code="invalid_request", field="priority")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "priority"),
        ('{"priority":1,"state":"active"}', "state"),
        ('{"args":[]}', "args"),
        ('{"' + "x" * 5000 + '":1}', "x" * 40),
    ],
)
def test_only_the_priority_can_be_changed(api: Api, text: str, field: str) -> None:
    """400 that names what cannot be changed, or is missing."""
    job_id = api.enqueue(unique_queue())["id"]
    with job_untouched(api, job_id):
        refusal(api.request("PATCH", f"/jobs/{job_id}", content=text.encode()), 400, field=field)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "null"])
def test_a_body_that_is_no_object_is_refused(api: Api, text: str) -> None:
    """400; the job stays as it is."""
    job_id = api.enqueue(unique_queue())["id"]
    with job_untouched(api, job_id):
        refusal(api.request("PATCH", f"/jobs/{job_id}", content=text.encode()), 400)


@pytest.mark.parametrize("job_id", [UNKNOWN_ID, "x", "01890000-0000-4000-8000-000000000000"])
def test_an_unknown_job_is_not_found(api: Api, job_id: str) -> None:
    """404."""
    with pytest.raises(ApiError) as caught:
        change(api, job_id, 1)
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_a_change_is_announced(api: Api) -> None:
    """`priority.changed` with both priorities (ojs-priority section 11.1)."""
    job_id = api.enqueue(unique_queue(), priority=1)["id"]
    change(api, job_id, -1)
    [data] = [event["data"] for event in api.events(types="priority.changed") if event["subject"] == job_id]
    assert (data["job_id"], data["previous_priority"], data["new_priority"]) == (job_id, 1, -1)


def test_jobs_that_wait_for_a_limit_start_by_priority(api: Api) -> None:
    """Of the jobs that one key holds back, the one of the highest priority starts first (ojs-priority section 9.1)."""
    queue = unique_queue()
    limit: Body = {"rate_limit": {"key": queue, "concurrency": 1}}
    first, low, middle, high = (api.enqueue(queue, priority=p, **limit)["id"] for p in (0, -5, 3, 8))
    change(api, first, 50)
    free = api.enqueue(queue, priority=-20)["id"]
    assert [job["id"] for job in api.fetch(queue)] == [first]
    assert [job["id"] for job in api.fetch(queue)] == [free]
    holder = first
    for expected in (high, middle, low):
        api.ack(holder)
        [job] = poll(lambda: api.fetch(queue), what="the key makes room")
        assert job["id"] == expected
        holder = expected


def test_the_manifest_tells_of_priorities(api: Api) -> None:
    """`priority_queues` is true."""
    assert api.call("GET", "/ojs/manifest")["capabilities"]["priority_queues"] is True
