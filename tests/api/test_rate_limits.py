"""Limits on the start of jobs, as workers, producers and operators see them (ojs-rate-limiting)."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.api.checks import nothing_enqueued, refusal
from tests.support.api import Api, ApiError, unique_queue
from tests.support.processes import poll

Body = dict[str, Any]


def ms(text: str) -> float:
    """Return an RFC 3339 time as milliseconds."""
    return datetime.fromisoformat(text).timestamp() * 1000


def new_key() -> str:
    """Return a key that nobody else uses."""
    return unique_queue("key")


def enqueue(api: Api, queue: str, count: int = 1, **rate_limit: Any) -> list[str]:
    """Enqueue jobs with a limit."""
    return [api.enqueue(queue, rate_limit=rate_limit)["id"] for _ in range(count)]


def fetched(api: Api, queue: str, count: int = 1, deadline_s: float = 10) -> Body:
    """Poll until a job comes and return it."""
    [job] = poll(lambda: api.fetch(queue, count=count), deadline_s=deadline_s, pause_s=0.002, what="a job starts")
    return job


def limit_of(api: Api, key: str) -> Body:
    """Inspect a key."""
    return api.call("GET", f"/rate-limits/{key}")


# -- concurrency -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["ack", "retry", "discard", "requeue", "cancel", "visibility", "timeout"])
def test_a_permit_comes_back_however_the_job_ends(api: Api, end: str) -> None:
    """The next job of the key starts then, and not before; in the order of enqueueing."""
    queue, key = unique_queue(), new_key()
    options: Body = {"timeout": {"timeout_ms": 300}, "visibility": {"visibility_timeout_ms": 300}}.get(end, {})
    first = api.enqueue(queue, rate_limit={"key": key, "concurrency": 1}, **options)["id"]
    second, third = enqueue(api, queue, 2, key=key, concurrency=1)
    [job] = api.fetch(queue, count=5)
    assert job["id"] == first
    assert api.fetch(queue, count=5) == []
    assert api.get(second)["state"] == "available"
    if end == "ack":
        api.ack(first)
    elif end in ("retry", "discard"):
        api.nack(first, code="DISCARD" if end == "discard" else "handler_error")
    elif end == "requeue":
        api.nack(first, requeue=True)
    elif end == "cancel":
        api.cancel(first)
    assert fetched(api, queue, 5)["id"] in (second, first if end in ("requeue", "visibility") else second)
    assert api.fetch(queue, count=5) == []
    assert limit_of(api, key)["concurrency"] == {"limit": 1, "active": 1, "available": 0}
    assert api.get(third)["state"] == "available"


def test_a_waiting_job_starts_at_once_when_a_permit_comes_back(api: Api) -> None:
    """In the order of enqueueing, and sooner than any redelivery or sweep would come."""
    queue, key, took = unique_queue(), new_key(), []
    ids = enqueue(api, queue, 6, key=key, concurrency=1)
    job = fetched(api, queue)
    for following in ids[1:]:
        assert api.fetch(queue) == []
        api.ack(job["id"])
        acked = time.monotonic()
        job = fetched(api, queue)
        took.append(time.monotonic() - acked)
        assert job["id"] == following
    assert min(took) < 0.5


def test_keys_do_not_touch_one_another_nor_other_jobs(api: Api) -> None:
    """In the same fetch, jobs behind a waiting one start: of other keys, of none, of lower priority."""
    queue, full, other = unique_queue(), new_key(), new_key()
    enqueue(api, queue, 3, key=full, concurrency=1)
    plain = api.enqueue(queue)["id"]
    [free] = enqueue(api, queue, key=other, concurrency=1)
    low = api.enqueue(queue, priority=-5)["id"]
    jobs = api.fetch(queue, count=10)
    assert [job["id"] for job in jobs[1:]] == [plain, free, low]


def test_thousands_of_waiting_jobs_are_passed_over_once(api: Api) -> None:
    """A free job behind 2,000 waiting ones is found, and fetches after that meet none of them again."""
    queue, key = unique_queue(), new_key()
    job = {"type": "t", "args": [], "options": {"queue": queue, "rate_limit": {"key": key, "concurrency": 1}}}
    for _ in range(2):
        api.enqueue_batch([job] * 1000)
    assert len(api.fetch(queue)) == 1
    free = api.enqueue(queue)["id"]
    assert [one["id"] for one in api.fetch(queue)] == [free]
    assert limit_of(api, key)["waiting_count"] == 1999
    later = api.enqueue(queue)["id"]
    assert [one["id"] for one in api.fetch(queue)] == [later]
    assert api.fetch(queue) == []


def test_concurrency_zero_lets_nothing_start(api: Api) -> None:
    """The key is paused."""
    queue, key = unique_queue(), new_key()
    enqueue(api, queue, key=key, concurrency=0)
    assert api.fetch(queue) == []
    assert limit_of(api, key)["concurrency"] == {"limit": 0, "active": 0, "available": 0}


def test_a_limit_spans_queues(api: Api) -> None:
    """What counts is the key."""
    one, other, key = unique_queue(), unique_queue(), new_key()
    enqueue(api, one, key=key, concurrency=1)
    enqueue(api, other, key=key, concurrency=1)
    [job] = api.fetch(one, other, count=5)
    api.ack(job["id"])
    fetched(api, other)


# -- rate and throttle -----------------------------------------------------------------------------


def test_max_per_second_limits_the_starts_of_a_queue(api: Api) -> None:
    """Three starts a second; jobs of the queue that declare nothing are free."""
    queue = unique_queue()
    enqueue(api, queue, 6, max_per_second=3)
    free = api.enqueue(queue)["id"]
    first = api.fetch(queue, count=10)
    assert len(first) == 4
    assert first[-1]["id"] == free
    starts = [ms(job["started_at"]) for job in first[:3]]
    starts += [ms(fetched(api, queue)["started_at"]) for _ in range(3)]
    assert all(late - early >= 995 for early, late in zip(starts, starts[3:], strict=False))
    assert limit_of(api, f"queue:{queue}")["rate"]["limit"] == 3


def test_a_throttle_spaces_starts(api: Api) -> None:
    """Ten per second means one every 100 ms, also after a rest."""
    queue, key = unique_queue(), new_key()
    enqueue(api, queue, 4, key=key, throttle={"limit": 10, "period": "PT1S"})
    starts = [ms(fetched(api, queue, 4)["started_at"]) for _ in range(4)]
    assert all(late - early >= 95 for early, late in itertools.pairwise(starts))
    shown = limit_of(api, key)["throttle"]
    assert (shown["limit"], shown["period"]) == (10, "PT1S")
    assert ms(shown["next_allowed_at"]) >= starts[-1] + 95


def test_all_limits_of_a_job_must_be_satisfied(api: Api) -> None:
    """Concurrency and rate together: the stricter one decides, whichever it is."""
    queue, key = unique_queue(), new_key()
    enqueue(api, queue, 4, key=key, concurrency=2, rate={"limit": 3, "period": "PT1H"})
    first, second = api.fetch(queue, count=4)
    assert api.fetch(queue, count=4) == []
    api.ack(first["id"])
    api.ack(second["id"])
    fetched(api, queue, 4)
    assert api.fetch(queue, count=4) == []
    shown = limit_of(api, key)
    assert shown["concurrency"]["active"] == 1
    assert (shown["rate"]["current_count"], shown["rate"]["period"]) == (3, "PT1H")


def test_a_rate_tells_producers_what_is_left(api: Api) -> None:
    """X-RateLimit-* on the answer to an enqueue and on the key's own."""
    queue, key = unique_queue(), new_key()
    body = {
        "type": "t",
        "args": [],
        "options": {"queue": queue, "rate_limit": {"key": key, "rate": 2, "period": "hour"}},
    }
    names = ("x-ratelimit-limit", "x-ratelimit-remaining")
    assert [api.request("POST", "/jobs", body).headers[name] for name in names] == ["2", "2"]
    assert len(api.fetch(queue)) == 1
    reply = api.request("POST", "/jobs", body)
    assert [reply.headers[name] for name in names] == ["2", "1"]
    assert len(api.fetch(queue)) == 1
    reply = api.request("GET", f"/rate-limits/{key}")
    assert [reply.headers[name] for name in names] == ["2", "0"]
    assert time.time() + 3500 < int(reply.headers["x-ratelimit-reset"]) < time.time() + 3700
    assert "x-ratelimit-limit" not in api.request("POST", "/jobs", {"type": "t", "args": []}).headers


