"""The admin API: jobs, workers, totals, dead letters (ojs-admin-api, ojs-dead-letter)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import nats
import orjson
import pytest

from tests.support.api import Api, unique_queue
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

LATER = "2099-01-01T00:00:00Z"
Body = dict[str, Any]


def listed(api: Api, **query: Any) -> list[str]:
    """The ids of one page of GET /admin/jobs."""
    return [job["id"] for job in page(api, **query)["items"]]


def page(api: Api, path: str = "/admin/jobs", **query: Any) -> Body:
    """One page of a listing."""
    return api.call("GET", path, params=query)


def items(api: Api, queue: str, state: str) -> list[Body]:
    """The jobs of a queue in one state."""
    found: list[Body] = page(api, queue=queue, state=state)["items"]
    return found


def die(api: Api, queue: str, *, kind: str = "a.b", error: str = "boom") -> str:
    """Make a dead letter; its id."""
    retry = {"max_attempts": 1, "on_exhaustion": "dead_letter"}
    job_id = str(api.enqueue(queue, kind=kind, retry=retry)["id"])
    assert [job["id"] for job in api.fetch(queue)] == [job_id]
    api.nack(job_id, type=error)
    return job_id


# -- jobs ----------------------------------------------------------------------------------------


def test_each_state_is_listed_with_its_jobs_only(api: Api) -> None:
    """One job in each state of one queue, and another queue beside it."""
    queue = unique_queue()
    ids: dict[str, str] = {}
    for state in ("completed", "discarded", "cancelled", "active", "retryable"):
        attempts = 1 if state == "discarded" else 3
        retry = {"max_attempts": attempts, "initial_interval": "PT1H"}
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
    api.enqueue(unique_queue())
    for state, job_id in ids.items():
        found = poll(partial(items, api, queue, state), what=f"the {state} job is listed")
        assert [(job["id"], job["state"]) for job in found] == [(job_id, state)]
        assert page(api, queue=queue, state=state)["pagination"]["total"] == 1
    assert set(listed(api, queue=queue)) == set(ids.values())
    assert page(api, queue=queue, state="pending")["items"] == []


def test_pages_follow_one_another(api: Api) -> None:
    """Pages of 3 hold each of 10 jobs once; newest first unless asked otherwise; totals are told."""
    queue = unique_queue()
    ids = [api.enqueue(queue)["id"] for _ in range(10)]
    for state in ("", "available"):
        query = {"queue": queue, **({"state": state} if state else {})}
        pages = [listed(api, per_page=3, page=number, **query) for number in range(1, 6)]
        assert [len(one) for one in pages] == [3, 3, 3, 1, 0]
        assert [job_id for one in pages for job_id in one] == ids[::-1]
        assert listed(api, order="asc", **query) == ids
        pagination = page(api, per_page=3, page=2, **query)["pagination"]
        assert pagination == {"total": 10, "page": 2, "per_page": 3, "total_is_exact": True}
    assert listed(api, queue=queue, limit=4, offset=4) == ids[5:1:-1]


def test_jobs_are_found_by_type_and_time(api: Api) -> None:
    """Exact type, prefix, created since and until."""
    queue = unique_queue()
    mail = api.enqueue(queue, kind="email.send")
    bill = api.enqueue(queue, kind="email.bill")
    other = api.enqueue(queue, kind="report.make")
    assert listed(api, queue=queue, type="email.send") == [mail["id"]]
    assert set(listed(api, queue=queue, type="email.*")) == {mail["id"], bill["id"]}
    assert listed(api, queue=queue, type="email.*", state="active") == []
    assert set(listed(api, queue=queue, since=bill["created_at"])) >= {bill["id"], other["id"]}
    assert listed(api, queue=queue, since=LATER) == []
    assert listed(api, queue=queue, until="2020-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "done"),
        ("sort", "args"),
        ("order", "up"),
        ("page", "0"),
        ("page", "x"),
        ("per_page", "0"),
        ("per_page", "-1"),
        ("since", "yesterday"),
        ("until", "2026-13-01T00:00:00Z"),
        ("page", "99999999"),
        ("offset", "-5"),
    ],
)
def test_a_bad_parameter_is_named(api: Api, name: str, value: str) -> None:
    """A 400 that names it."""
    reply = api.request("GET", "/admin/jobs", params={name: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["details"]["field"] == name


def test_a_job_in_detail_cancelled_and_retried(api: Api) -> None:
    """Flat and as `job`; 404 and 409 as for the other paths."""
    queue = unique_queue()
    job = api.enqueue(queue, args=[{"x": 1}])
    detail = api.call("GET", f"/admin/jobs/{job['id']}")
    assert detail["job"] == {key: value for key, value in detail.items() if key != "job"}
    assert (detail["id"], detail["args"], detail["queue"]) == (job["id"], [{"x": 1}], queue)
    cancelled = api.call("POST", f"/admin/jobs/{job['id']}/cancel")
    assert (cancelled["state"], cancelled["previous_state"]) == ("cancelled", "available")
    assert api.request("POST", f"/admin/jobs/{job['id']}/cancel").status_code == 409
    dead = die(api, queue)
    again = api.call("POST", f"/admin/jobs/{dead}/retry")
    assert (again["state"], again["attempt"]) == ("available", 0)
    assert api.request("POST", f"/admin/jobs/{dead}/retry").status_code == 409
    unknown = "01900000-0000-7000-8000-000000000000"
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
        assert api.request(method, f"/admin/jobs/{unknown}{path}").status_code == 404


# -- totals --------------------------------------------------------------------------------------


def test_totals_are_the_sum_of_the_queues(fresh_server: Callable[..., Server]) -> None:
    """Over several queues, read back at once after each change."""
    with Api(fresh_server().url) as api:
        first, second = unique_queue(), unique_queue()
        for queue in (first, second):
            for _ in range(4):
                api.enqueue(queue)
            api.enqueue(queue, scheduled_at=LATER)
        api.ack(api.fetch(first)[0]["id"])
        api.fetch(first)
        die(api, unique_queue())
        stats = api.call("GET", "/admin/stats")
        expected = {"available": 6, "active": 1, "scheduled": 2, "retryable": 0, "completed": 1, "discarded": 1}
        assert stats["jobs"] == {**expected, "cancelled": 0}
        assert stats["queues"] == 3
        assert stats["throughput"]["processed_per_minute"] > 0
        assert stats["latency_ms"]["p50"] is not None
        history = api.call("GET", "/admin/stats/history", params={"period": "1m"})
        assert history["period"] == "1m"
        assert sum(one["processed"] for one in history["data"]) == 1
        assert sum(one["failed"] for one in history["data"]) == 1
        of_second = api.call("GET", "/admin/stats/history", params={"period": "1h", "queue": second})
        assert sum(one["processed"] for one in of_second["data"]) == 0
        assert api.call("GET", "/admin/stats/history", params={"since": LATER})["data"] == []
        assert api.request("GET", "/admin/stats/history", params={"period": "2m"}).status_code == 400


def test_the_configuration_is_told_without_secrets(fresh_server: Callable[..., Server]) -> None:
    """Every setting by its name; the key is masked."""
    with Api(fresh_server(env={"OJS_API_KEY": "very-secret-key"}).url, api_key="very-secret-key") as api:
        told = {one["name"]: one for one in api.call("GET", "/admin/system/config")["settings"]}
        assert told["OJS_DURABILITY"]["value"] in ("always", "interval")
        assert "very-secret-key" not in orjson.dumps(told).decode()


# -- workers -------------------------------------------------------------------------------------


def test_workers_are_listed_with_a_summary(fresh_server: Callable[..., Server]) -> None:
    """What they told, their state, who is quiet; the ids of their jobs in detail."""
    with Api(fresh_server().url) as api:
        queue = unique_queue()
        job_id = api.enqueue(queue)["id"]
        api.fetch(queue, worker_id="w-1")
        api.heartbeat("w-1", [job_id], hostname="host", queues=[queue], concurrency=5)
        api.heartbeat("w-2")
        api.call("POST", "/admin/workers/w-2/quiet")
        answer = api.call("GET", "/admin/workers")
        assert answer["summary"] == {"total": 2, "running": 1, "quiet": 1, "stale": 0}
        assert answer["pagination"] == {"total": 2, "page": 1, "per_page": 20}
        first = answer["items"][0]
        expected = {"id": "w-1", "hostname": "host", "queues": [queue], "concurrency": 5, "active_jobs": 1}
        assert expected.items() <= first.items()
        assert first["state"] == "running"
        assert first["started_at"] <= first["last_heartbeat_at"]
        assert api.call("GET", "/admin/workers/w-1")["active_job_ids"] == [job_id]
        assert [one["id"] for one in api.call("GET", "/admin/workers", params={"per_page": 1, "page": 2})["items"]] == [
            "w-2"
        ]
        assert api.request("GET", "/admin/workers/w-3").status_code == 404
        assert api.request("DELETE", "/admin/workers/w-3").status_code == 404
        assert api.request("DELETE", "/admin/workers/w-1").status_code == 409, "it beat just now"


async def test_a_stale_worker_is_removed_and_its_jobs_come_back() -> None:
    """On whatever node they are held: two servers, the job fetched from one, the worker removed at the other."""
    with contextlib.ExitStack() as stack:
        nats_server = stack.enter_context(Nats())
        servers = [stack.enter_context(Server(nats_url=nats_server.url)) for _ in range(2)]
        api, other = (stack.enter_context(Api(server.url)) for server in servers)
        queue = unique_queue()
        job_id = api.enqueue(queue)["id"]
        assert [job["id"] for job in api.fetch(queue, worker_id="gone")] == [job_id]
        long_ago = int(time.time() * 1000) - 20_000
        beat = {"worker_id": "gone", "beat_ms": long_ago, "first_beat_ms": long_ago, "active_jobs": 1}
        client = await nats.connect(nats_server.url)
        await client.jetstream().publish("$KV.ojs-workers.beat.gone", orjson.dumps(beat))
        await client.close()
        poll(lambda: other.request("GET", "/admin/workers/gone").status_code == 200, what="the beat is heard")
        assert other.call("GET", "/admin/workers")["summary"]["stale"] == 1
        assert other.call("DELETE", "/admin/workers/gone") == {"worker_id": "gone", "deregistered": True}
        poll(lambda: api.get(job_id)["state"] != "active", what="the job comes back")
        poll(lambda: other.request("GET", "/admin/workers/gone").status_code == 404, what="it is forgotten")


# -- dead letters --------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_counted(fresh_server: Callable[..., Server]) -> None:
    """By queue, type, error and time; statistics; detail, retry, delete."""
    with Api(fresh_server().url) as api:
        billing, email = unique_queue(), unique_queue()
        dead = [die(api, billing, error="DbError"), die(api, billing, kind="c.d", error="Timeout"), die(api, email)]
        poll(lambda: page(api, "/admin/dead-letter")["pagination"]["total"] == 3, what="all are listed")
        whole = page(api, "/admin/dead-letter")
        assert [job["id"] for job in whole["items"]] == dead
        assert whole["pagination"] == {"total": 3, "page": 1, "per_page": 20}
        died = api.get(dead[1])["discarded_at"]
        filters: list[tuple[Body, list[str]]] = [
            ({"queue": billing}, dead[:2]),
            ({"type": "c.d"}, dead[1:2]),
            ({"type": "c.*"}, dead[1:2]),
            ({"type": "c"}, []),
            ({"error_type": "DbError"}, dead[:1]),
            ({"error_type": "DbError", "type": "c.d"}, []),
            ({"queue": email, "error_type": "boom"}, dead[2:]),
            ({"since": LATER}, []),
            ({"until": LATER}, dead),
            ({"since": died, "queue": billing, "type": "c.d"}, dead[1:2]),
            ({"until": died, "queue": billing, "type": "c.d"}, []),
        ]
        for query, expected in filters:
            found = page(api, "/dead-letter", **query)
            assert [job["id"] for job in found["jobs"]] == expected, query
            assert found["pagination"]["total"] == len(expected)
        for query, expected in (
            *filters,
            ({"per_page": 2, "page": 2}, dead[2:]),
            ({"per_page": 1, "page": 2, "until": LATER}, dead[1:2]),
        ):
            assert [job["id"] for job in page(api, "/admin/dead-letter", **query)["items"]] == expected, query
        for path in ("/dead-letter/stats", "/admin/dead-letter/stats"):
            stats = api.call("GET", path)
            assert stats["total"] == 3
            assert stats["by_queue"] == {billing: 2, email: 1}
            assert stats["by_error_type"] == {"DbError": 1, "Timeout": 1, "boom": 1}
            assert stats["oldest_at"] <= stats["newest_at"]
            assert stats["retention"]["max_age"] == "P180D"
        assert api.request("DELETE", f"/admin/dead-letter/{dead[0]}").status_code == 204
        assert api.request("GET", f"/admin/jobs/{dead[0]}").status_code == 404
        assert api.call("POST", f"/admin/dead-letter/{dead[1]}/retry")["job"]["state"] == "available"
        assert page(api, "/admin/dead-letter")["pagination"]["total"] == 1


def test_dead_letters_that_match_come_in_pages(api: Api) -> None:
    """By cursor or offset, beside others that do not match; the total is of all that match."""
    queue = unique_queue()
    dead = [die(api, queue, error=error) for error in ("X", "Y", "X", "X", "Y", "X", "X")]
    wanted = [dead[at] for at in (0, 2, 3, 5, 6)]
    query: Body = {"queue": queue, "error_type": "X", "limit": 2}
    found, cursor = [], ""
    for number in range(3):
        answer = page(api, "/dead-letter", **query, cursor=cursor)
        assert answer["pagination"]["total"] == 5
        assert answer["pagination"]["has_more"] is (number < 2)
        assert ("next_cursor" in answer["pagination"]) is (number < 2)
        found += [job["id"] for job in answer["jobs"]]
        cursor = answer["pagination"].get("next_cursor", "")
    assert found == wanted
    first = page(api, "/dead-letter", **query)["pagination"]["next_cursor"]
    for more, expected in (
        ({"offset": 1}, wanted[1:3]),
        ({"offset": 5}, []),
        ({"cursor": first, "offset": 2}, wanted[4:]),
    ):
        answer = page(api, "/dead-letter", **query, **more)
        assert [job["id"] for job in answer["jobs"]] == expected
        assert answer["pagination"]["has_more"] is (more == {"offset": 1})


@pytest.mark.parametrize("prefix", ["/dead-letter", "/admin/dead-letter"])
def test_many_dead_letters_are_retried_or_purged(api: Api, prefix: str) -> None:
    """Those that match the filter, and no others; the summary counts them."""
    queue = unique_queue()
    dead = [die(api, queue, kind=kind, error=error) for kind, error in (("a.b", "X"), ("a.b", "Y"), ("c.d", "X"))]
    poll(lambda: page(api, "/admin/dead-letter", queue=queue)["pagination"]["total"] == 3, what="all are listed")
    wanted = {"filter": {"queue": queue, "type": "a.b", "error_type": "X"}, "confirm": True}
    answer = api.call("POST", f"{prefix}/retry", wanted)
    assert {"action": "retry", "matched": 1, "succeeded": 1, "failed": 0, "errors": []}.items() <= answer.items()
    assert api.get(dead[0])["state"] == "available"
    purged = api.request("DELETE", prefix, {"filter": {"queue": queue}, "confirm": True}).json()
    assert (purged["matched"], purged["purged_count"]) == (2, 2)
    assert [api.request("GET", f"/jobs/{one}").status_code for one in dead] == [200, 404, 404]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "confirm"),
        ({"confirm": False}, "confirm"),
        ({"confirm": "yes"}, "confirm"),
        ({"confirm": True, "filter": []}, "filter"),
        ({"confirm": True, "filter": {"state": "discarded"}}, "state"),
        ({"confirm": True, "filter": {"queue": 1}}, "queue"),
        ({"confirm": True, "queue": {}, "filter": {"queue": "q"}}, "queue"),
        ({"confirm": True, "older_than": "long ago"}, "older_than"),
        ({"confirm": True, "since": "soon", "filter": {"since": "2024-01-01T00:00:00Z"}}, "since"),
        ({"confirm": True, "filter": {"since": "x"}}, "since"),
    ],
)
def test_a_bad_request_about_many_changes_nothing(api: Api, body: Body, field: str) -> None:
    """A 400 that names the field."""
    queue = unique_queue()
    dead = die(api, queue)
    for method, path in (("POST", "/dead-letter/retry"), ("DELETE", "/admin/dead-letter")):
        reply = api.request(method, path, body)
        assert reply.status_code == 400
        assert reply.json()["error"]["details"]["field"] == field
    assert api.get(dead)["state"] == "discarded"


# -- numbers that no double can hold ---------------------------------------------------------------


@pytest.mark.parametrize("number", ["1e400", "-1" + "0" * 400, "9" * 6000], ids=["exponent", "long", "longer"])
def test_jobs_with_huge_numbers_are_listed_and_found(api: Api, number: str) -> None:
    """They are JSON, so they are stored and told as they came, wherever a job is looked at."""
    queue = unique_queue()
    options = f'{{"queue":"{queue}","retry":{{"max_attempts":1}}}}'
    job = f'{{"type":"a.b","args":[{number}],"meta":{{"n":{number},"k":"v"}},"options":{options}}}'
    assert api.http.post("/ojs/v1/jobs", content=job, headers={"Content-Type": "application/json"}).status_code == 201
    for wanted, count in (({"k": "v"}, 1), ({"n": 1}, 0), ({"k": 1}, 0)):
        found = api.request("POST", "/jobs/bulk/get", {"filter": {"queue": queue, "meta": wanted}})
        assert (found.status_code, found.text.count(queue) > 0) == (200, bool(count))
    listed = api.http.get(f"/ojs/v1/admin/jobs?queue={queue}&sort=priority")
    assert (listed.status_code, listed.text.count(f'"args":[{number}]')) == (200, 1)
    job_id = listed.text.partition('"id":"')[2].partition('"')[0]
    fetched = api.request("POST", "/workers/fetch", {"queues": [queue]})
    assert (fetched.status_code, fetched.text.count(number)) == (200, 2)
    error = f'{{"code":"c","message":"m","type":"T","retryable":false,"details":{{"n":{number}}}}}'
    failure = f'{{"job_id":"{job_id}","error":{error}}}'
    nack = api.http.post("/ojs/v1/workers/nack", content=failure, headers={"Content-Type": "application/json"})
    assert nack.status_code == 200
    for path in (
        f"/dead-letter?queue={queue}",
        f"/admin/dead-letter?queue={queue}",
        f"/dead-letter/stats?queue={queue}",
    ):
        assert api.request("GET", path).status_code == 200
    assert api.request("GET", f"/admin/jobs/{job_id}").status_code == 200
    assert api.request("GET", f"/jobs/{job_id}").status_code == 200
    bulk = f'{{"atomicity":{number},"jobs":[{{"type":"a.b","args":[]}}]}}'
    refused = api.http.post("/ojs/v1/jobs/bulk", content=bulk, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["details"]["field"]) == (400, "atomicity")
