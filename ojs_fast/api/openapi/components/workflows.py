"""Workflows (ojs-workflows, ojs-http-binding section 14)."""

from typing import Any

from ojs_fast.api.openapi.components.common import UUID
from ojs_fast.api.openapi.components.jobs import JOB_TYPE
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    anything,
    array,
    integer,
    mapping,
    nullable,
    one_of,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.core.workflows.model import BATCH, CALLBACKS, CHAIN, GRAPH, GROUP, TYPES
from ojs_fast.core.workflows.parse import MAX_CHAIN, MAX_ID, MAX_JOBS, MAX_NESTING
from ojs_fast.core.workflows.service import STATES

_NAME = string("A name for people", minLength=1, maxLength=MAX_ID)
_STEP_ID = string("Its name within the workflow; numbered when missing", minLength=1, maxLength=MAX_ID)
_JOB: dict[str, Schema] = {
    "type": JOB_TYPE,
    "args": array(anything()),
}
_JOB_MORE: dict[str, Schema] = {"meta": open_object(), "schema": string(), "options": ref("JobOptions")}
_OPTIONS = ref("JobOptions", "For all its jobs; their own go first")
_STEP = request(_JOB, {"id": _STEP_ID, **_JOB_MORE}, "A job, as in JobRequest without `id`", additionalProperties=True)
_MEMBER: Schema = {"anyOf": [ref("WorkflowStep"), ref("NestedWorkflow")]}
_PLAIN = {"type": "order.validate", "args": [123]}


def _listed(name: str, type_: str, most: int) -> Schema:
    return request(
        {"type": string(const=type_), name: array(_MEMBER, minItems=1, maxItems=most)},
        {"name": _NAME, "options": _OPTIONS},
    )


def _batch() -> Schema:
    callback = request(_JOB, _JOB_MORE, "A job", additionalProperties=True)
    callbacks = request(
        {},
        dict.fromkeys(CALLBACKS, callback),
        "What runs when all jobs have ended; at least one of them",
        additionalProperties=False,
        minProperties=1,
    )
    return request(
        {
            "type": string(const=BATCH),
            "jobs": array(_MEMBER, minItems=1, maxItems=MAX_JOBS),
            "callbacks": callbacks,
        },
        {"name": _NAME, "options": _OPTIONS},
    )


def _graph() -> Schema:
    step = request(
        _JOB,
        {
            "id": _STEP_ID,
            "depends_on": array(string(minLength=1, maxLength=MAX_ID), "Ids of the steps before it, without a cycle"),
            **_JOB_MORE,
        },
        additionalProperties=True,
    )
    return request(
        {"steps": array({"anyOf": [step, ref("NestedWorkflow")]}, minItems=1, maxItems=MAX_JOBS)},
        {"type": string(const=GRAPH), "name": _NAME, "options": _OPTIONS},
    )


_KINDS = {
    "WorkflowChain": {**_listed("steps", CHAIN, MAX_CHAIN), "description": "One step after the other"},
    "WorkflowGroup": {**_listed("jobs", GROUP, MAX_JOBS), "description": "All at once"},
    "WorkflowBatch": {**_batch(), "description": "All at once, then callbacks"},
    "WorkflowGraph": {**_graph(), "description": "Steps that wait for those they depend on"},
}
_EXAMPLES: list[Any] = [
    {"type": "chain", "name": "order", "steps": [_PLAIN, {"type": "payment.charge", "args": []}]},
    {"type": "batch", "jobs": [_PLAIN], "callbacks": {"on_complete": {"type": "report.make", "args": []}}},
    {"steps": [{"id": "a", **_PLAIN}, {"id": "b", "depends_on": ["a"], "type": "payment.charge", "args": []}]},
]

_TIMES = {"started_at": time(), "completed_at": time(), "cancelled_at": time()}
_TALLY: dict[str, Schema] = {
    "created_at": time(),
    "job_count": integer("Jobs in all, those of nested workflows included", 0),
    "completed_count": integer(low=0),
    "failed_count": integer(low=0),
    "cancelled_count": integer(low=0),
}
_COUNTERS = ("total", "completed", "failed", "cancelled")
_SHOWN_STEP = answer(
    {
        "id": string(),
        "type": string("Of the job, or of the nested workflow"),
        "index": integer(low=0),
        "state": string("As the state of a job, or `waiting`, `pending`, `skipped`, `running`"),
        "job_id": nullable(UUID),
    },
    {
        "depends_on": array(string()),
        "attempt": integer(low=0),
        "workflow_id": string("Of a nested workflow"),
        "started_at": time(),
        "completed_at": time(),
        "result": anything("Unless it is too long"),
        "result_ref": string("The path of the job with the whole result"),
    },
    "A step, job or callback of a workflow",
)
_HEAD: dict[str, Schema] = {
    "id": UUID,
    "type": one_of(TYPES),
    "name": string(),
    "state": one_of(STATES),
    **_TALLY,
    "metadata": answer(_TALLY, _TIMES),
}
_HEAD_SOMETIMES: dict[str, Schema] = {
    **_TIMES,
    **{f"{kind}_{counter}": integer(low=0) for kind in ("steps", "jobs") for counter in _COUNTERS},
    "steps_already_completed": integer("Of a cancelled one", 0),
    "parent_id": UUID,
    "retries": integer("How often it was retried", 1),
}
_FAILURES: dict[str, Schema] = {
    "failed_step_index": integer(low=0),
    "failed_job_ids": array(UUID),
    "failed_workflow_ids": array(UUID),
    "errors": array(open_object(), "Why, for the first of them: `job_id`, `index`, `code`, `message` …"),
}
_STEPS: dict[str, Schema] = {
    "steps": array(ref("WorkflowStepState")),
    "steps_pagination": answer(
        {"offset": integer(low=0), "limit": integer(low=0), "total": integer(low=0)}, {"next_offset": integer(low=0)}
    ),
}
_STEPS_SOMETIMES: dict[str, Schema] = {
    "jobs": array(ref("WorkflowStepState"), "The steps again, of a group or batch"),
    "callbacks": mapping(ref("WorkflowStepState")),
}

SCHEMAS: dict[str, Schema] = {
    **_KINDS,
    "WorkflowRequest": {
        "anyOf": [ref(name) for name in _KINDS],
        "description": f"A workflow of at most {MAX_JOBS} jobs, nested at most {MAX_NESTING} deep",
        "examples": _EXAMPLES,
    },
    "WorkflowStep": _STEP,
    "NestedWorkflow": {
        "type": "object",
        "properties": {name: array(open_object(), minItems=1, maxItems=MAX_JOBS) for name in ("steps", "jobs")},
        "anyOf": [{"required": ["steps"]}, {"required": ["jobs"]}],
        "description": "A workflow as a member of another one, in the shapes of WorkflowRequest",
    },
    "WorkflowStepState": _SHOWN_STEP,
    "WorkflowSummary": answer(_HEAD, _HEAD_SOMETIMES, "A workflow without its steps"),
    "Workflow": answer(
        {**_HEAD, **_STEPS}, {**_HEAD_SOMETIMES, **_FAILURES, **_STEPS_SOMETIMES}, "A workflow with a page of its steps"
    ),
    "WorkflowResponse": answer(
        {"workflow": ref("Workflow"), **_HEAD},
        {**_HEAD_SOMETIMES, **_FAILURES},
        "The workflow, and its members at the top, where the JavaScript SDK reads them",
    ),
    "WorkflowList": answer({"workflows": array(ref("WorkflowSummary")), "pagination": ref("Pagination")}),
}
