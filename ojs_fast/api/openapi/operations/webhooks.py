"""`/webhooks`: subscriptions and deliveries."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.operation import Answer, Operation, choice, count, ok, path, query
from ojs_fast.api.openapi.schema import answer, array, boolean, ref, string
from ojs_fast.api.webhooks import MAX_PER_PAGE
from ojs_fast.core.webhooks.deliveries import STATUS
from ojs_fast.core.webhooks.model import SUBSCRIPTIONS_MAX

TAG = "Webhooks"
_ID = path("id", string(examples=["sub_019414d4-8b2e-7c3a-b5d1-f0e2a3b4c5d6"]), "The subscription")
_DELIVERY_ID = path("id", string(), "The delivery")
_ALL = V1 + "/webhooks/subscriptions"
_ONE = _ALL + "/{id}"
_DELIVERIES = V1 + "/webhooks/deliveries"
_NONE = "There is no such subscription"
_NO_DELIVERY = "There is no such delivery"
_BUSY = "It was changed by somebody else at the same moment"

OPERATIONS = (
    Operation(
        "listSubscriptions", "GET", _ALL, TAG, "List subscriptions",
        ok(answer({"subscriptions": array(ref("Subscription")), "pagination": ref("MorePagination")}), "A page"),
        parameters=(count("page", 1, 1, 10**9), count("per_page", MAX_PER_PAGE, 1, MAX_PER_PAGE)),
    ),
    Operation(
        "createSubscription", "POST", _ALL, TAG, "Have events sent to a URL",
        {201: Answer("The subscription, with its secret", ref("SubscriptionWithSecret"), ("Location",))},
        body=ref("SubscriptionRequest"),
        errors={409: f"There are {SUBSCRIPTIONS_MAX} already"},
    ),
    Operation(
        "getSubscription", "GET", _ONE, TAG, "Look at a subscription", ok("SubscriptionResponse", "The subscription"),
        parameters=(_ID,),
        errors={404: _NONE},
    ),
    Operation(
        "changeSubscription", "PATCH", _ONE, TAG, "Change a subscription",
        ok("SubscriptionResponse", "The subscription as it is now"),
        parameters=(_ID,),
        body=ref("SubscriptionChange"),
        errors={404: _NONE, 409: _BUSY},
    ),
    Operation(
        "deleteSubscription", "DELETE", _ONE, TAG, "Delete a subscription",
        ok(answer({"deleted": boolean(const=True), "id": string()}), "It is gone"),
        parameters=(_ID,),
        errors={404: _NONE, 409: _BUSY},
    ),
    Operation(
        "testSubscription", "POST", _ONE + "/test", TAG, "Send a test event", ok("WebhookTest", "What came back"),
        parameters=(_ID,),
        errors={404: _NONE, 409: _BUSY},
    ),
    Operation(
        "rotateSecret", "POST", _ONE + "/rotate-secret", TAG, "Replace the secret of a subscription",
        ok("SubscriptionWithSecret", "The new one; the one before signs too for a day"),
        parameters=(_ID,),
        errors={404: _NONE, 409: _BUSY},
    ),
    Operation(
        "listDeliveries", "GET", _DELIVERIES, TAG, "List deliveries",
        ok(
            answer({"deliveries": array(ref("Delivery")), "cursor": string(), "has_more": boolean()}),
            "The latest event first",
        ),
        parameters=(
            query("subscription_id", string(), "Of this subscription"),
            choice("status", tuple(STATUS.values())),
            query("after", string(), "`cursor` of the page before"),
            count("limit", 50, 1, MAX_PER_PAGE),
        ),
        errors={404: _NONE},
    ),
    Operation(
        "getDelivery", "GET", _DELIVERIES + "/{id}", TAG, "Look at a delivery", ok("DeliveryResponse", "The delivery"),
        parameters=(_DELIVERY_ID,),
        errors={404: _NO_DELIVERY},
    ),
    Operation(
        "retryDelivery", "POST", _DELIVERIES + "/{id}/retry", TAG, "Send a delivery again",
        ok("DeliveryResponse", "The delivery"),
        parameters=(_DELIVERY_ID,),
        errors={404: _NO_DELIVERY, 409: "It arrived, or is under way"},
    ),
)  # fmt: skip
