"""Limits on the start of jobs (ojs-rate-limiting)."""

from ojs_fast.api.openapi import bounds
from ojs_fast.api.openapi.components.common import QUEUE_NAME
from ojs_fast.api.openapi.schema import (
    PERIOD,
    Schema,
    answer,
    duration,
    either,
    exactly,
    integer,
    one_of,
    ref,
    request,
    string,
    time,
)

LIMIT_KEY = string(
    "The name that jobs share the limit by",
    pattern=exactly(bounds.LIMIT_KEY), maxLength=bounds.MAX_LIMIT_KEY, examples=["stripe"],
)  # fmt: skip
_STARTS = integer("How many starts", 1, bounds.MAX_STARTS)
_PERIOD: Schema = either(
    string(pattern=PERIOD), one_of(bounds.PERIODS), text="In what time, at most 366 days", examples=["PT1M", "minute"]
)
_WINDOW = request(
    {"limit": _STARTS, "period": _PERIOD}, text="So many starts in any span of this length", additionalProperties=True
)
_LIMITS: dict[str, Schema] = {
    "concurrency": integer("How many may run at once; 0: none", 0, bounds.MAX_CONCURRENCY),
    "rate": either(ref("LimitWindow"), _STARTS, text="A sliding window; or a number, with `period` beside it"),
    "period": _PERIOD,
    "throttle": ref("LimitWindow", "Starts evenly spaced: the same, without bursts"),
    "max_per_second": integer("Short for a rate per second; not beside `rate`", 1, bounds.MAX_STARTS),
}
_RATE_LIMIT = request(
    {},
    {
        "key": LIMIT_KEY,
        **_LIMITS,
        "on_limit": one_of(bounds.ON_LIMIT, "What a job does that may not start", default="wait"),
    },
    "A limit on the start of jobs. Without a key `max_per_second` bounds the queue of the job; one of both is needed.",
    additionalProperties=True,
    examples=[{"key": "stripe", "concurrency": 5, "rate": {"limit": 100, "period": "PT1M"}}],
)
_OVERRIDE = request(
    {},
    {**_LIMITS, "expires_at": either(time(), duration(), text="Until when: a time, or a duration from now")},
    "What replaces the limits that jobs declare; at least one of them",
    anyOf=[{"required": [name]} for name in ("concurrency", "rate", "throttle", "max_per_second")],
    examples=[{"concurrency": 2, "expires_at": "+PT1H"}],
)
_OVERRIDE["properties"]["expires_at"] = either(
    time(), string(pattern=r"^\+?P([1-9]\d?D|T[1-9]\d{0,3}[HMS])$"), {"type": "null"},
    text="Until when: a time to come, or a duration from now",
)  # fmt: skip

_SHOWN_WINDOW = answer({"limit": integer(low=1), "period": string("ISO 8601 duration")})
_STRATEGIES: dict[str, Schema] = {
    "concurrency": answer({"limit": integer(low=0), "active": integer(low=0), "available": integer(low=0)}),
    "rate": answer(
        {
            "limit": integer(low=1),
            "period": string("ISO 8601 duration"),
            "current_count": integer("Starts in the window", 0),
            "window_resets_at": time(),
        }
    ),
    "throttle": answer({"limit": integer(low=1), "period": string(), "next_allowed_at": time()}),
    "paused_until": time("A handler asked for a pause"),
    "override": answer(
        {},
        {"concurrency": integer(low=0), "rate": _SHOWN_WINDOW, "throttle": _SHOWN_WINDOW, "expires_at": time()},
        "What replaces what jobs declare",
    ),
}
_STATE: dict[str, Schema] = {"key": LIMIT_KEY, "waiting_count": integer("Jobs that wait for it", 0)}

SCHEMAS: dict[str, Schema] = {
    "RateLimit": _RATE_LIMIT,
    "LimitWindow": _WINDOW,
    "RateLimitOverride": _OVERRIDE,
    "RateLimitState": answer(_STATE, _STRATEGIES, "A limit as it is now"),
    "QueueRateLimit": answer({"queue": QUEUE_NAME, **_STATE}, _STRATEGIES, "The limit of a queue as it is now"),
    "QueueRateLimitRemoved": answer({"queue": QUEUE_NAME, "key": LIMIT_KEY, "rate_limit": {"type": "null"}}),
}
