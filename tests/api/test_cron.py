"""Cron over HTTP: registration in every shape, listing, changes, overlap policies, bad input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.api.checks import refusal
from tests.support.api import Api, unique_queue
from tests.support.processes import poll

Body = dict[str, Any]
NEVER_SOON = "0 0 1 1 *"
EACH_SECOND = "* * * * * *"


@pytest.fixture
def name(api: Api) -> Iterator[str]:
    """Give a name that nobody else uses, gone at the end."""
    one = unique_queue("cron")
    yield one
    api.request("DELETE", f"/cron/{one}")


def register(api: Api, name: str, expression: str = NEVER_SOON, queue: str = "default", **fields: Any) -> Body:
    """Register in the suites' shape and return the entry."""
    template = {"type": "cron.test", "args": [{"n": 1}], "options": {"queue": queue}}
    body = {"name": name, "expression": expression, "job_template": template, **fields}
    entry: Body = api.call("POST", "/cron", body)["cron"]
    return entry


def found(api: Api, queue: str, count: int = 10) -> list[Body]:
    """Wait until a fetch finds something."""
    jobs: list[Body] = poll(lambda: api.fetch(queue, count=count), deadline_s=5, pause_s=0.02, what="a run")
    return jobs


# -- registration ----------------------------------------------------------------------------------


def test_both_shapes_give_the_same_entry(api: Api, name: str) -> None:
    """`{expression, job_template}` and flat `{cron, type, args}`; the answer has both shapes, under both names."""
    options = {"queue": "reports", "retry": {"max_attempts": 2}}
    flat = {"name": name, "cron": "0 9 * * MON-FRI", "type": "report.make", "args": [1], "options": options}
    first = api.request("POST", "/cron", flat | {"timezone": "Europe/Berlin", "meta": {"a": 1}})
    assert first.status_code == 201
    template = {"type": "report.make", "args": [1], "options": options, "meta": {"a": 1}}
    nested = {"name": name, "expression": "0 9 * * MON-FRI", "timezone": "Europe/Berlin", "job_template": template}
    second = api.request("POST", "/cron", nested)
    assert second.status_code == 200, "an update"
    for answer in (first.json(), second.json()):
        assert answer["cron"] == answer["cron_job"]
        entry = answer["cron"]
        assert entry["expression"] == entry["cron"] == "0 9 * * MON-FRI"
        assert entry["job_template"] == template == {key: entry[key] for key in template}
        assert entry["name"] == name
        assert (entry["timezone"], entry["overlap_policy"]) == ("Europe/Berlin", "skip")
        assert (entry["enabled"], entry["status"], entry["run_count"]) == (True, "active", 0)
        assert entry["last_run_at"] is None
        assert datetime.fromisoformat(entry["next_run_at"]) > datetime.fromisoformat(entry["created_at"])
    assert second.json()["cron"]["created_at"] == first.json()["cron"]["created_at"]


def test_a_template_keeps_every_byte(api: Api, name: str) -> None:
    """Numbers beyond a double, escapes and unknown members reach the worker as they were sent."""
    queue = unique_queue()
    template = (
        b'{"type":"a.b","args":[1e999,"\\u00e9",12345678901234567890.10],"custom":[ 1 ],"options":{"queue":"%s"}}'
    )
    body = b'{"name":"%s","expression":"* * * * * *","job_template":%s}' % (name.encode(), template % queue.encode())
    assert api.http.post("/ojs/v1/cron", content=body).status_code == 201
    raw = poll(lambda: fetch_raw(api, queue), deadline_s=5, what="the first run")
    assert b'"args":[1e999,"\\u00e9",12345678901234567890.10]' in raw
    assert b'"custom":[ 1 ]' in raw


def fetch_raw(api: Api, queue: str) -> bytes:
    """Fetch one job and return the answer's bytes, none when there is no job."""
    answer = api.http.post("/ojs/v1/workers/fetch", json={"queues": [queue]}).content
    return answer if b'"id"' in answer else b""


def test_registering_again_does_not_put_a_run_off(api: Api, name: str) -> None:
    """An application that registers at each start keeps the schedule; another expression starts over."""
    entry = register(api, name, "@every 1h")
    again = register(api, name, "@every 1h", description="now with words")
    assert again["next_run_at"] == entry["next_run_at"]
    assert again["description"] == "now with words"
    assert register(api, name, "@every 2h")["next_run_at"] > entry["next_run_at"]


