"""Bad workflows: a clear 4xx that names the field, nothing created, no 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.checks import TROUBLE, nothing_enqueued, refusal
from tests.api.test_bad_input import HOLE, NO_ARRAY, NO_OBJECT, NO_STRING, filled, raw, rows
from tests.support.api import Api, unique_queue
from tests.support.server import Server

Body = dict[str, Any]
NO_NAME = (*NO_STRING, '""', json.dumps("n" * 256))
CALLBACKS = {"on_success": {"type": "bad.input", "args": [], "options": {"queue": "QUEUE"}}}


@pytest.fixture(scope="module", autouse=True)
def quiet_log(server: Server) -> Iterator[None]:
    """Nothing in this module may make the server log an unexpected error."""
    before = len(server.log())
    yield
    fresh = server.log()[before:]
    assert server.is_running
    assert not [line for line in fresh.splitlines() if any(word in line for word in TROUBLE)], fresh[-4000:]


def job(**fields: Any) -> Body:
    """Make a step with a hole somewhere."""
    return {"type": "bad.input", "args": [], "options": {"queue": "QUEUE"}, **fields}


def chain(*steps: Any, **fields: Any) -> Body:
    """Make a chain whose first step is good."""
    return {"type": "chain", "steps": [job(), *steps], **fields}


def batch(**fields: Any) -> Body:
    """Make a batch that is good but for these fields."""
    return {"type": "batch", "jobs": [job()], "callbacks": CALLBACKS, **fields}


def graph(**depends_on: Any) -> Body:
    """Make named steps with dependencies."""
    return {"name": "g", "steps": [job(id=name, depends_on=needed) for name, needed in depends_on.items()]}


def nested(levels: int) -> Body:
    """Make groups within groups; one level is a plain group."""
    inner: Body = job()
    for _ in range(levels):
        inner = {"type": "group", "jobs": [inner]}
    return inner


SHAPES = rows(
    ("type", {"type": HOLE, "steps": [job()]}, (*NO_STRING, '"saga"', '""', '"Chain"')),
    ("type", {"unused": HOLE}, ("1",)),
    ("type", {"jobs": [job()], "unused": HOLE}, ("1",)),
    ("name", chain(name=HOLE), NO_NAME),
    ("options", chain(options=HOLE), NO_OBJECT),
    ("steps", {"type": "chain", "steps": HOLE}, (*NO_ARRAY, "[]")),
    ("steps", {"steps": HOLE}, (*NO_ARRAY, "[]")),
    ("steps", {"type": "chain", "unused": HOLE}, ("1",)),
    ("jobs", {"type": "group", "jobs": HOLE}, (*NO_ARRAY, "[]", "null")),
    ("jobs", batch(jobs=HOLE), (*NO_ARRAY, "[]", "null")),
    ("jobs", {"type": "group", "steps": [job()], "jobs": [HOLE]}, ("1",)),
    ("steps[1]", chain(HOLE), ("1", '"x"', "[]", "null", "true", "1e400")),
    ("steps[1].id", chain(job(id=HOLE)), NO_NAME),
    ("steps[1].options", chain(job(options=HOLE)), NO_OBJECT),
    ("steps[1].depends_on", chain(job(depends_on=HOLE)), ('"a"', "1", "{}", '["a"]')),
    ("steps[1].options.callback_type", chain(job(options={"callback_type": HOLE})), ('"on_success"',)),
    ("callbacks", batch(callbacks=HOLE), (*NO_OBJECT, "null", "{}")),
    ("callbacks", {"type": "group", "jobs": [job()], "callbacks": {"on_success": HOLE}}, ("{}",)),
    ("callbacks", chain(callbacks={"on_success": HOLE}), ("{}",)),
    ("callbacks.on_success", batch(callbacks={"on_success": HOLE}), NO_OBJECT),
    ("callbacks.on_success", batch(callbacks={"on_success": {"type": "group", "jobs": [job()], "u": HOLE}}), ("1",)),
    ("callbacks.on_odd", batch(callbacks={**CALLBACKS, "on_odd": HOLE}), ("{}", "1")),
    ("steps[0].depends_on", {"steps": [job(id="a", depends_on=HOLE)]}, ('"b"', "1", "{}", "true")),
    ("steps[0].depends_on[0]", {"steps": [job(id="a", depends_on=[HOLE])]}, (*NO_STRING, '""', '"a"', '"b"')),
    ("steps[1].id", {"steps": [job(id="a"), job(id=HOLE)]}, ('"a"', "1", '""')),
    ("steps[1].options.callback_type", {"steps": [job(), job(options={"callback_type": HOLE})]}, (*NO_NAME, '"x"')),
    ("jobs[0].jobs", {"type": "group", "jobs": [{"type": "batch", "jobs": HOLE, "callbacks": CALLBACKS}]}, ("[]",)),
    ("jobs[0].callbacks", {"type": "group", "jobs": [{"type": "batch", "jobs": [job()], "u": HOLE}]}, ("1",)),
)

JOBS = rows(
    ("steps[1].options.unique.keys", chain(job(options={"unique": {"keys": HOLE}})), ("0", '"type"')),
    ("steps[1].options.unique.by", chain(job(options={"unique": {"by": HOLE}})), ("1",)),
    ("steps[1].type", chain(job(type=HOLE)), ("1", '"A"', "null", '""', '"a b"')),
    ("steps[1].args", chain(job(args=HOLE)), ("{}", "null", "1")),
    ("steps[1].meta", chain(job(meta=HOLE)), ("[]", '"x"')),
    ("steps[1].options.queue", chain(job(options={"queue": HOLE})), ('"A"', "1")),
    ("steps[0].options.priority", chain(options={"priority": HOLE}), ("101", '"1"')),
    ("callbacks.on_success.args", batch(callbacks={"on_success": job(args=HOLE)}), ("{}", "null")),
    ("jobs[0].jobs[0].args", {"type": "group", "jobs": [{"type": "group", "jobs": [job(args=HOLE)]}]}, ("{}",)),
)

RETRY = rows(
    ("steps[1].options.retry", chain(job(options={"queue": "QUEUE", "retry": HOLE})), ('"x"', "[]")),
    ("steps[1].options.retry.max_attempts", chain(job(options={"retry": {"maxAttempts": HOLE}})), ("-1", '"1"')),
    ("steps[1].options.retry.max_interval", chain(job(options={"retry": {"max_interval": HOLE}})), ('"PT0S"',)),
)

WHOLES: dict[str, tuple[Body, str, str]] = {
    "self": (graph(a=["a"]), "steps[0].depends_on[0]", "itself"),
    "two": (graph(a=["b"], b=["a"]), "steps", "cycle b → a → b"),
    "long": (graph(z=[], a=["z", "d"], b=["a"], c=["b"], d=["c"]), "steps", "cycle"),
    "behind": (graph(a=["b"], b=["c"], c=["b"]), "steps", "cycle"),
    "no jobs": (
        {"steps": [job(id="c", options={"callback_type": "on_success"})]}, "steps", "callbacks only",
    ),
    "twice": (
        {"steps": [job(id="a"), *(job(options={"callback_type": "on_success"}) for _ in range(2))]},
        "steps[2].options.callback_type", "again",
    ),
    "on a callback": (
        {"steps": [job(id="a", depends_on=["c"]), job(id="c", options={"callback_type": "on_success"})]},
        "steps[0].depends_on[0]", "callback",
    ),
    "callback of nobody": (
        {"steps": [job(id="a"), job(id="c", depends_on=["x"], options={"callback_type": "on_success"})]},
        "steps[1].depends_on[0]", "another step",
    ),
    "9 levels": (nested(9), "jobs[0]" + ".jobs[0]" * 7, "at most 8 levels"),
    "100 levels": (nested(100), "jobs[0]" + ".jobs[0]" * 7, "at most 8 levels"),
    "long chain": (chain(*[job()] * 1000), "steps", "1 to 1000"),
    "many jobs": ({"type": "group", "jobs": [job()] * 10_001}, "jobs", "1 to 10000"),
    "many in all": (
        {"type": "group", "jobs": [{"type": "group", "jobs": [job()] * 6000}] * 2}, "jobs", "10000 jobs in all",
    ),
}  # fmt: skip


def total(api: Api) -> int:
    """How many workflows there are."""
    count: int = api.call("GET", "/workflows", params={"limit": 1})["pagination"]["total"]
    return count


def refused(api: Api, content: bytes, status: int, **expected: str) -> Body:
    """Create from these bytes; refused as expected, and nothing is there."""
    queue = unique_queue("bad")
    before = total(api)
    with nothing_enqueued(api, queue):
        error = refusal(raw(api, "POST", "/workflows", content.replace(b"QUEUE", queue.encode())), status, **expected)
    assert total(api) == before
    return error


@pytest.mark.parametrize(("field", "template", "value"), SHAPES)
def test_a_bad_shape_is_refused_by_name(api: Api, field: str, template: Body, value: str) -> None:
    """The answer is 400 invalid_workflow with the path of the field."""
    error = refused(api, filled(template, value), 400, code="invalid_workflow", field=field)
    assert error["details"]["validation_errors"][0]["path"] == f"$.{field}"


@pytest.mark.parametrize(("field", "template", "value"), JOBS)
def test_a_bad_job_in_a_workflow_is_refused_by_name(api: Api, field: str, template: Body, value: str) -> None:
    """The answer is that of an enqueue, with the job's place in front."""
    refused(api, filled(template, value), 400, code="invalid_request", field=field)


