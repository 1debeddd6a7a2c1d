"""What dashboards and operators get (ojs-admin-api, ojs-dead-letter section 10)."""

from ojs_fast.api.openapi.components.common import COUNTED
from ojs_fast.api.openapi.components.queues import PERCENTILES
from ojs_fast.api.openapi.components.workers import WORKER_ID
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    anything,
    array,
    boolean,
    integer,
    mapping,
    nullable,
    one_of,
    ref,
    string,
    time,
)

_WORKER: dict[str, Schema] = {
    "id": WORKER_ID,
    "worker_id": WORKER_ID,
    "hostname": nullable(string()),
    "queues": array(anything()),
    "concurrency": nullable(integer()),
    "active_jobs": integer("How many jobs it told of", 0),
    "directive": string("What it was told to do"),
    "state": string("`running`, `quiet`, `terminate`, `stale`, or as it told"),
    "started_at": time("Its first heartbeat"),
    "last_heartbeat_at": time(),
}
_WORKER_SOMETIMES: dict[str, Schema] = {"pid": integer(), "labels": anything()}

SCHEMAS: dict[str, Schema] = {
    "Worker": answer(_WORKER, _WORKER_SOMETIMES, "A worker that beat lately, as it told"),
    "WorkerDetail": answer(
        {**_WORKER, "active_job_ids": array(string(), "The jobs that it told of")}, _WORKER_SOMETIMES
    ),
    "WorkerList": answer(
        {
            "items": array(ref("Worker")),
            "summary": answer({state: integer(low=0) for state in ("total", "running", "quiet", "stale")}),
            "pagination": ref("PagePagination"),
        }
    ),
    "AdminStats": answer(
        {
            "queues": integer(low=0),
            "workers": integer(low=0),
            "jobs": ref("JobCounts"),
            "throughput": ref("Throughput"),
            **PERCENTILES,
            "uptime_seconds": integer("Of the node that answers", 0),
            "computed_at": time(),
        },
        text="Totals over all queues",
    ),
    "StatsHistory": answer(
        {
            "period": string(),
            "data": array(
                answer(
                    {
                        "timestamp": time("When the span began"),
                        "processed": integer(low=0),
                        "failed": integer(low=0),
                        "avg_duration_ms": integer(low=0),
                        "avg_wait_ms": integer(low=0),
                    }
                )
            ),
        },
        text="The last hour in spans, oldest first",
    ),
    "SystemConfig": answer(
        {"settings": array(answer({"name": string(), "value": string("Secrets are masked"), "is_default": boolean()}))}
    ),
    "AdminJobList": answer(
        {
            "items": array(ref("Job")),
            "pagination": answer(
                {
                    "total": integer("How many match; at least so many when it is not exact", 0),
                    "page": integer(low=1),
                    "per_page": integer(low=1),
                    "total_is_exact": boolean(),
                }
            ),
        }
    ),
    "AdminJob": {
        "allOf": [ref("Job"), {"type": "object", "required": ["job"], "properties": {"job": ref("Job")}}],
        "description": "The job, flat and as `job`",
    },
    "DeadLetterList": answer({"jobs": array(ref("Job"), "Oldest first"), "pagination": ref("Pagination")}),
    "AdminDeadLetterList": answer({"items": array(ref("Job"), "Oldest first"), "pagination": ref("PagePagination")}),
    "DeadLetterStats": answer(
        {
            "total": integer(low=0),
            "by_queue": mapping(integer(low=1)),
            "by_error_type": mapping(integer(low=1)),
            "oldest_at": nullable(time()),
            "newest_at": nullable(time()),
            "retention": answer(
                {"max_age": string("ISO 8601 duration; P0D: for ever"), "max_count": nullable(integer(low=1))}
            ),
        }
    ),
    "DeadLettersRetried": answer({"action": string(const="retry"), **COUNTED, "retried": integer(low=0)}),
    "DeadLettersDeleted": answer({"action": string(const="delete"), **COUNTED, "purged_count": integer(low=0)}),
    "Directive": answer({"worker_id": WORKER_ID, "state": one_of(("quiet", "terminate", "running"))}),
}
