"""One TCP connection that speaks the NATS client protocol: the hot path's wire.

nats-py carries the control plane (watches, subscriptions between nodes); a write or pull over it costs
three times as much, because every message passes two tasks and two queues (docs/performance.md). Here a
frame is parsed in `_core` inside the read callback, and all writes of one turn of the event loop leave
in one system call. Knows frames, nothing of JetStream.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import orjson

from ojs_fast import __version__, _core
from ojs_fast.storage.access import NatsAccess
from ojs_fast.storage.errors import AccessDenied, Unavailable

log = logging.getLogger(__name__)

DEFAULT_PORT = 4222
HANDSHAKE_TIMEOUT_S = 5.0
PING_EVERY_S = 10.0
LARGE_BYTES = 32 * 1024

OnMessage = Callable[[_core.WireMessage], None]
OnLost = Callable[[], None]


class Wire(asyncio.Protocol):
    """A connected wire with one wildcard subscription; it is thrown away when it breaks."""

    def __init__(
        self,
        url: str,
        access: NatsAccess,
        inbox: str,
        on_message: OnMessage,
        on_lost: OnLost,
        before_flush: Callable[[], None],
    ) -> None:
        self._url = urlsplit(url if "//" in url else f"nats://{url}")
        self._access = access
        self._inbox = inbox
        self._on_message = on_message
        self._on_lost = on_lost
        self._before_flush = before_flush
        self._flush_due = False
        self._parser = _core.WireParser()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._outgoing: list[bytes] = []
        # For the server's greeting at first, then for the end of the handshake.
        self._awaited: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._pinger: asyncio.TimerHandle | None = None
        self._pongs_due = 0
        self._lost = False
        self._greeted = self._is_open = False
        self.max_payload = 1024 * 1024

    async def connect(self) -> None:
        """Connect, authenticate, subscribe. Raises Unavailable, AccessDenied."""
        host, port = self._url.hostname or "127.0.0.1", self._url.port or DEFAULT_PORT
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                transport, _ = await self._loop.create_connection(lambda: self, host, port)
                info = await self._awaited
                self._awaited = self._loop.create_future()
                tls = self._access.context(self._url.scheme, is_required=bool(info.get("tls_required")))
                if tls is not None:
                    upgraded = await self._loop.start_tls(transport, self, tls, server_hostname=host)
                    self._transport = cast("asyncio.Transport", upgraded)
                self._handshake(info)
                await self._awaited
        except ssl.SSLError as error:
            self.abort()
            raise AccessDenied(
                f"TLS with the NATS server at {host}:{port} failed ({error.reason or error}); correct the address in "
                "NATS_URL, OJS_NATS_TLS_CA, or OJS_NATS_TLS_CERT and OJS_NATS_TLS_KEY"
            ) from error
        except (OSError, TimeoutError) as error:
            self.abort()
            raise Unavailable(f"no NATS server answers at {host}:{port}: {error!r}") from error
        self._is_open = True
        self._ping()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # Not an asyncio.Transport by class under uvloop, but one by behaviour.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            frames = self._parser.feed(data)
        except ValueError as error:
            log.error("the NATS connection is given up: %s", error)
            self.abort()
            return
        on_message = self._on_message
        for frame in frames:
            if isinstance(frame, tuple):
                self._control(*frame)
            else:
                on_message(frame)

    def _control(self, verb: str, text: bytes) -> None:
        if verb == "PING":
            self.send_frame(b"PONG\r\n")
        elif verb == "PONG":
            self._pongs_due = 0
            if not self._awaited.done():
                self._awaited.set_result({})
        elif verb == "INFO":
            info = orjson.loads(text)
            self.max_payload = info.get("max_payload", self.max_payload)
            if not self._greeted:
                self._greeted = True
                self._awaited.set_result(info)
        elif verb == "-ERR":
            reason = text.decode("utf-8", "replace")
            log.warning("NATS reports an error: %s", reason)
            if not self._awaited.done():
                self._awaited.set_exception(
                    AccessDenied(
                        f"NATS refuses the connection: {reason}; correct the credentials in NATS_URL, OJS_NATS_CREDS, "
                        "OJS_NATS_USER and OJS_NATS_PASSWORD, or OJS_NATS_TOKEN"
                    )
                )

    def _handshake(self, info: dict[str, Any]) -> None:
        options: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "lang": "python",
            "version": __version__,
            "protocol": 1,
            "name": "ojs-fast wire",
        }
        options |= self._access.for_connect(self._url, info.get("nonce", ""))
        self.send_frame(b"CONNECT %s\r\nSUB %s.* 1\r\nPING\r\n" % (orjson.dumps(options), self._inbox.encode()))

    def _ping(self) -> None:
        if self._lost:
            return
        if self._pongs_due >= 2:
            log.warning("NATS is silent, the connection is given up")
            self.abort()
            return
        self._pongs_due += 1
        self.send_frame(b"PING\r\n")
        self._pinger = self._loop.call_later(PING_EVERY_S, self._ping)

    def send_frame(self, frame: bytes) -> None:
        """Queue one frame; all frames of this turn of the event loop leave together."""
        self._outgoing.append(frame)
        if not self._flush_due:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Flush in this turn of the event loop; `before_flush` may add frames first."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._before_flush()
        self._flush_due = False
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None and not self._lost:
            if len(outgoing) == 1:
                self._transport.write(outgoing[0])
            elif max(map(len, outgoing)) < LARGE_BYTES:
                self._transport.write(b"".join(outgoing))
            else:
                self._transport.writelines(outgoing)  # without copying them once more

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        if self._lost:
            return
        self._lost = True
        if self._pinger:
            self._pinger.cancel()
        if self._is_open:
            self._on_lost()
        elif not self._awaited.done():
            self._awaited.set_exception(Unavailable(f"NATS closed the connection: {error!r}"))

    def close(self) -> None:
        """Send what is queued, then close without calling `on_lost`."""
        if self._outgoing:
            self._flush()
        self._lost = True
        if self._pinger:
            self._pinger.cancel()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()
