"""Many jobs in one request: each has an outcome of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Api, job_request, unique_queue
from tests.support.processes import poll

LATER = "2099-01-01T00:00:00Z"
UNKNOWN = "01900000-0000-7000-8000-000000000000"
Body = dict[str, Any]


def post(api: Api, path: str, body: Body, **headers: str) -> tuple[int, Body, Any]:
    """`(status, answer, headers)`."""
    reply = api.request("POST", path, body, headers=headers)
    return reply.status_code, reply.json(), reply.headers


def key(**more: str) -> dict[str, str]:
    """A key that nobody had before."""
    return {"Idempotency-Key": unique_queue("key"), **more}


# -- enqueue -------------------------------------------------------------------------------------


def test_all_jobs_of_a_bulk_are_created(api: Api) -> None:
    """201, an item each in the order given, workers see them at once."""
    queue = unique_queue()
    jobs = [job_request(queue, args=[number]) for number in range(5)]
    status, answer, headers = post(api, "/jobs/bulk", {"jobs": jobs})
    assert (status, answer["total"], answer["succeeded"], answer["failed"]) == (201, 5, 5, 0)
    assert [(item["index"], item["status"], item["job"]["args"]) for item in answer["items"]] == [
        (number, "created", [number]) for number in range(5)
    ]
    assert headers["x-ojs-batch-size"] == "5"
    assert {job["id"] for job in api.fetch(queue, count=10)} == {item["job"]["id"] for item in answer["items"]}


def test_some_jobs_of_a_bulk_are_refused(api: Api) -> None:
    """207: the others are created; each refusal names its field; all refused is 422."""
    queue = unique_queue()
    unique = {"keys": ["queue"], "on_conflict": "ignore"}
    jobs = [
        job_request(queue, unique=unique),
        job_request(queue, kind=""),
        {"type": "a.b"},
        7,
        job_request(queue, unique=unique),
        job_request(queue, unique={"keys": ["queue"]}),
    ]
    status, answer, _ = post(api, "/jobs/bulk", {"atomicity": "partial", "jobs": jobs})
    assert (status, answer["succeeded"], answer["failed"]) == (207, 2, 4)
    items = answer["items"]
    assert sorted(item["status"] for item in items) == ["created", "duplicate", *["failed"] * 4]
    assert items[1]["error"]["details"]["field"] == "type"
    assert items[2]["error"]["details"]["field"] == "args"
    assert items[3]["error"]["code"] == "invalid_request"
    assert items[5]["error"]["code"] == "duplicate"
    assert len(api.fetch(queue, count=10)) == 1
    status, answer, _ = post(api, "/jobs/bulk", {"jobs": [{"type": "a.b"}, {}]})
    assert (status, answer["failed"]) == (422, 2)


def test_an_atomic_bulk_is_all_or_nothing(api: Api) -> None:
    """422 with the item at fault; nothing is created. Without a fault 201."""
    queue = unique_queue()
    jobs = [job_request(queue), job_request(queue, priority=1000), job_request(queue)]
    status, answer, _ = post(api, "/jobs/bulk", {"atomicity": "atomic", "jobs": jobs})
    assert (status, answer["succeeded"], answer["failed"]) == (422, 0, 3)
    assert [item["error"]["code"] for item in answer["items"]] == ["rolled_back", "invalid_request", "rolled_back"]
    assert api.fetch(queue, count=10) == []
    del jobs[1]
    status, answer, _ = post(api, "/jobs/bulk", {"atomicity": "atomic", "jobs": jobs})
    assert (status, answer["succeeded"]) == (201, 2)
    assert len(api.fetch(queue, count=10)) == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "jobs"),
        ({"jobs": {}}, "jobs"),
        ({"jobs": []}, "jobs"),
        ({"jobs": [{}], "atomicity": "some"}, "atomicity"),
        ({"jobs": [{}], "atomicity": 1}, "atomicity"),
        ({"jobs": [{}], "idempotency_key": 5}, "idempotency_key"),
        ({"jobs": [{}], "idempotency_key": "x" * 257}, "Idempotency-Key"),
    ],
)
def test_a_bad_bulk_is_refused_by_name(api: Api, body: Body, field: str) -> None:
    """A 400 that names the field."""
    status, answer, _ = post(api, "/jobs/bulk", body)
    assert (status, answer["error"]["details"]["field"]) == (400, field)


def test_a_bulk_that_is_too_large_is_told_the_limit(api: Api) -> None:
    """413 with the limit in body and header, for jobs and for ids."""
    for path, body in (("/jobs/bulk", {"jobs": [0] * 10_001}), ("/jobs/bulk/cancel", {"job_ids": ["x"] * 10_001})):
        status, answer, headers = post(api, path, body)
        assert (status, answer["error"]["code"]) == (413, "BATCH_SIZE_EXCEEDED")
        assert (answer["error"]["max_batch_size"], headers["x-ojs-max-batch-size"]) == (10_000, "10000")


# -- jobs that exist -----------------------------------------------------------------------------


def make(api: Api, queue: str) -> dict[str, str]:
    """One job in each state; ids by state."""
    ids: dict[str, str] = {}
    for state in ("completed", "discarded", "cancelled", "active", "retryable"):
        retry = {"max_attempts": 1 if state == "discarded" else 3, "initial_interval": "PT1H"}
        ids[state] = api.enqueue(queue, retry=retry)["id"]
        if state == "cancelled":
            api.cancel(ids[state])
            continue
        assert [job["id"] for job in api.fetch(queue)] == [ids[state]]
        if state == "completed":
            api.ack(ids[state])
        elif state in ("discarded", "retryable"):
            api.nack(ids[state])
    ids["available"] = api.enqueue(queue)["id"]
    ids["scheduled"] = api.enqueue(queue, scheduled_at=LATER)["id"]
    ids["pending"] = api.enqueue(queue, pending=True)["id"]
    return ids


@pytest.mark.parametrize(
    ("action", "word", "allowed", "then"),
    [
        ("cancel", "cancelled", {"available", "scheduled", "retryable", "pending"}, "cancelled"),
        ("retry", "retried", {"discarded", "retryable"}, "available"),
        ("delete", "deleted", {"completed", "discarded", "cancelled"}, ""),
    ],
)
def test_each_job_is_done_or_skipped(api: Api, action: str, word: str, allowed: set[str], then: str) -> None:
    """By its state; an unknown id is skipped; the order is that of the request; all done is 200, none 422."""
    ids = make(api, unique_queue())
    wanted = [*ids.values(), UNKNOWN, "no-id"]
    status, answer, _ = post(api, f"/jobs/bulk/{action}", {"job_ids": wanted})
    assert (status, answer["total_matched"], answer[word]) == (207, len(wanted), len(allowed))
    assert answer["skipped"] == len(wanted) - len(allowed)
    assert [(item["index"], item["job_id"]) for item in answer["items"]] == list(enumerate(wanted))
    done = {item["job_id"] for item in answer["items"] if item["status"] == word}
    assert done == {ids[state] for state in allowed}
    assert all(item["reason"] for item in answer["items"] if item["status"] == "skipped")
    for job_id in done:
        if then:
            assert api.get(job_id)["state"] == then
        else:
            assert api.request("GET", f"/jobs/{job_id}").status_code == 404
    status, answer, _ = post(api, f"/jobs/bulk/{action}", {"job_ids": [ids["active"]]})
    assert (status, answer[word], answer["skipped"]) == (422, 0, 1)
    assert api.get(ids["active"])["state"] == "active"


def test_many_jobs_are_read_at_once(api: Api) -> None:
    """Whole jobs in the order asked for; missing ones are told apart."""
    ids = [api.enqueue(unique_queue())["id"] for _ in range(3)]
    status, answer, _ = post(api, "/jobs/bulk/get", {"job_ids": [*ids, UNKNOWN]})
    assert (status, answer["found"]) == (207, 3)
    assert [item["job"] for item in answer["items"][:3]] == [api.get(one) for one in ids]
    assert answer["items"][3]["error"]["code"] == "not_found"


def test_jobs_are_chosen_by_a_filter(api: Api) -> None:
    """Queue, type, states, times, priority, meta; nothing that does not match is touched."""
    queue, other = unique_queue(), unique_queue()
    low = api.enqueue(queue, kind="a.b", priority=-5)["id"]
    tagged = api.enqueue(queue, kind="a.c", meta={"tenant": {"id": 1}, "x": 2})["id"]
    later = api.enqueue(queue, kind="a.c", scheduled_at=LATER)["id"]
    stays = api.enqueue(other, kind="a.c")["id"]
    found: list[tuple[Body, list[str]]] = [
        ({"queue": queue, "priority": -5}, [low]),
        ({"queue": queue, "meta": {"tenant": {"id": 1}}}, [tagged]),
        ({"queue": queue, "type": "a.c", "state": ["scheduled"]}, [later]),
    ]
    for given, expected in found:
        status, answer, _ = post(api, "/jobs/bulk/cancel", {"filter": given})
        assert (status, [item["job_id"] for item in answer["items"]]) == (200, expected), given
    nothing: list[Body] = [
        {"queue": queue},
        {"queue": other, "enqueued_after": LATER},
        {"queue": other, "enqueued_before": "2020-01-01T00:00:00Z"},
        {"queue": other, "meta": {"tenant": 1}},
    ]
    for given in nothing:
        status, answer, _ = post(api, "/jobs/bulk/cancel", {"filter": given})
        assert (status, answer["total_matched"]) == (200, 0), given
    assert api.get(stays)["state"] == "available"
    _, answer, _ = post(api, "/jobs/bulk/delete", {"filter": {"queue": queue}})
    assert answer["deleted"] == 3
    _, answer, _ = post(api, "/jobs/bulk/cancel", {"filter": {"queue": other, "enqueued_before": LATER}})
    assert answer["cancelled"] == 1


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"meta": {"flag": True}}, 1),
        ({"meta": {"flag": 1}}, 0),
        ({"meta": {"many": [False, {"deep": 2}]}}, 1),
        ({"meta": {"many": [0, {"deep": 2}]}}, 0),
        ({"meta": {"many": [False, {"deep": 2.0}]}}, 1),
        ({"meta": {"many": [False]}}, 0),
        ({"meta": {"none": None}}, 0),
        ({"until": "1970-01-01T00:00:00Z"}, 0),
        ({"since": "1970-01-01T00:00:00Z"}, 1),
        ({"enqueued_before": "1970-01-01T00:00:00Z"}, 0),
        ({"enqueued_after": "1970-01-01T00:00:00Z"}, 1),
    ],
)
def test_filters_compare_as_json_does(api: Api, wanted: Body, count: int) -> None:
    """`true` is not 1, 2 is 2.0; the first second of the epoch is a time like any other."""
    queue = unique_queue()
    api.enqueue(queue, meta={"flag": True, "many": [False, {"deep": 2}]})
    status, answer, _ = post(api, "/jobs/bulk/get", {"filter": {"queue": queue, **wanted}})
    assert (status, answer["found"]) == (200, count)


@pytest.mark.parametrize("action", ["cancel", "retry", "delete", "get"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "job_ids"),
        ({"job_ids": [], "filter": {}}, "job_ids"),
        ({"job_ids": "x"}, "job_ids"),
        ({"job_ids": [1]}, "job_ids"),
        ({"filter": []}, "filter"),
        ({"filter": {"state": "waiting"}}, "filter.state"),
        ({"filter": {"states": []}}, "filter.states"),
        ({"filter": {"color": "red"}}, "filter.color"),
        ({"filter": {"queue": 1}}, "filter.queue"),
        ({"filter": {"priority": "1"}}, "filter.priority"),
        ({"filter": {"priority": 101}}, "filter.priority"),
        ({"filter": {"meta": 1}}, "filter.meta"),
        ({"filter": {"meta": False}}, "filter.meta"),
        ({"filter": {"since": "x"}}, "filter.since"),
        ({"filter": {"enqueued_before": 5}}, "filter.enqueued_before"),
    ],
)
def test_a_bad_request_about_many_is_refused_by_name(api: Api, action: str, body: Body, field: str) -> None:
    """A 400 that names the field; only enqueues can be atomic."""
    status, answer, _ = post(api, f"/jobs/bulk/{action}", body)
    assert (status, answer["error"]["details"]["field"]) == (400, field)
    status, answer, _ = post(api, f"/jobs/bulk/{action}", {"job_ids": [], "atomicity": "atomic"})
    assert (status, answer["error"]["code"]) == (422, "unsupported")


def test_operators_act_on_all_that_match(api: Api) -> None:
    """With `confirm`, in the shape of the admin API, filter below or beside it."""
    queue = unique_queue()
    ids = make(api, queue)
    for body in ({"filter": {"queue": queue}}, {"filter": {"queue": queue}, "confirm": False}):
        status, answer, _ = post(api, "/admin/jobs/bulk/retry", body)
        assert (status, answer["error"]["details"]["field"]) == (400, "confirm")
    wanted = {"filter": {"queue": queue, "state": "discarded"}, "confirm": True}
    status, answer, _ = post(api, "/admin/jobs/bulk/retry", wanted)
    expected = {"action": "retry", "matched": 1, "succeeded": 1, "failed": 0, "retried": 1, "errors": []}
    assert (status, answer) == (200, expected)
    assert api.get(ids["discarded"])["state"] == "available"
    _, answer, _ = post(api, "/admin/jobs/bulk/cancel", {"queue": queue, "state": "scheduled", "confirm": True})
    assert (answer["matched"], answer["succeeded"]) == (1, 1)
    _, answer, _ = post(api, "/admin/jobs/bulk/delete", {"filter": {"queue": queue}, "confirm": True})
    assert answer["succeeded"] == 3
    _, answer, _ = post(api, "/admin/jobs/bulk/retry", {"filter": {"queue": queue, "state": "active"}, "confirm": True})
    assert (answer["matched"], answer["failed"], answer["errors"][0]["job_id"]) == (1, 1, ids["active"])
    events = poll(lambda: api.events(types="bulk.retry.completed", limit=1000), what="events")
    assert events[-1]["data"].keys() >= {"total", "retried", "skipped"}
