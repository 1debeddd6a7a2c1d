"""`/workers`: fetch, ack, nack, heartbeat."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.workers import WORKER_ID, ack, nack
from ojs_fast.api.openapi.operation import Alias, Answer, Operation, ok, path
from ojs_fast.api.openapi.operations.jobs import JOB_ID, NO_JOB
from ojs_fast.api.openapi.schema import answer, array, either, ref

TAG = "Workers"
_NOT_ACTIVE = "The job is not active, or another worker has it"

OPERATIONS = (
    Operation(
        "fetchJobs", "POST", V1 + "/workers/fetch", TAG, "Fetch jobs to run",
        ok(answer({"jobs": array(ref("Job"), "Now with this worker; empty when there is nothing to do")}), "The jobs"),
        "Answers at once. The highest priority of the first queue goes first. Whoever gets a job has it until its "
        "visibility timeout ends, and then nobody hears of an ack: call heartbeat to keep it for longer.",
        body=ref("FetchRequest"),
        aliases=(Alias("fetchJobsAlias", "POST", V1 + "/jobs/fetch"),),
    ),
    Operation(
        "ackJob", "POST", V1 + "/workers/ack", TAG, "Complete a job", ok("AckResponse", "The job, completed"),
        body=ref("AckRequest"),
        errors={404: NO_JOB, 409: _NOT_ACTIVE, 413: "The body, or the job with its result, is too large"},
    ),
    Operation(
        "nackJob", "POST", V1 + "/workers/nack", TAG, "Fail a job, or give it back",
        ok("NackResponse", "What becomes of the job"),
        "It is retried by its retry policy, or discarded.",
        body=ref("NackRequest"),
        errors={404: NO_JOB, 409: _NOT_ACTIVE},
    ),
    Operation(
        "ackJobById", "POST", V1 + "/jobs/{id}/ack", TAG, "Complete a job by its path",
        ok("AckResponse", "The job, completed"),
        parameters=(JOB_ID,),
        body=ack(with_id=False),
        body_required=False,
        errors={404: NO_JOB, 409: _NOT_ACTIVE},
    ),
    Operation(
        "nackJobById", "POST", V1 + "/jobs/{id}/nack", TAG, "Fail a job by its path",
        ok("NackResponse", "What becomes of the job"),
        parameters=(JOB_ID,),
        body=nack(with_id=False),
        errors={404: NO_JOB, 409: _NOT_ACTIVE},
    ),
    Operation(
        "heartbeat", "POST", V1 + "/workers/heartbeat", TAG, "Say that a worker lives",
        ok("HeartbeatResponse", "What the worker is to do"),
        "Extends the jobs that it names. A worker that beat and then falls silent loses its jobs after 30 s.",
        body=ref("HeartbeatRequest"),
        aliases=(Alias("heartbeatAlias", "POST", V1 + "/workers/beat"),),
    ),
    Operation(
        "getWorkerHealth", "GET", V1 + "/workers/{id}/health", TAG, "See how a worker is",
        {
            200: Answer("What it told last", ref("WorkerHealth")),
            503: Answer("It is silent; or NATS is away, or the server is overloaded",
                        either(ref("WorkerHealth"), ref("ErrorResponse")), ("Retry-After",)),
        },
        parameters=(path("id", WORKER_ID, "The worker"),),
        errors={404: "No such worker beat lately"},
    ),
)  # fmt: skip
