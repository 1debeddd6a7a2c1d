"""Bad input: a clear 4xx that names the field, no change of state, no 5xx, and the server goes on."""

from __future__ import annotations

import gzip
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import nats
import pytest

from loadtest.cpu import rss_bytes
from tests.api.checks import TROUBLE, job_untouched, nothing_enqueued, queue_total, refusal, worker_ids
from tests.api.wire import Wire, ask, head, post
from tests.support.api import Api, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

Body = dict[str, Any]
V1 = "/ojs/v1"
HUGE = "1" + "0" * 400
HOLE = "@@hole@@"
UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"

NO_STRING = ("1", "-1.5", "true", "[]", "{}", "1e400")
NO_INTEGER = ('"1"', "true", "[]", "{}", "1.5", "1e2", "1.0", "1e400", HUGE, "9223372036854775808", "-" + HUGE)
NO_BOOLEAN = ('"true"', "1", "0", "1.0", "0.0", "[]", "{}", "1e400")
NO_OBJECT = ('"x"', "1", "true", "[]", "1e400")
NO_ARRAY = ('"x"', "1", "true", "{}", "1e400")
NO_TIME = (
    *NO_STRING,
    '""',
    '"soon"',
    '"2030-01-01"',
    '"2030-01-01T00:00:00"',
    '"2030-13-01T00:00:00Z"',
    '"2030-02-30T00:00:00Z"',
    '"1969-12-31T23:59:59Z"',
    '"2030-01-01T00:00:00Z\\u0000"',
    '"P"',
    '"+P"',
    '"+PT"',
    '"+PT1X"',
    '"+-PT1S"',
    '"+P99999999999999999999D"',
)
NO_QUEUE = (
    *NO_STRING,
    '""',
    '"Upper"',
    '"under_score"',
    '"-first"',
    '"a b"',
    '"a/b"',
    '"a*"',
    '">"',
    '"a\\u0000"',
    '"a\\n"',
    '"\\u00e9"',
    json.dumps("q" * 129),
)


@pytest.fixture(scope="module", autouse=True)
def quiet_log(server: Server) -> Iterator[None]:
    """Nothing in this module may make the server log an unexpected error."""
    before = len(server.log())
    yield
    fresh = server.log()[before:]
    assert server.is_running
    assert not [line for line in fresh.splitlines() if any(word in line for word in TROUBLE)], fresh[-4000:]


