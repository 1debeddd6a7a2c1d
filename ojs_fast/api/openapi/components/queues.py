"""Queues, their configuration and statistics (ojs-queue-config, ojs-backpressure, ojs-http-binding section 11)."""

from ojs_fast.api.openapi.components.common import QUEUE_NAME
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    array,
    boolean,
    duration,
    integer,
    nullable,
    number,
    one_of,
    ref,
    request,
    string,
    time,
)
from ojs_fast.core.queue_admin import PURGEABLE
from ojs_fast.core.queue_config import MAX_CONCURRENCY, MAX_DEPTH, MAX_SECONDS, MAX_TYPES, STRATEGIES

_BACKPRESSURE = request(
    {},
    {
        "max_depth": integer("Most jobs that have not ended; 0: no bound", 0, MAX_DEPTH),
        "strategy": one_of(STRATEGIES, "What becomes of a job beyond it", default="reject"),
        "warning_threshold": number("From which share on 201 carries X-OJS-Queue-Pressure", 0.0, 1.0, default=0.8),
        "max_size_bytes": integer("Not supported: only 0", 0, 0),
    },
    "The bound of the queue (ojs-backpressure)",
    additionalProperties=False,
)
_WHOLE_SECONDS = duration("ISO 8601, whole seconds", examples=["P7D"])
_WHOLE_SECONDS["pattern"] = _WHOLE_SECONDS["pattern"].replace(r"([.,]\d{1,3})?|0[.,]\d{0,2}[1-9]", "")
_RETENTION = request(
    {},
    {"completed": _WHOLE_SECONDS, "cancelled": _WHOLE_SECONDS, "discarded": _WHOLE_SECONDS},
    "How long ended jobs are kept",
    additionalProperties=False,
)

_CONFIG = request(
    {},
    {
        "backpressure": _BACKPRESSURE,
        "max_size": integer("Another way to say `backpressure.max_depth`", 0, MAX_DEPTH),
        "overflow_policy": one_of(STRATEGIES, "Beside `max_size`: its strategy"),
        "concurrency": integer("Most jobs that are active at once, over all workers; 0: none", 0, MAX_CONCURRENCY),
        "retention": _RETENTION,
        "visibility_timeout": integer("Seconds, for jobs that do not say", 1, MAX_SECONDS),
        "default_timeout": integer("Seconds that an attempt may run, for jobs that do not say", 1, MAX_SECONDS),
        "default_retry": ref("RetryPolicy", "For jobs that have none"),
        "allowed_job_types": array(
            string(minLength=1, maxLength=255),
            "Types that it takes; `email.*` stands for all that start so (others: 422)",
            minItems=1,
            maxItems=MAX_TYPES,
        ),
    },
    "Members given replace, null removes, the rest stays",
    additionalProperties=False,
    examples=[{"backpressure": {"max_depth": 1000, "strategy": "reject"}, "retention": {"completed": "P1D"}}],
)
#: `max_size` and `backpressure` say the same, so only one of them may be set.
_CONFIG["not"] = {
    "required": ["max_size", "backpressure"],
    "properties": {"max_size": {"type": "integer"}, "backpressure": {"type": "object"}},
}

_QUEUE: dict[str, Schema] = {
    "name": QUEUE_NAME,
    "status": one_of(("active", "paused")),
    "state": one_of(("active", "paused"), "The same"),
    "paused": boolean("Whether its jobs are kept back"),
    "created_at": time(),
}
_ABOUT: dict[str, Schema] = {**_QUEUE, "config": ref("QueueConfig"), "updated_at": time()}
_COUNTS: dict[str, Schema] = {
    state: integer(low=0)
    for state in ("available", "active", "scheduled", "retryable", "completed", "discarded", "cancelled")
}
DEPTH = integer("Jobs that have not ended", 0)
_BOUND = {"max_depth": integer("Its bound", 1)}
_PERCENTILES = answer({f"p{share}": nullable(integer(low=0)) for share in (50, 95, 99)}, text="In milliseconds")
PERCENTILES: dict[str, Schema] = {
    "latency_ms": {**_PERCENTILES, "description": "Running times of this hour and the last one"},
    "wait_ms": {**_PERCENTILES, "description": "Waiting times of this hour and the last one"},
}
_DETAILS: dict[str, Schema] = {
    "completed_last_hour": integer(low=0),
    "failed_last_hour": integer(low=0),
    "avg_duration_ms": integer(low=0),
    "avg_wait_ms": integer(low=0),
    "throughput_per_second": number(low=0),
    "throughput": ref("Throughput"),
    **PERCENTILES,
    "oldest_available_at": nullable(time("Since when the oldest job waits")),
    "oldest_waiting_ms": integer(low=0),
}


def _with_queue(members: dict[str, Schema], rest: dict[str, Schema] | None = None) -> Schema:
    """A queue, flat and as `queue`: clients read the one or the other."""
    return answer({**members, "queue": answer(members), **(rest or {})})


_FLAT: dict[str, Schema] = {**_QUEUE, **_COUNTS, "depth": DEPTH}
_STATS = answer(
    {
        **_FLAT,
        "queue": answer(_FLAT, _BOUND),
        "stats": answer({"queue": QUEUE_NAME, "depth": DEPTH, **_COUNTS, **_DETAILS}, _BOUND),
        "computed_at": time(),
    },
    _BOUND,
    "How many jobs it has in each state, exact over all nodes; ended ones since it was created",
)
_PAUSED = {"paused_at": time(), "resumed_at": time()}

PURGE = request(
    {"confirm": boolean("Must be true: it cannot be undone", const=True)},
    {
        "states": array(
            one_of(PURGEABLE), "Jobs that wait are cancelled, ended ones deleted", minItems=1,
            default=["available", "scheduled", "retryable"],
        ),
        "older_than": time("Only jobs that ended, or became available, before"),
    },
    "What to remove",
    additionalProperties=False,
    examples=[{"confirm": True, "states": ["available"]}],
)  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "Queue": answer(_QUEUE),
    "QueueConfig": _CONFIG,
    "QueueCreated": _with_queue(_ABOUT),
    "QueueDetail": _with_queue(_ABOUT, {"stats": answer({"depth": DEPTH, **_COUNTS})}),
    "QueueAdminDetail": _with_queue(
        _ABOUT,
        {"counts": answer(_COUNTS), "depth": DEPTH, "configuration": ref("QueueConfig"), **_DETAILS},
    ),
    "QueueAdminItem": answer({**_QUEUE, "counts": answer(_COUNTS), "depth": DEPTH, **_DETAILS}),
    "QueueConfiguration": answer({**_ABOUT, "queue": QUEUE_NAME, "configuration": ref("QueueConfig")}),
    "QueueStats": _STATS,
    "QueuePaused": answer({**_QUEUE, "queue": answer(_QUEUE, _PAUSED)}, _PAUSED),
    "JobCounts": answer(_COUNTS),
    "Throughput": answer(
        {"processed_per_minute": number(low=0), "failed_per_minute": number(low=0)}, text="Over five minutes"
    ),
    "PurgeRequest": PURGE,
}
