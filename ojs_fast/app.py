"""The ASGI application: BlackSheep for routing and lifespan, a direct lane for static paths.

A request to a path without parameters (every call of the hot path) goes straight from Granian to its
handler: BlackSheep's request, response and routing objects cost more than the job itself
(docs/performance.md). All others are routed by BlackSheep; both lanes run the same handlers.
"""

import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from functools import partial
from time import perf_counter
from types import FrameType
from typing import Any

from blacksheep import Application, Content, Response, StreamedContent
from blacksheep import Request as WebRequest

from ojs_fast import logs
from ojs_fast.api.access_log import AccessLog
from ojs_fast.api.admin import AdminHandlers
from ojs_fast.api.bulk import BulkHandlers
from ojs_fast.api.channels import Channels
from ojs_fast.api.cron import CronHandlers
from ojs_fast.api.dead_letters import DeadLetterHandlers
from ojs_fast.api.document import DocumentHandlers
from ojs_fast.api.http import (
    Gate,
    Receive,
    Reply,
    Request,
    error_reply,
    reply_headers,
    until_gone,
)
from ojs_fast.api.jobs import JobHandlers
from ojs_fast.api.keys import Scope
from ojs_fast.api.live import LiveHandlers
from ojs_fast.api.metrics import MetricsHandlers
from ojs_fast.api.queues import QueueHandlers
from ojs_fast.api.rate_limits import RateLimitHandlers
from ojs_fast.api.routes import Handler, Route, methods_of, routes
from ojs_fast.api.running import RunningHandlers
from ojs_fast.api.schemas import SchemaHandlers
from ojs_fast.api.scopes import scope_of
from ojs_fast.api.system import SystemHandlers
from ojs_fast.api.webhooks import WebhookHandlers
from ojs_fast.api.websocket import PATHS as WEBSOCKET_PATHS
from ojs_fast.api.websocket import SocketHandlers
from ojs_fast.api.workers import WorkerHandlers
from ojs_fast.api.workflows import WorkflowHandlers
from ojs_fast.config import Settings
from ojs_fast.core.health import Health
from ojs_fast.core.metrics import RequestTimes
from ojs_fast.cores import HandOver, run_as_batch
from ojs_fast.errors import MethodNotAllowed, NotFound
from ojs_fast.node import Node
from ojs_fast.storage.errors import TopologyError, Unavailable
from ojs_fast.storage.server import die_with_parent

log = logging.getLogger(__name__)

# Set by the main process that owns the embedded NATS: nodes of an earlier boot are dead for certain.
BOOT_ID = "OJS_INTERNAL_BOOT_ID"


