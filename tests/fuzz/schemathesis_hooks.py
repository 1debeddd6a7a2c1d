"""What schemathesis cannot know: ids of things that exist, values of our formats, rules beyond JSON Schema.

Loaded by schemathesis itself (`test_schemathesis.py` names it); the environment says where the server is.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import AllowHeaderMismatch, RejectedPositiveData, UnsupportedMethodResponse

from ojs_fast.api.openapi.bounds import QUEUE_NAME, UUID7
from tests.support.openapi import described

AT_ONCE = 10
QUEUE = "schemathesis"
WORKER = "schemathesis-worker"
JOB: dict[str, Any] = {"type": "fuzz.job", "args": [1], "options": {"queue": QUEUE}}
BLOCK = "ojs-block-timeout"
_numbers = itertools.count(1)
_lock = threading.RLock()
_http = httpx.Client(
    base_url=f"{os.environ['OJS_FUZZ_URL']}/ojs/v1",
    headers={"Authorization": f"Bearer {os.environ['OJS_FUZZ_KEY']}"},
    timeout=30,
)

load_all_checks()

# -- values of our formats -----------------------------------------------------------------------

EXPRESSIONS = ("0 9 * * MON-FRI", "*/5 * * * *", "0 0 L * *", "@hourly", "@every 1h30m", "30 0 12 1 1 *")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")
# Times are at or after 1970 (`_core_envelope.pxi`).
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - as asked
schemathesis.openapi.format("cron", st.sampled_from(EXPRESSIONS))
schemathesis.openapi.format("time-zone", st.sampled_from(ZONES))
schemathesis.openapi.format("uuid", st.from_regex(UUID7, fullmatch=True))
schemathesis.openapi.format("date-time", MOMENTS.map(lambda moment: moment.isoformat().replace("+00:00", "Z")))

# -- ids of things that exist --------------------------------------------------------------------


def _post(path: str, body: Any = None) -> dict[str, Any]:
    answer = _http.post(path, json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _jobs(queue: str = QUEUE, **options: Any) -> list[str]:
    jobs = [{**JOB, "options": {"queue": queue, **options}}] * AT_ONCE
    return [job["id"] for job in _post("/jobs/batch", {"jobs": jobs})["jobs"]]


def _active() -> list[str]:
    queue = f"{QUEUE}-{next(_numbers)}"  # a new one: others may have been paused or limited by what is tried
    _jobs(queue)
    return [job["id"] for job in _post("/workers/fetch", {"queues": [queue], "count": AT_ONCE})["jobs"]]


def _failed(code: str) -> list[str]:
    ids = _active()
    for job_id in ids:
        _post("/workers/nack", {"job_id": job_id, "error": {"code": code, "message": "as asked"}})
    return ids


def _completed() -> list[str]:
    ids = _active()
    for job_id in ids:
        _post("/workers/ack", {"job_id": job_id})
    return ids


def _workflows() -> list[str]:
    body = {"type": "group", "jobs": [JOB, JOB]}
    return [_post("/workflows", body)["workflow"]["id"] for _ in range(AT_ONCE)]


def _workers() -> list[str]:
    _post("/workers/heartbeat", {"worker_id": WORKER})
    return [WORKER] * AT_ONCE


MAKERS: dict[str, Callable[[], list[str]]] = {
    "waiting": _jobs,
    "pending": lambda: _jobs(pending=True),
    "active": _active,
    "completed": _completed,
    "discarded": lambda: _failed("DISCARD"),
    "dead": lambda: _failed("DEAD_LETTER"),
    "workflow": _workflows,
    "worker": _workers,
}
#: By the end of a path, the first one that fits; `/ojs/v1` and `/admin` left out.
NEEDS = (
    ("/jobs/{id}/events", "completed"),  # so that the stream ends
    ("/jobs/{id}/ack", "active"),
    ("/jobs/{id}/nack", "active"),
    ("/jobs/{id}/progress", "active"),
    ("/jobs/{id}/checkpoint", "active"),
    ("/checkpoints/{id}", "active"),
    ("/checkpoints/{id}/resume", "active"),
    ("/jobs/{id}/activate", "pending"),
    ("/jobs/{id}/retry", "discarded"),
    ("/dead-letter/{id}", "dead"),
    ("/dead-letter/{id}/retry", "dead"),
    ("/workflows/{id}", "workflow"),
    ("/workflows/{id}/cancel", "workflow"),
    ("/workflows/{id}/retry", "workflow"),
    ("/workers/{id}", "worker"),
    ("/workers/{id}/health", "worker"),
    ("/workers/{id}/quiet", "worker"),
    ("/workers/{id}/terminate", "worker"),
    ("/workers/{id}/resume", "worker"),
    ("/jobs/{id}", "waiting"),
    ("/jobs/{id}/cancel", "waiting"),
)
_made: dict[str, list[str]] = {}


def _one(kind: str) -> str:
    with _lock:
        if not _made.get(kind):
            _made[kind] = MAKERS[kind]()
        return _made[kind].pop()


def _is_valid(case: Any) -> bool:
    return case.meta is None or case.meta.generation.mode.is_positive


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Give valid requests the id of something that exists, in the state that they need."""
    path = case.operation.path
    for name in case.headers or {}:
        if name.lower() == BLOCK and case.headers[name].isdigit():
            case.headers[name] = str(min(int(case.headers[name]), 1))  # or it waits for minutes, as it should
    if path.endswith("/config") and QUEUE_NAME.fullmatch(str((case.path_parameters or {}).get("name"))):
        # A queue that takes only some types of jobs, or few of them, would refuse those of other tests.
        case.path_parameters["name"] = f"configured-{next(_numbers)}"
    if path.endswith("/v1/queues") and isinstance(case.body, dict) and QUEUE_NAME.fullmatch(str(case.body.get("name"))):
        case.body["name"] = f"created-{next(_numbers)}"
    if not _is_valid(case):
        return
    kind = next((kind for end, kind in NEEDS if path.endswith(end)), "")
    if kind and case.path_parameters:
        case.path_parameters["id"] = _one(kind)
    elif (
        path.endswith(("/workers/ack", "/workers/nack", "/workers/progress"))
        and isinstance(case.body, dict)
        and "job_id" in case.body
    ):
        case.body["job_id"] = _one("active")