# -- on_limit --------------------------------------------------------------------------------------


def test_drop_discards_what_cannot_start(api: Api) -> None:
    """With an error that says why, and an event; no attempt is counted."""
    queue, key = unique_queue(), new_key()
    first, second = enqueue(api, queue, 2, key=key, rate=1, period="minute", on_limit="drop")
    assert [job["id"] for job in api.fetch(queue, count=5)] == [first]
    job = api.get(second)
    assert (job["state"], job["attempt"], job["error"]["code"]) == ("discarded", 0, "rate_limited")
    assert job["error"]["details"] == {"key": key, "strategy": "rate", "limit": 1, "current": 1}
    assert "completed_at" not in job
    [event] = poll(lambda: [e for e in api.events(types="rate_limit.dropped", limit=1000) if e["data"]["key"] == key])
    assert (event["data"]["job_id"], event["data"]["job_type"]) == (second, "test.job")
    with pytest.raises(ApiError) as refused:
        api.ack(second)
    assert refused.value.status == 409


def test_reschedule_moves_jobs_to_when_there_is_room(api: Api) -> None:
    """One behind the other; no attempt is counted; they start then."""
    queue, key = unique_queue(), new_key()
    ids = enqueue(api, queue, 3, key=key, throttle={"limit": 5, "period": "second"}, on_limit="reschedule")
    first = fetched(api, queue, 3)
    assert first["id"] == ids[0]
    due = [ms(api.get(job_id)["scheduled_at"]) for job_id in ids[1:]]
    assert due[1] - due[0] >= 199
    started = [fetched(api, queue, 3) for _ in range(2)]
    assert [(job["id"], job["attempt"]) for job in started] == [(ids[1], 1), (ids[2], 1)]


