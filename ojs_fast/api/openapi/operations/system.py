"""Manifest, health, metrics, this document."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.operation import Alias, Answer, Operation, ok
from ojs_fast.api.openapi.schema import answer, one_of, open_object, ref, string

TAG = "System"

OPERATIONS = (
    Operation(
        "getManifest", "GET", "/ojs/manifest", TAG, "See what the server can do", ok("Manifest", "The manifest")
    ),
    Operation(
        "getHealth", "GET", V1 + "/health", TAG, "See whether server and NATS are well",
        {200: Answer("Both are", ref("Health")), 503: Answer("NATS does not answer", ref("Health"))},
        aliases=(Alias("getHealthUnversioned", "GET", "/health"),),
    ),
    Operation(
        "getReadiness", "GET", "/ready", TAG, "See whether requests can be served",
        {
            200: Answer("They can", answer({"status": one_of(("ready",))})),
            503: Answer("They cannot", answer({"status": one_of(("not_ready",))})),
        },
        "For load balancers.",
        aliases=(Alias("getReadinessVersioned", "GET", V1 + "/ready"),),
    ),
    Operation(
        "getMetrics", "GET", "/metrics", TAG, "Scrape metrics",
        {200: Answer("In the text format of Prometheus", string(), types=("text/plain",))},
        "Any node answers for all.",
    ),
    Operation(
        "getOpenApi", "GET", "/openapi.json", TAG, "Get this document",
        {200: Answer("The OpenAPI document", open_object(), ("Cache-Control",), ("application/json",))},
        aliases=(Alias("getOpenApiVersioned", "GET", V1 + "/openapi.json"),),
    ),
    Operation(
        "getDocs", "GET", "/docs", TAG, "Browse this document",
        {
            200: Answer(
                "The document as a page", string(), ("Cache-Control", "Content-Security-Policy"), ("text/html",)
            )
        },
    ),
)  # fmt: skip
