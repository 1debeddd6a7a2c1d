"""Jobs: enqueue, read, cancel, activate, batches, time and order."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api.checks import job_untouched, nothing_enqueued, refusal
from tests.support.api import Api, ApiError, job_request, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

Body = dict[str, Any]
OJS = "application/openjobspec+json"
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UNKNOWN_ID = "01890000-0000-7000-8000-000000000001"
FAST = {"initial_interval": "PT0.03S", "jitter": False, "backoff_strategy": "constant"}


def at(seconds: float) -> str:
    """Return the RFC 3339 time so many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def fetch_one(api: Api, queue: str, **fields: Any) -> Body:
    """Fetch until a job comes."""
    return poll(lambda: api.fetch(queue, **fields), deadline_s=5, what=f"a job comes out of {queue}")[0]


# -- enqueue ---------------------------------------------------------------------------------------


def test_an_enqueued_job_is_told_in_full(api: Api) -> None:
    """201 with Location, the right headers and every member that the envelope promises."""
    queue = unique_queue()
    reply = api.request("POST", "/jobs", {"type": "mail.send", "args": ["a", 1], "options": {"queue": queue}})
    assert reply.status_code == 201
    stored = reply.json()["job"]
    assert reply.headers["content-type"] == OJS
    assert reply.headers["ojs-version"] == "1.0"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["location"] == f"/ojs/v1/jobs/{stored['id']}"
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert UUID7.fullmatch(stored["id"])
    assert TIME.fullmatch(stored["created_at"])
    assert stored["enqueued_at"] == stored["created_at"]
    del stored["id"], stored["created_at"], stored["enqueued_at"]
    assert stored == {
        "specversion": "1.0",
        "type": "mail.send",
        "queue": queue,
        "state": "available",
        "args": ["a", 1],
        "meta": {},
        "priority": 0,
        "attempt": 0,
        "max_attempts": 3,
    }
    assert api.http.get(reply.headers["location"]).json()["job"]["queue"] == queue


def test_ids_are_unique_and_rise(api: Api) -> None:
    """Ids that the server makes sort in the order of the enqueues."""
    queue = unique_queue()
    ids = [api.enqueue(queue)["id"] for _ in range(50)]
    assert ids == sorted(set(ids))