def test_a_rescheduled_job_can_be_cancelled(api: Api) -> None:
    """It is a scheduled job like any other."""
    queue, key = unique_queue(), new_key()
    _, second = enqueue(api, queue, 2, key=key, rate=1, period="hour", on_limit="reschedule")
    assert len(api.fetch(queue, count=2)) == 1
    assert api.get(second)["state"] == "scheduled"
    assert api.cancel(second)["state"] == "cancelled"


def test_the_wait_counts_for_nothing(api: Api) -> None:
    """A job that waited has all its attempts and its whole reservation."""
    queue, key = unique_queue(), new_key()
    enqueue(api, queue, 2, key=key, throttle={"limit": 3, "period": "second"})
    fetched(api, queue)
    assert api.fetch(queue) == []
    job = fetched(api, queue)
    assert job["attempt"] == 1
    assert "error" not in job


def test_a_waiting_job_can_be_cancelled(api: Api) -> None:
    """And its place goes to the next one."""
    queue, key = unique_queue(), new_key()
    first, second, third = enqueue(api, queue, 3, key=key, concurrency=1)
    fetched(api, queue)
    assert api.fetch(queue) == []
    assert api.cancel(second)["state"] == "cancelled"
    api.ack(first)
    assert fetched(api, queue)["id"] == third


# -- feedback of handlers --------------------------------------------------------------------------


def test_a_handler_can_pause_its_key(api: Api) -> None:
    """`rate_limit_until` in the error (section 9.1): nothing of the key starts before."""
    queue, key = unique_queue(), new_key()
    first, second = enqueue(api, queue, 2, key=key, rate=1000, period="second")
    fetched(api, queue)
    until = datetime.fromtimestamp(time.time() + 0.7, UTC).isoformat(timespec="milliseconds")
    api.nack(first, retryable=False, rate_limit_until=until)
    shown = limit_of(api, key)
    assert shown.get("paused_until", "").startswith(until[:19]) or time.time() * 1000 > ms(until)
    job = fetched(api, queue)
    assert job["id"] == second
    assert ms(job["started_at"]) >= ms(until) - 25
    types = {e["type"] for e in api.events(types="rate_limit.dynamic_adjusted", limit=1000) if e["data"]["key"] == key}
    assert types == {"rate_limit.dynamic_adjusted"}


