"""Requests that come twice under one Idempotency-Key: the second changes nothing and is answered as the first was."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.support.api import Api, job_request, unique_queue

Body = dict[str, Any]

UNIQUE = {"keys": ["queue"]}
REPLACING = {**UNIQUE, "on_conflict": "replace"}
IGNORING = {**UNIQUE, "on_conflict": "ignore"}


def post(api: Api, path: str, body: Body, **headers: str) -> tuple[int, Body, Any]:
    """`(status, answer, headers)`."""
    reply = api.request("POST", path, body, headers=headers)
    return reply.status_code, reply.json(), reply.headers


def key() -> dict[str, str]:
    """A key that nobody had before."""
    return {"Idempotency-Key": unique_queue("key")}


def own_id() -> str:
    """An id that a client has made."""
    return "01901111-0000-7000-8000-" + os.urandom(6).hex()


def long_jobs(queue: str, count: int = 100) -> list[Body]:
    """So many that the answer does not fit into an entry, compressed or not."""
    return [job_request(queue, args=[number, os.urandom(8000).hex()]) for number in range(count)]


def ids_in(answer: Body) -> list[str]:
    """The ids of the jobs that an answer tells of."""
    return [job["id"] for job in answer.get("jobs") or (item["job"] for item in answer["items"])]


@pytest.mark.parametrize("path", ["/jobs", "/jobs/batch", "/jobs/bulk"])
def test_a_request_that_comes_twice_creates_nothing_twice(api: Api, path: str) -> None:
    """The same answer, marked as a replay; with another key it is another request."""
    queue = unique_queue()
    job = job_request(queue)
    body = job if path == "/jobs" else {"jobs": [job, job]}
    count = 1 if path == "/jobs" else 2
    header = key()
    first = post(api, path, body, **header)
    second = post(api, path, body, **header)
    assert first[0] == second[0] == 201
    assert first[1] == second[1]
    assert "idempotency-replayed" not in first[2]
    assert second[2]["idempotency-replayed"] == "true"
    assert len(api.fetch(queue, count=10)) == count
    assert post(api, path, body, **key())[1] != first[1]
    assert len(api.fetch(queue, count=10)) == count


def test_a_key_belongs_to_one_body_and_one_operation(api: Api) -> None:
    """Another body is a 409; another operation has keys of its own; the header wins over the member."""
    queue = unique_queue()
    header = key()
    assert post(api, "/jobs", job_request(queue), **header)[0] == 201
    status, answer, _ = post(api, "/jobs", job_request(queue, args=[1]), **header)
    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert post(api, "/jobs/batch", {"jobs": [job_request(queue)]}, **header)[0] == 201
    body = {"idempotency_key": header["Idempotency-Key"], "jobs": [job_request(queue)]}
    one, two = (post(api, "/jobs/bulk", body)[1] for _ in range(2))
    assert one == two
    assert post(api, "/jobs/bulk", body, **key())[1] != one
    assert len(api.fetch(queue, count=10)) == 4


@pytest.mark.parametrize("value", ["", "x" * 257])
def test_a_key_of_the_wrong_length_is_refused(api: Api, value: str) -> None:
    """A 400 that names the header; 256 characters are taken."""
    status, answer, _ = post(api, "/jobs", job_request(unique_queue()), **{"Idempotency-Key": value})
    assert (status, answer["error"]["details"]["field"]) == (400, "Idempotency-Key")
    longest = unique_queue().ljust(256, "x")
    assert post(api, "/jobs", job_request(unique_queue()), **{"Idempotency-Key": longest})[0] == 201


def test_a_refusal_leaves_the_key_free(api: Api) -> None:
    """The client may correct its request, or come again when a duplicate has ended."""
    queue = unique_queue()
    header = key()
    assert post(api, "/jobs", job_request(queue, priority=1000), **header)[0] == 400
    unique = job_request(queue, unique={"keys": ["queue"]})
    holder = api.call("POST", "/jobs", unique)["job"]["id"]
    assert post(api, "/jobs", unique, **header)[0] == 409
    api.cancel(holder)
    status, first, _ = post(api, "/jobs", unique, **header)
    assert status == 201
    status, second, _ = post(api, "/jobs", unique, **header)
    assert (status, second) == (201, first), "its own job is no duplicate"


def test_ids_of_the_client_and_deduplicated_jobs_are_replayed_too(api: Api) -> None:
    """What was answered is answered again, whatever became of the job."""
    queue = unique_queue()
    job = {**job_request(queue), "id": "01901111-0000-7000-8000-" + queue.rpartition("-")[2].rjust(12, "0")}
    header = key()
    first = post(api, "/jobs", job, **header)
    api.cancel(job["id"])
    second = post(api, "/jobs", job, **header)
    assert (first[0], second[0], first[1]) == (201, 201, second[1])
    ignoring = job_request(queue, unique={"keys": ["queue"], "on_conflict": "ignore"})
    api.call("POST", "/jobs", ignoring)
    header = key()
    answers = [post(api, "/jobs", ignoring, **header)[:2] for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


@pytest.mark.parametrize("atomicity", ["partial", "atomic"])
def test_a_bulk_of_which_nothing_was_created_leaves_the_key_free(api: Api, atomicity: str) -> None:
    """422: the same request may succeed later, and another one may have the key."""
    queue, header = unique_queue(), key()
    body = {"atomicity": atomicity, "jobs": [job_request(queue, unique=UNIQUE)]}
    holder = api.call("POST", "/jobs", body["jobs"][0])["job"]["id"]
    assert post(api, "/jobs/bulk", body, **header)[0] == 422
    assert post(api, "/jobs/bulk", body, **header)[0] == 422
    api.cancel(holder)
    status, first, _ = post(api, "/jobs/bulk", body, **header)
    assert status == 201
    assert post(api, "/jobs/bulk", body, **header)[1] == first
    other = {**body, "jobs": [job_request(unique_queue(), unique=UNIQUE)]}
    assert post(api, "/jobs/bulk", other, **header)[0] == 409
    refused = key()
    assert post(api, "/jobs/bulk", body, **refused)[0] == 422
    assert post(api, "/jobs/bulk", other, **refused)[0] == 201


def test_a_refused_request_with_an_id_that_exists_stays_refused(api: Api) -> None:
    """The job belongs to somebody else; that the request came before does not make it its own."""
    queue, header = unique_queue(), key()
    job = {**job_request(queue), "id": own_id()}
    assert post(api, "/jobs", job)[0] == 201
    for path, body in (("/jobs", job), ("/jobs/batch", {"jobs": [job]})):
        assert [post(api, path, body, **header)[0] for _ in range(3)] == [409] * 3


@pytest.mark.parametrize("path", ["/jobs", "/jobs/batch"])
def test_a_unique_job_is_not_replaced_by_itself(api: Api, path: str) -> None:
    """An id that exists is a 409, also with `replace`; the job stays and keeps its lock."""
    queue = unique_queue()
    job = {**job_request(queue, unique=REPLACING), "id": own_id()}
    assert post(api, "/jobs", job)[0] == 201
    status, answer, _ = post(api, path, job if path == "/jobs" else {"jobs": [job]})
    assert (status, answer["error"]["details"]["existing_job_id"]) == (409, job["id"])
    assert post(api, "/jobs", job_request(queue, unique=UNIQUE))[0] == 409
    other = {**job, "options": {**job["options"], "unique": {**REPLACING, "keys": ["type", "queue"]}}}
    assert post(api, path, other if path == "/jobs" else {"jobs": [other]})[0] == 409
    assert [one["id"] for one in api.fetch(queue, count=10)] == [job["id"]]


# -- long answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/jobs/batch", "/jobs/bulk"])
@pytest.mark.parametrize("gone", [0, 1, 100])
def test_a_long_answer_is_repeated_whatever_became_of_the_jobs(api: Api, path: str, gone: int) -> None:
    """To the byte, also when jobs of it have ended and were deleted."""
    queue, header = unique_queue(), key()
    body = {"jobs": long_jobs(queue)}
    assert len(json.dumps(body)) > 1024 * 1024
    status, first, _ = post(api, path, body, **header)
    ids = ids_in(first)
    for job_id in ids[:gone]:
        api.cancel(job_id)
    if gone:
        assert post(api, "/jobs/bulk/delete", {"job_ids": ids[:gone]})[1]["deleted"] == gone
    again = post(api, path, body, **header)
    assert (status, again[0], again[2]["idempotency-replayed"]) == (201, 201, "true")
    assert again[1] == first
    assert {job["id"] for job in api.fetch(queue, count=1000)} == set(ids[gone:])


def test_a_long_bulk_with_unique_jobs_is_repeated(api: Api) -> None:
    """Nothing is replaced a second time, and no job is told to be a duplicate of itself."""
    replacing, ignoring, lost = unique_queue(), unique_queue(), unique_queue()
    header = key()
    unique = [
        job_request(replacing, unique=REPLACING),
        job_request(ignoring, unique=IGNORING),
        job_request(lost, unique=UNIQUE),
    ]
    body = {"jobs": [*unique, *long_jobs(unique_queue())]}
    status, first, _ = post(api, "/jobs/bulk", body, **header)
    assert status == 201
    # Another job is unique in its place by now.
    api.cancel(first["items"][2]["job"]["id"])
    assert post(api, "/jobs", unique[2])[0] == 201
    status, second, _ = post(api, "/jobs/bulk", body, **header)
    assert (status, second) == (201, first)
    assert [[job["id"] for job in api.fetch(queue, count=9)] for queue in (replacing, ignoring)] == [
        [first["items"][0]["job"]["id"]],
        [first["items"][1]["job"]["id"]],
    ]


# -- what is done to jobs ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["header", "body"])
@pytest.mark.parametrize("chosen_by", ["ids", "filter"])
def test_a_repeated_cancel_does_not_cancel_what_came_since(api: Api, chosen_by: str, place: str) -> None:
    """The kept answer, and no second look at what matches."""
    queue, header = unique_queue(), key()
    first_id = api.enqueue(queue)["id"]
    body: Body = {"job_ids": [first_id]} if chosen_by == "ids" else {"filter": {"queue": queue}}
    if place == "body":
        body["idempotency_key"] = header.pop("Idempotency-Key")
    status, first, _ = post(api, "/jobs/bulk/cancel", body, **header)
    assert (status, first["cancelled"]) == (200, 1)
    later_id = api.enqueue(queue)["id"]
    status, second, headers = post(api, "/jobs/bulk/cancel", body, **header)
    assert (status, second) == (200, first)
    assert (headers["idempotency-replayed"], headers["x-ojs-batch-size"]) == ("true", "1")
    assert [job["id"] for job in api.fetch(queue, count=10)] == [later_id]
