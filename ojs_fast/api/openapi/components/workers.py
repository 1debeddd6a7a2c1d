"""What workers send and get."""

from ojs_fast import _core
from ojs_fast.api import workers as api
from ojs_fast.api.openapi.components.common import QUEUE_NAME, UUID
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    anything,
    array,
    boolean,
    either,
    integer,
    long,
    one_of,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.core.workers import DIRECTIVES, LEAVING

WORKER_ID = string("The worker, a name that it gives itself", minLength=1, maxLength=api.MAX_WORKER_ID)
_VISIBILITY_MS = integer("How long the jobs stay with the worker without a heartbeat", 1, api.MAX_TIMEOUT_MS)
_JOB_ID = {**string("The job", minLength=1), "examples": UUID["examples"]}
_LEAVING = ", ".join(f"`{state}`" for state in sorted(LEAVING))
_WORD = f"At most {api.MAX_ABOUT_BYTES} bytes"

_FETCH = request(
    {
        "queues": array(
            QUEUE_NAME, "Looked at in this order", minItems=1, maxItems=api.MAX_QUEUES, examples=[["email", "default"]]
        )
    },
    {
        "count": integer("How many jobs at most", 1, api.MAX_COUNT, default=1),
        "worker_id": WORKER_ID,
        "visibility_timeout_ms": _VISIBILITY_MS,
    },
    "From where and how many",
    examples=[{"queues": ["email"], "count": 1, "worker_id": "worker-1"}],
)

_FAILURE = either(
    request(
        {"message": string("What happened", minLength=1)},
        {
            "code": string(
                "`DISCARD`, `FAIL`, `DEAD_LETTER` and `RETRY` decide what becomes of the job", default="handler_error"
            ),
            "type": string("Compared with `non_retryable_errors`; else `details.error_class`, else the code"),
            "retryable": boolean("false: as if no runs were left"),
            "rate_limit_until": time("Until when the limit's key starts no job (ojs-rate-limiting section 9)"),
            "details": anything(),
        },
        "Other members are kept",
        additionalProperties=True,
    ),
    string("The message alone", minLength=1),
    text="Why it failed",
)
_ERROR_EXAMPLE = {"code": "handler_error", "message": "what happened"}


def ack(*, with_id: bool) -> Schema:
    """A worker has done a job; its id in the body or in the path."""
    return request(
        {"job_id": _JOB_ID} if with_id else {},
        {"worker_id": WORKER_ID, "result": anything("What the job gives back, any JSON")},
        "Which job, and its result",
        examples=[
            {**({"job_id": UUID["examples"][0]} if with_id else {}), "worker_id": "worker-1", "result": {"sent": True}}
        ],
    )


def nack(*, with_id: bool) -> Schema:
    """A worker has failed, or gives a job back; the id in the body or in the path."""
    schema = request(
        {"job_id": _JOB_ID} if with_id else {},
        {"worker_id": WORKER_ID, "requeue": boolean("Give it back: it is available again at once", default=False)},
        "Which job, and why; `error` is required unless it is requeued",
        anyOf=[{"required": ["error"]}, {"required": ["requeue"], "properties": {"requeue": {"const": True}}}],
        examples=[{**({"job_id": UUID["examples"][0]} if with_id else {}), "error": _ERROR_EXAMPLE}],
    )
    schema["properties"]["error"] = ref("Failure")
    return schema


_ACKED = answer(
    {
        "acknowledged": boolean(const=True),
        "id": UUID,
        "job_id": UUID,
        "state": string(const="completed"),
        "completed_at": time(),
        "job": ref("Job"),
    }
)
_NACKED = answer(
    {
        "id": UUID,
        "job_id": UUID,
        "state": one_of(_core.STATES, "`retryable`, `discarded` or (requeued) `available`"),
        "attempt": integer("Runs so far", 0),
        "max_attempts": integer(low=1),
        "job": ref("Job"),
    },
    {
        "next_attempt_at": time("When it runs again"),
        "retry_delay_ms": integer(low=0),
        "discarded_at": time(),
        "completed_at": time(),
    },
)

_BEAT = request(
    {"worker_id": WORKER_ID},
    {
        "active_jobs": either(
            array(string(), maxItems=api.MAX_BEAT_JOBS), long(), text="The jobs that it runs: their ids, or how many"
        ),
        "active_job_ids": array(string(), "The ids, beside a number in `active_jobs`", maxItems=api.MAX_BEAT_JOBS),
        "job_id": {**_JOB_ID, "description": "One job that it runs, instead of a list or beside it"},
        "visibility_timeout_ms": {**_VISIBILITY_MS, "description": "By how much to extend them; else each by its own"},
        "hostname": string(_WORD),
        "pid": long(),
        "queues": array(anything(), f"The queues that it looks at. {_WORD}"),
        "concurrency": long("How many jobs it runs at once"),
        "labels": either(array(anything()), open_object(), text=_WORD),
        "state": string(f"What it does: `running`; while it says {_LEAVING} it gets no jobs"),
    },
    "A sign of life, and what the worker tells about itself",
    examples=[{"worker_id": "worker-1", "active_jobs": UUID["examples"]}],
)
_HEARD = answer(
    {
        "acknowledged": boolean(const=True),
        "state": one_of(DIRECTIVES, "What the worker is to do: go on, fetch nothing more, or stop"),
        "directive": one_of(DIRECTIVES, "The same"),
        "jobs_extended": array(string(), "The jobs that stay with it"),
        "server_time": time(),
    }
)

_HEALTH = answer(
    {
        "worker_id": WORKER_ID,
        "state": string("As it told, or the directive"),
        "active_jobs": integer("How many jobs it told of", 0),
        "last_heartbeat_at": time(),
    }
)

SCHEMAS: dict[str, Schema] = {
    "FetchRequest": _FETCH,
    "Failure": _FAILURE,
    "AckRequest": ack(with_id=True),
    "NackRequest": nack(with_id=True),
    "AckResponse": _ACKED,
    "NackResponse": _NACKED,
    "HeartbeatRequest": _BEAT,
    "HeartbeatResponse": _HEARD,
    "WorkerHealth": _HEALTH,
}