# -- one of everything that is the same everywhere -----------------------------------------------


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """In the short run: each body in one of both media types, the headers of all requests at some operations only."""
    if os.environ.get("OJS_FUZZ_ALL"):
        return
    number = 0
    for item in raw_schema["paths"].values():
        for operation in item.values():
            number += 1
            content = operation.get("requestBody", {}).get("content", {})
            for unused in sorted(content)[number % 2 :: 2]:
                del content[unused]
            if number % 10:
                operation["parameters"] = [one for one in operation["parameters"] if "$ref" not in one]


# -- rules beyond JSON Schema --------------------------------------------------------------------

#: Field and message of a refusal that a valid request may get all the same, and why no schema can say so.
BEYOND = (
    (r"(.*\.)?max_interval", r"not below initial_interval", "one member bounds another one"),
    (r"type", "\ufffd", "schemathesis writes it for what has no UTF-8, also where the pattern takes neither"),
    (r"page", r"within the first", "page and per_page together"),
    (r"cursor|after", r"", "comes from an earlier answer"),
    (r"type", r"; queue '[^']*' takes", "the queue was configured so"),
    (r".*\.meta_keys", r"required with meta", "depends on the values in keys"),
    (r".*args_keys.*", r"", "depends on what args hold"),
    (r"(.*\.)?(rate|period|key)", r"is missing|not both", "one member needs another one, or none beside it"),
    (
        r"expression|cron|schedule|(job_template\.)?type|concurrency|progress|(.*\.)?callbacks",
        r"is missing|is empty",
        "null is the same as missing",
    ),
    (r".*", r" is -?[0-9.e+]+\.0; expected an? (positive )?integer", "JSON Schema takes 1.0 for an integer"),
    (r"url", r"", "which addresses are allowed is found out by asking for them"),
    (r"expires_at", r"in the future", "depends on the clock"),
    (r".*depends_on.*|.*steps.*|.*jobs.*", r"step|cycle|levels|elements|array|args|a job", "edges of a graph, nesting"),
)
#: Of two names for one thing the first one counts, and the second one is not looked at.
ALIASES = (
    ("scheduled_at", "delay_until"), ("timeout_ms", "timeout"), ("visibility_timeout_ms", "visibility_timeout"),
    ("retry", "retry_policy"), ("job_template", "type"), ("job_template", "args"), ("job_template", "meta"),
    ("job_template", "options"), ("job_template", "schema"), ("expression", "cron"), ("expression", "schedule"),
    ("cron", "schedule"), ("event_types", "types"), ("per_page", "limit"), ("page", "offset"), ("cursor", "offset"),
    ("limit", "per_page"), ("offset", "page"), ("state", "states"),
)  # fmt: skip
#: Parameters that are text or lists of it.
TEXTS = ("queue", "queues", "type", "types", "job_types", "event_types")
#: What schemathesis adds where a document names all that there is.
UNDEFINED = "x-schemathesis-unknown-property"


def _is_word(value: Any) -> bool:
    return re.fullmatch(r"(?i)true|false|[0-9.]+", str(value)) is not None


def _has_both(value: Any) -> bool:
    if isinstance(value, dict):
        if any(first in value and second in value for first, second in ALIASES):
            return True
        return any(map(_has_both, value.values()))
    return isinstance(value, list) and any(map(_has_both, value))


def _is_beyond(response: Any) -> bool:
    told = response.json()
    if "items" in told:
        return True  # the request was taken; what it asks for was not possible for any of its jobs
    error = told["error"]
    field, message = str(error.get("details", {}).get("field", "")), str(error.get("message", ""))
    return any(re.fullmatch(where, field) and re.search(what, message) for where, what, _ in BEYOND)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Keep what is a disagreement of document and server."""
    if isinstance(failure, RejectedPositiveData):
        return not _is_beyond(response)
    if isinstance(failure, UnsupportedMethodResponse | AllowHeaderMismatch):
        # `/jobs/fetch` is also `/jobs/{id}`, whose methods it takes too.
        return len(described().templates(case.operation.path)) == 1
    if isinstance(failure, AcceptedNegativeData):
        if any(value == "" or isinstance(value, list) for value in (case.query or {}).values()):
            return False  # an empty parameter is one that is not there, of one that comes twice the last counts
        if any("null" in str(value).split(",") for value in (case.query or {}).values()):
            return False  # in a list of words null is sent as the word
        if any(name in TEXTS and _is_word(value) for name, value in (case.query or {}).items()):
            return False  # in a query `false` is a word like others
        if UNDEFINED in (case.headers or {}):
            return False  # proxies and clients add headers of their own
        has_key = "Idempotency-Key" in (case.headers or {}) and "idempotency_key" in str(case.body)
        return not (has_key or _has_both(case.body) or _has_both(case.query))
    return True


@schemathesis.check
def closed_answers(ctx: Any, response: Any, case: Any) -> None:
    """As the tests of the API: what is not described is not answered either."""
    path = str(response.request.path_url).partition("?")[0]
    headers = {name.lower(): values[0] for name, values in response.headers.items()}
    described().check(response.request.method, path, response.status_code, headers, response.content)
