"""`/jobs`: enqueue, look, change, cancel, activate."""

from ojs_fast.api.http import V1
from ojs_fast.api.jobs import BLOCK_DIGITS, MAX_BLOCK_S, PRIORITIES
from ojs_fast.api.openapi.components.common import UUID
from ojs_fast.api.openapi.components.jobs import PRIORITY, STATE, one_job
from ojs_fast.api.openapi.operation import Alias, Answer, Operation, header, ok, path
from ojs_fast.api.openapi.schema import answer, array, boolean, integer, ref, request, string
from ojs_fast.core.idempotency import KEPT_S, MAX_KEY

TAG = "Jobs"
JOB_ID = path("id", UUID, "The id of the job")
IDEMPOTENCY_KEY = header(
    "Idempotency-Key",
    string(minLength=1, maxLength=MAX_KEY),
    f"A name of this request: repeated with it, it does nothing twice and is answered as before, for {KEPT_S // 3600} "
    "hours. Another body under the same key gets 409.",
)
BLOCK_TIMEOUT = header(
    "OJS-Block-Timeout",
    integer(low=0, high=10**BLOCK_DIGITS - 1),
    f"Seconds to wait for room in a queue whose strategy is `block`, {MAX_BLOCK_S} at most",
)
PRESSURE = ("X-OJS-Queue-Depth", "X-OJS-Queue-Bound", "X-OJS-Queue-Pressure")
_QUOTA = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_REPLAYED = "Idempotency-Replayed"
DUPLICATE = (
    "A job with this id exists, or (`duplicate`) a unique one is in the way: `details.existing_job_id`; "
    "or the Idempotency-Key came with another body (`conflict`)"
)
INVALID_POLICY = "The retry policy breaks a rule, the queue does not take this type, or the OJS-Version is unknown"
FULL = "The queue is full"
NO_JOB = "There is no such job"

OPERATIONS = (
    Operation(
        "enqueueJob", "POST", V1 + "/jobs", TAG, "Enqueue a job",
        {
            201: Answer("The job, durable", one_job(), ("Location", *PRESSURE, *_QUOTA, _REPLAYED)),
            200: Answer(
                "A unique job that was there before (`on_conflict` is `ignore`)",
                answer({"job": ref("Job"), "deduplicated": boolean(const=True)}), (*PRESSURE, _REPLAYED),
            ),
        },
        parameters=(IDEMPOTENCY_KEY, BLOCK_TIMEOUT),
        body=ref("JobRequest"),
        errors={409: DUPLICATE, 422: INVALID_POLICY, 429: FULL},
    ),
    Operation(
        "enqueueBatch", "POST", V1 + "/jobs/batch", TAG, "Enqueue many jobs, all or none",
        {
            201: Answer(
                "All of them, in the order given",
                answer({"jobs": array(ref("Job")), "count": integer(low=1)}), (*PRESSURE, _REPLAYED),
            )
        },
        parameters=(IDEMPOTENCY_KEY, BLOCK_TIMEOUT),
        body=ref("BatchRequest"),
        errors={409: DUPLICATE, 422: INVALID_POLICY, 429: FULL},
    ),
    Operation(
        "getJob", "GET", V1 + "/jobs/{id}", TAG, "Look at a job", ok(one_job(), "The job as it is now"),
        parameters=(JOB_ID,),
        errors={404: NO_JOB},
    ),
    Operation(
        "changeJob", "PATCH", V1 + "/jobs/{id}", TAG, "Change the priority of a waiting job",
        ok(
            answer({"id": UUID, "priority": PRIORITY, "previous_priority": PRIORITY, "job": ref("Job")}),
            "The job with its new priority",
        ),
        parameters=(JOB_ID,),
        body=request(
            {"priority": integer("The new priority", PRIORITIES[0], PRIORITIES[-1])},
            additionalProperties=False, examples=[{"priority": 50}],
        ),
        errors={404: NO_JOB, 409: "The job is active or has ended"},
    ),
    Operation(
        "cancelJob", "DELETE", V1 + "/jobs/{id}", TAG, "Cancel a job",
        ok(one_job(previous_state=STATE), "The job, cancelled"),
        "A job that waits never runs; an active one is taken from its worker, whose ack then gets 409.",
        (JOB_ID,),
        errors={404: NO_JOB, 409: "The job has ended"},
        aliases=(Alias("cancelJobByPost", "POST", V1 + "/jobs/{id}/cancel"),),
    ),
    Operation(
        "activateJob", "POST", V1 + "/jobs/{id}/activate", TAG, "Make a pending job available",
        ok(one_job(previous_state=string(const="pending")), "The job, available"),
        parameters=(JOB_ID,),
        errors={404: NO_JOB, 409: "The job is not pending"},
    ),
)  # fmt: skip
