"""A webhook endpoint on loopback that answers as a test says and remembers what came."""

from __future__ import annotations

import hashlib
import hmac
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import orjson

from tests.support.processes import poll


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def event(self) -> dict[str, Any]:
        """The event in it."""
        event: dict[str, Any] = orjson.loads(self.body)
        return event

    @property
    def delivery_id(self) -> str:
        """X-OJS-Delivery-ID."""
        return self.headers["x-ojs-delivery-id"]

    @property
    def job_id(self) -> str:
        """The job that the event is about."""
        return str(self.event["data"]["job_id"])

    def is_signed_by(self, *secrets: str) -> bool:
        """Whether it carries exactly these signatures (ojs-webhooks section 8.1), made here from scratch."""
        signed = self.headers["x-ojs-timestamp"].encode() + b"." + self.body
        expected = [f"sha256={hmac.new(one.encode(), signed, hashlib.sha256).hexdigest()}" for one in secrets]
        return self.headers["x-ojs-signature"].split(",") == expected


@dataclass(frozen=True)
class Says:
    """An answer. `hangs`: none comes, as long as the receiver lives; `endless`: its body never ends."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"OK"
    hangs: bool = False
    endless: bool = False


class Receiver:
    """Serves until the end of the `with` block. `says` may be replaced at any time."""

    def __init__(
        self, says: Callable[[Received], Says] = lambda _: Says(), *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.says = says
        self._received: list[Received] = []
        self._over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer._answer(self, Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is what some tests are about."""

        self._server = Http(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, received: Received) -> None:
        self._received.append(received)
        says = self.says(received)
        if says.hangs:
            self._over.wait(60)
            handler.close_connection = True
            return
        handler.send_response(says.status)
        for name, value in says.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(2**40 if says.endless else len(says.body)))
        handler.end_headers()
        handler.wfile.write(says.body)
        while says.endless and not self._over.is_set():
            handler.wfile.write(b"x" * 65_536)

    @property
    def received(self) -> list[Received]:
        """What came so far, in order."""
        return list(self._received)

    def await_count(self, count: int, *, deadline_s: float = 15.0) -> list[Received]:
        """Wait until so many requests came, and return all."""
        poll(lambda: len(self._received) >= count, deadline_s=deadline_s, what=f"{count} requests come")
        return self.received
