"""`/admin`: jobs, workers, totals."""

from ojs_fast.api.admin import DEEPEST, PERIODS_MINUTES, SORTS, STATES
from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.jobs import STATE
from ojs_fast.api.openapi.components.workers import WORKER_ID
from ojs_fast.api.openapi.operation import Operation, Parameter, choice, count, moment, ok, path, query
from ojs_fast.api.openapi.operations.jobs import JOB_ID, NO_JOB
from ojs_fast.api.openapi.schema import answer, boolean, integer, ref, string

TAG = "Admin"
_WORKER = path("id", WORKER_ID, "The worker")
_NO_WORKER = "No such worker beat lately"
#: What `admin.job_filter` reads, but for the times, whose meaning depends on the list.
OF_QUEUE = query("queue", string(), "Of this queue")
OF_TYPE = query("type", string(), "Of this type; `email.*` takes all that start so")
JOB_QUERY: tuple[Parameter, ...] = (OF_QUEUE, choice("state", STATES, text="In this state"), OF_TYPE)
#: What `admin.paging` reads.
PAGING: tuple[Parameter, ...] = (
    query("page", integer(low=1, high=DEEPEST + 1, default=1), f"No page beyond the first {DEEPEST:,} entries"),
    count("per_page", 20, 1, 100),
    count("limit", 20, 1, 100, "Another name of `per_page`, which goes first"),
    count("offset", 0, 0, DEEPEST, "Instead of `page`, which goes first"),
)


def _direct(verb: str, summary: str) -> Operation:
    return Operation(
        f"admin{verb.title()}Worker", "POST", f"{V1}/admin/workers/{{id}}/{verb}", TAG, summary,
        ok("Directive", "What its next heartbeat is answered"),
        parameters=(_WORKER,),
        errors={404: _NO_WORKER},
    )  # fmt: skip


_JOBS = (
    Operation(
        "adminListJobs", "GET", V1 + "/admin/jobs", TAG, "Find jobs in any state",
        ok("AdminJobList", "A page of them"),
        parameters=(
            *JOB_QUERY,
            moment("since", "Created at or after"),
            moment("until", "Created before"),
            choice("sort", tuple(SORTS), "created_at", "Orders the jobs of a page"),
            choice("order", ("asc", "desc"), "desc"),
            *PAGING,
        ),
    ),
    Operation(
        "adminGetJob", "GET", V1 + "/admin/jobs/{id}", TAG, "Look at a job", ok("AdminJob", "The job"),
        parameters=(JOB_ID,),
        errors={404: NO_JOB},
    ),
    Operation(
        "adminCancelJob", "POST", V1 + "/admin/jobs/{id}/cancel", TAG, "Cancel a job",
        ok(
            {
                "allOf": [
                    ref("AdminJob"),
                    {"type": "object", "required": ["previous_state"], "properties": {"previous_state": STATE}},
                ]
            },
            "The job, cancelled",
        ),
        parameters=(JOB_ID,),
        errors={404: NO_JOB, 409: "The job has ended"},
    ),
    Operation(
        "adminRetryJob", "POST", V1 + "/admin/jobs/{id}/retry", TAG, "Run a discarded job again",
        ok("AdminJob", "The job, available again with all runs back"),
        parameters=(JOB_ID,),
        errors={404: NO_JOB, 409: "The job is not discarded"},
    ),
)  # fmt: skip

_WORKERS = (
    Operation(
        "adminListWorkers", "GET", V1 + "/admin/workers", TAG, "List workers",
        ok("WorkerList", "A page of those that beat lately"),
        parameters=PAGING,
    ),
    Operation(
        "adminGetWorker", "GET", V1 + "/admin/workers/{id}", TAG, "Look at a worker",
        ok("WorkerDetail", "The worker"),
        parameters=(_WORKER,),
        errors={404: _NO_WORKER},
    ),
    Operation(
        "adminRemoveWorker", "DELETE", V1 + "/admin/workers/{id}", TAG, "Give up a silent worker",
        ok(answer({"worker_id": WORKER_ID, "deregistered": boolean(const=True)}), "Its jobs are requeued"),
        parameters=(_WORKER,),
        errors={404: _NO_WORKER, 409: "It beat lately"},
    ),
    _direct("quiet", "Let a worker fetch nothing more"),
    _direct("terminate", "Ask a worker to stop"),
    _direct("resume", "Let a worker go on"),
)  # fmt: skip

_TOTALS = (
    Operation("adminStats", "GET", V1 + "/admin/stats", TAG, "Count all jobs", ok("AdminStats", "Totals")),
    Operation(
        "adminStatsHistory", "GET", V1 + "/admin/stats/history", TAG, "Follow the last hour",
        ok("StatsHistory", "The last hour in spans"),
        parameters=(
            choice("period", tuple(PERIODS_MINUTES), "5m", "How long a span is"),
            query("queue", string(), "Of this queue; unset: of all"),
            moment("since", "From then on"),
            moment("until", "Before then"),
        ),
    ),
    Operation(
        "adminSystemConfig", "GET", V1 + "/admin/system/config", TAG, "See the settings in force",
        ok("SystemConfig", "The settings"),
    ),
    Operation(
        "adminReset", "POST", V1 + "/admin/reset", TAG, "Wipe everything, for tests",
        ok(answer({"reset": boolean(const=True)}), "Nothing is left"),
        "Only with `OJS_ENABLE_RESET=true`.",
    ),
)  # fmt: skip

OPERATIONS = (*_JOBS, *_WORKERS, *_TOTALS)
