"""Many jobs in one request (ojs-bulk-operations, ojs-admin-api section 8, ojs-dead-letter section 6)."""

from ojs_fast import _core
from ojs_fast.api.bulk import ATOMICITIES, DONE, ITEMS_OF_A_FILTER
from ojs_fast.api.jobs import PRIORITIES
from ojs_fast.api.openapi.components.common import COUNTED
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    array,
    boolean,
    either,
    integer,
    one_of,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.core.idempotency import MAX_KEY
from ojs_fast.core.jobs import MAX_BATCH

CONFIRM = boolean("Must be true: it concerns every job that matches", const=True)
_KEY = string("Instead of the header Idempotency-Key, which goes first", minLength=1, maxLength=MAX_KEY)
_STATES = either(
    one_of(_core.STATES), array(one_of(_core.STATES), minItems=1), text="One state or several; unset: see the request"
)

_FILTER = request(
    {},
    {
        "queue": string("Jobs of this queue"),
        "type": string("Jobs of this type; `email.*` takes all that start so"),
        "state": _STATES,
        "states": _STATES,
        "since": time("Created at or after"),
        "until": time("Created before"),
        "enqueued_after": time("Last made available after"),
        "enqueued_before": time("Last made available before"),
        "priority": integer("Jobs of exactly this priority", PRIORITIES[0], PRIORITIES[-1]),
        "meta": open_object("Jobs whose `meta` has all these members with these values"),
    },
    "What a job must be like; a member that is missing asks for nothing",
    additionalProperties=False,
    examples=[{"queue": "email", "type": "email.*", "state": "scheduled"}],
)

_BULK_ENQUEUE = request(
    {"jobs": array(ref("JobRequest"), f"At most {MAX_BATCH} (more: 413)", minItems=1)},
    {
        "atomicity": one_of(ATOMICITIES, "`partial`: each on its own; `atomic`: all or none", default=ATOMICITIES[0]),
        "idempotency_key": _KEY,
    },
    "Jobs to enqueue",
)

_BULK_SELECTION = {
    "oneOf": [
        {"required": ["job_ids"], "properties": {"job_ids": {"type": "array"}, "filter": {"type": "null"}}},
        {"required": ["filter"], "properties": {"filter": {"type": "object"}, "job_ids": {"type": "null"}}},
    ],
}


def selection(*, keyed: bool = True) -> Schema:
    """Jobs by their ids or by a filter."""
    return request(
        {},
        {
            "job_ids": array(string(), f"The jobs; at most {MAX_BATCH} (more: 413)"),
            "filter": ref("JobFilter"),
            "atomicity": string(const=ATOMICITIES[0]),
            **({"idempotency_key": _KEY} if keyed else {}),
        },
        f"Either `job_ids` or `filter`. Of what a filter finds the first {ITEMS_OF_A_FILTER} are told one by one.",
        **_BULK_SELECTION,
        examples=[{"filter": {"queue": "email", "state": "scheduled"}}],
    )


_BULK_ENQUEUED = answer(
    {
        "total": integer(low=0),
        "succeeded": integer(low=0),
        "failed": integer(low=0),
        "items": array(
            answer(
                {"index": integer("Its place in the request", 0), "status": one_of(("created", "duplicate", "failed"))},
                {"job": ref("Job"), "error": ref("ItemError")},
            )
        ),
    },
    text="What became of each job",
)


def acted(action: str) -> Schema:
    """What an action on many jobs did, one by one."""
    done = DONE[action]
    item = answer(
        {"index": integer(low=0), "job_id": string(), "status": one_of((done, "skipped"))},
        {
            **({} if action == "delete" else {"job": ref("Job")}),
            "reason": string("Why it was skipped"),
            "error": ref("ItemError"),
        },
    )
    return answer(
        {
            "total_matched": integer(low=0),
            "total": integer(low=0),
            done: integer(low=0),
            "succeeded": integer(low=0),
            "skipped": integer(low=0),
            "failed": integer(low=0),
            "items": array(item),
        }
    )


def admin_selection(default_states: str) -> Schema:
    """A filter, in a member of its own or beside `confirm`."""
    members = _FILTER["properties"]
    return {
        "type": "object",
        "required": ["confirm"],
        "description": f"A filter, as a member or beside `confirm`; without states: {default_states}",
        "anyOf": [
            {"required": ["filter"], "properties": {"filter": ref("JobFilter"), "confirm": CONFIRM}},
            {"properties": {"filter": {"type": "null"}, "confirm": CONFIRM, **members}, "additionalProperties": False},
        ],
        "examples": [{"confirm": True, "filter": {"queue": "email"}}],
    }


def admin_acted(action: str) -> Schema:
    """The summary of an action on all jobs that match."""
    return answer({"action": string(const=action), **COUNTED, DONE[action]: integer("As `succeeded`", 0)})


_DEAD_FILTER = {
    "queue": string(),
    "type": string("`email.*` takes all that start so"),
    "error_type": string("The type of the last error"),
    "since": time("Died at or after"),
    "until": time("Died before"),
    "older_than": time("Died before; the earlier one of both counts"),
}
_DEAD_SELECTION: Schema = {
    "type": "object",
    "required": ["confirm"],
    "properties": {
        "confirm": CONFIRM,
        "filter": {"type": "object", "properties": _DEAD_FILTER, "additionalProperties": False},
        **_DEAD_FILTER,
    },
    "additionalProperties": False,
    "description": "Which dead letters; the members of the filter may stand beside `confirm` too",
    "examples": [{"confirm": True, "filter": {"queue": "email"}}],
}

SCHEMAS: dict[str, Schema] = {
    "JobFilter": _FILTER,
    "BulkEnqueueRequest": _BULK_ENQUEUE,
    "BulkSelection": selection(),
    "BulkEnqueued": _BULK_ENQUEUED,
    "BulkItemsOfCancel": acted("cancel"),
    "BulkItemsOfRetry": acted("retry"),
    "BulkItemsOfDelete": acted("delete"),
    "BulkItemsOfGet": acted("get"),
    "DeadLetterSelection": _DEAD_SELECTION,
}
