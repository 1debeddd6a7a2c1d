"""A span around each request (ojs-distributed-tracing sections 4, 5, 7). Loaded only when traces are sent.

What a span tells of jobs is read from the request's path and its answer, so handlers need not know.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request, status_of
from ojs_fast.api.routes import OPERATIONS, Handler, Route
from ojs_fast.core.trace_context import DEEPEST, FIELDS, in_meta, read
from ojs_fast.errors import OJSError

#: `messaging.operation.type` of OpenTelemetry's conventions
TYPES = {"enqueue": "publish", "enqueue_batch": "publish", "fetch": "receive", "ack": "settle", "nack": "settle"}
PUBLISHES = {"enqueue", "enqueue_batch"}
#: `messaging.system` and more, on every span of ours
COMMON = {"messaging.system": "ojs", "ojs.backend.type": "nats"}
# As many links as OpenTelemetry keeps of a span.
MAX_LINKS = 128
_ABOUT = {
    "id": "ojs.job.id",
    "type": "ojs.job.type",
    "queue": "ojs.job.queue",
    "state": "ojs.job.state",
    "attempt": "ojs.job.attempt",
    "priority": "ojs.job.priority",
    "worker_id": "ojs.worker.id",
    "scheduled_at": "ojs.job.scheduled_at",
    "workflow_id": "ojs.workflow.id",
}
_PATHS = {"/jobs/{id}": "ojs.job.id", "/dead-letter/{id}": "ojs.job.id", "/workflows/{id}": "ojs.workflow.id"}


def traced(table: list[Route], tracer: trace.Tracer) -> list[Route]:
    """The same routes with a span around each handler, but for those that only monitoring calls."""
    return [
        route if route.is_open or route.path == "/metrics" else replace(route, handler=_traced(route, tracer))
        for route in table
    ]


def _traced(route: Route, tracer: trace.Tracer) -> Handler:
    operation, handler = route.operation, route.handler
    facts = {**COMMON, "http.request.method": route.method, "http.route": route.path, "ojs.operation": operation}
    if operation in TYPES:
        facts["messaging.operation.type"] = TYPES[operation]
    tells_jobs = operation in OPERATIONS.values()
    of_path = next((fact for path, fact in _PATHS.items() if path in route.path), "")

    async def run(request: Request) -> Reply:
        with tracer.start_as_current_span(
            f"ojs.{operation}",
            _caller(request),
            kind=SpanKind.SERVER,
            attributes=facts,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            if of_path:
                span.set_attribute(of_path, request.params["id"])
            try:
                reply = await handler(request)
            except Exception as error:
                _failed(span, error)
                raise
            if span.is_recording():
                span.set_attribute("http.response.status_code", reply.status)
                span.set_status(StatusCode.OK)
                if operation == "fetch":
                    _asked(span, request)
                if operation in PUBLISHES:
                    span.set_attribute("messaging.message.body.size", len(request.body))
                if tells_jobs:
                    _tell_jobs(span, reply.body)
            return reply

    return run


def _caller(request: Request) -> Context:
    """The parent: the span that the client's headers name, or none."""
    headers = request.headers
    carrier = {name: headers[name.encode()].decode("latin-1") for name in FIELDS if name.encode() in headers}
    context = read(carrier)
    parent = trace.INVALID_SPAN if context is None else trace.NonRecordingSpan(context)
    return trace.set_span_in_context(parent, Context())


def _failed(span: Span, error: Exception) -> None:
    """Status, attributes and event of an error (section 8)."""
    code = error.code if isinstance(error, OJSError) else type(error).__name__
    span.set_attributes(
        {"http.response.status_code": status_of(error), "error.type": code, "error.message": str(error)[:1000]}
    )
    details = (error.details or {}) if isinstance(error, OJSError) else {}
    job_id = details.get("resource_id" if details.get("resource_type") == "job" else "job_id")
    if isinstance(job_id, str):
        span.set_attribute("ojs.job.id", job_id[:255])
    span.add_event("exception", {"exception.type": type(error).__name__, "exception.message": str(error)[:1000]})
    span.set_status(Status(StatusCode.ERROR, str(error)[:1000]))


def _asked(span: Span, request: Request) -> None:
    asked: dict[str, Any] = request.json()
    if isinstance(asked.get("worker_id"), str):
        span.set_attribute("ojs.worker.id", asked["worker_id"])
    if len(asked["queues"]) == 1:
        span.set_attributes({"messaging.destination.name": asked["queues"][0], "ojs.job.queue": asked["queues"][0]})


def _tell_jobs(span: Span, body: bytes) -> None:
    """One job is told by attributes, several by their number; each by a link to the span that enqueued it."""
    try:
        jobs, count = _jobs(body)
        told = [(_about(job), in_meta(job["meta"])) for job in jobs]
    except ValueError:
        return  # its arguments are nested as deep as is possible, so its answer is too deep
    if count == 1:
        facts = told[0][0]
        facts["messaging.message.id"] = facts["ojs.job.id"]
        facts["messaging.destination.name"] = facts["ojs.job.queue"]
        span.set_attributes(facts)
    elif count is not None:
        span.set_attribute("messaging.batch.message_count", count)
    for facts, context in told:
        if context is not None and context.span_id != span.get_span_context().span_id:
            span.add_link(context, facts)


def _jobs(body: bytes) -> tuple[Iterator[dict[str, bytes]], int | None]:
    """The members of each job in an answer, and how many jobs there are; None when it is about none."""
    members = _core.scan_json_object(body, DEEPEST)
    if "job" in members:
        spans = [members["job"]]
    elif "jobs" in members:
        spans = _core.scan_json_array(body, members["jobs"][0])
    else:
        return iter(()), None
    return (_members(body[start:end]) for start, end in spans[:MAX_LINKS]), len(spans)


def _members(job: bytes) -> dict[str, bytes]:
    return {name: job[start:end] for name, (start, end) in _core.scan_json_object(job, DEEPEST).items()}


def _about(job: dict[str, bytes]) -> dict[str, Any]:
    return {fact: orjson.loads(job[name]) for name, fact in _ABOUT.items() if name in job}