def test_a_clients_id_is_used_once(api: Api) -> None:
    """The second job with an id is refused with 409 duplicate, in whatever state the first one is."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    api.cancel(job_id)
    mine = job_id[:-4] + ("0000" if job_id[-4:] != "0000" else "0001")
    assert api.enqueue(queue, id=mine)["id"] == mine
    for _ in range(2):
        with job_untouched(api, mine):
            error = refusal(api.request("POST", "/jobs", job_request(queue, id=mine)), 409, code="duplicate")
            assert error["details"]["existing_job_id"] == mine
        if api.get(mine)["state"] == "available":
            api.fetch(queue)
            api.ack(mine)
    assert api.fetch(queue) == []


def test_a_job_without_a_queue_goes_to_default(api: Api) -> None:
    """The default queue is `default`."""
    stored = api.call("POST", "/jobs", {"type": "plain.job", "args": []})["job"]
    assert stored["queue"] == "default"
    api.cancel(stored["id"])


def test_options_win_over_the_top_level(api: Api) -> None:
    """What the wire format has at the top level is understood; `options` has the last word."""
    queue, other = unique_queue(), unique_queue()
    body = {"type": "top.job", "args": [], "queue": other, "priority": 5, "tags": ["t"], "options": {"queue": queue}}
    stored = api.call("POST", "/jobs", body)["job"]
    assert (stored["queue"], stored["priority"], stored["tags"]) == (queue, 5, ["t"])


def test_metadata_is_merged_into_meta(api: Api) -> None:
    """`options.metadata` joins `meta`, whose own members win."""
    meta, metadata = {"a": 1, "b": {"c": 2.50}}, {"b": 9, "d": [None]}
    stored = api.enqueue(unique_queue(), meta=meta, metadata=metadata)
    assert stored["meta"] == {"d": [None], "a": 1, "b": {"c": 2.5}}


VERBATIM = (
    "[]",
    "[ 1 , 2 ]",
    "[1.0,1.50,1e5,1E+2,-0,-0.0,0.1e1]",
    "[9007199254740993,18446744073709551616,123456789012345678901234567890]",
    "[1.7976931348623157e308,5e-324,3.141592653589793238462643383279]",
    r'["\u00e9","é","\u00E9","\/","\b\f\n\r\t\\\"","\ud83d\ude00","😀","\u0000","\u2028"]',
    '[null,true,false,{},[],"",{"":null}]',
    '[{"b":1,"a":2,"b":3}]',
    '["<script>&amp;"]',
)


@pytest.mark.parametrize("text", VERBATIM)
def test_user_json_is_the_same_bytes_everywhere(api: Api, text: str) -> None:
    """Args, meta and result come back byte for byte, in every answer that shows the job."""
    queue = unique_queue()
    meta = f'{{"m":{text}, "é" : 1}}'
    request = f'{{"type":"raw.job","args":{text},"meta":{meta},"options":{{"queue":"{queue}"}}}}'
    enqueued = api.http.post("/ojs/v1/jobs", content=request.encode())
    assert enqueued.status_code == 201, enqueued.text
    job_id = enqueued.json()["job"]["id"]
    fetched = api.http.post("/ojs/v1/workers/fetch", content=json.dumps({"queues": [queue]}))
    acked = api.http.post("/ojs/v1/workers/ack", content=f'{{"job_id":"{job_id}","result":{text}}}'.encode())
    read = api.http.get(f"/ojs/v1/jobs/{job_id}")
    for answer in (enqueued, fetched, acked, read):
        assert f'"args":{text},"meta":{meta}'.encode() in answer.content
    for answer in (acked, read):
        assert f'"result":{text}'.encode() in answer.content


@pytest.mark.parametrize(
    "result", ["0", "1e400", '"x"', "false", "[1.0]", "{}", '""', "-0.0", "12345678901234567890123", r'"\ud83d\ude00"']
)
def test_any_json_is_a_result(api: Api, result: str) -> None:
    """A result keeps its JSON type and its very characters."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    api.fetch(queue)
    api.http.post("/ojs/v1/workers/ack", content=f'{{"job_id":"{job_id}","result":{result}}}')
    assert f'"result":{result}}}'.encode() in api.http.get(f"/ojs/v1/jobs/{job_id}").content


