"""Jobs: the envelope, the request that makes one, its policies."""

from typing import Any

from ojs_fast import _core
from ojs_fast.api.jobs import PRIORITIES
from ojs_fast.api.openapi import bounds
from ojs_fast.api.openapi.components.common import QUEUE_NAME, UUID
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    anything,
    array,
    boolean,
    duration,
    either,
    exactly,
    integer,
    number,
    one_of,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.core.jobs import MAX_BATCH
from ojs_fast.core.unique import CONFLICTS, DEFAULT_STATES, DIMENSIONS
from ojs_fast.core.unique import STATES as UNIQUE_STATES

JOB_TYPE = string(
    "Dot-separated, in lower case",
    pattern=exactly(bounds.JOB_TYPE), maxLength=bounds.MAX_JOB_TYPE, examples=["email.send"],
)  # fmt: skip
STATE = one_of(_core.STATES, "Where it is in its life; `completed`, `discarded` and `cancelled` are final")
PRIORITY = integer("Higher ones go first", PRIORITIES[0], PRIORITIES[-1], default=0)
OPEN = {"additionalProperties": True}
_MAX_ATTEMPTS, _INITIAL_MS, _COEFFICIENT, _MAX_MS, _JITTER, _STRATEGY, _, _ = _core.DEFAULT_RETRY


def _duration_of(milliseconds: int) -> str:
    return _core.format_duration_ms(milliseconds)


RETRY_POLICY = request(
    {},
    {
        "max_attempts": integer("Runs in all, the first one included", 0, bounds.MAX_ATTEMPTS, default=_MAX_ATTEMPTS),
        "initial_interval": duration("The wait before the first retry", default=_duration_of(_INITIAL_MS)),
        "initial_interval_ms": integer("The same in milliseconds", 1, bounds.MAX_INTERVAL_MS),
        "backoff_coefficient": number("By how much the wait grows", 1.0, bounds.MAX_COEFFICIENT, default=_COEFFICIENT),
        "max_interval": duration("The longest wait, not below the first", default=_duration_of(_MAX_MS)),
        "max_interval_ms": integer("The same in milliseconds", 1, bounds.MAX_INTERVAL_MS),
        "jitter": boolean("Spread the waits by half of their length", default=_JITTER),
        "backoff_strategy": one_of(bounds.BACKOFF_STRATEGIES, "How the wait grows", default=_STRATEGY),
        "backoff_type": one_of(bounds.BACKOFF_STRATEGIES, "Another name of `backoff_strategy`, which goes first"),
        "non_retryable_errors": array(
            string(), "Error types or codes after which there is no retry; `Auth.*` stands for all that start so"
        ),
        "on_exhaustion": one_of(bounds.EXHAUSTIONS, "What becomes of a job out of runs", default="discard"),
    },
    "When a failed job runs again (ojs-retry). A bad policy is answered by 422.",
    **OPEN,
    examples=[{"max_attempts": 5, "initial_interval": "PT2S", "on_exhaustion": "dead_letter"}],
)

UNIQUE_POLICY = request(
    {},
    {
        "keys": array(one_of(DIMENSIONS), "What must be equal for two jobs to be the same", default=["type"]),
        "key": array(one_of(DIMENSIONS), "Another name of `keys`, which goes first"),
        "args_keys": array(string(), "Of `args`, only these members of its object"),
        "meta_keys": array(string(), "Of `meta`, only these members; required with `meta` in `keys`"),
        "period": duration("For how long after its creation a job is in the way; not set: as long as `states` say"),
        "states": array(
            one_of(UNIQUE_STATES), "In which states a job is in the way", minItems=1, default=list(DEFAULT_STATES)
        ),
        "on_conflict": one_of(CONFLICTS, "What to do then; `use_existing` is `ignore`", default="reject"),
    },
    "Which other job keeps this one out (ojs-unique-jobs)",
    additionalProperties=False,
    examples=[{"keys": ["type", "args"], "period": "PT1H", "on_conflict": "ignore"}],
)

_MOMENT_OR_DURATION: Schema = either(time(), string(pattern=r"^\+?P([1-9]\d?D|T[1-9]\d{0,3}[HMS])$"))


def _moment(text: str) -> Schema:
    return {**_MOMENT_OR_DURATION, "description": text, "examples": ["2030-01-31T08:00:00Z", "+PT10M"]}


def _seconds(text: str) -> Schema:
    return either(integer(low=0, high=bounds.MAX_JOB_SECONDS), duration(), text=text)


def _options() -> dict[str, Schema]:
    return {
        "queue": {**QUEUE_NAME, "default": "default"},
        "priority": PRIORITY,
        "scheduled_at": _moment("Not before: a time from 1970 on, or a duration from now"),
        "delay_until": _moment("Another name of `scheduled_at`, which goes first"),
        "expires_at": _moment("Discard it when it has not started by then"),
        "timeout_ms": integer(
            "How long one attempt may run; 0: as the server is set (`OJS_EXECUTION_TIMEOUT_MS`)",
            0, bounds.MAX_JOB_MS,
        ),
        "timeout": _seconds("The same in seconds or as a duration"),
        "visibility_timeout_ms": integer(
            "How long a worker has it without a heartbeat; not set: as the fetch says", 1, bounds.MAX_JOB_MS
        ),
        "visibility_timeout": _seconds("The same in seconds or as a duration"),
        "retry": ref("RetryPolicy"),
        "retry_policy": ref("RetryPolicy", "Another name of `retry`, which goes first"),
        "unique": ref("UniquePolicy"),
        "rate_limit": ref("RateLimit"),
        "tags": array(string(), "For people and filters"),
        "metadata": open_object("Merged into `meta`, whose members go first"),
        "pending": boolean("Wait until it is activated", default=False),
        "result_ttl": integer(
            "Seconds that the finished job is kept; 0: its result is not kept, -1: for ever", -1,
            bounds.MAX_RESULT_TTL_S,
        ),
    }  # fmt: skip


