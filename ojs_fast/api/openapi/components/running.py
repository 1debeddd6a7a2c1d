"""What workers tell about a job while they run it: progress and checkpoints (ojs-progress, ojs-durable-execution)."""

from ojs_fast import _core
from ojs_fast.api.openapi.components.common import UUID
from ojs_fast.api.openapi.components.workers import WORKER_ID
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    anything,
    boolean,
    integer,
    nullable,
    number,
    one_of,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.api.running import MAX_DATA_BYTES, MAX_MESSAGE

_TOLD: dict[str, Schema] = {
    "message": string("What it does now", maxLength=MAX_MESSAGE),
    "data": open_object(f"Anything else, at most {MAX_DATA_BYTES} bytes"),
    "worker_id": WORKER_ID,
}


def report(name: str, text: str, **required: Schema) -> Schema:
    """A report of progress, in the form of the specification or of the SDKs."""
    return request(
        required,
        {name: number(text), **_TOLD},
        "How far the job is; one of the share, `message` and `data` at least",
        anyOf=[{"required": [one]} for one in (name, "message", "data")],
    )


_CHECKPOINT: dict[str, Schema] = {
    "job_id": UUID,
    "sequence": integer("How many there were, this one included", 1),
    "created_at": time(),
}

SCHEMAS: dict[str, Schema] = {
    "Progress": answer(
        {
            "job_id": UUID,
            "state": one_of(_core.STATES, "Of the job"),
            "progress": nullable(number("From 0.0 to 1.0; none was told while it is null", 0, 1)),
            "percentage": nullable(number("The same from 0 to 100", 0, 100)),
            "message": nullable(string()),
            "data": nullable(open_object()),
            "updated_at": nullable(time()),
        },
        text="How far a job is",
    ),
    "CheckpointRequest": request(
        {"state": anything("What the next attempt needs to go on")},
        {"worker_id": WORKER_ID},
        "The state; other members are kept too",
        additionalProperties=True,
        examples=[{"state": {"done": 120}}],
    ),
    "Checkpoint": {**answer(_CHECKPOINT, text="The latest checkpoint; what was saved stands beside these"),
                   "additionalProperties": True},
    "CheckpointSaved": answer({**_CHECKPOINT, "checkpoint": answer(_CHECKPOINT)}, text="Flat and as `checkpoint`"),
    "CheckpointShown": {
        **answer({**_CHECKPOINT, "checkpoint": ref("Checkpoint")}, text="Flat and as `checkpoint`"),
        "additionalProperties": True,
    },
    "CheckpointToResume": answer(
        {"job_id": UUID, "has_checkpoint": boolean(), "checkpoint": nullable(ref("Checkpoint"))}
    ),
    "CheckpointDeleted": answer({"deleted": boolean(const=True), "job_id": UUID}),
}  # fmt: skip
