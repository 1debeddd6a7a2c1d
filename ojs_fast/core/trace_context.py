"""W3C Trace Context in the `meta` of jobs (ojs-distributed-tracing section 6). Loaded only when traces are sent."""

from collections.abc import Mapping

import orjson
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ojs_fast import _core

#: the members of `meta`, named as the HTTP headers are
FIELDS = ("traceparent", "tracestate")
ORIGIN = "ojs.workflow.trace_origin"
# Ours must not be what makes a producer's `meta` too large.
MAX_META_BYTES = 65_536
DEEPEST = 1000

_w3c = TraceContextTextMapPropagator()


def read(carrier: Mapping[str, str]) -> trace.SpanContext | None:
    """The span that `traceparent` and `tracestate` name, None when they name none."""
    if "traceparent" not in carrier:
        return None
    found = trace.get_current_span(_w3c.extract(carrier, trace.set_span_in_context(trace.INVALID_SPAN)))
    context = found.get_span_context()
    return context if context.is_valid else None


def current() -> dict[str, str]:
    """`traceparent`, and `tracestate` if there is one, of the span that is under way here."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return carrier


def in_meta(meta: bytes) -> trace.SpanContext | None:
    """The span that a job's `meta` (its JSON) names: the one that enqueued it."""
    if b'"traceparent"' not in meta:
        return None
    members = _core.scan_json_object(meta, DEEPEST)
    texts = {name: meta[span[0] : span[1]] for name in FIELDS if (span := members.get(name)) is not None}
    return read({name: orjson.loads(text) for name, text in texts.items() if text[:1] == b'"'})


def carry(record: _core.Record, origin: str = "") -> None:
    """Write the current context into the `meta` of a new job, and `origin`; what the producer wrote there stays."""
    text = b"{" + record.body[1:] + b"}"
    start, end = _core.scan_json_object(text, DEEPEST)["meta"]
    known = _core.scan_json_object(text[start:end], DEEPEST)
    ours = {} if known.keys() & FIELDS else current()
    if origin and ORIGIN not in known:
        ours[ORIGIN] = origin
    added = b"".join(b',"%s":%s' % (name.encode(), orjson.dumps(value)) for name, value in ours.items())
    if not added or end - start + len(added) > MAX_META_BYTES:
        return
    if not known:
        text, end, added = text[: start + 1] + text[end - 1 :], start + 2, added[1:]
    record.body = b"," + text[1 : end - 1] + added + text[end - 1 : -1]
