"""`/queues` and `/admin/queues`."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.common import QUEUE_NAME
from ojs_fast.api.openapi.operation import Alias, Answer, Operation, count, ok, path
from ojs_fast.api.openapi.schema import answer, array, boolean, either, integer, one_of, ref, request, string
from ojs_fast.core.queue_admin import PURGEABLE

TAG = "Queues"
ADMIN = "Admin"
NAME = path("name", QUEUE_NAME, "The queue")
NO_QUEUE = "There is no such queue"
_RULES = "Not supported by this server, a retry policy that breaks a rule, or an unknown OJS-Version"
_CONFIG = either(
    ref("QueueConfig"), request({"config": ref("QueueConfig")}, additionalProperties=False),
    text="The configuration, as it is or as `config`", examples=[{"backpressure": {"max_depth": 1000}}],
)  # fmt: skip
_PURGED = answer({"queue": QUEUE_NAME, "purged_count": integer(low=0), "states": array(one_of(PURGEABLE))})

_MANY = (
    Operation(
        "listQueues", "GET", V1 + "/queues", TAG, "List queues",
        ok(answer({"queues": array(ref("Queue")), "pagination": ref("Pagination")}), "A page of them, by name"),
        parameters=(
            count("limit", 50, 1, 200),
            count("offset", 0, 0, 10**9),
            count("cursor", 0, 0, 10**9, "`next_cursor` of the page before; goes before `offset`"),
        ),
    ),
    Operation(
        "createQueue", "POST", V1 + "/queues", TAG, "Create a queue",
        {201: Answer("The queue", ref("QueueCreated"))},
        "Not needed before jobs are enqueued: a queue comes to be with its first job.",
        body=request(
            {"name": QUEUE_NAME}, {"config": ref("QueueConfig")}, additionalProperties=False,
            examples=[{"name": "email", "config": {"retention": {"completed": "P1D"}}}],
        ),
        errors={409: "The queue exists already", 422: _RULES},
    ),
    Operation(
        "adminListQueues", "GET", V1 + "/admin/queues", ADMIN, "List queues with their numbers",
        ok(answer({"items": array(ref("QueueAdminItem")), "pagination": ref("PagePagination")}), "A page of them"),
        parameters=(count("page", 1, 1, 10**9), count("per_page", 20, 1, 100)),
    ),
)  # fmt: skip

_ONE = (
    Operation(
        "getQueue", "GET", V1 + "/queues/{name}", TAG, "Look at a queue", ok("QueueDetail", "The queue"),
        parameters=(NAME,),
        errors={404: NO_QUEUE},
    ),
    Operation(
        "adminGetQueue", "GET", V1 + "/admin/queues/{name}", ADMIN, "Look at a queue with all its numbers",
        ok("QueueAdminDetail", "The queue"),
        parameters=(NAME,),
        errors={404: NO_QUEUE},
    ),
    Operation(
        "deleteQueue", "DELETE", V1 + "/queues/{name}", TAG, "Delete an empty queue",
        ok(
            answer(
                {
                    "queue": QUEUE_NAME, "name": QUEUE_NAME, "state": string(const="deleted"),
                    "deleted": boolean(const=True), "jobs_affected": integer(const=0),
                }
            ),
            "It is gone",
        ),
        parameters=(NAME,),
        body={
            "type": "object",
            "properties": {"strategy": string("What to do with its jobs", const="reject"), "target_queue": {}},
            "additionalProperties": False,
        },
        body_required=False,
        errors={404: NO_QUEUE, 409: "It has jobs that have not ended", 422: "A strategy that is not supported"},
    ),
    Operation(
        "getQueueStats", "GET", V1 + "/queues/{name}/stats", TAG, "Count the jobs of a queue",
        ok("QueueStats", "Its numbers"),
        parameters=(NAME,),
        errors={404: NO_QUEUE},
    ),
    Operation(
        "getQueueConfig", "GET", V1 + "/queues/{name}/config", TAG, "Look at the configuration of a queue",
        ok("QueueConfiguration", "The configuration"),
        parameters=(NAME,),
        errors={404: NO_QUEUE},
        aliases=(Alias("adminGetQueueConfig", "GET", V1 + "/admin/queues/{name}/config", ADMIN),),
    ),
    Operation(
        "configureQueue", "PUT", V1 + "/queues/{name}/config", TAG, "Configure a queue",
        ok("QueueConfiguration", "The configuration as it is now"),
        "Members given replace, null removes, the rest stays; the queue comes to be.",
        (NAME,),
        _CONFIG,
        errors={422: _RULES},
        aliases=(
            Alias("changeQueueConfig", "PATCH", V1 + "/queues/{name}/config"),
            Alias("adminConfigureQueue", "PUT", V1 + "/admin/queues/{name}/config", ADMIN),
            Alias("adminChangeQueueConfig", "PATCH", V1 + "/admin/queues/{name}/config", ADMIN),
        ),
    ),
    Operation(
        "purgeQueue", "POST", V1 + "/queues/{name}/purge", TAG, "Empty a queue", ok(_PURGED, "What was removed"),
        "Cancels the jobs that wait, deletes those that ended.",
        (NAME,),
        ref("PurgeRequest"),
        errors={404: NO_QUEUE},
        aliases=(Alias("adminPurgeQueue", "DELETE", V1 + "/admin/queues/{name}/jobs", ADMIN),),
    ),
    Operation(
        "pauseQueue", "POST", V1 + "/queues/{name}/pause", TAG, "Keep back the jobs of a queue",
        ok("QueuePaused", "The queue, paused"),
        "Jobs can still be enqueued; the queue comes to be.",
        (NAME,),
        aliases=(Alias("adminPauseQueue", "POST", V1 + "/admin/queues/{name}/pause", ADMIN),),
    ),
    Operation(
        "resumeQueue", "POST", V1 + "/queues/{name}/resume", TAG, "Hand out the jobs of a queue again",
        ok("QueuePaused", "The queue, active"),
        parameters=(NAME,),
        aliases=(Alias("adminResumeQueue", "POST", V1 + "/admin/queues/{name}/resume", ADMIN),),
    ),
)  # fmt: skip

OPERATIONS = (*_MANY, *_ONE)
