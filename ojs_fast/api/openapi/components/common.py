"""Shapes that every resource shares: errors, pages, ids; and the headers of requests and answers."""

from ojs_fast import errors
from ojs_fast.api import http
from ojs_fast.api.http import VERSION
from ojs_fast.api.openapi import bounds
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    array,
    boolean,
    exactly,
    integer,
    mapping,
    number,
    one_of,
    open_object,
    string,
)
from ojs_fast.core.queue_config import STRATEGIES

JOB_ID = "019414d4-8b2e-7c3a-b5d1-f0e2a3b4c5d6"
QUEUE_NAME: Schema = string(
    "Queue name", pattern=exactly(bounds.QUEUE_NAME), maxLength=bounds.MAX_QUEUE_NAME, examples=["email"]
)
UUID: Schema = string("UUIDv7, in lower case", format="uuid", pattern=exactly(bounds.UUID7), examples=[JOB_ID])
JSON_TYPE = "application/json"


def _codes() -> set[str]:
    # Those of requests: other protocols have errors of their own.
    kinds = [one for module in (errors, http) for one in vars(module).values() if isinstance(one, type)]
    return {kind.code for kind in kinds if issubclass(kind, errors.OJSError)}


_ERROR = answer(
    {
        "code": one_of(sorted(_codes()), "What kind of error it is"),
        "message": string("For people: names the field, the value and what would be accepted"),
        "retryable": boolean("Whether the same request may succeed later"),
        "request_id": string("The X-Request-Id of the answer"),
        "type": string("The code again"),
        "docs_url": string("Where the code is described", format="uri"),
    },
    {
        "details": open_object("The facts: `field`, `received`, `expected`, `existing_job_id`, `current_state` …"),
        "hint": string("What to do"),
        "queue": string("The full queue (429)"),
        "depth": integer("Its jobs that have not ended (429)", 0),
        "bound": integer("Its bound (429)", 0),
        "strategy": one_of(STRATEGIES, "What it does when it is full (429)"),
        "max_batch_size": integer("How many jobs a bulk request may name (413)", 1),
    },
    "What went wrong",
)

_ITEM_ERROR = answer(
    {"code": string("As in Error, or `rolled_back`"), "message": string(), "retryable": boolean()},
    {"details": open_object()},
    "Why one job of many failed",
)

_PAGINATION = answer(
    {
        "total": integer("How many there are in all", 0),
        "limit": integer("The most that one page holds", 1),
        "offset": integer("How many were passed over", 0),
        "has_more": boolean("Whether another page follows"),
    },
    {"next_cursor": string("The `cursor` of the next page")},
    "Where this page stands",
)

_PAGES = answer(
    {"total": integer("How many there are in all", 0), "page": integer("From 1 on", 1), "per_page": integer(low=1)},
    text="Where this page stands, in the shape of ojs-admin-api",
)

_MORE_PAGES = answer({**_PAGES["properties"], "has_more": boolean("Whether another page follows")})

_COUNTED = answer(
    {
        "matched": integer("Jobs that the filter found", 0),
        "succeeded": integer("Of these, done", 0),
        "failed": integer("Of these, refused", 0),
        "errors": array(answer({"job_id": UUID, "error": string()}), "Why, for the first of them"),
    }
)

#: What a request about many reports, whatever it did.
COUNTED: dict[str, Schema] = _COUNTED["properties"]

_EVENT = answer(
    {
        "specversion": string(const="1.0"),
        "id": string("`evt_` and a UUIDv7", pattern="^evt_"),
        "type": string("Such as `job.completed`", examples=["job.completed"]),
        "source": string("Which node it happened at", format="uri"),
        "time": string(format="date-time"),
        "subject": string("The id of the job, or the name of what it is about"),
        "data": open_object("For jobs: `job_id`, `job_type`, `queue`, `state`, `attempt`, `timestamp` and more"),
    },
    text="An event envelope (ojs-events section 2)",
)

_HEALTH = answer(
    {
        "status": one_of(("ok", "degraded")),
        "version": string("Of the server"),
        "uptime_seconds": integer(low=0),
        "backend": answer(
            {"type": string(const="nats"), "status": one_of(("healthy", "unhealthy"))},
            {"latency_ms": number("How long NATS took to answer", 0), "error": string("Why it did not")},
        ),
    },
    text="Whether the server and NATS are well",
)

_MANIFEST = answer(
    {
        "specversion": string(const="1.0"),
        "ojs_version": string(const="1.0"),
        "implementation": answer({"name": string(), "version": string(), "language": string()}),
        "conformance_level": integer("0 to 4", 0, 4),
        "conformance_tier": one_of(("parser", "runtime", "full"), "How deeply the level is implemented"),
        "unique_job_strength": one_of(("strong", "best_effort"), "`strong`: never two, whatever happens at once"),
        "protocols": array(string()),
        "backend": string(),
        "capabilities": mapping(boolean(), "What the server can do"),
        "extensions": array(string(format="uri"), "The extensions that it implements"),
        "endpoints": mapping(string(format="uri-reference"), "Where to find what"),
    },
    text="The conformance manifest (ojs-http-binding section 21)",
)

SCHEMAS: dict[str, Schema] = {
    "Error": _ERROR,
    "ErrorResponse": answer({"error": {"$ref": "#/components/schemas/Error"}}),
    "ItemError": _ITEM_ERROR,
    "Pagination": _PAGINATION,
    "PagePagination": _PAGES,
    "MorePagination": _MORE_PAGES,
    "Event": _EVENT,
    "Health": _HEALTH,
    "Manifest": _MANIFEST,
}

#: Headers of answers, by the name of the component.
HEADERS: dict[str, tuple[str, Schema]] = {
    "OJS-Version": ("The version of the Open Job Spec", string(const=VERSION.decode())),
    "X-Request-Id": ("The request's own id, or one that the server made", string(minLength=1, maxLength=128)),
    "Location": ("The path of what was made", string(format="uri-reference")),
    "Retry-After": ("When to try again, in seconds", integer(low=0)),
    "WWW-Authenticate": ("What is asked for", string(const="Bearer")),
    "Idempotency-Replayed": ("This answer was given to the same request before", string(const="true")),
    "X-OJS-Queue-Depth": ("How many jobs the bounded queue holds", integer(low=0)),
    "X-OJS-Queue-Bound": ("How many it may hold", integer(low=0)),
    "X-OJS-Queue-Pressure": ("How full it is: 1.00 is full", number(low=0)),
    "X-RateLimit-Limit": ("The most that the limit allows", integer(low=0)),
    "X-RateLimit-Remaining": ("What is left of it", integer(low=0)),
    "X-RateLimit-Reset": ("When its window ends, in seconds since 1970", integer(low=0)),
    "X-OJS-Progress": ("How far the job is, from 0 to 1", number(low=0, high=1)),
    "X-OJS-Batch-Size": ("How many jobs the request was about", integer(low=0)),
    "X-OJS-Max-Batch-Size": ("How many it may be about", integer(low=1)),
    "Cache-Control": ("Whether to keep the answer", string()),
    "Content-Security-Policy": ("What the page may load: nothing from elsewhere", string()),
}
#: These come with some answers only.
OPTIONAL_HEADERS = frozenset(HEADERS) - {"OJS-Version", "X-Request-Id", "WWW-Authenticate"}