@pytest.mark.parametrize("fields", [{}, {"result": None}])
def test_without_a_result_there_is_no_member(api: Api, fields: Body) -> None:
    """No result and null are the same: the member is absent."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    api.fetch(queue)
    api.ack(job_id, **fields)
    assert "result" not in api.get(job_id)


def test_a_large_result_is_kept(api: Api) -> None:
    """A megabyte of result is stored and told."""
    queue = unique_queue()
    job_id = api.enqueue(queue, args=["x" * 1_000_000])["id"]
    api.fetch(queue)
    api.ack(job_id, result="y" * 1_000_000)
    assert api.get(job_id)["result"] == "y" * 1_000_000


@pytest.mark.slow
def test_the_largest_jobs_live_and_fail(api: Api) -> None:
    """Arguments near the body limit and failures just as large, many times, never make a 5xx."""
    queue = unique_queue()
    job_id = api.enqueue(queue, args=["x" * 9_000_000], retry={"max_attempts": 30, **FAST})["id"]
    for _ in range(6):
        found = fetch_one(api, queue)
        assert found["id"] == job_id
        error = {"code": "big", "message": "m" * 4_000_000, "details": {"trace": "t" * 5_000_000}}
        reply = api.request("POST", "/workers/nack", {"job_id": job_id, "error": error})
        assert reply.status_code < 500, reply.text[:300]
        if reply.status_code != 200:
            refusal(reply, 413, code="payload_too_large")
            break
    assert api.request("GET", f"/jobs/{job_id}").status_code == 200
    assert api.cancel(job_id)["state"] == "cancelled"


# -- read ------------------------------------------------------------------------------------------


def test_reading_changes_nothing(api: Api) -> None:
    """GET gives what the enqueue gave, as often as it is asked."""
    stored = api.enqueue(unique_queue(), args=[1], meta={"k": 1}, tags=["a"], timeout_ms=5000, schema="urn:x")
    for _ in range(3):
        assert api.get(stored["id"]) == stored


def test_an_unknown_job_is_404_with_help(api: Api) -> None:
    """The answer names the resource, gives a hint and a place to read on."""
    error = refusal(api.request("GET", f"/jobs/{UNKNOWN_ID}"), 404, code="not_found")
    assert error["details"] == {"resource_type": "job", "resource_id": UNKNOWN_ID}
    assert error["hint"]
    assert error["docs_url"].startswith("https://")


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("application/json", "application/json"),
        ("application/json;q=0.9", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/openjobspec+json", OJS),
        ("application/openjobspec+json, application/json", OJS),
        ("application/json, application/openjobspec+json", OJS),
        ("*/*", OJS),
        ("text/html", OJS),
        ("", OJS),
    ],
)
def test_the_media_type_of_answers(api: Api, accept: str, media: str) -> None:
    """Whoever accepts application/json and not ours gets it, on every lane, for errors too; all others get ours."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    headers = {"Accept": accept}
    for method, path, body in (
        ("GET", f"/jobs/{job_id}", None),
        ("GET", f"/jobs/{UNKNOWN_ID}", None),
        ("GET", "/nope", None),
        ("PUT", "/jobs", {}),
        ("POST", "/jobs", job_request(queue)),
        ("POST", "/jobs", {}),
        ("GET", "/health", None),
        ("GET", "/events?limit=1", None),
    ):
        assert api.request(method, path, body, headers=headers).headers["content-type"] == media, (method, path)


# -- states ----------------------------------------------------------------------------------------

Maker = Callable[[Api, str], Body]


def available(api: Api, queue: str) -> Body:
    """Make a job that waits."""
    return api.enqueue(queue)


def scheduled(api: Api, queue: str) -> Body:
    """Make a job for later."""
    return api.enqueue(queue, scheduled_at="+PT1H")


def pending(api: Api, queue: str) -> Body:
    """Make a job that waits to be activated."""
    return api.enqueue(queue, pending=True)


def active(api: Api, queue: str) -> Body:
    """Make a job that a worker has."""
    api.enqueue(queue)
    return api.fetch(queue, worker_id="maker")[0]


def retryable(api: Api, queue: str) -> Body:
    """Make a job that waits for its next attempt."""
    api.enqueue(queue, retry={"initial_interval": "PT1H", "max_interval": "PT2H"})
    [found] = api.fetch(queue)
    assert api.nack(found["id"])["state"] == "retryable"
    return api.get(found["id"])


def completed(api: Api, queue: str) -> Body:
    """Make a job that is done."""
    found = active(api, queue)
    api.ack(found["id"])
    return api.get(found["id"])


def discarded(api: Api, queue: str) -> Body:
    """Make a job that failed for good."""
    found = active(api, queue)
    assert api.nack(found["id"], retryable=False)["state"] == "discarded"
    return api.get(found["id"])


def cancelled(api: Api, queue: str) -> Body:
    """Make a job that was called off."""
    return api.cancel(api.enqueue(queue)["id"])


MAKERS: dict[str, Maker] = {
    "available": available,
    "scheduled": scheduled,
    "pending": pending,
    "active": active,
    "retryable": retryable,
    "completed": completed,
    "discarded": discarded,
    "cancelled": cancelled,
}
TERMINAL = ("completed", "discarded", "cancelled")
WAITING = ("available", "scheduled", "pending", "active", "retryable")