JOB_OPTIONS = request(
    {}, _options(), "How and when the job runs. Other members are kept and given back.", additionalProperties=True
)
_ARGS = array(anything(), "What the handler gets", examples=[["user@example.com", "welcome"]])
_META = open_object(f"For the whole way of the job; at most {bounds.MAX_META_BYTES} bytes")

JOB_REQUEST = request(
    {"type": JOB_TYPE, "args": _ARGS},
    {
        "id": {**UUID, "description": "Its id; made by the server when missing"},
        "meta": _META,
        "schema": string("Name of a schema for `args`; kept, not enforced"),
        "options": ref("JobOptions"),
    },
    "A job to enqueue. Options may stand beside `type` too (those in `options` go first); members that the server sets "
    "itself are ignored, unknown ones kept and given back.",
    additionalProperties=True,
    examples=[{"type": "email.send", "args": ["user@example.com", "welcome"], "options": {"queue": "email"}}],
)

_JOB_ERROR = answer(
    {"code": string(), "type": string(), "message": string(), "attempt": integer(low=0), "occurred_at": time()},
    {"retryable": anything(), "details": anything("As the worker told")},
    "Why an attempt failed, with all that the worker told",
)

_JOB_SOMETIMES: dict[str, Schema] = {
    "enqueued_at": time("Since when workers may have it"),
    "activated_at": time(),
    "started_at": time("When its last attempt began"),
    "completed_at": time(),
    "cancelled_at": time(),
    "discarded_at": time(),
    "scheduled_at": time("Not before"),
    "expires_at": time(),
    "next_attempt_at": time(),
    "retry_delay_ms": integer("How long the wait before its last retry is or was", 0),
    "worker_id": string("Who has it, or had it last"),
    "error": ref("JobError", "Why the last attempt failed"),
    "errors": array(ref("JobError"), "Every failed attempt, oldest first"),
    "result": anything("What the worker gave back"),
    "parent_results": anything("In a workflow: the results of the steps before, an array"),
    "workflow_id": UUID,
    "checkpoint": anything("What a worker saved of it while it ran; see Checkpoint"),
    "tags": array(string()),
    "schema": string(),
    "timeout_ms": integer(low=0),
    "timeout": _seconds(""),
    "visibility_timeout_ms": integer(low=1),
    "visibility_timeout": _seconds(""),
    "retry": ref("RetryPolicy", "As it was enqueued"),
    "unique": ref("UniquePolicy", "As it was enqueued"),
    "rate_limit": ref("RateLimit", "As it was enqueued"),
    "result_ttl": integer(),
    "options": open_object("Unknown members of its options"),
}

JOB = {
    **answer(
        {
            "specversion": string(const="1.0"),
            "id": UUID,
            "type": JOB_TYPE,
            "queue": QUEUE_NAME,
            "state": STATE,
            "priority": PRIORITY,
            "attempt": integer("Runs so far", 0),
            "max_attempts": integer("Runs in all", 1),
            "created_at": time(),
            "args": _ARGS,
            "meta": _META,
        },
        _JOB_SOMETIMES,
        "A job as it is now (ojs-core section 5). Members that its client added stand beside these.",
    ),
    **OPEN,
}


def job_with(**members: Schema) -> Schema:
    """A job with members that only this answer has."""
    return {"allOf": [ref("Job"), {"type": "object", "required": list(members), "properties": members}]}


def one_job(**members: Schema) -> Schema:
    """The answer `{"job": …}`, with members in the job or not."""
    return answer({"job": job_with(**members) if members else ref("Job")})


BATCH_REQUEST = request(
    {"jobs": array(ref("JobRequest"), minItems=1, maxItems=MAX_BATCH)}, text="Jobs to enqueue, all or none"
)

_EXAMPLE: dict[str, Any] = {
    "specversion": "1.0", "id": UUID["examples"][0], "type": "email.send", "queue": "email", "state": "available",
    "priority": 0, "attempt": 0, "max_attempts": 3, "created_at": "2026-02-12T10:30:00.000Z",
    "enqueued_at": "2026-02-12T10:30:00.000Z", "args": ["user@example.com", "welcome"], "meta": {},
}  # fmt: skip
JOB["examples"] = [_EXAMPLE]

SCHEMAS: dict[str, Schema] = {
    "Job": JOB,
    "JobRequest": JOB_REQUEST,
    "JobOptions": JOB_OPTIONS,
    "RetryPolicy": RETRY_POLICY,
    "UniquePolicy": UNIQUE_POLICY,
    "JobError": {**_JOB_ERROR, **OPEN},
    "BatchRequest": BATCH_REQUEST,
}
