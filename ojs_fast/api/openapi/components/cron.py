"""Jobs by schedule (ojs-cron, ojs-http-binding section 13)."""

from ojs_fast.api.openapi.components.common import UUID
from ojs_fast.api.openapi.components.jobs import JOB_TYPE
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    anything,
    array,
    boolean,
    exactly,
    integer,
    nullable,
    one_of,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.core.cron_entry import MAX_DESCRIPTION, MAX_NAME, MAX_TEMPLATE_BYTES, NAME, POLICIES, POLICY_ALIASES

CRON_NAME = string("The cron job", pattern=exactly(NAME), maxLength=MAX_NAME, examples=["daily-report"])
_EXPRESSION = string(
    "Five fields, or six with seconds in front; `L`, `W`, `#`, names, `@daily` and its like, `@every 1h30m`",
    minLength=1,
    maxLength=1000,
    format="cron",
    examples=["0 9 * * MON-FRI"],
)
_ARGS = array(anything(), "What the handler gets", default=[])

_TEMPLATE = request(
    {"type": JOB_TYPE},
    {"args": _ARGS, "meta": open_object(), "schema": string(), "options": ref("JobOptions")},
    f"The job of each run, at most {MAX_TEMPLATE_BYTES} bytes. `id` and times are set by the server.",
    **{"not": {"anyOf": [{"required": [name]} for name in ("id", "scheduled_at", "delay_until")]}},
    additionalProperties=True,
)
_CHANGE: dict[str, Schema] = {
    "expression": _EXPRESSION,
    "cron": {**_EXPRESSION, "description": "Another name of `expression`, which goes first"},
    "schedule": {**_EXPRESSION, "description": "Another name of `expression`, which goes first"},
    "timezone": string(
        "UTC or an IANA name", minLength=1, maxLength=100, format="time-zone", default="UTC", examples=["Europe/Berlin"]
    ),
    "overlap_policy": one_of(
        (*POLICIES, *POLICY_ALIASES),
        "While the run before is not over; `cancel` is `cancel_previous`",
        default=POLICIES[0],
    ),
    "enabled": boolean("Whether it runs", default=True),
    "description": string(maxLength=MAX_DESCRIPTION),
    "job_template": ref("JobTemplate"),
    "type": {**JOB_TYPE, "description": "Instead of `job_template`: its type"},
    "args": _ARGS,
    "meta": open_object(),
    "options": ref("JobOptions"),
    "schema": string(),
}
_EXAMPLE = {
    "name": "daily-report", "expression": "0 9 * * MON-FRI", "timezone": "Europe/Berlin",
    "job_template": {"type": "report.make", "args": ["daily"]},
}  # fmt: skip


_SHOWN = answer(
    {
        "name": CRON_NAME,
        "expression": string(),
        "cron": string("The same"),
        "timezone": string(),
        "overlap_policy": one_of(POLICIES),
        "enabled": boolean(),
        "status": one_of(("active", "disabled")),
        "description": nullable(string()),
        "job_template": ref("JobTemplate"),
        "type": JOB_TYPE,
        "args": _ARGS,
        "created_at": nullable(time()),
        "updated_at": nullable(time()),
        "last_run_at": nullable(time()),
        "next_run_at": nullable(time("None while it is disabled")),
        "run_count": integer(low=0),
        "last_job_id": nullable(UUID),
    },
    {"meta": open_object(), "options": ref("JobOptions"), "schema": string()},
    "A cron job; its template also flat",
)
_BOTH: dict[str, Schema] = {"cron": ref("Cron"), "cron_job": ref("Cron", "The same")}

SCHEMAS: dict[str, Schema] = {
    "Cron": {**_SHOWN, "additionalProperties": True},
    "JobTemplate": _TEMPLATE,
    "CronRequest": request(
        {"name": CRON_NAME},
        _CHANGE,
        "A cron job: `job_template`, or its members `type`, `args`, `meta`, `options` flat",
        anyOf=[
            {"required": [expression, template]}
            for expression in ("expression", "cron", "schedule")
            for template in ("job_template", "type")
        ],
        examples=[_EXAMPLE],
    ),
    "CronChange": request({}, _CHANGE, "The fields to change", examples=[{"enabled": False}]),
    "CronResponse": answer(_BOTH),
    "CronDeleted": answer({**_BOTH, "deleted": boolean(const=True), "name": CRON_NAME}),
    "CronList": answer(
        {
            "crons": array(ref("Cron")),
            "cron_jobs": array(ref("Cron"), "The same"),
            "count": integer("How many there are in all", 0),
            "pagination": ref("Pagination"),
        }
    ),
}