@pytest.mark.parametrize("state", WAITING)
@pytest.mark.parametrize("verb", ["DELETE", "POST"])
def test_a_job_is_cancelled_from_every_state_that_waits(api: Api, state: str, verb: str) -> None:
    """The answer tells the state before; the job never comes to a worker and cannot be settled any more."""
    queue = unique_queue()
    made = MAKERS[state](api, queue)
    assert made["state"] == state
    path = f"/jobs/{made['id']}" + ("/cancel" if verb == "POST" else "")
    gone = api.call(verb, path)["job"]
    assert (gone["state"], gone["previous_state"]) == ("cancelled", state)
    assert TIME.fullmatch(gone["cancelled_at"])
    stored = api.get(made["id"])
    assert stored["state"] == "cancelled"
    for name in ("completed_at", "discarded_at", "next_attempt_at", "previous_state"):
        assert name not in stored
    assert stored["args"] == made["args"]
    assert api.fetch(queue) == []
    for path, body in (("ack", {}), ("nack", {"error": {"message": "m"}})):
        reply = api.request("POST", f"/workers/{path}", {"job_id": made["id"], **body})
        error = refusal(reply, 409, code="conflict")
        assert error["details"]["current_state"] == "cancelled"


OPERATIONS: dict[str, tuple[str, str, Body | None, tuple[str, ...]]] = {
    "cancel": ("DELETE", "/jobs/{id}", None, WAITING),
    "activate": ("POST", "/jobs/{id}/activate", None, ("pending",)),
    "ack": ("POST", "/workers/ack", {"job_id": "{id}"}, ("active",)),
    "nack": ("POST", "/workers/nack", {"job_id": "{id}", "error": {"message": "m"}}, ("active",)),
    "requeue": ("POST", "/workers/nack", {"job_id": "{id}", "requeue": True}, ("active",)),
    "ack by path": ("POST", "/jobs/{id}/ack", None, ("active",)),
    "nack by path": ("POST", "/jobs/{id}/nack", {"error": "failed"}, ("active",)),
}


@pytest.mark.parametrize("state", MAKERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_illegal_transitions_are_refused(api: Api, operation: str, state: str) -> None:
    """Every operation in every state that does not allow it is 409 conflict, tells both states, changes nothing."""
    method, path, body, allowed = OPERATIONS[operation]
    if state in allowed:
        return
    made = MAKERS[state](api, unique_queue())
    filled = json.loads(json.dumps(body).replace("{id}", made["id"]))
    with job_untouched(api, made["id"]):
        error = refusal(api.request(method, path.replace("{id}", made["id"]), filled), 409, code="conflict")
    assert error["details"]["job_id"] == made["id"]
    assert error["details"]["current_state"] == state
    assert error["details"]["expected_state"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [(method, path, body) for method, path, body, _ in OPERATIONS.values()],
    ids=list(OPERATIONS),
)
def test_operations_on_an_unknown_job_are_404(api: Api, method: str, path: str, body: Body | None) -> None:
    """The answer names the job."""
    filled = json.loads(json.dumps(body).replace("{id}", UNKNOWN_ID))
    error = refusal(api.request(method, path.replace("{id}", UNKNOWN_ID), filled), 404, code="not_found")
    assert error["details"]["resource_id"] == UNKNOWN_ID


def test_a_pending_job_runs_once_it_is_activated(api: Api) -> None:
    """Nobody gets it before; afterwards it is like any other."""
    queue = unique_queue()
    made = api.enqueue(queue, pending=True, args=[1])
    assert made["state"] == "pending"
    assert "enqueued_at" not in made
    assert api.fetch(queue) == []
    told = api.activate(made["id"])
    assert (told["state"], told["previous_state"], told["type"]) == ("available", "pending", made["type"])
    assert TIME.fullmatch(told["activated_at"])
    [found] = api.fetch(queue)
    assert (found["id"], found["attempt"]) == (made["id"], 1)
    assert api.ack(found["id"])["state"] == "completed"


def test_a_pending_job_ignores_its_schedule(api: Api) -> None:
    """Pending wins over a time: the job waits for its activation."""
    queue = unique_queue()
    made = api.enqueue(queue, pending=True, scheduled_at="+PT0.01S")
    assert made["state"] == "pending"
    time.sleep(0.1)
    assert api.get(made["id"])["state"] == "pending"


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["scheduled_at", "delay_until"])
@pytest.mark.parametrize("form", ["absolute", "+PT0.3S", "PT0.3S", "zone"])
def test_a_scheduled_job_comes_when_it_is_due(api: Api, field: str, form: str) -> None:
    """Not before its time, at most 250 ms after it; `enqueued_at` is when it was promoted."""
    queue = unique_queue()
    due = time.time() + 0.3
    value = form
    if form == "absolute":
        value = at(0.3)
    elif form == "zone":
        moment = datetime.now(UTC) + timedelta(seconds=0.3)
        value = (moment + timedelta(hours=5.5)).replace(tzinfo=None).isoformat() + "+05:30"
    made = api.enqueue(queue, **{field: value})
    assert made["state"] == "scheduled"
    assert "enqueued_at" not in made
    if form in ("absolute", "zone"):
        assert made["scheduled_at"] == value
    assert api.fetch(queue) == []
    found = fetch_one(api, queue)
    late = time.time() - due
    assert found["id"] == made["id"]
    assert -0.01 < late < 0.25
    assert found["enqueued_at"] > found["created_at"]