@pytest.mark.parametrize(("field", "template", "value"), RETRY)
def test_a_bad_retry_policy_in_a_workflow_is_refused_by_name(api: Api, field: str, template: Body, value: str) -> None:
    """422, as for an enqueue."""
    refused(api, filled(template, value), 422, code="validation_error", field=field)


@pytest.mark.parametrize("name", WHOLES)
def test_a_workflow_that_makes_no_sense_is_refused(api: Api, name: str) -> None:
    """Cycles, callbacks without jobs, too deep, too many."""
    template, field, words = WHOLES[name]
    error = refused(api, json.dumps(template).encode(), 400, code="invalid_workflow", field=field)
    assert words in error["message"]


def other(**fields: Any) -> Body:
    """Make a step of a type that its queue does not take."""
    return job(type="pay.now", **fields)


@pytest.mark.parametrize(
    ("template", "field"),
    [
        (chain(other()), "steps[1].type"),
        ({"type": "group", "jobs": [job(), job(), other()]}, "jobs[2].type"),
        (batch(jobs=[job(), other()]), "jobs[1].type"),
        (batch(callbacks={"on_failure": other()}), "callbacks.on_failure.type"),
        (chain({"type": "group", "jobs": [job(), other()]}), "steps[1].jobs[1].type"),
        (chain(batch(callbacks={"on_success": other()})), "steps[1].callbacks.on_success.type"),
        ({"name": "g", "steps": [job(id="a"), other(id="b", depends_on=["a"])]}, "steps[1].type"),
        ({"type": "chain", "steps": [{"type": "pay.now", "args": []}], "options": {"queue": "QUEUE"}}, "steps[0].type"),
    ],
    ids=["chain", "group", "batch", "callback", "nested", "nested callback", "graph", "inherited queue"],
)
def test_a_step_that_its_queue_does_not_take_is_refused_by_name(api: Api, template: Body, field: str) -> None:
    """Steps, members, callbacks and nested ones; nothing is created."""
    queue = unique_queue()
    api.call("PUT", f"/queues/{queue}/config", {"allowed_job_types": ["bad.*"]})
    total = api.call("GET", "/workflows")["pagination"]["total"]
    answer = api.http.post("/ojs/v1/workflows", content=json.dumps(template).replace("QUEUE", queue))
    refusal(answer, 422, code="job_type_not_allowed", field=field)
    assert api.call("GET", "/workflows")["pagination"]["total"] == total
    assert api.call("GET", f"/queues/{queue}/stats")["depth"] == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b'{"type":"chain"', b"\xff", b"null"])