def test_concurrent_registrations_end_in_one_entry(api: Api, name: str) -> None:
    """Exactly one of them is told that it was new."""
    with ThreadPoolExecutor(8) as pool:
        body = {"name": name, "cron": NEVER_SOON, "type": "a.b"}
        codes = list(pool.map(lambda _: api.request("POST", "/cron", body).status_code, range(8)))
    assert sorted(codes) == [200] * 7 + [201]


def test_an_entry_is_read_listed_and_deleted(api: Api, name: str) -> None:
    """Get, list under both keys, delete with 200, then 404."""
    entry = register(api, name)
    assert api.call("GET", f"/cron/{name}")["cron"] == entry
    answer = api.call("GET", "/cron", params={"limit": 200})
    assert answer["crons"] == answer["cron_jobs"]
    assert entry in answer["crons"]
    assert answer["pagination"]["total"] == answer["count"] >= 1
    gone = api.call("DELETE", f"/cron/{name}")
    assert (gone["deleted"], gone["name"], gone["cron"]["name"]) == (True, name, name)
    for method in ("GET", "DELETE", "PATCH"):
        error = refusal(api.request(method, f"/cron/{name}", {} if method == "PATCH" else None), 404, code="not_found")
        assert error["details"] == {"resource_type": "cron", "resource_id": name}
    assert entry not in api.call("GET", "/cron", params={"limit": 200})["crons"]


def test_a_deleted_name_can_be_registered_again_at_once(api: Api, name: str) -> None:
    """As a new entry: 201, nothing run yet."""
    first = register(api, name, NEVER_SOON, description="the first")
    api.call("DELETE", f"/cron/{name}")
    answer = api.request("POST", "/cron", {"name": name, "cron": NEVER_SOON, "type": "a.b"})
    assert answer.status_code == 201
    entry = answer.json()["cron"]
    assert (entry["description"], entry["run_count"]) == (None, 0)
    assert entry["created_at"] > first["created_at"]
    assert api.call("GET", f"/cron/{name}")["cron"] == entry


def test_a_list_comes_in_pages(api: Api) -> None:
    """`limit` and `offset`, `page` and `per_page`, cursors, and the filter by `enabled`."""
    prefix = unique_queue("page")
    names = [f"{prefix}-{number}" for number in range(3)]
    for number, one in enumerate(names):
        register(api, one, enabled=number != 1)
    try:
        everything = [entry["name"] for entry in walk(api, limit=1)]
        assert [one for one in everything if one.startswith(prefix)] == names
        total = len(everything)
        pages = [api.call("GET", "/cron", params={"page": n, "per_page": 1})["crons"] for n in range(1, total + 1)]
        assert [one["name"] for [one] in pages] == everything
        offset = everything.index(names[0])
        shown = api.call("GET", "/cron", params={"limit": 2, "offset": offset})
        assert [one["name"] for one in shown["crons"]] == names[:2]
        disabled = [one["name"] for one in api.call("GET", "/cron", params={"enabled": "false", "limit": 200})["crons"]]
        assert names[1] in disabled
        assert names[0] not in disabled
        refusal(api.request("GET", "/cron", params={"enabled": "maybe"}), 400, field="enabled")
    finally:
        for one in names:
            api.call("DELETE", f"/cron/{one}")


def walk(api: Api, limit: int) -> list[Body]:
    """Follow the cursors of the list."""
    entries: list[Body] = []
    params: Body = {"limit": limit}
    while True:
        answer = api.call("GET", "/cron", params=params)
        entries += answer["crons"]
        if not answer["pagination"]["has_more"]:
            return entries
        params["cursor"] = answer["pagination"]["next_cursor"]