class OjsApplication(Application):
    """BlackSheep with the direct lane in front."""

    def __init__(
        self,
        node: Node,
        gate: Gate,
        table: list[Route],
        sockets: SocketHandlers,
        servers: list[str],
        access_log: AccessLog | None,
    ) -> None:
        super().__init__()
        self._node = node
        self._gate = gate
        self._sockets = sockets
        self._servers = servers
        self._access_log = access_log
        self._hand_over = HandOver()
        self._ending: asyncio.Task[None] | None = None
        self._lane = {
            (r.method, r.path): (r.handler, _scope(r), node.metrics.requests(r.operation))
            for r in table
            if "{" not in r.path
        }
        self._table = table
        for route in table:
            if "{" in route.path:
                self.router.add(route.method, route.path, self._routed(route))
        self.router.fallback = self._not_found
        self.on_start += self._open
        self.on_stop += self._close

    async def _open(self, _: Application) -> None:
        try:
            await self._node.open(self._servers)
            self._keep_early_signals()
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 50)
            run_as_batch()
            self._hand_over.open(asyncio.get_running_loop())
        except (Unavailable, TopologyError) as error:
            # Granian would only say that the worker died; the operator needs the reason.
            print(f"ojs-fast: cannot start: {error}", file=sys.stderr, flush=True)  # noqa: T201 - see above
            raise

    @staticmethod
    def _keep_early_signals() -> None:
        # Granian runs the loop twice, and uvloop loses what comes in between.
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            uvloops = signal.getsignal(signum)

            def handle(signum: int, frame: FrameType | None, uvloops: Any = uvloops) -> None:
                if not loop.is_running():
                    loop.call_soon_threadsafe(signal.raise_signal, signum)
                elif callable(uvloops):
                    uvloops(signum, frame)

            signal.signal(signum, handle)

    def stand_before(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear of the signals that Granian is about to listen to before it does.

        It closes the application only when the last request has ended, and streams do not end by themselves; for
        WebSocket connections it does not wait at all.
        """
        add = loop.add_signal_handler

        def add_behind_us(signum: int, handler: Callable[..., object], *args: Any) -> None:
            add(signum, self._stop, partial(handler, *args))

        loop.add_signal_handler = add_behind_us  # type: ignore[method-assign, assignment]

    def _stop(self, granians: Callable[[], object]) -> None:
        self._node.live.end()

        async def end_sockets() -> None:
            await self._sockets.gone()
            granians()

        if self._sockets.count and self._ending is None:
            self._ending = asyncio.create_task(end_sockets())
        else:
            granians()

    async def _close(self, _: Application) -> None:
        await self._node.close()
        if self._access_log is not None:
            self._access_log.flush()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Any) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            self._hand_over.enter()
            try:
                found = self._lane.get((scope["method"], scope["path"]))
                if found is not None:
                    await self._direct(*found, scope, receive, send)
                else:
                    scope["ojs.receive"] = receive
                    await super().__call__(scope, receive, send)  # type: ignore[no-untyped-call]  # BlackSheep's has no types
            finally:
                self._hand_over.leave()
        elif scope["type"] == "websocket":
            await self._sockets.serve(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)  # type: ignore[no-untyped-call]  # as above

    async def _direct(
        self,
        handler: Handler,
        needed: Scope | None,
        times: RequestTimes,
        scope: dict[str, Any],
        receive: Receive,
        send: Any,
    ) -> None:
        began_s = perf_counter()
        request = Request(scope, receive)
        reply = await self._gate.run(handler, request, needed)
        self._answered(scope, request, reply, began_s, times)
        await send({"type": "http.response.start", "status": reply.status, "headers": reply_headers(request, reply)})
        if reply.stream is not None:
            await _send_stream(request, reply.stream, send)
            return
        await send({"type": "http.response.body", "body": reply.body})

    def _routed(self, route: Route) -> Any:
        handler, needed, times = route.handler, _scope(route), self._node.metrics.requests(route.operation)

        async def run(web_request: WebRequest) -> Response:
            began_s = perf_counter()
            params = {name: str(value) for name, value in (web_request.route_values or {}).items()}
            scope: Any = web_request.scope
            request = Request(scope, scope["ojs.receive"], params)
            reply = await self._gate.run(handler, request, needed)
            self._answered(scope, request, reply, began_s, times)
            if reply.stream is not None:
                return _streamed(request, reply, reply.stream)
            return _response(request, reply)

        return run

    def _answered(
        self, scope: dict[str, Any], request: Request, reply: Reply, began_s: float, times: RequestTimes | None
    ) -> None:
        took_s = perf_counter() - began_s
        if times is not None:
            times[reply.status].observe(took_s)
        if self._access_log is not None:
            self._access_log.tell(scope, request, reply, took_s)

    async def _not_found(self, web_request: WebRequest) -> Response:
        began_s = perf_counter()
        scope: Any = web_request.scope
        request = Request(scope, scope["ojs.receive"])
        reply = self._refusal(scope, request)
        self._answered(scope, request, reply, began_s, None)
        return _response(request, reply)

    def _refusal(self, scope: dict[str, Any], request: Request) -> Reply:
        allowed = methods_of(self._table, scope["path"])
        method, path = scope["method"], scope["path"][:200]
        if allowed:
            wrong = MethodNotAllowed(f"{method} is not possible on {path}; expected {' or '.join(allowed)}.")
            reply = error_reply(wrong, request)
            reply.headers.append((b"allow", ", ".join(allowed).encode()))
            return reply
        missing = NotFound(
            f"There is no endpoint {method} {path}.",
            details={"resource_type": "endpoint", "resource_id": path},
            hint="GET /ojs/manifest lists what this server offers.",
        )
        return error_reply(missing, request)


def _scope(route: Route) -> Scope | None:
    return None if route.is_open else scope_of(route.method, route.path)


def _response(request: Request, reply: Reply) -> Response:
    (_, content_type), *headers = reply_headers(request, reply)
    return Response(reply.status, headers, Content(content_type, reply.body))


def _streamed(request: Request, reply: Reply, stream: AsyncGenerator[bytes]) -> Response:
    (_, content_type), *headers = reply_headers(request, reply)
    return Response(reply.status, headers, StreamedContent(content_type, partial(until_gone, request, stream)))


async def _send_stream(request: Request, stream: AsyncGenerator[bytes], send: Any) -> None:
    async for chunk in until_gone(request, stream):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def build(settings: Settings, servers: list[str], boot_id: str = "") -> OjsApplication:
    """Wire all layers together."""
    node_id = secrets.token_hex(6)
    otel = None
    if settings.is_traced:
        from ojs_fast.otel import Otel  # without the extra the SDK is not installed

        try:
            otel = Otel(settings, node_id)
        except ValueError as error:
            print(f"ojs-fast: cannot start: a variable OTEL_... is wrong: {error}", file=sys.stderr, flush=True)  # noqa: T201 - as above
            raise
    node = Node(settings, node_id=node_id, boot_id=boot_id, tracing=otel)
    gate, channels = Gate(settings), Channels(node.jobs, node.queue_admin)
    sockets = SocketHandlers(gate, node.live, channels, scope_of("GET", WEBSOCKET_PATHS[0]))
    table = routes(
        JobHandlers(node.jobs, node.priorities, node.queues, node.limits, node.idempotent),
        WorkerHandlers(node.fetcher, node.settler, node.workers),
        DeadLetterHandlers(node.dead_letters, settings),
        QueueHandlers(node.queues, node.queue_admin, node.stats),
        CronHandlers(node.cron),
        RateLimitHandlers(node.limit_admin),
        SystemHandlers(Health(node.connection), node.events, node.resetter),
        BulkHandlers(node.bulk, node.jobs, node.idempotent),
        MetricsHandlers(node.stats, node.queues, node.workers),
        LiveHandlers(node.live, channels),
        AdminHandlers(settings, node.jobs, node.search, node.dead_letters, node.queues, node.workers, node.stats),
        WorkflowHandlers(node.workflows),
        RunningHandlers(node.progress, node.checkpoints),
        SchemaHandlers(node.schemas),
        WebhookHandlers(node.webhooks),
        sockets,
        DocumentHandlers(settings.max_body_bytes),
        with_reset=settings.enable_reset,
    )
    access_log = AccessLog(settings.log_format) if settings.access_log else None
    return OjsApplication(node, gate, otel.requests(table) if otel else table, sockets, servers, access_log)


def create_app() -> OjsApplication:
    """The factory that Granian calls in every worker process."""
    die_with_parent()
    settings = Settings.from_env(os.environ)
    logs.configure(settings.log_level, settings.log_format)
    url = settings.internal_nats_url or settings.nats_url
    application = build(settings, [server.strip() for server in url.split(",")], os.environ.get(BOOT_ID, ""))
    application.stand_before(asyncio.get_event_loop())
    return application