@pytest.mark.parametrize("field", ["scheduled_at", "delay_until"])
@pytest.mark.parametrize("value", ["2001-01-01T00:00:00Z", "1999-12-31T23:59:59.999+14:00"])
def test_a_job_for_the_past_is_available_at_once(api: Api, field: str, value: str) -> None:
    """A time that is over counts as now."""
    queue = unique_queue()
    assert api.enqueue(queue, **{field: value})["state"] == "available"
    assert len(api.fetch(queue)) == 1


def test_many_scheduled_jobs_come_in_the_order_of_their_times(api: Api) -> None:
    """A hundred jobs, enqueued backwards, are all promoted and fetched by due time."""
    queue = unique_queue()
    base = time.time() + 0.8
    jobs = [
        job_request(
            queue,
            args=[number],
            scheduled_at=datetime.fromtimestamp(base + number * 0.005, UTC).isoformat().replace("+00:00", "Z"),
        )
        for number in reversed(range(100))
    ]
    api.enqueue_batch(jobs)
    seen: list[int] = []

    def drained() -> bool:
        seen.extend(found["args"][0] for found in api.fetch(queue, count=100))
        return len(seen) == 100

    poll(drained, deadline_s=10, what="all scheduled jobs come")
    assert seen == list(range(100))


def test_expires_at_is_echoed_as_it_was_sent(api: Api) -> None:
    """An absolute time keeps its form."""
    assert api.enqueue(unique_queue(), expires_at="2099-12-31T23:59:59Z")["expires_at"] == "2099-12-31T23:59:59Z"


@pytest.mark.parametrize("when", ["+PT0.15S", "past"])
def test_an_expired_job_is_never_delivered(api: Api, when: str) -> None:
    """It is discarded instead: `discarded_at`, no `completed_at`, an event job.expired, no dead letter."""
    queue = unique_queue()
    dead = {"on_exhaustion": "dead_letter"}
    expires = at(-60) if when == "past" else when
    made = api.enqueue(queue, expires_at=expires, retry=dead)
    alive = api.enqueue(queue, expires_at="+PT1H")
    time.sleep(0.2)
    assert [found["id"] for found in api.fetch(queue, count=10)] == [alive["id"]]
    gone = poll(lambda: [api.get(made["id"])], what="it is read")[0]
    assert gone["state"] == "discarded"
    assert TIME.fullmatch(gone["discarded_at"])
    for name in ("completed_at", "started_at", "error"):
        assert name not in gone
    assert gone["attempt"] == 0
    poll(
        lambda: [one["subject"] for one in api.events(types="job.expired", queues=queue)] == [made["id"]],
        what="one event tells of it",
    )
    assert api.dead_letters(queue) == []


def test_an_expired_job_is_discarded_by_reading_it(api: Api) -> None:
    """GET tells the truth although nobody ever fetched."""
    made = api.enqueue(unique_queue(), expires_at="+PT0.05S")
    time.sleep(0.1)
    assert api.get(made["id"])["state"] == "discarded"


def test_a_scheduled_job_that_expires_first_never_runs(api: Api) -> None:
    """The promotion finds that its time is over."""
    queue = unique_queue()
    made = api.enqueue(queue, scheduled_at="+PT0.2S", expires_at="+PT0.1S")
    time.sleep(0.5)
    assert api.fetch(queue) == []
    assert api.get(made["id"])["state"] == "discarded"


