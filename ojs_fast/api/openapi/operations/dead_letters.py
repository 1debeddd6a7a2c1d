"""`/dead-letter` and `/admin/dead-letter`: jobs out of retries."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.common import UUID
from ojs_fast.api.openapi.components.jobs import one_job
from ojs_fast.api.openapi.operation import Alias, Answer, Operation, count, moment, ok, query
from ojs_fast.api.openapi.operations.admin import JOB_QUERY, OF_QUEUE, OF_TYPE, PAGING
from ojs_fast.api.openapi.operations.jobs import JOB_ID
from ojs_fast.api.openapi.schema import answer, boolean, ref, string, time

TAG = "Dead letter"
_NONE = "There is no such job, or it is no dead letter"
_ADMIN = V1 + "/admin/dead-letter"
_DEATH = (
    query("error_type", string(), "The type of the last error"),
    moment("since", "Died at or after"),
    moment("until", "Died before"),
)

OPERATIONS = (
    Operation(
        "listDeadLetters", "GET", V1 + "/dead-letter", TAG, "List dead letters",
        ok("DeadLetterList", "A page of them, oldest first"),
        parameters=(
            OF_QUEUE,
            OF_TYPE,
            *_DEATH,
            count("limit", 50, 1, 100),
            count("offset", 0, 0, 10_000),
            query("cursor", string(), "`next_cursor` of the page before"),
        ),
    ),
    Operation(
        "deadLetterStats", "GET", V1 + "/dead-letter/stats", TAG, "Count dead letters by queue and error",
        ok("DeadLetterStats", "How many there are"),
        aliases=(Alias("adminDeadLetterStats", "GET", _ADMIN + "/stats"),),
    ),
    Operation(
        "retryDeadLetters", "POST", V1 + "/dead-letter/retry", TAG, "Retry many dead letters",
        ok("DeadLettersRetried", "What was done"),
        body=ref("DeadLetterSelection"),
        aliases=(Alias("adminRetryDeadLetters", "POST", _ADMIN + "/retry"),),
    ),
    Operation(
        "deleteDeadLetters", "DELETE", V1 + "/dead-letter", TAG, "Delete many dead letters",
        ok("DeadLettersDeleted", "What was done"),
        body=ref("DeadLetterSelection"),
        aliases=(Alias("adminDeleteDeadLetters", "DELETE", _ADMIN),),
    ),
    Operation(
        "getDeadLetter", "GET", V1 + "/dead-letter/{id}", TAG, "Look at a dead letter", ok(one_job(), "The job"),
        parameters=(JOB_ID,),
        errors={404: _NONE},
        aliases=(Alias("adminGetDeadLetter", "GET", _ADMIN + "/{id}"),),
    ),
    Operation(
        "retryDeadLetter", "POST", V1 + "/dead-letter/{id}/retry", TAG, "Run a dead letter again",
        ok(one_job(re_enqueued_at=time()), "The job, available again, with the same id and all runs back"),
        parameters=(JOB_ID,),
        errors={404: _NONE, 409: "It was retried at the same moment"},
        aliases=(Alias("adminRetryDeadLetter", "POST", _ADMIN + "/{id}/retry"),),
    ),
    Operation(
        "deleteDeadLetter", "DELETE", V1 + "/dead-letter/{id}", TAG, "Delete a dead letter and its job",
        ok(answer({"deleted": boolean(const=True), "job_id": UUID}), "It is gone"),
        parameters=(JOB_ID,),
        errors={404: _NONE},
    ),
    Operation(
        "adminDeleteDeadLetter", "DELETE", _ADMIN + "/{id}", TAG, "Delete a dead letter, without an answer",
        {204: Answer("It is gone", types=())},
        parameters=(JOB_ID,),
        errors={404: _NONE},
    ),
    Operation(
        "adminListDeadLetters", "GET", _ADMIN, TAG, "Find dead letters",
        ok("AdminDeadLetterList", "A page of them, oldest first"),
        parameters=(
            *JOB_QUERY,
            *_DEATH,
            *PAGING,
        ),
    ),
)  # fmt: skip
