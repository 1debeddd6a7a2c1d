"""`/cron`: jobs by schedule."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.cron import CRON_NAME
from ojs_fast.api.openapi.operation import Answer, Operation, choice, count, ok, path
from ojs_fast.api.openapi.schema import ref

TAG = "Cron"
_NAME = path("name", CRON_NAME, "The name of the cron job")
_NONE = "There is no such cron job"
_RULES = "A retry policy breaks a rule, the queue does not take this type, or the OJS-Version is unknown"
_TOO_LARGE = "The body or the job template is too large"
_BUSY = "It was changed by somebody else at the same moment"

OPERATIONS = (
    Operation(
        "listCronJobs", "GET", V1 + "/cron", TAG, "List cron jobs", ok("CronList", "A page of them, by name"),
        parameters=(
            choice("enabled", ("true", "false"), text="Only those that run, or do not"),
            count("limit", 50, 1, 200),
            count("offset", 0, 0, 10**9),
            count("cursor", 0, 0, 10**9, "`next_cursor` of the page before; goes before `offset`"),
            count("page", 1, 1, 10**9, "Instead of `offset`"),
            count("per_page", 50, 1, 200, "Instead of `limit`"),
        ),
    ),
    Operation(
        "registerCronJob", "POST", V1 + "/cron", TAG, "Register a cron job, or update it",
        {
            201: Answer("A new one", ref("CronResponse")),
            200: Answer("One that was there before, changed", ref("CronResponse")),
        },
        body=ref("CronRequest"),
        errors={409: _BUSY, 413: _TOO_LARGE, 422: _RULES},
    ),
    Operation(
        "getCronJob", "GET", V1 + "/cron/{name}", TAG, "Look at a cron job", ok("CronResponse", "The cron job"),
        parameters=(_NAME,),
        errors={404: _NONE},
    ),
    Operation(
        "changeCronJob", "PATCH", V1 + "/cron/{name}", TAG, "Change a cron job",
        ok("CronResponse", "The cron job as it is now"),
        parameters=(_NAME,),
        body=ref("CronChange"),
        errors={404: _NONE, 409: _BUSY, 413: _TOO_LARGE, 422: _RULES},
    ),
    Operation(
        "deleteCronJob", "DELETE", V1 + "/cron/{name}", TAG, "Delete a cron job",
        ok("CronDeleted", "What it was"),
        "Jobs that it made stay.",
        (_NAME,),
        errors={404: _NONE},
    ),
)  # fmt: skip