def test_a_disabled_entry_has_no_next_run(api: Api, name: str) -> None:
    """PATCH turns it off and on; other fields can be changed as well (ojs-cron section 8.5)."""
    register(api, name)
    off = api.call("PATCH", f"/cron/{name}", {"enabled": False})["cron_job"]
    assert (off["enabled"], off["status"], off["next_run_at"]) == (False, "disabled", None)
    moved = api.call("PATCH", f"/cron/{name}", {"expression": "@hourly", "overlap_policy": "cancel"})["cron"]
    assert (moved["next_run_at"], moved["overlap_policy"]) == (None, "cancel_previous")
    on = api.call("PATCH", f"/cron/{name}", {"enabled": True, "args": [7]})["cron"]
    assert datetime.fromisoformat(on["next_run_at"]).minute == 0
    assert on["args"] == [7]
    assert on["type"] == "cron.test"


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_tells_what_it_is(api: Api, name: str) -> None:
    """The job has the template's fields, its meta names the entry and the occurrence, the entry counts it."""
    queue = unique_queue()
    register(api, name, EACH_SECOND, queue, overlap_policy="allow")
    [job, *_] = found(api, queue, 1)
    assert (job["type"], job["args"], job["queue"]) == ("cron.test", [{"n": 1}], queue)
    assert job["meta"]["cron_name"] == name
    occurrence = datetime.fromisoformat(job["meta"]["cron_triggered_at"])
    assert occurrence.microsecond == 0
    assert 0 <= datetime.fromisoformat(job["enqueued_at"]).timestamp() - occurrence.timestamp() < 1
    entry = api.call("GET", f"/cron/{name}")["cron"]
    assert entry["run_count"] >= 1
    assert entry["last_run_at"] >= job["meta"]["cron_triggered_at"]
    assert entry["next_run_at"] > entry["last_run_at"]
    triggered = [e for e in api.events(types="cron.triggered", limit=1000) if e["data"]["job_id"] == job["id"]]
    assert len(triggered) == 1
    data = triggered[0]["data"]
    assert triggered[0]["subject"] == data["cron_name"] == name
    assert (data["cron_expression"], data["timezone"], data["job_type"]) == (EACH_SECOND, "UTC", "cron.test")
    assert data["scheduled_time"] == job["meta"]["cron_triggered_at"]
    assert data["run_count"] == 1


def test_meta_of_the_template_is_kept(api: Api, name: str) -> None:
    """Also where ojs-cron section 2.2 puts it, among the options."""
    queue = unique_queue()
    body = {"name": name, "cron": EACH_SECOND, "type": "a.b", "options": {"queue": queue, "meta": {"mine": 1}}}
    api.call("POST", "/cron", body)
    [job] = found(api, queue)
    assert job["meta"]["mine"] == 1
    assert job["meta"]["cron_name"] == name


def skipped(api: Api, name: str) -> list[Body]:
    """The occurrences of an entry that were skipped."""
    events = api.events(types="cron.skipped", limit=1000)
    return [event["data"] for event in events if event["data"]["cron_name"] == name]


def test_skip_leaves_out_what_overlaps(api: Api, name: str) -> None:
    """While a run is available, active or retryable no other one starts, and that is told; then it goes on."""
    queue = unique_queue()
    register(api, name, EACH_SECOND, queue)
    [job] = found(api, queue)
    told = poll(lambda: skipped(api, name), deadline_s=5, what="an occurrence is skipped")
    assert told[0]["reason"] == "overlap_skip"
    assert told[0]["active_job_id"] == job["id"]
    assert api.fetch(queue) == []
    api.nack(job["id"])
    before = len(skipped(api, name))
    poll(lambda: len(skipped(api, name)) > before, deadline_s=5, what="a retryable run overlaps as well")
    [again] = found(api, queue)
    assert again["id"] == job["id"]
    api.ack(job["id"])
    [other] = found(api, queue)
    assert other["id"] != job["id"]


def test_allow_starts_every_run(api: Api, name: str) -> None:
    """One run per occurrence whatever the others do."""
    queue = unique_queue()
    register(api, name, EACH_SECOND, queue, overlap_policy="allow")
    jobs: list[Body] = []
    while len(jobs) < 3:
        jobs += found(api, queue)
    occurrences = [job["meta"]["cron_triggered_at"] for job in jobs]
    assert occurrences == sorted(set(occurrences))


def test_cancel_previous_replaces_the_run(api: Api, name: str) -> None:
    """The run before is cancelled, also while a worker has it, and the new one starts."""
    queue = unique_queue()
    register(api, name, EACH_SECOND, queue, overlap_policy="cancel_previous")
    [first] = found(api, queue)
    [second] = found(api, queue)
    assert api.get(first["id"])["state"] == "cancelled"
    assert second["id"] != first["id"]


