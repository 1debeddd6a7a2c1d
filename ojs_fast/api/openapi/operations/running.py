"""Progress and checkpoints of running jobs."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.common import UUID
from ojs_fast.api.openapi.components.running import report
from ojs_fast.api.openapi.components.workers import WORKER_ID
from ojs_fast.api.openapi.operation import Alias, Operation, ok
from ojs_fast.api.openapi.operations.jobs import JOB_ID, NO_JOB
from ojs_fast.api.openapi.schema import open_object, ref, request, string

TAG = "Workers"
_TWICE = V1 + V1
_HEADERS = ("Cache-Control", "X-OJS-Progress")
_NOT_ACTIVE = "The job is not active, or another worker has it"
_TOO_LARGE = "The body, or what it adds to the job, is too large"
_ANY = {**request({}, {"worker_id": WORKER_ID}, "Any members; they come back as they are"), "examples": [{"step": 3}]}

OPERATIONS = (
    Operation(
        "getProgress", "GET", V1 + "/jobs/{id}/progress", TAG, "See how far a job is",
        ok("Progress", "The last report", _HEADERS),
        parameters=(JOB_ID,),
        errors={404: NO_JOB},
    ),
    Operation(
        "reportProgress", "PUT", V1 + "/jobs/{id}/progress", TAG, "Tell how far a job is",
        ok("Progress", "What is kept: the share never falls, and a job that is not active stays as it is", _HEADERS),
        "Counts as a heartbeat of the job.",
        (JOB_ID,),
        {**report("progress", "From 0.0 to 1.0; what is beyond counts as the nearer one"),
         "examples": [{"progress": 0.4, "message": "converting"}]},
        errors={404: NO_JOB, 413: _TOO_LARGE},
    ),
    Operation(
        "reportPercentage", "POST", V1 + "/workers/progress", TAG, "Tell how far a job is, as the SDKs do",
        ok("Progress", "What is kept", _HEADERS),
        body={
            **report("percentage", "From 0 to 100", job_id=string("The job", minLength=1)),
            "examples": [{"job_id": UUID["examples"][0], "percentage": 40}],
        },
        errors={404: NO_JOB, 413: _TOO_LARGE},
    ),
    Operation(
        "getCheckpoint", "GET", V1 + "/jobs/{id}/checkpoint", TAG, "Get the checkpoint of a job",
        ok("CheckpointShown", "The latest one"),
        parameters=(JOB_ID,),
        errors={404: "There is no such job, or it has no checkpoint"},
    ),
    Operation(
        "saveCheckpoint", "PUT", V1 + "/jobs/{id}/checkpoint", TAG, "Save a checkpoint of a job",
        ok("CheckpointSaved", "It is durable"),
        "Replaces the one before. The next attempt gets it with its job.",
        (JOB_ID,),
        ref("CheckpointRequest"),
        errors={404: NO_JOB, 409: _NOT_ACTIVE, 413: _TOO_LARGE},
        aliases=(Alias("saveCheckpointByPost", "POST", V1 + "/jobs/{id}/checkpoint"),),
    ),
    Operation(
        "deleteCheckpoint", "DELETE", V1 + "/jobs/{id}/checkpoint", TAG, "Forget the checkpoint of a job",
        ok("CheckpointDeleted", "It is gone, or there was none"),
        parameters=(JOB_ID,),
        errors={404: NO_JOB, 409: _NOT_ACTIVE, 413: _TOO_LARGE},
        aliases=(
            Alias("deleteCheckpointOfSdk", "DELETE", V1 + "/checkpoints/{id}"),
            Alias("deleteCheckpointOfSdkTwice", "DELETE", _TWICE + "/checkpoints/{id}"),
        ),
    ),
    Operation(
        "saveCheckpointOfSdk", "POST", V1 + "/checkpoints/{id}", TAG, "Save a checkpoint, as the SDKs do",
        ok("CheckpointSaved", "It is durable"),
        parameters=(JOB_ID,),
        body={**open_object(), **_ANY},
        errors={404: NO_JOB, 409: _NOT_ACTIVE, 413: _TOO_LARGE},
        aliases=(Alias("saveCheckpointOfSdkTwice", "POST", _TWICE + "/checkpoints/{id}"),),
    ),
    Operation(
        "resumeFromCheckpoint", "GET", V1 + "/checkpoints/{id}/resume", TAG, "Get a checkpoint, as the SDKs do",
        ok("CheckpointToResume", "Whether there is one, and that one"),
        parameters=(JOB_ID,),
        errors={404: NO_JOB},
        aliases=(Alias("resumeFromCheckpointTwice", "GET", _TWICE + "/checkpoints/{id}/resume"),),
    ),
)  # fmt: skip