@pytest.mark.parametrize("bad", ["soon", "2026-02-13T12:05:00", 7, [], True])
def test_a_bad_feedback_is_refused(api: Api, bad: Any) -> None:
    """The nack names the field and changes nothing."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    fetched(api, queue)
    body = {"job_id": job_id, "error": {"message": "m", "rate_limit_until": bad}}
    refusal(api.request("POST", "/workers/nack", body), 400, field="error.rate_limit_until")
    assert api.get(job_id)["state"] == "active"


# -- inspection and overrides ----------------------------------------------------------------------


def test_a_key_can_be_looked_at_as_soon_as_a_job_uses_it(api: Api) -> None:
    """Before anything started, and with what waits."""
    queue, key = unique_queue(), new_key()
    enqueue(api, queue, 3, key=key, concurrency=1)
    assert limit_of(api, key) == {
        "key": key,
        "concurrency": {"limit": 1, "active": 0, "available": 1},
        "waiting_count": 0,
    }
    api.fetch(queue, count=3)
    assert limit_of(api, key)["waiting_count"] == 2


def test_a_key_appears_although_it_was_asked_for_before(api: Api) -> None:
    """A look at a key that does not exist is not remembered."""
    queue, key = unique_queue(), new_key()
    assert api.request("GET", f"/rate-limits/{key}").status_code == 404
    enqueue(api, queue, key=key, concurrency=1)
    assert limit_of(api, key)["concurrency"]["limit"] == 1


def test_an_unknown_key_is_not_found(api: Api) -> None:
    """GET and DELETE say so."""
    for method in ("GET", "DELETE"):
        error = refusal(api.request(method, f"/rate-limits/{new_key()}"), 404, code="not_found")
        assert error["details"]["resource_type"] == "rate_limit"


def test_an_override_counts_at_once_and_until_it_is_removed(api: Api) -> None:
    """Down to nothing during an incident, then as the jobs declare."""
    queue, key = unique_queue(), new_key()
    enqueue(api, queue, 3, key=key, concurrency=2)
    first = fetched(api, queue)
    shown = api.call("PUT", f"/rate-limits/{key}", {"concurrency": 0})
    assert (shown["concurrency"]["limit"], shown["override"]) == (0, {"concurrency": 0})
    assert api.fetch(queue, count=3) == []
    api.ack(first["id"])
    assert api.fetch(queue, count=3) == []
    shown = api.call("DELETE", f"/rate-limits/{key}")
    assert (shown["concurrency"]["limit"], "override" in shown) == (2, False)
    poll(lambda: api.fetch(queue), what="waiting jobs start")


def test_an_override_expires(api: Api) -> None:
    """By itself; waiting jobs start then."""
    queue, key = unique_queue(), new_key()
    enqueue(api, queue, key=key)
    shown = api.call("PUT", f"/rate-limits/{key}", {"concurrency": 0, "expires_at": "+PT0.6S"})
    assert api.fetch(queue) == []
    job = fetched(api, queue)
    assert ms(job["started_at"]) >= ms(shown["override"]["expires_at"]) - 25


def test_an_override_may_end_after_all_who_set_it(api: Api) -> None:
    """NATS keeps no entry for longer than 292 years: it stays then."""
    key = new_key()
    shown = api.call("PUT", f"/rate-limits/{key}", {"concurrency": 1, "expires_at": "2999-12-31T00:00:00Z"})
    assert shown["override"]["expires_at"].startswith("2999-12-31")
    assert api.call("GET", f"/rate-limits/{key}")["override"] == shown["override"]


def test_an_override_can_stand_before_its_jobs(api: Api) -> None:
    """Keys need no job to be overridden, nor a limit of its own in the job."""
    queue, key = unique_queue(), new_key()
    put = {"rate": {"limit": 1, "period": "PT1H"}, "throttle": {"limit": 2, "period": "PT1S"}, "expires_at": "+PT1H"}
    shown = api.call("PUT", f"/rate-limits/{key}", put)
    assert shown["override"] == {**put, "expires_at": shown["override"]["expires_at"]}
    enqueue(api, queue, 2, key=key)
    fetched(api, queue, 2)
    assert api.fetch(queue, count=2) == []


def test_keys_are_listed_by_name_in_pages(api: Api) -> None:
    """`page` and `per_page`, with the number of all."""
    keys = sorted(new_key() for _ in range(3))
    for key in keys:
        api.call("PUT", f"/rate-limits/{key}", {"concurrency": 3})
    everything: list[str] = []
    listed: Body = {}
    for page in itertools.count(1):
        listed = api.call("GET", "/rate-limits", params={"page": page, "per_page": 2})
        everything += [item["key"] for item in listed["items"]]
        assert (listed["pagination"]["page"], listed["pagination"]["per_page"]) == (page, 2)
        if not listed["pagination"]["has_more"]:
            break
        assert len(listed["items"]) == 2
    assert len(everything) == listed["pagination"]["total"]
    assert [key for key in everything if key in keys] == keys


BAD_OVERRIDES: list[tuple[Any, str]] = [
    ({}, "concurrency"),
    ({"concurrency": -1}, "concurrency"),
    ({"concurrency": "3"}, "concurrency"),
    ({"concurrency": 10_001}, "concurrency"),
    ({"rate": 5}, "period"),
    ({"rate": 5.0}, "rate"),
    ({"rate": "5"}, "rate"),
    ({"rate": {"limit": 0, "period": "PT1S"}}, "rate.limit"),
    ({"rate": {"limit": 1, "period": "never"}}, "rate.period"),
    ({"throttle": [1]}, "throttle"),
    ({"concurrency": 1, "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
    ({"concurrency": 1, "expires_at": "soon"}, "expires_at"),
]


@pytest.mark.parametrize(("body", "field"), BAD_OVERRIDES)
def test_a_bad_override_is_refused_and_changes_nothing(api: Api, body: Body, field: str) -> None:
    """Of a key and of a queue alike."""
    key, queue = new_key(), unique_queue()
    refusal(api.request("PUT", f"/rate-limits/{key}", body), 400, field=field)
    assert api.request("GET", f"/rate-limits/{key}").status_code == 404
    refusal(api.request("PUT", f"/admin/queues/{queue}/rate-limit", body), 400, field=field)
    assert api.request("GET", f"/queues/{queue}").status_code == 404


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"x"', b"null", b'{"concurrency":1e400}'])
def test_a_body_that_is_no_object_is_refused(api: Api, content: bytes) -> None:
    """400 with a reason."""
    refusal(api.http.request("PUT", f"/ojs/v1/rate-limits/{new_key()}", content=content), 400)


@pytest.mark.parametrize("key", ["-a", "a%20b", "%3E", "a*b", "k" * 256, "%C3%A9"])
def test_a_bad_key_is_refused(api: Api, key: str) -> None:
    """Whatever is asked of it."""
    for method in ("GET", "PUT", "DELETE"):
        body = {"concurrency": 1} if method == "PUT" else None
        refusal(api.request(method, f"/rate-limits/{key}", body), 400, field="key")


@pytest.mark.parametrize("query", ["page=0", "page=x", "per_page=0", "per_page=-1"])
def test_a_bad_page_is_refused(api: Api, query: str) -> None:
    """The parameter is named."""
    refusal(api.request("GET", f"/rate-limits?{query}"), 400, field=query.partition("=")[0])


BAD_LIMITS: list[tuple[Any, str]] = [
    ("x", ""),
    (5, ""),
    ([], ""),
    ({"concurrency": 1}, ".key"),
    ({"key": "a b"}, ".key"),
    ({"key": "k", "concurrency": 1.5}, ".concurrency"),
    ({"key": "k", "rate": {"limit": 1}}, ".rate.period"),
    ({"key": "k", "rate": 1}, ".period"),
    ({"key": "k", "throttle": 1}, ".throttle"),
    ({"key": "k", "on_limit": "explode"}, ".on_limit"),
    ({"max_per_second": 0}, ".max_per_second"),
]


@pytest.mark.parametrize(("limit", "field"), BAD_LIMITS)
def test_a_bad_limit_is_refused_and_enqueues_nothing(api: Api, limit: Any, field: str) -> None:
    """By itself and in a batch, where the job is named as well."""
    queue = unique_queue()
    body = {"type": "t", "args": [], "options": {"queue": queue, "rate_limit": limit}}
    with nothing_enqueued(api, queue):
        refusal(api.request("POST", "/jobs", body), 400, field=f"options.rate_limit{field}")
        batch = {"jobs": [{"type": "t", "args": [], "options": {"queue": queue}}, body]}
        refusal(api.request("POST", "/jobs/batch", batch), 400, field=f"jobs[1].options.rate_limit{field}")


# -- queues ----------------------------------------------------------------------------------------


def test_a_queue_limit_holds_for_all_its_jobs(api: Api) -> None:
    """For plain jobs and beside the jobs' own limits (section 7.2), until it is taken away."""
    queue, key = unique_queue(), new_key()
    shown = api.call("PUT", f"/admin/queues/{queue}/rate-limit", {"concurrency": 2})
    assert (shown["queue"], shown["concurrency"]["limit"]) == (queue, 2)
    limited = enqueue(api, queue, 2, key=key, concurrency=1)
    plain = [api.enqueue(queue)["id"] for _ in range(3)]
    assert fetched(api, queue)["id"] == limited[0]
    assert fetched(api, queue)["id"] == plain[0]
    assert api.fetch(queue, count=9) == []
    api.ack(plain[0])
    assert fetched(api, queue, 9)["id"] == plain[1]
    assert api.fetch(queue, count=9) == []
    assert api.call("DELETE", f"/admin/queues/{queue}/rate-limit")["rate_limit"] is None
    assert fetched(api, queue, 9)["id"] == plain[2]
    api.ack(limited[0])
    assert fetched(api, queue, 9)["id"] == limited[1]


