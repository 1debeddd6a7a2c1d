"""`/rate-limits`: look at limits on the start of jobs, override them."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.limits import LIMIT_KEY
from ojs_fast.api.openapi.operation import Operation, count, ok, path
from ojs_fast.api.openapi.operations.queues import NAME
from ojs_fast.api.openapi.schema import answer, array, ref
from ojs_fast.api.rate_limits import MAX_PER_PAGE

TAG = "Rate limits"
_KEY = path("key", LIMIT_KEY, "The key of the limit")
_NONE = "No job used this key lately"
_QUOTA = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")

OPERATIONS = (
    Operation(
        "listRateLimits", "GET", V1 + "/rate-limits", TAG, "List limits",
        ok(
            answer({"items": array(ref("RateLimitState")), "pagination": ref("MorePagination")}), "A page of them"
        ),
        parameters=(count("page", 1, 1, 10**9), count("per_page", 20, 1, MAX_PER_PAGE)),
    ),
    Operation(
        "getRateLimit", "GET", V1 + "/rate-limits/{key}", TAG, "Look at a limit",
        ok("RateLimitState", "The limit as it is now", _QUOTA),
        parameters=(_KEY,),
        errors={404: _NONE},
    ),
    Operation(
        "overrideRateLimit", "PUT", V1 + "/rate-limits/{key}", TAG, "Override a limit",
        ok("RateLimitState", "The limit as it is now", _QUOTA),
        "Replaces what its jobs declare, until `expires_at`.",
        (_KEY,),
        ref("RateLimitOverride"),
    ),
    Operation(
        "restoreRateLimit", "DELETE", V1 + "/rate-limits/{key}", TAG, "Let what jobs declare count again",
        ok("RateLimitState", "The limit as it is now", _QUOTA),
        parameters=(_KEY,),
        errors={404: _NONE},
    ),
    Operation(
        "limitQueue", "PUT", V1 + "/admin/queues/{name}/rate-limit", TAG, "Limit all jobs of a queue",
        ok("QueueRateLimit", "The limit as it is now", _QUOTA),
        parameters=(NAME,),
        body=ref("RateLimitOverride"),
    ),
    Operation(
        "unlimitQueue", "DELETE", V1 + "/admin/queues/{name}/rate-limit", TAG, "Limit a queue no longer",
        ok("QueueRateLimitRemoved", "It has no limit of its own now"),
        parameters=(NAME,),
    ),
)  # fmt: skip
