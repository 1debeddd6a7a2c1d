"""A receiver of OpenTelemetry traces over HTTP, as collectors are: what arrives is decoded and kept."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from tests.support.processes import free_port, poll

INTERNAL, SERVER = WireSpan.SPAN_KIND_INTERNAL, WireSpan.SPAN_KIND_SERVER
OK, ERROR = 1, 2


@dataclass(frozen=True)
class Span:
    """One span as it arrived; ids in hexadecimal digits."""

    name: str
    kind: int
    status: int
    trace_id: str
    span_id: str
    parent_id: str
    about: dict[str, Any]
    links: list[tuple[str, str]]
    events: list[str]
    resource: dict[str, Any] = field(repr=False)


class Receiver:
    """`POST /v1/traces` on a port of its own; may be away and come back there."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.spans: list[Span] = []
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Take what comes."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                receiver.spans.extend(decode(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class has it
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Be away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def await_span(self, name: str, **about: Any) -> Span:
        """Wait for a span of this name whose attributes have these values (`__` stands for a dot)."""
        wanted = {key.replace("__", "."): value for key, value in about.items()}

        def found() -> list[Span]:
            return [one for one in list(self.spans) if one.name == name and wanted.items() <= one.about.items()]

        return poll(found, what=f"a span {name} {wanted} arrives; there are {[one.name for one in self.spans]}")[0]


def decode(body: bytes) -> list[Span]:
    """All spans of an export request."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            span.name,
            span.kind,
            span.status.code,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            _plain(span.attributes),
            [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            [event.name for event in span.events],
            _plain(resource.resource.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _plain(attributes: Any) -> dict[str, Any]:
    def value(one: KeyValue) -> Any:
        return getattr(one.value, one.value.WhichOneof("value") or "string_value")

    return {one.key: value(one) for one in attributes}