def test_a_queue_limit_can_be_changed(api: Api) -> None:
    """Jobs that wait start as soon as it is wider."""
    queue = unique_queue()
    for _ in range(3):
        api.enqueue(queue)
    api.call("PUT", f"/admin/queues/{queue}/rate-limit", {"concurrency": 1})
    fetched(api, queue, 3)
    assert api.fetch(queue, count=3) == []
    api.call("PUT", f"/admin/queues/{queue}/rate-limit", {"concurrency": 3})
    started = [job for _ in range(200) for job in api.fetch(queue, count=3)][:2]
    assert len(started) == 2


def configured(api: Api, queue: str) -> Any:
    """The concurrency that the configuration tells; all places that show it agree."""
    shown = api.call("GET", f"/queues/{queue}/config")
    about, detail = api.call("GET", f"/queues/{queue}"), api.call("GET", f"/admin/queues/{queue}")
    assert shown["config"] == shown["configuration"] == about["config"] == detail["config"] == detail["configuration"]
    return shown["config"].get("concurrency")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/queues"), ("PATCH", "/admin/queues")])
def test_the_concurrency_of_a_queue_is_configured(api: Api, method: str, path: str) -> None:
    """ojs-queue-config section 6.2: it holds for jobs that wait already, null takes it away, the rest stays."""
    queue = unique_queue()
    config = f"{path}/{queue}/config"
    jobs = [api.enqueue(queue)["id"] for _ in range(5)]
    answer = api.call(method, config, {"concurrency": 2, "retention": {"completed": "P1D"}})
    assert answer["config"] == {"concurrency": 2, "retention": {"completed": "P1D"}}
    assert [fetched(api, queue)["id"], fetched(api, queue)["id"]] == jobs[:2]
    assert api.fetch(queue, count=9) == []
    assert api.call("GET", f"/rate-limits/queue-limit:{queue}")["concurrency"]["active"] == 2
    assert api.call(method, config, {"concurrency": 3})["config"]["concurrency"] == configured(api, queue) == 3
    assert fetched(api, queue, 9)["id"] == jobs[2]
    assert api.fetch(queue, count=9) == []
    api.call(method, config, {"max_size": 10})
    assert configured(api, queue) == 3
    answer = api.call(method, config, {"concurrency": None})
    assert answer["config"] == {"retention": {"completed": "P1D"}, "max_size": 10}
    assert configured(api, queue) is None
    assert {fetched(api, queue)["id"], fetched(api, queue)["id"]} == set(jobs[3:])