def test_a_running_job_does_not_expire(api: Api) -> None:
    """`expires_at` is about waiting: a worker that has the job may finish it."""
    queue = unique_queue()
    made = api.enqueue(queue, expires_at="+PT0.15S")
    assert api.fetch(queue)
    time.sleep(0.25)
    assert api.get(made["id"])["state"] == "active"
    assert api.ack(made["id"])["state"] == "completed"


# -- order -----------------------------------------------------------------------------------------


def test_jobs_come_in_the_order_of_their_enqueues(api: Api) -> None:
    """First in, first out, by one and by many."""
    queue = unique_queue()
    ids = [api.enqueue(queue)["id"] for _ in range(30)]
    got = [api.fetch(queue)[0]["id"] for _ in range(10)]
    got += [found["id"] for found in api.fetch(queue, count=7)]
    got += [found["id"] for found in api.fetch(queue, count=100)]
    assert got == ids


def test_higher_priorities_come_first(api: Api) -> None:
    """From 100 down to -100, first in first out within a level."""
    queue = unique_queue()
    levels = [0, 5, -100, 100, 5, 0, -1, 100, 7]
    made = [(api.enqueue(queue, priority=level)["id"], level) for level in levels]
    wanted = [job_id for job_id, _ in sorted(made, key=lambda one: -one[1])]
    assert [api.fetch(queue)[0]["id"] for _ in range(4)] == wanted[:4]
    assert [found["id"] for found in api.fetch(queue, count=50)] == wanted[4:]


def test_queues_are_served_from_left_to_right(api: Api) -> None:
    """The order of the request decides, not age or priority; one fetch may empty several."""
    first, second, third = unique_queue(), unique_queue(), unique_queue()
    late = api.enqueue(third, priority=100)["id"]
    middle = api.enqueue(second, priority=50)["id"]
    early = [api.enqueue(first, priority=-5)["id"], api.enqueue(first, priority=-5)["id"]]
    assert [found["id"] for found in api.fetch(first, second, third, count=10)] == [*early, middle, late]
    again = api.enqueue(second)["id"]
    api.enqueue(third)
    assert [found["id"] for found in api.fetch(first, second, second, third)] == [again]


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_stored_in_order(api: Api) -> None:
    """201 with every job in full, the count, and the order of the request."""
    queue = unique_queue()
    jobs = [job_request(queue, args=[number], meta={"n": number}) for number in range(5)]
    reply = api.request("POST", "/jobs/batch", {"jobs": jobs})
    assert reply.status_code == 201
    body = reply.json()
    assert body["count"] == 5
    assert [stored["args"] for stored in body["jobs"]] == [[number] for number in range(5)]
    for stored in body["jobs"]:
        assert stored["state"] == "available"
        assert UUID7.fullmatch(stored["id"])
        assert api.get(stored["id"]) == stored
    assert [found["id"] for found in api.fetch(queue, count=9)] == [stored["id"] for stored in body["jobs"]]


def test_a_batch_may_mix_everything(api: Api) -> None:
    """Queues, priorities, states and a client's own id in one batch."""
    one, two = unique_queue(), unique_queue()
    mine = api.enqueue(one)["id"]
    api.fetch(one)
    mine = mine[:-1] + ("0" if mine[-1] != "0" else "1")
    jobs = [
        job_request(one, id=mine),
        job_request(two, priority=7),
        job_request(two, scheduled_at="+PT1H"),
        job_request(one, pending=True),
    ]
    states = [stored["state"] for stored in api.enqueue_batch(jobs)]
    assert states == ["available", "available", "scheduled", "pending"]
    assert [found["id"] for found in api.fetch(one, count=5)] == [mine]
    assert [found["priority"] for found in api.fetch(two, count=5)] == [7]