def test_enqueue_runs_every_occurrence_one_after_the_other(api: Api, name: str) -> None:
    """What comes due while a run is not over waits for its end; none is left out, no two run at once."""
    queue = unique_queue()
    register(api, name, EACH_SECOND, queue, overlap_policy="enqueue")
    occurrences: list[str] = []
    [job] = found(api, queue)
    began = time.monotonic()
    while len(occurrences) < 4:
        occurrences.append(job["meta"]["cron_triggered_at"])
        if len(occurrences) == 1:
            # Two more come due meanwhile.
            poll(lambda: time.monotonic() - began > 2.2, deadline_s=4, what="time passes")
            assert api.fetch(queue) == []
            api.nack(job["id"], retryable=False)
        else:
            api.ack(job["id"])
        [job] = found(api, queue)
    seconds = [datetime.fromisoformat(one).timestamp() for one in occurrences]
    assert [later - before for before, later in pairwise(seconds)] == [1.0, 1.0, 1.0]


def test_a_queue_refuses_templates_of_types_that_it_does_not_take(api: Api, name: str) -> None:
    """In both shapes, and when the template changes; nothing is registered then."""
    queue = unique_queue()
    api.call("PUT", f"/queues/{queue}/config", {"allowed_job_types": ["mail.*"]})
    good: Body = {"type": "mail.send", "args": [], "options": {"queue": queue}}
    bad: Body = good | {"type": "pay.now"}
    about = {"name": name, "expression": NEVER_SOON}
    for template, field in (({"job_template": bad}, "job_template.type"), (bad, "type")):
        refusal(api.request("POST", "/cron", about | template), 422, code="job_type_not_allowed", field=field)
    refusal(api.request("GET", f"/cron/{name}"), 404)
    api.call("POST", "/cron", about | {"job_template": good})
    refusal(api.request("PATCH", f"/cron/{name}", bad), 422, code="job_type_not_allowed", field="type")
    assert api.call("GET", f"/cron/{name}")["cron"]["type"] == "mail.send"


@pytest.mark.parametrize("policy", ["skip", "enqueue"])
def test_runs_that_the_queue_does_not_take_any_more_are_skipped(api: Api, name: str, policy: str) -> None:
    """A rule that came after the registration: each occurrence is told as skipped, and runs come again without it."""
    queue = unique_queue()
    register(api, name, EACH_SECOND, queue, overlap_policy=policy)
    [job] = found(api, queue)
    api.call("PUT", f"/queues/{queue}/config", {"allowed_job_types": ["mail.*"]})
    api.ack(job["id"])

    def refused() -> list[Body]:
        return [data for data in skipped(api, name) if data["reason"] == "job_type_not_allowed"]

    poll(lambda: len(refused()) > 1, deadline_s=6, what="two occurrences are skipped")
    assert "active_job_id" not in refused()[0]
    assert api.fetch(queue) == []
    api.call("PATCH", f"/cron/{name}", {"description": "still changeable"})
    api.call("PUT", f"/queues/{queue}/config", {"allowed_job_types": None})
    [job] = found(api, queue)
    assert job["type"] == "cron.test"


def test_deleting_an_entry_leaves_its_jobs(api: Api, name: str) -> None:
    """Unregistering ends the schedule, not the runs."""
    queue = unique_queue()
    register(api, name, EACH_SECOND, queue, overlap_policy="allow")
    [job, *_] = found(api, queue, 1)
    api.call("DELETE", f"/cron/{name}")
    api.ack(job["id"])
    for left in api.fetch(queue, count=10):
        api.ack(left["id"])
    poll(lambda: time.time() % 1 > 0.9, deadline_s=3, pause_s=0.01, what="the end of this second")
    poll(lambda: time.time() % 1 < 0.9, deadline_s=3, pause_s=0.01, what="the next second")
    assert api.fetch(queue) == []


# -- bad input -------------------------------------------------------------------------------------

