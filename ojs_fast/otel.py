"""OpenTelemetry traces over OTLP/HTTP: what is sent, from whom, and what becomes of it when nobody takes it.

The only module that knows the SDK. Imported only when traces are asked for (the extra `otel` of the package).
"""

import asyncio
import logging
import os
import threading
import time
from contextlib import AbstractContextManager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ojs_fast import __version__, _core
from ojs_fast.api.routes import Route
from ojs_fast.api.tracing import COMMON, traced
from ojs_fast.config import Settings
from ojs_fast.core import trace_context
from ojs_fast.core.tracing import Facts, Tracing

log = logging.getLogger(__name__)

#: how long what is left may take to be sent at shutdown
FLUSH_S = 3.0
COMPLAIN_EVERY_S = 60.0


class Otel(Tracing):
    """Sends spans from a thread of its own; a full queue drops the oldest, a receiver that is away delays nobody."""

    def __init__(self, settings: Settings, node_id: str) -> None:
        super().__init__()
        self._complaints = Complaints()
        self._exporter = OTLPSpanExporter(_endpoint(settings))
        self._provider = TracerProvider(resource=_resource(node_id), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("ojs-fast", __version__)
        self.to_bytes = self._to_bytes
        for handler in logging.getLogger().handlers:
            handler.addFilter(_correlate)

    def requests(self, table: list[Route]) -> list[Route]:
        """The routes with a span around each request."""
        return traced(table, self._tracer)

    def act(self, name: str, facts: Facts) -> AbstractContextManager[object]:
        """A span of the server's own."""
        return self._tracer.start_as_current_span(name, attributes={**COMMON, **facts})

    def context(self) -> str:
        """The `traceparent` of the span that is under way here."""
        return trace_context.current().get("traceparent", "")

    def carry(self, record: _core.Record, origin: str) -> None:
        """Write it into a new job, unless its producer wrote one."""
        trace_context.carry(record, origin)

    def _to_bytes(self, record: _core.Record) -> bytes:
        trace_context.carry(record)
        return record.serialize()

    async def close(self) -> None:
        """Send what is left, for FLUSH_S at most."""
        # A daemon: the SDK waits up to 30 s for a receiver that is away, and the process must not.
        sender = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sender.start()
        await asyncio.to_thread(sender.join, FLUSH_S)
        if sender.is_alive():
            log.warning("the last spans were not delivered within %g s", FLUSH_S)
        self._complaints.close()


def _endpoint(settings: Settings) -> str | None:
    """The URL to post to; None leaves it to the variables of OpenTelemetry."""
    return f"{settings.otel_endpoint.rstrip('/')}/v1/traces" if settings.otel_endpoint else None


def _resource(node_id: str) -> Resource:
    """Who sends: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES add to it."""
    resource = Resource.create(
        {"service.version": __version__, "service.instance.id": node_id, "process.pid": os.getpid()}
    )
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "ojs-fast"}))
    return resource


def _correlate(record: logging.LogRecord) -> bool:
    """Add the span that a line was logged in (ojs-logging section 7.2)."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        setattr(record, "trace.trace_id", trace.format_trace_id(context.trace_id))
        setattr(record, "trace.span_id", trace.format_span_id(context.span_id))
    return True


class Complaints(logging.Handler):
    """What the SDK complains about, one line a minute: a receiver may be away for days."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._untold = 0
        self._told_s = -COMPLAIN_EVERY_S
        self._logger = logging.getLogger("opentelemetry")
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it, or count it."""
        self._untold += 1
        now = time.monotonic()
        if now - self._told_s >= COMPLAIN_EVERY_S:
            log.warning("OpenTelemetry complains: %s", record.getMessage(), extra={"complaints": self._untold})
            self._untold, self._told_s = 0, now

    def close(self) -> None:
        """Stop listening."""
        self._logger.removeHandler(self)
        super().close()