def test_a_body_that_is_no_object_is_refused(api: Api, content: bytes) -> None:
    """As everywhere."""
    assert refused(api, content, 400)["code"] in ("invalid_payload", "invalid_request")


def test_a_workflow_at_the_limits_of_nesting_is_taken(api: Api) -> None:
    """Eight levels."""
    queue = unique_queue()
    body = json.dumps(nested(8)).replace("QUEUE", queue)
    workflow = raw(api, "POST", "/workflows", body.encode()).json()["workflow"]
    assert workflow["metadata"]["job_count"] == 1
    [job_] = api.fetch(queue)
    api.ack(job_["id"])


def test_an_oversize_result_is_refused_and_the_step_stays_active(api: Api) -> None:
    """A result that no record can hold: 413, and the worker may send a smaller one."""
    queue = unique_queue()
    body = json.dumps(chain()).replace("QUEUE", queue)
    workflow = raw(api, "POST", "/workflows", body.encode()).json()["workflow"]
    [job_] = api.fetch(queue)
    limit = api.request("POST", "/workers/ack", {"job_id": job_["id"], "result": "x" * 15_000_000})
    refusal(limit, 413, code="payload_too_large")
    assert api.call("GET", f"/workflows/{workflow['id']}")["state"] == "running"
    api.ack(job_["id"], result="small")
    assert api.call("GET", f"/workflows/{workflow['id']}")["state"] == "completed"


@pytest.mark.parametrize("query", ["steps_offset=x", "steps_limit=-1", "steps_limit=1.5", "steps_offset=%00"])
def test_a_bad_page_of_steps_is_refused(api: Api, query: str) -> None:
    """The parameter is named."""
    path = "/workflows/01890000-0000-7000-8000-000000000000"
    refusal(api.request("GET", f"{path}?{query}"), 400, field=query.partition("=")[0])
