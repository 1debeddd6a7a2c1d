"""Webhook subscriptions and their deliveries (ojs-webhooks)."""

from ojs_fast.api.openapi.components.common import QUEUE_NAME
from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    array,
    boolean,
    exactly,
    integer,
    one_of,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.core.webhooks.deliveries import STATUS
from ojs_fast.core.webhooks.model import (
    EVENT_TYPE,
    EVENT_TYPES_MAX,
    FILTER_NAMES_MAX,
    JOB_TYPE,
    METADATA_BYTES,
    SECRET,
    TYPE_LENGTH,
)


def _names(text: str, name: Schema) -> Schema:
    return array(name, text, minItems=1, maxItems=FILTER_NAMES_MAX)


_URL = string("Where events are sent; https, and no internal address", examples=["https://example.com/hook"])
_EVENTS = array(
    string(maxLength=TYPE_LENGTH, pattern=exactly(EVENT_TYPE)),
    "Types such as `job.completed`, `job.*` or `*`",
    minItems=1,
    maxItems=EVENT_TYPES_MAX,
)
_FILTER = request(
    {},
    {
        "queues": _names("Of queues", QUEUE_NAME),
        "job_types": _names("Of job types", string(pattern=exactly(JOB_TYPE), maxLength=TYPE_LENGTH)),
    },
    "Only events of these; null for all",
    additionalProperties=False,
)
_SET: dict[str, Schema] = {
    "active": boolean("Whether events are sent", default=True),
    "filter": _FILTER,
    "metadata": open_object(f"For people; at most {METADATA_BYTES} bytes"),
}
_SECRET = string("What signs the requests; made by the server when missing", pattern=exactly(SECRET))
_SHOWN: dict[str, Schema] = {
    "id": string("`sub_` and a UUIDv7"),
    "url": string(),
    "events": array(string()),
    "active": boolean(),
    "created_at": time(),
    "updated_at": time(),
}
_SOMETIMES: dict[str, Schema] = {
    "filter": answer({}, {"queues": array(string()), "job_types": array(string())}),
    "metadata": open_object(),
    "paused_reason": string("Why the server made it inactive"),
}
_WITH_SECRET: dict[str, Schema] = {**_SHOWN, "secret": string("Shown this once")}
_DELIVERY: dict[str, Schema] = {
    "id": string(),
    "subscription_id": string(),
    "event_id": string(),
    "event_type": string(),
    "status": one_of(STATUS.values()),
    "attempts": integer(low=0),
    "tries": array(open_object(), "The last attempts: `at`, `status_code`, `error`, `duration_ms`"),
    "created_at": time(),
}
_DELIVERY_SOMETIMES: dict[str, Schema] = {"next_attempt_at": time(), "event": ref("Event", "What is sent")}

SCHEMAS: dict[str, Schema] = {
    "SubscriptionRequest": request(
        {"url": _URL, "events": _EVENTS},
        {**_SET, "secret": _SECRET},
        "Which events to send where",
        examples=[{"url": "https://example.com/hook", "events": ["job.*"]}],
    ),
    "SubscriptionChange": request(
        {}, {"url": _URL, "events": _EVENTS, **_SET}, "The members to change", examples=[{"active": False}]
    ),
    "Subscription": answer(_SHOWN, _SOMETIMES, "A webhook subscription"),
    "SubscriptionResponse": answer({**_SHOWN, "subscription": ref("Subscription")}, _SOMETIMES),
    "SubscriptionWithSecret": answer({**_WITH_SECRET, "subscription": answer(_WITH_SECRET, _SOMETIMES)}, _SOMETIMES),
    "Delivery": answer(_DELIVERY, _DELIVERY_SOMETIMES, "An event on its way to a subscription"),
    "DeliveryResponse": answer({**_DELIVERY, "delivery": ref("Delivery")}, _DELIVERY_SOMETIMES),
    "WebhookTest": {**answer({}, text="What the URL answered"), "additionalProperties": True},
}