def raw(api: Api, method: str, path: str, content: bytes, **headers: str) -> httpx.Response:
    """Send exact bytes as a body; header names with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.http.request(method, f"{V1}{path}", content=content, headers=named)


def filled(template: Body, value: str) -> bytes:
    """Put the JSON text `value` where the template has its hole."""
    return json.dumps(template).replace(f'"{HOLE}"', value).encode()


def rows(*tables: tuple[str, Any, tuple[str, ...]]) -> list[Any]:
    """Make a parameter set of each bad value: (field named in the answer, template, value)."""
    return [
        pytest.param(field, template, value, id=f"{field}={value if len(value) < 30 else value[:20] + '..'}")
        for field, template, values in tables
        for value in values
    ]


def job(**fields: Any) -> Body:
    """Make an enqueue request with a hole somewhere."""
    options = fields.pop("options", {})
    if isinstance(options, dict):
        options = {"queue": "QUEUE", **options}
    return {"type": "bad.input", "args": [], **fields, "options": options}


def option(name: str) -> Body:
    """Make an enqueue request whose option `name` is the hole."""
    return job(options={name: HOLE})


ENQUEUE = rows(
    (
        "type",
        job(type=HOLE),
        (
            *NO_STRING,
            "null",
            '""',
            '"Upper.case"',
            '"a b"',
            '"a..b"',
            '"a."',
            '".a"',
            '"1a"',
            '"a\\u0000"',
            '"a\\n"',
            '"\\u00e9"',
            json.dumps("a" * 256),
        ),
    ),
    ("args", job(args=HOLE), (*NO_ARRAY, "null")),
    (
        "id",
        job(id=HOLE),
        (
            *NO_STRING,
            '""',
            '"x"',
            '"01890000-0000-4000-8000-000000000000"',
            '"01890000-0000-7000-C000-00000000ABCD"',
            '"01890000-0000-7000-8000-0000000000000"',
            '"01890000-0000-7000-8000-00000000000"',
            '"01890000-0000-7000-8000-000000000000\\n"',
            '"{01890000-0000-7000-8000-00000000000}"',
        ),
    ),
    ("meta", job(meta=HOLE), (*NO_OBJECT, json.dumps({"k": "x" * 65536}))),
    ("schema", job(schema=HOLE), NO_STRING),
    ("options", job(options=HOLE), NO_OBJECT),
    ("options.queue", option("queue"), NO_QUEUE),
    ("queue", {"type": "bad.input", "args": [], "queue": HOLE}, ("1", '"Upper"')),
    ("options.priority", option("priority"), (*NO_INTEGER, "101", "-101")),
    ("priority", job(priority=HOLE), ("101", '"high"')),
    ("options.timeout_ms", option("timeout_ms"), (*NO_INTEGER, "-1")),
    ("options.visibility_timeout_ms", option("visibility_timeout_ms"), (*NO_INTEGER, "-1", "0", "-0")),
    ("options.timeout", option("timeout"), ("true", "[]", "{}", "1.5", "-1", '"x"', '""', HUGE, "1e400")),
    ("options.visibility_timeout", option("visibility_timeout"), ("true", "[]", "1.5", "-1", '"x"', HUGE)),
    ("options.scheduled_at", option("scheduled_at"), NO_TIME),
    ("options.delay_until", option("delay_until"), NO_TIME),
    ("options.expires_at", option("expires_at"), NO_TIME),
    ("scheduled_at", job(scheduled_at=HOLE), ("1", '"soon"')),
    ("options.tags", option("tags"), (*NO_ARRAY, "[1]", '["a", null]', '[["a"]]', "[1e400]")),
    ("options.metadata", option("metadata"), NO_OBJECT),
    ("options.unique", option("unique"), NO_OBJECT),
    ("options.rate_limit", option("rate_limit"), NO_OBJECT),
    ("options.pending", option("pending"), NO_BOOLEAN),
    ("options.result_ttl", option("result_ttl"), (*NO_INTEGER, "-2", "3153600001")),
)

RETRY = rows(
    ("options.retry", option("retry"), NO_OBJECT),
    ("options.retry.max_attempts", job(options={"retry": {"max_attempts": HOLE}}), (*NO_INTEGER, "-1")),
    (
        "options.retry.initial_interval",
        job(options={"retry": {"initial_interval": HOLE}}),
        (*NO_STRING, '""', '"1s"', '"PT0S"', '"-PT1S"', '"P"', '"PT1S\\u0000"'),
    ),
    (
        "options.retry.initial_interval_ms",
        job(options={"retry": {"initial_interval_ms": HOLE}}),
        (*NO_INTEGER, "0", "-1"),
    ),
    (
        "options.retry.max_interval",
        job(options={"retry": {"initial_interval": "PT10S", "max_interval": HOLE}}),
        (*NO_STRING, '"x"', '"PT0S"', '"PT9.999S"'),
    ),
    ("options.retry.max_interval_ms", job(options={"retry": {"max_interval_ms": HOLE}}), (*NO_INTEGER, "0", "-1")),
    (
        "options.retry.backoff_coefficient",
        job(options={"retry": {"backoff_coefficient": HOLE}}),
        ('"2"', "true", "[]", "{}", "0.99", "0", "-1", "1e7", "1e400", HUGE),
    ),
    ("options.retry.jitter", job(options={"retry": {"jitter": HOLE}}), NO_BOOLEAN),
    (
        "options.retry.backoff_strategy",
        job(options={"retry": {"backoff_strategy": HOLE}}),
        (*NO_STRING, '"fibonacci"', '""', "0", "false"),
    ),
    (
        "options.retry.non_retryable_errors",
        job(options={"retry": {"non_retryable_errors": HOLE}}),
        (*NO_ARRAY, "[1]", '["a", null]'),
    ),
    (
        "options.retry.on_exhaustion",
        job(options={"retry": {"on_exhaustion": HOLE}}),
        (*NO_STRING, '"explode"', '""'),
    ),
)

FETCH = rows(
    (
        "queues",
        {"queues": HOLE},
        (*NO_ARRAY, "null", "[]", json.dumps([f"q{number}" for number in range(257)])),
    ),
    ("queues[1]", {"queues": ["QUEUE", HOLE]}, (*(one for one in NO_QUEUE if one != "1e400"), "null")),
    ("queues", {"queues": ["QUEUE", HOLE]}, ("1e400",)),
    ("count", {"queues": ["QUEUE"], "count": HOLE}, (*NO_INTEGER, "0", "-0", "-1", "1001")),
    ("worker_id", {"queues": ["QUEUE"], "worker_id": HOLE}, (*NO_STRING, '""', json.dumps("w" * 256))),
    (
        "visibility_timeout_ms",
        {"queues": ["QUEUE"], "visibility_timeout_ms": HOLE},
        (*NO_INTEGER, "0", "-0", "-1", "31536000001"),
    ),
)

ACK = rows(
    ("job_id", {"job_id": HOLE}, (*NO_STRING, "null", '""')),
    ("worker_id", {"job_id": "JOB", "worker_id": HOLE}, (*NO_STRING, '""', json.dumps("w" * 256))),
)

FAILURE = {"code": "handler_error", "message": "it failed"}
NACK = rows(
    ("job_id", {"job_id": HOLE, "error": FAILURE}, (*NO_STRING, "null", '""')),
    ("worker_id", {"job_id": "JOB", "error": FAILURE, "worker_id": HOLE}, (*NO_STRING, '""', json.dumps("w" * 256))),
    ("error", {"job_id": "JOB", "error": HOLE}, ("null", "1", "true", "[]", '""', "1e400")),
    ("error.message", {"job_id": "JOB", "error": {"code": "x", "message": HOLE}}, (*NO_STRING, "null", '""')),
    ("error.code", {"job_id": "JOB", "error": {"message": "m", "code": HOLE}}, NO_STRING),
    ("error.type", {"job_id": "JOB", "error": {"message": "m", "type": HOLE}}, NO_STRING),
    ("error.retryable", {"job_id": "JOB", "error": {"message": "m", "retryable": HOLE}}, NO_BOOLEAN),
    ("requeue", {"job_id": "JOB", "error": FAILURE, "requeue": HOLE}, NO_BOOLEAN),
    ("error", {"job_id": "JOB", "requeue": False, "unused": HOLE}, ("1",)),
)

HEARTBEAT = rows(
    ("worker_id", {"worker_id": HOLE, "active_jobs": ["JOB"]}, (*NO_STRING, "null", '""', json.dumps("w" * 256))),
    ("active_jobs", {"worker_id": "WORKER", "active_jobs": HOLE}, ('"x"', "true", "{}", "1.5", "[1]", "[null]")),
    ("active_jobs", {"worker_id": "WORKER", "active_jobs": HOLE}, (json.dumps(["x"] * 10_001), "[[]]", "1e400")),
    (
        "active_job_ids",
        {"worker_id": "WORKER", "active_jobs": 1, "active_job_ids": HOLE},
        ('"x"', '""', "true", "false", "{}", "1", "0", "[1]", "[null]", "1e400"),
    ),
    ("job_id", {"worker_id": "WORKER", "active_jobs": ["JOB"], "job_id": HOLE}, (*NO_STRING, '""')),
    (
        "visibility_timeout_ms",
        {"worker_id": "WORKER", "active_jobs": ["JOB"], "visibility_timeout_ms": HOLE},
        (*NO_INTEGER, "0", "-0", "-1", "31536000001"),
    ),
    ("hostname", {"worker_id": "WORKER", "hostname": HOLE}, (*NO_STRING, json.dumps("h" * 70_000))),
    ("pid", {"worker_id": "WORKER", "pid": HOLE}, ('"1"', "true", "[]", "{}", "1.5", "1e2", "1.0", "1e400", HUGE)),
    ("concurrency", {"worker_id": "WORKER", "concurrency": HOLE}, ('"1"', "true", "[]", "{}", "1.5", "1e400")),
    ("queues", {"worker_id": "WORKER", "queues": HOLE}, (*NO_ARRAY, json.dumps(["q"] * 5000))),
    ("labels", {"worker_id": "WORKER", "labels": HOLE}, ('"x"', "1", "true", "1e400")),
    ("state", {"worker_id": "WORKER", "state": HOLE}, NO_STRING),
)

BATCH = rows(
    ("jobs", {"jobs": HOLE}, (*NO_ARRAY, "null", "[]")),
    ("jobs[1]", {"jobs": [job(), HOLE]}, ("1", "null", '"x"', "[]", "1e400")),
    ("jobs[1].type", {"jobs": [job(), job(type=HOLE)]}, ("1", '"A"', "null")),
    ("jobs[1].args", {"jobs": [job(), job(args=HOLE)]}, ("{}", "null")),
    ("jobs[1].id", {"jobs": [job(), job(id=HOLE)]}, ('"x"', "1")),
    ("jobs[1].meta", {"jobs": [job(), job(meta=HOLE)]}, ("[]",)),
    ("jobs[1].options", {"jobs": [job(), job(options=HOLE)]}, ("[]", "1")),
    ("jobs[1].options.queue", {"jobs": [job(), option("queue")]}, ('"A"', "1")),
    ("jobs[1].options.priority", {"jobs": [job(), option("priority")]}, (HUGE, "101", "1e400")),
    ("jobs[1].options.scheduled_at", {"jobs": [job(), option("scheduled_at")]}, ('"x"', "1")),
    ("jobs", {"other": HOLE}, ("1",)),
)


@pytest.mark.parametrize(("field", "template", "value"), ENQUEUE)
def test_an_enqueue_with_a_bad_field_is_refused_by_name(api: Api, field: str, template: Body, value: str) -> None:
    """The answer is 400 and names the field; no job and no queue appears."""
    queue = unique_queue("bad")
    with nothing_enqueued(api, queue):
        reply = raw(api, "POST", "/jobs", filled(template, value).replace(b"QUEUE", queue.encode()))
        refusal(reply, 400, code="invalid_request", field=field)


@pytest.mark.parametrize(("field", "template", "value"), RETRY)
def test_a_bad_retry_policy_is_refused_by_name(api: Api, field: str, template: Body, value: str) -> None:
    """The answer is 422 validation_error and names the field; no job and no queue appears."""
    queue = unique_queue("bad")
    with nothing_enqueued(api, queue):
        reply = raw(api, "POST", "/jobs", filled(template, value).replace(b"QUEUE", queue.encode()))
        error = refusal(reply, 422, code="validation_error", field=field)
        assert error["type"] == "validation_error"


@pytest.mark.parametrize(("field", "template", "value"), BATCH)
def test_a_batch_with_a_bad_member_is_refused_whole(api: Api, field: str, template: Body, value: str) -> None:
    """The answer names the member and the field; not even the good member is stored."""
    queue = unique_queue("bad")
    with nothing_enqueued(api, queue):
        reply = raw(api, "POST", "/jobs/batch", filled(template, value).replace(b"QUEUE", queue.encode()))
        refusal(reply, 400, code="invalid_request", field=field)


@pytest.mark.parametrize(("field", "template", "value"), FETCH)
def test_a_fetch_with_a_bad_field_is_refused_by_name(api: Api, field: str, template: Body, value: str) -> None:
    """The answer names the field; a job that waits in the queue stays there untouched."""
    queue = unique_queue("bad")
    waiting = api.enqueue(queue)["id"]
    with job_untouched(api, waiting):
        reply = raw(api, "POST", "/workers/fetch", filled(template, value).replace(b"QUEUE", queue.encode()))
        refusal(reply, 400, code="invalid_request", field=field)
    assert [found["id"] for found in api.fetch(queue)] == [waiting]


@pytest.fixture(scope="module")
def held(server: Server) -> Iterator[str]:
    """Give the id of a job that a worker holds, shared by requests that must not touch it."""
    with Api(server.url) as api:
        queue = unique_queue("held")
        api.enqueue(queue)
        yield api.fetch(queue, worker_id="holder")[0]["id"]


@pytest.mark.parametrize(("field", "template", "value"), ACK)
def test_an_ack_with_a_bad_field_is_refused_by_name(
    api: Api, held: str, field: str, template: Body, value: str
) -> None:
    """The answer names the field; the job stays active."""
    with job_untouched(api, held):
        reply = raw(api, "POST", "/workers/ack", filled(template, value).replace(b"JOB", held.encode()))
        refusal(reply, 400, code="invalid_request", field=field)


@pytest.mark.parametrize(("field", "template", "value"), NACK)
def test_a_nack_with_a_bad_field_is_refused_by_name(
    api: Api, held: str, field: str, template: Body, value: str
) -> None:
    """The answer names the field; the job stays active and gets no error."""
    with job_untouched(api, held):
        reply = raw(api, "POST", "/workers/nack", filled(template, value).replace(b"JOB", held.encode()))
        refusal(reply, 400, code="invalid_request", field=field)


@pytest.mark.parametrize(("field", "template", "value"), HEARTBEAT)
def test_a_heartbeat_with_a_bad_field_is_refused_by_name(
    api: Api, held: str, field: str, template: Body, value: str
) -> None:
    """The answer names the field; no worker becomes known by it and the job is untouched."""
    worker = f"bad-{uuid.uuid4()}"
    before = worker_ids(api)
    with job_untouched(api, held):
        body = filled(template, value).replace(b"JOB", held.encode()).replace(b"WORKER", worker.encode())
        refusal(raw(api, "POST", "/workers/heartbeat", body), 400, code="invalid_request", field=field)
    assert worker_ids(api) <= before


NO_LIMIT = ("0", "-1", "-0", "abc", "1.5", "1e3", "%2B5", "%201", "0x10", "1_0", "9" * 30, "%D9%A1", "%00", "true")
NO_CURSOR = (
    "x",
    "!!!!",
    "%00",
    "%C3%A9",
    "LTUuMA",  # -5.0
    "NS4tMw",  # 5.-3
    "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkuMA",  # beyond 64 bits
    "MTg0NDY3NDQwNzM3MDk1NTE2MTUuMA",  # 2**64 - 1
    "MV8wLjA",  # 1_0.0
    "MTIz" * 500,
)


@pytest.mark.parametrize("value", NO_LIMIT)
@pytest.mark.parametrize("where", ["/events?limit=", "/dead-letter?limit=", "/queues?limit="])
def test_a_limit_that_is_no_positive_integer_is_refused(api: Api, where: str, value: str) -> None:
    """The answer names the parameter."""
    refusal(api.request("GET", where + value), 400, code="invalid_request", field="limit")


@pytest.mark.parametrize("value", [one for one in NO_LIMIT if one != "0"])
@pytest.mark.parametrize("where", ["/dead-letter?offset=", "/queues?offset="])
def test_an_offset_that_is_no_integer_is_refused(api: Api, where: str, value: str) -> None:
    """The answer names the parameter."""
    refusal(api.request("GET", where + value), 400, code="invalid_request", field="offset")


@pytest.mark.parametrize("value", NO_CURSOR)
@pytest.mark.parametrize(
    ("where", "field"), [("/events?after=", "after"), ("/dead-letter?cursor=", "cursor"), ("/queues?cursor=", "cursor")]
)
def test_a_cursor_that_is_not_ours_is_refused(api: Api, where: str, field: str, value: str) -> None:
    """The answer names the parameter."""
    refusal(api.request("GET", where + value), 400, code="invalid_request", field=field)


@pytest.mark.parametrize("value", ["yesterday", "2026-02-30T00:00:00Z", "2026-01-01", "0", "%00", "x" * 5000])
@pytest.mark.parametrize("field", ["since", "until"])
@pytest.mark.parametrize("where", ["/dead-letter", "/admin/dead-letter"])
def test_a_time_of_death_that_is_none_is_refused(api: Api, where: str, field: str, value: str) -> None:
    """The answer names the parameter, what came and what is accepted."""
    error = refusal(api.request("GET", f"{where}?{field}={value}"), 400, code="invalid_request", field=field)
    assert error["details"]["received"]
    assert "RFC 3339" in error["details"]["expected"]


@pytest.mark.parametrize(
    "value", ["evt_x", "evt_", f"evt_{uuid.UUID(int=5)}", f"evt_{UNKNOWN_ID}", "evt_" + "a" * 5000]
)
def test_an_event_id_that_is_not_kept_is_refused_as_cursor(api: Api, value: str) -> None:
    """The answer names the parameter."""
    refusal(api.request("GET", f"/events?after={value}"), 400, code="invalid_request", field="after")


@pytest.mark.parametrize(
    "value",
    ["a%20b", "..", "%3E", "*", "job.%2A", "%00", "x" * 5000, "%C3%A9", "a%0D%0APUB%20x%200%0D%0A", "$JS.API", ","],
)
@pytest.mark.parametrize(
    "where",
    ["/events?types=", "/events?queues=", "/events?job_types=", "/dead-letter?queue=", "/dead-letter?error_type="],
)
def test_filters_that_match_nothing_give_nothing(api: Api, where: str, value: str) -> None:
    """Names that nothing can have are no error and never reach NATS as wildcards or commands."""
    api.enqueue(unique_queue())
    answer = api.call("GET", where + value)
    if value != ",":
        assert answer.get("events", answer.get("jobs")) == []


@pytest.mark.parametrize("query", ["limit=%FF", "limit=%ED%A0%80", "types=%C3", "&".join(["a=1"] * 60)])
@pytest.mark.parametrize("where", ["/events", "/dead-letter", "/queues"])
def test_query_strings_that_are_no_text_are_refused(api: Api, where: str, query: str) -> None:
    """Percent-encoded bytes that are no UTF-8 and dozens of parameters get 400."""
    refusal(api.request("GET", f"{where}?{query}"), 400, code="invalid_request")


# -- bodies that are not JSON ----------------------------------------------------------------------

NOT_JSON = {
    "empty": b"",
    "blank": b" \r\n\t",
    "open brace": b"{",
    "open string": b'{"type":"bad.inp',
    "half": b'{"type":"bad.input","args":[]',
    "no colon": b'{"type" "bad.input","args":[]}',
    "no comma": b'{"type":"bad.input" "args":[]}',
    "trailing comma": b'{"type":"bad.input","args":[],}',
    "trailing comma in array": b'{"type":"bad.input","args":[1,]}',
    "leading comma": b'{,"type":"bad.input","args":[]}',
    "single quotes": b"{'type':'bad.input','args':[]}",
    "bare key": b'{type:"bad.input",args:[]}',
    "comment": b'{"type":"bad.input",/* */"args":[]}',
    "NaN": b'{"type":"bad.input","args":[NaN]}',
    "Infinity": b'{"type":"bad.input","args":[-Infinity]}',
    "leading zero": b'{"type":"bad.input","args":[01]}',
    "plus": b'{"type":"bad.input","args":[+1]}',
    "bare point": b'{"type":"bad.input","args":[1.]}',
    "leading point": b'{"type":"bad.input","args":[.5]}',
    "bare exponent": b'{"type":"bad.input","args":[1e]}',
    "hex": b'{"type":"bad.input","args":[0x1]}',
    "minus": b'{"type":"bad.input","args":[-]}',
    "upper-case literal": b'{"type":"bad.input","args":[True]}',
    "undefined": b'{"type":"bad.input","args":[undefined]}',
    "two values": b'{"type":"bad.input","args":[]}{"type":"bad.input","args":[]}',
    "text behind": b'{"type":"bad.input","args":[]} x',
    "byte order mark": b'\xef\xbb\xbf{"type":"bad.input","args":[]}',
    "UTF-16": '{"type":"bad.input","args":[]}'.encode("utf-16"),
    "invalid UTF-8": b'{"type":"bad.input","args":["\xff"]}',
    "overlong UTF-8": b'{"type":"bad.input","args":["\xc0\x80"]}',
    "UTF-8 beyond Unicode": b'{"type":"bad.input","args":["\xf5\x80\x80\x80"]}',
    "cut UTF-8": b'{"type":"bad.input","args":["\xe2\x82"]}',
    "encoded surrogate": b'{"type":"bad.input","args":["\xed\xa0\x80"]}',
    "lone high surrogate": b'{"type":"bad.input","args":["\\ud800"]}',
    "lone low surrogate": b'{"type":"bad.input","args":["\\udc00"]}',
    "swapped surrogates": b'{"type":"bad.input","args":["\\udc00\\ud800"]}',
    "surrogate in a key": b'{"type":"bad.input","args":[],"\\ud800":1}',
    "surrogate in meta": b'{"type":"bad.input","args":[],"meta":{"\\udbff":"x"}}',
    "raw NUL in a string": b'{"type":"bad.input","args":["\x00"]}',
    "raw NUL outside": b'{"type":"bad.input","args":[]}\x00',
    "raw line feed in a string": b'{"type":"bad.input","args":["\n"]}',
    "bad escape": b'{"type":"bad.input","args":["\\x41"]}',
    "short escape": b'{"type":"bad.input","args":["\\u12"]}',
    "form": b"type=bad.input&args=1",
    "XML": b"<job/>",
    "binary": bytes(range(256)),
    "10,000 arrays": b'{"type":"bad.input","args":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"type":"bad.input","args":[' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"]}",
    "10,000 open arrays": b"[" * 10_000,
    "10,000 levels in an unknown field": b'{"type":"bad.input","args":[],"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "101 levels": b'{"type":"bad.input","args":' + b"[" * 100 + b"]" * 100 + b"}",
}
NOT_OBJECTS = (b"null", b"true", b"1", b"1e400", b'"text"', b"[]", b'[{"type":"bad.input","args":[]}]')
POSTS = ("/jobs", "/jobs/batch", "/workers/fetch", "/workers/ack", "/workers/nack", "/workers/heartbeat")


@pytest.mark.parametrize("name", NOT_JSON)
@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_not_json_is_refused(api: Api, path: str, name: str) -> None:
    """Every endpoint that reads a body answers 400 invalid_payload and says where the defect is."""
    with nothing_enqueued(api):
        error = refusal(raw(api, "POST", path, NOT_JSON[name]), 400, code="invalid_payload")
        assert 0 <= error["details"]["position"] <= len(NOT_JSON[name])
        assert error["details"]["reason"] in error["message"]


@pytest.mark.parametrize("body", NOT_OBJECTS)
@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_no_object_is_refused(api: Api, path: str, body: bytes) -> None:
    """Every endpoint that reads a body answers 400 and says what it expects."""
    with nothing_enqueued(api):
        assert "object" in refusal(raw(api, "POST", path, body), 400, code="invalid_request")["message"]


@pytest.mark.parametrize("action", ["ack", "nack"])
@pytest.mark.parametrize("name", [name for name in NOT_JSON if name != "empty"])
def test_the_calls_with_the_id_in_the_path_refuse_what_is_not_json(api: Api, held: str, action: str, name: str) -> None:
    """POST /jobs/{id}/ack and /nack are as strict as their twins and leave the job active."""
    with job_untouched(api, held):
        refusal(raw(api, "POST", f"/jobs/{held}/{action}", NOT_JSON[name]), 400, code="invalid_payload")


def test_100_levels_of_nesting_are_kept(api: Api) -> None:
    """The documented depth itself is allowed and comes back unchanged."""
    args = b"[" * 99 + b"]" * 99
    queue = unique_queue()
    reply = raw(api, "POST", "/jobs", b'{"type":"deep.job","args":%s,"queue":"%s"}' % (args, queue.encode()))
    assert reply.status_code == 201
    assert b'"args":' + args in raw(api, "GET", f"/jobs/{reply.json()['job']['id']}", b"").content


# -- headers of bodies -----------------------------------------------------------------------------

BAD_TYPES = (
    "text/plain",
    "text/json",
    "application/xml",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonx",
    "application/json-patch+json",
    "application/openjobspec",
    "*/*",
    "nonsense",
    "",
    ";",
    "application/json; charset=latin-1",
    "application/json; charset=utf-16",
    'application/openjobspec+json; charset="iso-8859-1"',
    "application/json; charset=",
    "application/json, text/plain",
    "\u00e9",
)
GOOD_TYPES = (
    "application/json",
    "application/openjobspec+json",
    "application/json; charset=utf-8",
    "application/openjobspec+json;charset=UTF-8",
    'Application/JSON; Charset="utf-8"',
    "application/json ; boundary=x; charset=utf8",
)


@pytest.mark.parametrize("content_type", BAD_TYPES)
@pytest.mark.parametrize("path", [*POSTS, "/jobs/{held}/ack", "/jobs/{held}/nack"])
def test_a_wrong_content_type_is_refused(server: Server, api: Api, held: str, path: str, content_type: str) -> None:
    """Every endpoint that reads a body answers 400 naming the header, and does nothing."""
    queue = unique_queue("bad")
    member = {"type": "bad.input", "args": [], "options": {"queue": queue}}
    body = json.dumps({**member, "jobs": [member], "queues": [queue], "job_id": held, "error": FAILURE}).encode()
    target = V1 + path.replace("{held}", held)
    with nothing_enqueued(api, queue), job_untouched(api, held):
        answer = ask(server.url, head("POST", target, f"Content-Type: {content_type}", length=len(body)) + body)
        refusal(answer, 400, code="invalid_request", field="Content-Type")


@pytest.mark.parametrize("content_type", GOOD_TYPES)
def test_json_in_utf8_is_taken_by_both_names(server: Server, content_type: str) -> None:
    """Both media types, any case, with or without a charset."""
    body = json.dumps({"type": "good.input", "args": [], "queue": unique_queue()}).encode()
    answer = ask(server.url, head("POST", f"{V1}/jobs", f"Content-Type: {content_type}", length=len(body)) + body)
    assert answer.status == 201


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "nonsense"])
@pytest.mark.parametrize("path", POSTS)
def test_compressed_bodies_are_refused(api: Api, path: str, encoding: str) -> None:
    """The answer is 415 and names the header; nothing is unpacked."""
    queue = unique_queue("bad")
    body = gzip.compress(json.dumps({"type": "bad.input", "args": [], "queue": queue}).encode())
    with nothing_enqueued(api, queue):
        error = refusal(raw(api, "POST", path, body, Content_Encoding=encoding), 415, code="unsupported")
        assert "Content-Encoding" in error["message"]


# -- bodies that do not come as announced ----------------------------------------------------------


def half(body: bytes, target: str) -> bytes:
    """Make a request that announces more than it sends."""
    content_type = "Content-Type: application/openjobspec+json"
    return head("POST", target, content_type, length=len(body) + 100) + body


def half_chunked(body: bytes, target: str) -> bytes:
    """Make a chunked request without its end."""
    content_type = "Content-Type: application/openjobspec+json"
    return head("POST", target, content_type, "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n" % (len(body), body)


@pytest.mark.parametrize("make", [half, half_chunked])
@pytest.mark.parametrize("abrupt", [True, False], ids=["close", "shutdown"])
def test_a_truncated_body_changes_nothing(
    server: Server, api: Api, held: str, abrupt: bool, make: Callable[[bytes, str], bytes]
) -> None:
    """A client that hangs up in the middle of a complete-looking body has done nothing."""
    queue, waiting_in = unique_queue("bad"), unique_queue("wait")
    waiting = api.enqueue(waiting_in)["id"]
    member = {"type": "bad.input", "args": [], "options": {"queue": queue}}
    requests = {
        f"{V1}/jobs": member,
        f"{V1}/jobs/batch": {"jobs": [member]},
        f"{V1}/workers/fetch": {"queues": [waiting_in]},
        f"{V1}/workers/ack": {"job_id": held},
        f"{V1}/workers/nack": {"job_id": held, "error": FAILURE},
        f"{V1}/workers/heartbeat": {"worker_id": f"bad-{queue}"},
        f"{V1}/jobs/{held}/ack": {},
        f"{V1}/jobs/{held}/nack": {"error": FAILURE},
        f"{V1}/jobs/{held}/cancel": {},
        f"{V1}/jobs/{waiting}/cancel": {},
        f"{V1}/queues/{queue}/pause": {},
    }
    with nothing_enqueued(api, queue), job_untouched(api, held), job_untouched(api, waiting):
        for target, body in requests.items():
            with Wire(server.url) as wire:
                wire.send(make(json.dumps(body).encode(), target))
                if not abrupt:
                    wire.finish_sending()
                    answer = wire.answer()
                    assert answer is None or 400 <= answer.status < 500
        # Whatever the server makes of them, it has seen the hang-ups by the time it answers these.
        for _ in range(20):
            api.health()
    assert f"bad-{queue}" not in worker_ids(api)
    assert [found["id"] for found in api.fetch(waiting_in)] == [waiting]


def test_a_body_that_comes_byte_by_byte_is_taken(server: Server, api: Api) -> None:
    """The slowest sender gets the same answer as any other."""
    queue = unique_queue("slow")
    body = json.dumps({"type": "slow.job", "args": ["\u00e9", 1.50], "queue": queue}).encode()
    with Wire(server.url) as wire:
        for byte in post(f"{V1}/jobs", body):
            wire.send(bytes([byte]))
        answer = wire.answer()
    assert answer is not None
    assert answer.status == 201
    assert answer.json()["job"]["args"] == ["\u00e9", 1.5]
    [found] = api.fetch(queue)
    assert found["id"] == answer.json()["job"]["id"]


def test_a_body_in_single_byte_chunks_is_taken(server: Server) -> None:
    """Chunked transfer without a length works for every chunk size."""
    body = json.dumps({"type": "slow.job", "args": [1], "queue": unique_queue("slow")}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    content_type = "Content-Type: application/openjobspec+json"
    answer = ask(server.url, head("POST", f"{V1}/jobs", content_type, "Transfer-Encoding: chunked") + chunks)
    assert answer.status == 201


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: abc",),
        ("Content-Length: -1",),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: " + "9" * 30,),
        ("Transfer-Encoding: nonsense",),
        ("Bad Header Name: x",),
        ("X-Control: a\x00b",),
    ],
)
def test_malformed_http_is_refused(server: Server, api: Api, lines: tuple[str, ...]) -> None:
    """What is no HTTP gets 400 or is hung up on, and the server goes on."""
    with nothing_enqueued(api), Wire(server.url) as wire:
        wire.send(head("POST", f"{V1}/jobs", *lines) + b"{}")
        wire.finish_sending()
        answer = wire.answer()
        assert answer is None or 400 <= answer.status < 500
    assert api.health()["status"] == "ok"


# -- size ------------------------------------------------------------------------------------------

SMALL = 4096


@pytest.fixture(scope="module")
def small_server() -> Iterator[Server]:
    """Give a server that takes bodies of at most 4096 bytes."""
    with Server(env={"OJS_MAX_BODY_BYTES": str(SMALL), "OJS_LOG_LEVEL": "warning"}) as one:
        yield one
        assert not [word for word in TROUBLE if word in one.log()]


def sized(queue: str, size: int) -> bytes:
    """Make an enqueue request of exactly so many bytes."""
    bare = json.dumps({"type": "big.job", "args": [""], "queue": queue}).encode()
    return bare.replace(b'[""]', b'["' + b"x" * (size - len(bare)) + b'"]')


def test_a_body_of_the_allowed_size_is_taken(small_server: Server) -> None:
    """The limit itself is allowed, with and without a length in the header."""
    body = sized(unique_queue(), SMALL)
    assert len(body) == SMALL
    assert ask(small_server.url, post(f"{V1}/jobs", body)).status == 201
    chunked = head("POST", f"{V1}/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert ask(small_server.url, chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)).status == 201


@pytest.mark.parametrize("size", [SMALL + 1, 1_000_000, 30_000_000])
@pytest.mark.parametrize("path", [*POSTS, f"/jobs/{UNKNOWN_ID}/ack", "/queues/big/pause"])
def test_an_oversized_body_is_refused_by_its_length(small_server: Server, path: str, size: int) -> None:
    """413 with the limit, whether the client sends the body or waits; the server goes on."""
    with Api(small_server.url) as api:
        queue = unique_queue()
        body = sized(queue, size)
        with nothing_enqueued(api, queue):
            error = refusal(raw(api, "POST", path, body), 413, code="payload_too_large")
            assert error["details"]["max_bytes"] == SMALL
            with Wire(small_server.url) as wire:
                wire.send(head("POST", V1 + path, "Content-Type: application/json", length=size))
                answer = wire.answer()
                assert answer is not None
                refusal(answer, 413, code="payload_too_large")


@pytest.mark.parametrize("path", [*POSTS, f"/jobs/{UNKNOWN_ID}/ack"])
def test_an_oversized_body_without_a_length_is_refused(small_server: Server, path: str) -> None:
    """413 as soon as the limit is passed, with chunks that never end."""
    with Api(small_server.url) as api, nothing_enqueued(api), Wire(small_server.url) as wire:
        wire.send(head("POST", V1 + path, "Content-Type: application/json", "Transfer-Encoding: chunked"))
        for _ in range(SMALL // 1000 + 2):
            wire.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        answer = wire.answer()
        assert answer is not None
        refusal(answer, 413, code="payload_too_large")


# -- limits that are not errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("type", "a" * 255),
        ("type", "a.b-c_d.e0"),
        ("id", "01890000-0000-7fff-bfff-ffffffffffff"),
        ("meta", {"k": "x" * 65000}),
        ("schema", "https://example.com/schemas/" + "x" * 2000),
    ],
)
def test_top_level_fields_at_their_limits_are_taken(api: Api, name: str, value: Any) -> None:
    """The largest allowed values come back unchanged."""
    body = {"type": "limit.job", "args": [], "options": {"queue": unique_queue()}, name: value}
    assert api.call("POST", "/jobs", body)["job"][name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue", ("0-9." * 32)),
        ("queue", "0"),
        ("priority", 100),
        ("priority", -100),
        ("timeout_ms", 0),
        ("timeout_ms", 31_536_000_000),
        ("visibility_timeout_ms", 1),
        ("tags", []),
        ("tags", ["t" * 1000] * 100),
    ],
)
def test_options_at_their_limits_are_taken(api: Api, name: str, value: Any) -> None:
    """The largest and smallest allowed values come back unchanged."""
    body = {"type": "limit.job", "args": [], "options": {"queue": unique_queue(), name: value}}
    stored = api.call("POST", "/jobs", body)["job"]
    assert stored[name] == value
    assert api.cancel(stored["id"])["state"] == "cancelled"


def test_minus_zero_is_zero(api: Api) -> None:
    """`-0` is an integer in JSON; as a priority it is 0."""
    body = b'{"type":"zero.job","args":[-0,-0.0],"options":{"queue":"%s","priority":-0,"timeout_ms":-0}}'
    reply = raw(api, "POST", "/jobs", body % unique_queue().encode())
    assert reply.status_code == 201
    assert reply.json()["job"]["priority"] == 0
    assert b'"args":[-0,-0.0]' in reply.content


@pytest.mark.parametrize("worker", ["w" * 255, "\U0001f600" * 255, 'a b/c.d*>\x00\n"\\', " "])
def test_worker_ids_may_hold_anything(api: Api, worker: str) -> None:
    """Any text of 1 to 255 characters names a worker: it beats, fetches, acknowledges."""
    queue = unique_queue()
    stored = api.enqueue(queue)
    [found] = api.fetch(queue, worker_id=worker)
    assert found["worker_id"] == worker
    assert api.heartbeat(worker, [stored["id"]])["jobs_extended"] == [stored["id"]]
    assert worker in worker_ids(api)
    assert api.ack(stored["id"], worker_id=worker)["state"] == "completed"


@pytest.mark.parametrize("number", ["1e400", HUGE, "-1e-400", "9223372036854775808", "0.1e1", "1E+2"])
def test_numbers_beyond_every_range_are_kept_as_text(api: Api, number: str) -> None:
    """In args, meta, unknown fields and results a number stays the very characters that were sent."""
    queue = unique_queue()
    text = number.encode()
    body = b'{"type":"num.job","args":[%s],"meta":{"n":%s},"x_n":%s,"options":{"queue":"%s","n":%s}}'
    reply = raw(api, "POST", "/jobs", body % (text, text, text, queue.encode(), text))
    assert reply.status_code == 201
    fetched = raw(api, "POST", "/workers/fetch", b'{"queues":["%s"]}' % queue.encode())
    for part in (b'"args":[%s]', b'"meta":{"n":%s}', b'"x_n":%s,', b'"options":{"n":%s}'):
        assert part % text in reply.content
        assert part % text in fetched.content
    [job_id] = json.loads(fetched.content, parse_int=str, parse_float=str)["jobs"][0]["id"].split()
    acked = raw(api, "POST", "/workers/ack", b'{"job_id":"%s","result":%s}' % (job_id.encode(), text))
    assert acked.status_code == 200
    assert b'"result":%s}' % text in raw(api, "GET", f"/jobs/{job_id}", b"").content


def test_huge_numbers_beside_a_test_directive_are_kept(api: Api) -> None:
    """Looking for `test_directive` in the meta must not decode the rest of it."""
    body = b'{"type":"num.job","args":[],"meta":{"test_directive":"quiet","n":1e400},"options":{"queue":"%s"}}'
    reply = raw(api, "POST", "/jobs", body % unique_queue().encode())
    assert reply.status_code == 201, reply.text
    assert b'"n":1e400' in reply.content


@pytest.mark.parametrize("path", ["/workers/fetch", "/workers/heartbeat"])
@pytest.mark.parametrize("number", ["1e400", HUGE])
def test_a_huge_number_in_an_unknown_field_is_no_server_error(api: Api, path: str, number: str) -> None:
    """It is refused by name or ignored, never a 5xx."""
    body = b'{"queues":["%s"],"worker_id":"w","x_unknown":%s}' % (unique_queue().encode(), number.encode())
    reply = raw(api, "POST", path, body)
    if reply.status_code != 200:
        refusal(reply, 400, code="invalid_request", field="x_unknown")


def test_escaped_nul_characters_are_data(api: Api) -> None:
    r"""`\u0000` in args, meta, unknown fields, errors and results is kept."""
    queue = unique_queue()
    stored = api.enqueue(queue, args=["a\0b"], meta={"k\0": "\0"})
    assert (stored["args"], stored["meta"]) == (["a\0b"], {"k\0": "\0"})
    api.fetch(queue)
    api.nack(stored["id"], "\0", requeue=False, retryable=False, details={"\0": "\0"})
    assert api.get(stored["id"])["error"]["message"] == "\0"


def test_unknown_fields_are_kept(api: Api) -> None:
    """At the top level and among the options, over the whole life of the job."""
    queue = unique_queue()
    body = {
        "type": "kept.job",
        "args": [],
        "x_text": "\u00e9\U0001f600",
        "x_object": {"b": 1, "a": [None, True]},
        "": "empty key",
        "x\0y": 0,
        "options": {"queue": queue, "x_option": [1.0]},
    }
    stored = api.call("POST", "/jobs", body)["job"]
    [fetched] = api.fetch(queue)
    api.ack(fetched["id"])
    for seen in (stored, fetched, api.get(fetched["id"])):
        assert {name: seen[name] for name in ("x_text", "x_object", "", "x\0y")} == {
            name: body[name] for name in ("x_text", "x_object", "", "x\0y")
        }
        assert seen["options"] == {"x_option": [1.0]}


SERVER_MANAGED = {
    "state": "completed",
    "attempt": 7,
    "max_attempts": 99,
    "created_at": "x",
    "enqueued_at": "x",
    "started_at": "x",
    "completed_at": "x",
    "cancelled_at": "x",
    "discarded_at": "x",
    "error": {"x": 1},
    "errors": [1],
    "result": 5,
    "retry_delay_ms": 5,
    "next_attempt_at": "x",
    "worker_id": "x",
    "parent_results": [],
    "workflow_id": "x",
    "specversion": "9.9",
    "_ojs": ["000010"],
}


@pytest.mark.parametrize("name", SERVER_MANAGED)
def test_server_managed_fields_of_a_client_are_ignored(api: Api, name: str) -> None:
    """A client can neither set nor shadow what the server tells about a job."""
    queue = unique_queue()
    body = json.dumps({name: SERVER_MANAGED[name], "type": "own.job", "args": [], "queue": queue})
    # Escaping a key's first letter must not smuggle it past.
    escaped = body.replace(f'"{name}"', f'"\\u{ord(name[0]):04x}{name[1:]}"', 1)
    for text in (body, escaped):
        reply = raw(api, "POST", "/jobs", text.encode())
        assert reply.status_code == 201
        pairs = json.loads(reply.content, object_pairs_hook=list)[0][1]
        assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
        stored = reply.json()["job"]
        assert stored.get(name) != SERVER_MANAGED[name]
        assert (stored["state"], stored["attempt"], stored["max_attempts"]) == ("available", 0, 3)


def test_the_last_of_duplicate_keys_wins(api: Api) -> None:
    """At the top level and in the options, also where an earlier value was invalid."""
    queue = unique_queue()
    body = (
        b'{"type":1,"type":"dup.job","args":{},"args":[2],"x":1,"x":2,'
        b'"options":5,"options":{"queue":"Q","queue":"%s","priority":"x","priority":3}}'
    )
    reply = raw(api, "POST", "/jobs", body % queue.encode())
    assert reply.status_code == 201
    pairs = json.loads(reply.content, object_pairs_hook=list)[0][1]
    assert len({key for key, _ in pairs}) == len(pairs)
    stored = reply.json()["job"]
    assert (stored["type"], stored["args"], stored["x"], stored["priority"]) == ("dup.job", [2], 2, 3)
    bad = raw(api, "POST", "/jobs", b'{"type":"dup.job","type":1,"args":[],"queue":"%s"}' % queue.encode())
    refusal(bad, 400, field="type")
    [found] = api.fetch(queue, count=5)
    assert found["id"] == stored["id"]


def test_null_means_absent(api: Api) -> None:
    """Every optional field may be null."""
    queue = unique_queue()
    names = ("priority", "timeout_ms", "delay_until", "scheduled_at", "expires_at", "retry", "unique", "tags")
    more = ("visibility_timeout_ms", "metadata", "rate_limit", "pending", "result_ttl")
    options = {"queue": queue, **dict.fromkeys((*names, *more))}
    stored = api.call(
        "POST", "/jobs", {"type": "null.job", "args": [], "id": None, "meta": None, "schema": None, "options": options}
    )["job"]
    assert (stored["state"], stored["priority"], stored["meta"]) == ("available", 0, {})
    api.call("POST", "/jobs", {"type": "null.job", "args": [], "queue": queue, "options": None})
    body = {"queues": [queue], "count": None, "worker_id": None, "visibility_timeout_ms": None}
    [found] = api.call("POST", "/workers/fetch", body)["jobs"]
    beat = {"worker_id": "w", "active_jobs": None, "active_job_ids": None, "visibility_timeout_ms": None}
    assert api.call("POST", "/workers/heartbeat", beat)["jobs_extended"] == []
    error = {"message": "m", "code": None, "type": None, "retryable": None, "details": None}
    nack = {"job_id": found["id"], "worker_id": None, "requeue": None, "error": error}
    assert api.call("POST", "/workers/nack", nack)["state"] == "retryable"


async def consumer_count(server: Server) -> int:
    """How many consumers the work stream has."""
    client = await nats.connect(server.nats_url())
    try:
        return (await client.jetstream().stream_info("OJS")).state.consumer_count
    finally:
        await client.close()


@pytest.mark.slow
async def test_fetching_from_10000_unknown_queues_leaves_nothing_behind(server: Server, api: Api) -> None:
    """No queue, no consumer and no memory of them remains."""
    [worker] = server.worker_pids
    consumers, queues = await consumer_count(server), queue_total(api)
    numbers = itertools.count()

    def ask_for(requests: int) -> None:
        for _ in range(requests):
            assert api.fetch(*(f"unknown-{next(numbers)}" for _ in range(250)), count=10, worker_id="lost") == []

    ask_for(8)  # warm: buffers of the connection, caches of the interpreter
    before = rss_bytes(worker)
    ask_for(40)
    assert rss_bytes(worker) - before < 4_000_000
    assert await consumer_count(server) == consumers
    assert queue_total(api) == queues


@pytest.mark.slow
def test_bad_input_leaves_no_memory_behind(server: Server, api: Api) -> None:
    """Thousands of refused requests do not make the server grow."""
    [worker] = server.worker_pids
    queue = unique_queue("bad")
    bad = [
        b'{"type":"a","args":[],"queue":"%s","priority":1000}' % queue.encode(),
        b'{"type":"a","args":{},"x":"' + b"y" * 100_000 + b'"}',
        b'{"type":"' + b"A" * 10_000 + b'","args":[]}',
        b"[" * 10_000,
        b'{"jobs":[' + b'{"type":"a","args":[]},' * 500 + b"1]}",
    ]

    def send(rounds: int) -> None:
        for _, body, path in itertools.product(range(rounds), bad, POSTS):
            assert raw(api, "POST", path, body).status_code == 400

    send(20)
    before = rss_bytes(worker)
    send(60)
    assert rss_bytes(worker) - before < 4_000_000


# -- headers, methods, paths -----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.0", "1", "1.1", "0.9", "", "x" * 3000, "1.0, 2.0"])
def test_another_protocol_version_is_refused(api: Api, version: str) -> None:
    """422 unsupported with what is supported, on every endpoint, before anything happens."""
    queue = unique_queue("bad")
    body = {"type": "bad.input", "args": [], "options": {"queue": queue}}
    with nothing_enqueued(api, queue):
        for method, path in (("POST", "/jobs"), ("GET", "/health"), ("GET", f"/jobs/{UNKNOWN_ID}")):
            reply = api.request(method, path, body if method == "POST" else None, headers={"OJS-Version": version})
            error = refusal(reply, 422, code="unsupported", field="OJS-Version")
            assert error["details"]["supported"] == ["1.0"]
    assert api.request("GET", "/health", headers={"OJS-Version": "1.0"}).status_code == 200


@pytest.mark.parametrize("given", ["abc", "x" * 128, "550e8400-e29b-41d4-a716-446655440000", "a b"])
@pytest.mark.parametrize("target", ["/health", "/nope", f"/jobs/{UNKNOWN_ID}", "/jobs"])
def test_a_request_id_comes_back(api: Api, target: str, given: str) -> None:
    """X-Request-Id is echoed in the header, on success and on error alike."""
    reply = api.request("GET", target, headers={"X-Request-Id": given})
    assert reply.headers["x-request-id"] == given
    if reply.status_code != 200:
        assert reply.json()["error"]["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "x" * 5000, "a\tb", "\u00e9", "a\x7fb", "\xad"])
@pytest.mark.parametrize("target", ["/health", f"/jobs/{UNKNOWN_ID}"])
def test_an_unusable_request_id_is_replaced(server: Server, target: str, given: str) -> None:
    """One that is empty, too long or not printable ASCII is replaced by an id of the server (or not HTTP at all)."""
    answer = ask(server.url, head("GET", V1 + target, f"X-Request-Id: {given}"))
    if answer.status != 400:
        assert answer.headers["x-request-id"].startswith("req_")


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "ASSERT", "FOO", "HEAD")
PATHS = {
    "/ojs/manifest": {"GET"},
    "/health": {"GET"},
    f"{V1}/health": {"GET"},
    f"{V1}/jobs": {"POST"},
    f"{V1}/jobs/batch": {"POST", "GET", "PATCH", "DELETE"},
    f"{V1}/jobs/{UNKNOWN_ID}": {"GET", "PATCH", "DELETE"},
    f"{V1}/jobs/{UNKNOWN_ID}/cancel": {"POST"},
    f"{V1}/workers/fetch": {"POST"},
    f"{V1}/workers/ack": {"POST"},
    f"{V1}/workers/nack": {"POST"},
    f"{V1}/workers/heartbeat": {"POST"},
    f"{V1}/dead-letter": {"GET", "DELETE"},
    f"{V1}/dead-letter/{UNKNOWN_ID}": {"GET", "DELETE"},
    f"{V1}/dead-letter/{UNKNOWN_ID}/retry": {"POST"},
    f"{V1}/queues": {"GET", "POST"},
    f"{V1}/queues/{UNKNOWN_ID}/stats": {"GET"},
    f"{V1}/queues/{UNKNOWN_ID}/config": {"GET", "PUT", "PATCH"},
    f"{V1}/queues/{UNKNOWN_ID}/purge": {"POST"},
    f"{V1}/admin/queues": {"GET"},
    f"{V1}/admin/queues/{UNKNOWN_ID}/jobs": {"DELETE"},
    f"{V1}/events": {"GET"},
    f"{V1}/admin/reset": {"POST"},
}


@pytest.mark.parametrize("path", PATHS)
def test_wrong_methods_are_refused(server: Server, path: str) -> None:
    """Every method that an endpoint does not have gets 405 or 404 with an error body."""
    for method in METHODS:
        if method in PATHS[path]:
            continue
        answer = ask(server.url, head(method, path))
        assert answer.status in (404, 405), method
        if method != "HEAD":
            refusal(answer, answer.status)


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/ojs",
        "/ojs/",
        "/ojs/v1",
        "/ojs/v2/jobs",
        "/OJS/V1/JOBS",
        "//ojs/v1/jobs",
        f"{V1}/jobs/",
        f"{V1}//jobs",
        f"{V1}/jobs/{UNKNOWN_ID}/nope",
        f"{V1}/jobs/../health",
        f"{V1}/%2e%2e/manifest",
        f"{V1}/nope/" + "a/" * 500,
        f"{V1}/%00",
        f"{V1}/%FF%FE",
        f"{V1}/%",
        f"{V1}/%zz",
        f"{V1}/{{id}}",
        f"{V1}/jobs/x/y/z",
        "/favicon.ico",
        "/.git/config",
    ],
)
def test_unknown_paths_get_404(server: Server, target: str) -> None:
    """Every path without an endpoint is answered in JSON, by GET and by POST."""
    for method in ("GET", "POST"):
        refusal(ask(server.url, head(method, target, length=0 if method == "POST" else None)), 404, code="not_found")


NO_IDS = (
    "x",
    "0",
    "null",
    "-1",
    UNKNOWN_ID,
    UNKNOWN_ID.upper().replace("0", "A"),
    "550e8400-e29b-41d4-a716-446655440000",
    "%00",
    "%0D%0A",
    "%20%20",  # one space is a worker of another test
    "%FF",
    "%ED%A0%80",
    "%F0%9F%98%80",
    "%25",
    "%zz",
    "%",
    "..%2F..%2Fetc",
    "*",
    "%3E",
    "a.b.c",
    "$JS.API.STREAM.DELETE.OJS",
    "a" * 7000,
    "'; DROP TABLE jobs; --".replace(" ", "%20"),
)
BY_ID = (
    ("GET", "/jobs/{id}"),
    ("DELETE", "/jobs/{id}"),
    ("POST", "/jobs/{id}/cancel"),
    ("POST", "/jobs/{id}/activate"),
    ("POST", "/jobs/{id}/ack"),
    ("GET", "/dead-letter/{id}"),
    ("POST", "/dead-letter/{id}/retry"),
    ("DELETE", "/dead-letter/{id}"),
    ("POST", "/admin/workers/{id}/quiet"),
    ("POST", "/admin/workers/{id}/terminate"),
    ("POST", "/admin/workers/{id}/resume"),
)


@pytest.mark.parametrize("job_id", NO_IDS)
def test_path_parameters_that_name_nothing_get_404(server: Server, job_id: str) -> None:
    """Anything may stand where an id belongs; the answer says that there is none."""
    for method, path in BY_ID:
        length = 0 if method == "POST" else None
        answer = ask(server.url, head(method, V1 + path.replace("{id}", job_id), length=length))
        refusal(answer, 404, code="not_found")


@pytest.mark.parametrize(
    "name",
    [
        "Upper",
        "under_score",
        "%20",
        "%00",
        "%0D%0A",
        "%FF",
        "a%2Fb",
        "%E2%82%AC",
        "*",
        "%3E",
        "-a",
        "a" * 129,
        "a" * 7000,
    ],
)
def test_queue_names_in_paths_are_checked(server: Server, api: Api, name: str) -> None:
    """Reading, pausing and resuming a queue that cannot exist is refused by name and creates nothing."""
    before = queue_total(api)
    for method, path in (("GET", ""), ("POST", "/pause"), ("POST", "/resume")):
        length = 0 if method == "POST" else None
        refusal(ask(server.url, head(method, f"{V1}/queues/{name}{path}", length=length)), 400, field="name")
    assert queue_total(api) == before


@pytest.mark.parametrize("size", [10_000, 60_000, 100_000, 1_000_000])
@pytest.mark.parametrize("form", ["/jobs/{x}", "/events?types={x}", "/dead-letter?queue={x}", "/{x}"])
def test_absurdly_long_urls_are_answered(server: Server, api: Api, form: str, size: int) -> None:
    """They get a success, a 4xx or a hang-up, and the server goes on."""
    with Wire(server.url) as wire:
        try:
            wire.send(head("GET", V1 + form.replace("{x}", "a" * size)))
            answer = wire.answer()
        except (BrokenPipeError, ConnectionResetError):
            answer = None
    assert answer is None or answer.status < 500
    assert api.health()["status"] == "ok"


def test_too_many_headers_are_refused(server: Server, api: Api) -> None:
    """Hundreds of headers or one of a megabyte end the request, not the server."""
    for lines in ([f"X-{number}: y" for number in range(2000)], ["X-Big: " + "y" * 1_000_000]):
        with Wire(server.url) as wire:
            try:
                wire.send(head("GET", f"{V1}/health", *lines))
                answer = wire.answer()
            except (BrokenPipeError, ConnectionResetError):
                answer = None
        assert answer is None or 400 <= answer.status < 500
    assert api.health()["status"] == "ok"


def test_pipelined_requests_are_answered_in_order(server: Server, api: Api) -> None:
    """Good and bad requests sent at once on one connection are answered one by one, each for itself."""
    queue = unique_queue("pipe")
    good = json.dumps({"type": "pipe.job", "args": [], "queue": queue}).encode()
    wanted: list[int] = []
    with Wire(server.url) as wire:
        burst = b""
        for number in range(30):
            burst += post(f"{V1}/jobs", good, f"X-Request-Id: good-{number}")
            burst += post(f"{V1}/jobs", b"{", f"X-Request-Id: bad-{number}")
            burst += head("GET", f"{V1}/nope", f"X-Request-Id: none-{number}")
            burst += post(f"{V1}/workers/heartbeat", b'{"worker_id":1}', f"X-Request-Id: beat-{number}")
            wanted += [201, 400, 404, 400]
        wire.send(burst)
        answers = [wire.answer() for _ in wanted]
    assert [answer and answer.status for answer in answers] == wanted
    assert [answer.headers["x-request-id"] for answer in answers[:4] if answer] == [
        "good-0",
        "bad-0",
        "none-0",
        "beat-0",
    ]
    assert len(api.fetch(queue, count=100)) == 30


def test_a_get_with_a_body_is_read_past(server: Server) -> None:
    """A body that a GET does not need is consumed, so that the next request on the connection is understood."""
    with Wire(server.url) as wire:
        for _ in range(3):
            wire.send(head("GET", f"{V1}/health", "Content-Type: application/json", length=14) + b'{"a":[1,2,3]} ')
            answer = wire.answer()
            assert answer is not None
            assert answer.status == 200
        wire.send(post(f"{V1}/nope", b'{"x":1}') + head("GET", f"{V1}/health"))
        assert [answer.status for answer in (wire.answer(), wire.answer()) if answer] == [404, 200]


def test_hundreds_of_idle_connections_do_not_hinder(server: Server, api: Api) -> None:
    """Clients that connect and say nothing, or half a request, keep nobody from being served."""
    wires = [Wire(server.url) for _ in range(300)]
    try:
        for number, wire in enumerate(wires):
            if number % 2:
                wire.send(half(b'{"type":"bad.input"', f"{V1}/jobs"))
        assert api.health()["status"] == "ok"
        assert api.enqueue(unique_queue())["state"] == "available"
    finally:
        for wire in wires:
            wire.close()
    assert poll(lambda: api.health()["status"] == "ok", what="the server answers")
