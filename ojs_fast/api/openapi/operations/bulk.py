"""`/jobs/bulk…` and `/admin/jobs/bulk/…`: many jobs, each with an outcome of its own."""

from ojs_fast.api.bulk import ADMIN_STATES, CANCELLED_BY_DEFAULT, DONE
from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.bulk import acted, admin_acted, admin_selection, selection
from ojs_fast.api.openapi.operation import Answer, Operation, ok
from ojs_fast.api.openapi.operations.jobs import IDEMPOTENCY_KEY
from ojs_fast.api.openapi.schema import Schema, either, ref

TAG = "Bulk"
_HEADERS = ("X-OJS-Batch-Size", "Idempotency-Replayed")
_TOO_MANY = "The body is too large, or names too many jobs (`BATCH_SIZE_EXCEEDED`)"
_REUSED = "The Idempotency-Key came with another body before"


def _answers(success: int, shape: Schema) -> dict[int, Answer]:
    return {
        success: Answer("All of them", shape, _HEADERS),
        207: Answer("Some of them", shape, _HEADERS),
        422: Answer("None of them, or the request asks for what is not supported",
                    either(shape, ref("ErrorResponse")), _HEADERS),
    }  # fmt: skip


def _operation(action: str, verb: str, text: str) -> Operation:
    is_read = action == "get"
    return Operation(
        f"{action}JobsInBulk", "POST", f"{V1}/jobs/bulk/{action}", TAG, f"{verb} many jobs",
        _answers(200, ref(f"BulkItemsOf{action.title()}")),
        text,
        () if is_read else (IDEMPOTENCY_KEY,),
        selection(keyed=False) if is_read else ref("BulkSelection"),
        errors={413: _TOO_MANY} if is_read else {409: _REUSED, 413: _TOO_MANY},
    )  # fmt: skip


def _admin(action: str, verb: str) -> Operation:
    return Operation(
        f"admin{action.title()}Jobs", "POST", f"{V1}/admin/jobs/bulk/{action}", "Admin",
        f"{verb} all jobs that match", ok(admin_acted(action), "What was done"),
        body=admin_selection(", ".join(ADMIN_STATES[action])),
    )  # fmt: skip


OPERATIONS = (
    Operation(
        "enqueueJobsInBulk", "POST", V1 + "/jobs/bulk", TAG, "Enqueue many jobs, each on its own",
        _answers(201, ref("BulkEnqueued")),
        "With `atomicity` `atomic` all or none of them.",
        (IDEMPOTENCY_KEY,),
        ref("BulkEnqueueRequest"),
        errors={409: _REUSED, 413: _TOO_MANY},
    ),
    _operation(
        "cancel", "Cancel", f"By ids, or by a filter; a filter without states takes {', '.join(CANCELLED_BY_DEFAULT)}."
    ),
    _operation(
        "retry", "Retry",
        f"Jobs that are {' or '.join(ADMIN_STATES['retry'])}: they become available at once, with all runs back.",
    ),
    _operation(
        "delete", "Delete", f"Jobs that have ended ({', '.join(ADMIN_STATES['delete'])}), for good."
    ),
    _operation("get", "Look at", "By ids, or by a filter."),
    _admin("retry", "Retry"),
    _admin("cancel", "Cancel"),
    _admin("delete", "Delete"),
)  # fmt: skip

__all__ = ["DONE", "OPERATIONS", "acted"]