@pytest.mark.parametrize("size", [999, 1000, 1001, 2500])
def test_large_batches_keep_their_order(api: Api, size: int) -> None:
    """A thousand jobs and more at once: all stored, fetched first in first out, each exactly once."""
    queue = unique_queue()
    stored = api.enqueue_batch([job_request(queue, args=[number]) for number in range(size)])
    assert len(stored) == size
    got: list[Body] = []
    while page := api.fetch(queue, count=400):
        got += page
    assert [found["args"][0] for found in got] == list(range(size))
    assert [found["id"] for found in got] == [one["id"] for one in stored]


@pytest.mark.parametrize("position", [0, 1, 498, 499])
def test_one_bad_member_refuses_the_batch(api: Api, position: int) -> None:
    """Nothing is stored, wherever the bad one stands; the answer says where."""
    queue = unique_queue()
    jobs = [job_request(queue) for _ in range(500)]
    jobs[position]["args"] = "no array"
    with nothing_enqueued(api, queue):
        refusal(api.request("POST", "/jobs/batch", {"jobs": jobs}), 400, field=f"jobs[{position}].args")


def test_an_id_that_stands_twice_refuses_the_batch(api: Api) -> None:
    """Nothing is stored; the answer names the second one."""
    queue = unique_queue()
    jobs = [job_request(queue, id=UNKNOWN_ID), job_request(queue), job_request(queue, id=UNKNOWN_ID)]
    with nothing_enqueued(api, queue):
        refusal(api.request("POST", "/jobs/batch", {"jobs": jobs}), 400, field="jobs[2].id")
    assert api.request("GET", f"/jobs/{UNKNOWN_ID}").status_code == 404


@pytest.mark.parametrize("position", [0, 10, 199])
def test_an_id_that_exists_refuses_the_batch(api: Api, position: int) -> None:
    """409 duplicate naming the job; none of the others is stored and no worker gets anything."""
    queue, elsewhere = unique_queue(), unique_queue()
    api.enqueue(queue)
    api.fetch(queue)
    there = api.enqueue(elsewhere)["id"]
    jobs = [job_request(queue) for _ in range(200)]
    jobs[position]["id"] = there
    with job_untouched(api, there):
        error = refusal(api.request("POST", "/jobs/batch", {"jobs": jobs}), 409, code="duplicate")
    assert error["details"]["existing_job_id"] == there
    assert api.fetch(queue) == []
    assert len(api.events(queues=queue, types="job.enqueued")) == 1


def test_a_refused_duplicate_creates_no_queue(api: Api) -> None:
    """A job or batch refused with 409 leaves no new queue behind."""
    there = api.enqueue(unique_queue())["id"]
    queue = unique_queue("never")
    with nothing_enqueued(api, queue):
        refusal(api.request("POST", "/jobs", job_request(queue, id=there)), 409, code="duplicate")
        body = {"jobs": [job_request(queue, id=there), job_request(queue)]}
        refusal(api.request("POST", "/jobs/batch", body), 409, code="duplicate")


def test_an_error_of_the_client_is_an_exception_with_its_code(api: Api) -> None:
    """The test client itself reports what the server said."""
    with pytest.raises(ApiError) as refused:
        api.get(UNKNOWN_ID)
    assert (refused.value.status, refused.value.code) == (404, "not_found")


@pytest.mark.parametrize("durability", ["always", "interval"])
def test_a_job_is_there_as_soon_as_its_enqueue_is_answered(
    fresh_server: Callable[..., Server], durability: str
) -> None:
    """For a fetch, statistics, lists and a cancel, although nobody waits for its work message."""
    with Api(fresh_server(env={"OJS_DURABILITY": durability}).url) as api:
        for number in range(50):
            queue = unique_queue()
            ids = [api.enqueue(queue)["id"] for _ in range(3)]
            if number % 2:
                assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 3
            else:
                listed = api.call("GET", "/admin/jobs", params={"queue": queue, "state": "available"})["items"]
                assert {job["id"] for job in listed} == set(ids)
            api.cancel(ids[1])
            last = api.enqueue(queue, priority=5)["id"]
            assert [job["id"] for job in api.fetch(queue, count=1)] == [last]
            assert [job["id"] for job in api.fetch(queue, count=10)] == [ids[0], ids[2]]