def test_a_queue_is_created_with_its_concurrency(api: Api) -> None:
    """Section 9.2; 0 lets no job start."""
    queue = unique_queue()
    answer = api.call("POST", "/queues", {"name": queue, "config": {"concurrency": 0, "max_size": 10}})
    assert answer["config"] == {"concurrency": 0, "max_size": 10}
    refusal(api.request("POST", "/queues", {"name": queue, "config": {"concurrency": 5}}), 409)
    assert configured(api, queue) == 0
    api.enqueue(queue)
    assert api.fetch(queue) == []
    api.call("PUT", f"/queues/{queue}/config", {"config": {"concurrency": 1}})
    fetched(api, queue)


def test_the_configuration_and_the_limit_of_a_queue_are_one(api: Api) -> None:
    """Whichever was set last; a rate stays when the concurrency changes or goes, unless it was to end by itself."""
    queue = unique_queue()
    limit, config = f"/admin/queues/{queue}/rate-limit", f"/queues/{queue}/config"
    rate = {"limit": 5, "period": "PT1H"}
    api.call("PUT", limit, {"concurrency": 2, "rate": rate})
    assert configured(api, queue) == 2
    api.call("PUT", config, {"concurrency": 4})
    assert override(api, queue) == {"concurrency": 4, "rate": rate}
    api.call("PUT", config, {"concurrency": None})
    assert (configured(api, queue), override(api, queue)) == (None, {"rate": rate})
    api.call("PUT", limit, {"concurrency": 1, "rate": rate, "expires_at": "+PT1H"})
    assert configured(api, queue) == 1
    api.call("PUT", config, {"concurrency": 6})
    assert override(api, queue) == {"concurrency": 6}
    api.call("DELETE", limit)
    assert configured(api, queue) is None
    api.call("PUT", config, {"concurrency": None})
    assert configured(api, queue) is None