GOOD: Body = {"expression": NEVER_SOON, "job_template": {"type": "a.b", "args": []}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": None}, "name"),
        ({"name": 5}, "name"),
        ({"name": ""}, "name"),
        ({"name": "Upper"}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a_b"}, "name"),
        ({"name": "a" * 256}, "name"),
        ({"name": "a" * 100_000}, "name"),
        ({"expression": None}, "expression"),
        ({"expression": 5}, "expression"),
        ({"expression": "61 * * * *"}, "expression"),
        ({"expression": "* * * *"}, "expression"),
        ({"expression": "0 0 30 2 *"}, "expression"),
        ({"expression": "*" * 5000}, "expression"),
        ({"timezone": "EST"}, "timezone"),
        ({"timezone": "+05:00"}, "timezone"),
        ({"timezone": 5}, "timezone"),
        ({"timezone": ""}, "timezone"),
        ({"expression": ""}, "expression"),
        ({"overlap_policy": "sometimes"}, "overlap_policy"),
        ({"overlap_policy": []}, "overlap_policy"),
        ({"enabled": "yes"}, "enabled"),
        ({"enabled": 1}, "enabled"),
        ({"description": {}}, "description"),
        ({"description": "x" * 5000}, "description"),
        ({"job_template": None}, "type"),
        ({"job_template": []}, "job_template"),
        ({"job_template": "x"}, "job_template"),
        ({"job_template": {}}, "job_template.type"),
        ({"job_template": {"type": "A"}}, "job_template.type"),
        ({"job_template": {"type": "a", "args": {}}}, "job_template.args"),
        ({"job_template": {"type": "a", "meta": []}}, "job_template.meta"),
        ({"job_template": {"type": "a", "options": []}}, "job_template.options"),
        ({"job_template": {"type": "a", "options": {"queue": "A"}}}, "job_template.options.queue"),
        ({"job_template": {"type": "a", "options": {"priority": 101}}}, "job_template.options.priority"),
        ({"job_template": {"type": "a", "options": {"unique": {"by": 1}}}}, "job_template.options.unique.by"),
        ({"job_template": {"type": "a", "options": {"unique": {"states": []}}}}, "job_template.options.unique.states"),
        (
            {"job_template": {"type": "a", "options": {"timeout_ms": 5, "timeout": ""}}},
            "job_template.options.timeout",
        ),
        ({"job_template": {"type": "a", "id": "x"}}, "job_template.id"),
        ({"job_template": {"type": "a", "scheduled_at": "+PT1S"}}, "job_template.scheduled_at"),
    ],
)
def test_a_bad_registration_is_refused(api: Api, change: Body, field: str) -> None:
    """400 naming the field; nothing is registered."""
    before = api.call("GET", "/cron")["count"]
    body = {"name": unique_queue("bad")} | GOOD | change
    refusal(api.request("POST", "/cron", body), 400, code="invalid_request", field=field)
    assert api.call("GET", "/cron")["count"] == before


def test_a_bad_retry_policy_is_unprocessable(api: Api) -> None:
    """As when a job is enqueued (L1-RTR-011)."""
    template = {"type": "a", "options": {"retry": {"max_attempts": -1}}}
    body = {"name": unique_queue("bad"), "expression": NEVER_SOON, "job_template": template}
    refusal(api.request("POST", "/cron", body), 422, code="validation_error")


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'"x"', b"\xff", b'{"name":1e999}'])
def test_a_body_that_is_no_object_is_refused(api: Api, body: bytes) -> None:
    """400 for what is no JSON object, and for numbers that nobody can hold."""
    assert api.http.post("/ojs/v1/cron", content=body).status_code == 400


def test_a_template_has_a_size(api: Api, name: str) -> None:
    """Every node holds every entry, so what is too large is refused with the limit."""
    body = {"name": name, "expression": NEVER_SOON, "job_template": {"type": "a.b", "args": ["x" * 300_000]}}
    error = refusal(api.request("POST", "/cron", body), 413, code="payload_too_large")
    assert error["details"]["max_bytes"] == 262_144
    refusal(api.request("GET", f"/cron/{name}"), 404)


@pytest.mark.parametrize("path", ["/cron/Upper", "/cron/" + "a" * 256, "/cron/a%20b"])
def test_a_name_that_cannot_be_is_refused(api: Api, path: str) -> None:
    """400 naming the field."""
    refusal(api.request("GET", path), 400, field="name")