def test_the_concurrency_of_a_queue_goes_with_it(api: Api) -> None:
    """A deleted queue comes back without it, and what lies in its limit's entry does not come into force again."""
    queue = unique_queue()
    api.call("PUT", f"/admin/queues/{queue}/rate-limit", {"concurrency": 2, "rate": {"limit": 5, "period": "PT1H"}})
    api.call("DELETE", f"/queues/{queue}")
    api.call("POST", "/queues", {"name": queue})
    assert configured(api, queue) is None
    api.call("PATCH", f"/queues/{queue}/config", {"concurrency": 3})
    assert override(api, queue) == {"concurrency": 3}


def override(api: Api, queue: str) -> Any:
    """The limit of a queue as it was set."""
    return api.call("GET", f"/rate-limits/queue-limit:{queue}")["override"]


# -- what is told ----------------------------------------------------------------------------------


def test_waiting_and_starting_again_are_told(api: Api) -> None:
    """`rate_limit.exceeded` when a key is full, `rate_limit.released` when a waiting job starts (section 11.1)."""
    queue, key = unique_queue(), new_key()
    first, second = enqueue(api, queue, 2, key=key, concurrency=1)
    fetched(api, queue)
    assert api.fetch(queue) == []
    api.ack(first)
    fetched(api, queue)

    def told() -> list[Body]:
        types = "rate_limit.exceeded,rate_limit.released"
        return [e for e in api.events(types=types, limit=1000) if e["data"]["key"] == key]

    exceeded, released = poll(lambda: told() if len(told()) > 1 else [], what="both are told")
    common = {"key": key, "strategy": "concurrency", "job_id": second}
    assert exceeded["type"] == "rate_limit.exceeded"
    assert exceeded["data"] == {**common, "limit": 1, "current": 1, "timestamp": exceeded["time"]}
    assert released["type"] == "rate_limit.released"
    assert released["data"] == {**common, "timestamp": released["time"]}


def test_the_manifest_offers_rate_limits(api: Api) -> None:
    """As a capability and as an extension."""
    manifest = api.call("GET", "/ojs/manifest")
    assert manifest["capabilities"]["rate_limiting"] is True
    assert "urn:ojs:ext:rate-limiting" in manifest["extensions"]
