"""Requests and replies, independent of the HTTP library: what handlers take and give.

Owns headers, body reading and limits, authentication, the error body; must not know any resource.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson

from ojs_fast import _core
from ojs_fast.api.keys import KeyRing, Scope, scope_names
from ojs_fast.api.overload import Load
from ojs_fast.config import Settings
from ojs_fast.core.clock import now_ms
from ojs_fast.core.refusals import decode_field, refused
from ojs_fast.errors import (
    BackendUnavailable,
    BatchTooLarge,
    Conflict,
    Duplicate,
    Forbidden,
    InvalidRequest,
    JobTypeNotAllowed,
    MethodNotAllowed,
    NotFound,
    OJSError,
    PayloadTooLarge,
    QueueFull,
    Unauthorized,
    Unsupported,
    ValidationFailed,
    invalid_field,
)
from ojs_fast.logs import REQUEST_ID
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

V1 = "/ojs/v1"
OJS_JSON = b"application/openjobspec+json"
PLAIN_JSON = b"application/json"
VERSION = b"1.0"
BODY_TIMEOUT_S = 60
TELL_EVERY_S = 1.0
QUEUE_FULL_RETRY_S = 1
RFC_3339 = 'an RFC 3339 time with a zone ("2026-02-12T10:30:00Z")'
# Longer numbers in a query string are refused; of the others those beyond a parameter's bound count as the bound.
MOST_QUERY_DIGITS = 17
DOCS_URL = "https://openjobspec.org/docs/errors#"

RawHeaders = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

_request_ids = _core.UuidV7Generator()

_STATUS: dict[type[Exception], int] = {
    NotFound: 404,
    MethodNotAllowed: 405,
    Conflict: 409,
    Duplicate: 409,
    PayloadTooLarge: 413,
    BatchTooLarge: 413,
    QueueFull: 429,
    JobTypeNotAllowed: 422,
    Unauthorized: 401,
    Forbidden: 403,
    Unsupported: 422,
    ValidationFailed: 422,
    BackendUnavailable: 503,
}


class UnsupportedEncoding(OJSError):
    """The body is compressed in a way the server does not take (415)."""

    code = "unsupported"


_STATUS[UnsupportedEncoding] = 415


class ClientGone(Exception):
    """The client hung up before its request was complete; there is nobody to answer."""


@dataclass(slots=True)
class Reply:
    """Status, JSON body and further headers of an answer."""

    status: int
    body: bytes
    headers: RawHeaders = field(default_factory=list)
    #: unset: JSON, in the media type that the client takes
    content_type: bytes = b""
    #: sent instead of `body`, chunk by chunk, for as long as the client stays
    stream: AsyncGenerator[bytes] | None = None


class Request:
    """One request: the headers that matter, the body, the path parameters."""

    __slots__ = (
        "_gone",
        "_receive",
        "_request_id",
        "_unfinished",
        "accepts_ojs",
        "body",
        "headers",
        "params",
        "query_string",
    )

    def __init__(self, scope: dict[str, Any], receive: Receive, params: dict[str, str] | None = None) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.query_string: bytes = scope["query_string"]
        self.params = params or {}
        self.body = b""
        self._receive = receive
        self._request_id = b""
        self._gone: Any = None
        self._unfinished = False
        accept = self.headers.get(b"accept", b"")
        # Spec 4.3 answers openjobspec+json whatever is accepted; the Python SDK only parses
        # application/json, so a client that names that alone gets it.
        self.accepts_ojs = not (PLAIN_JSON in accept and b"openjobspec" not in accept)

    @property
    def request_id(self) -> bytes:
        """The client's X-Request-Id, or one of ours."""
        if not self._request_id:
            given = self.headers.get(b"x-request-id", b"")
            if given and len(given) <= 128 and given.isascii() and given.decode().isprintable():
                self._request_id = given
            else:
                self._request_id = b"req_" + _request_ids.next(now_ms()).encode()
        return self._request_id

    def query(self, name: str) -> str:
        """The last value of a query parameter, "" when missing."""
        if not self.query_string:
            return ""
        try:
            pairs = parse_qsl(self.query_string.decode("ascii"), max_num_fields=50, errors="strict")
        except ValueError:
            raise InvalidRequest("The query string is malformed; expected name=value pairs in UTF-8.") from None
        return next((value for key, value in reversed(pairs) if key == name), "")

    def query_int(self, name: str, default: int, low: int, high: int) -> int:
        """An integer parameter; above `high` it is clamped. Raises InvalidRequest."""
        raw = self.query(name)
        if not raw:
            return default
        if not (raw.isascii() and raw.isdigit() and len(raw) <= MOST_QUERY_DIGITS and int(raw) >= low):
            raise InvalidRequest(
                f"Parameter '{name}' is '{raw[:60]}'; expected an integer from {low} to {high}.",
                details={"field": name, "received": raw[:60], "expected": f"integer from {low} to {high}"},
            )
        return min(int(raw), high)

    def query_list(self, name: str) -> list[str]:
        """A comma-separated parameter."""
        return [part for part in self.query(name).split(",") if part]

    async def read(self, limit_bytes: int) -> None:
        """Read the whole body. Raises PayloadTooLarge, InvalidRequest, ClientGone."""
        declared = self.headers.get(b"content-length")
        size = int(declared) if declared and declared.isdigit() else -1
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._unfinished = bool(message.get("more_body"))
        if self._unfinished and len(body) != size:
            body = await self._read_rest(body, limit_bytes)
            self._unfinished = False
        self.body = body

    async def _read_rest(self, first: bytes, limit_bytes: int) -> bytes:
        chunks, size = [first], len(first)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size > limit_bytes:
                        raise _too_large(limit_bytes)
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise InvalidRequest(f"The request body did not arrive within {BODY_TIMEOUT_S} s.") from None

    async def watch_client(self) -> None:
        """Start to notice that the client hangs up; call after the body was read."""
        if self._unfinished:
            # The body is complete by its length; its empty last part comes without delay.
            await self._receive()
        self._gone = self._receive()

    async def gone(self) -> None:
        """Wait until the client hangs up; call after `watch_client`."""
        await self._gone

    def client_gone(self) -> bool:
        """True when the client hung up since `watch_client`."""
        return bool(self._gone is not None and self._gone.done())

    def members(self) -> dict[str, tuple[int, int]]:
        """Where the value of each member of the body begins and ends. Raises OJSError."""
        try:
            return _core.scan_json_object(self.body)
        except (ValueError, TypeError) as error:
            raise refused(error) from None

    def json(self) -> dict[str, Any]:
        """The body as an object, for requests without user JSON. Raises OJSError."""
        members = self.members()
        try:
            decoded: dict[str, Any] = orjson.loads(self.body)
        except orjson.JSONDecodeError:  # a number beyond a double: find the field, to name it
            decoded = {name: decode_field(self.body[start:end], name) for name, (start, end) in members.items()}
        return decoded


def moment_ms(field: str, value: object) -> int:
    """A time in a body as epoch ms, never 0: that stands for no time. Raises InvalidRequest."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return _core.parse_rfc3339_ms(value) or 1
    raise invalid_field(field, value, RFC_3339)


def idempotency_key(request: Request) -> str | None:
    """The header Idempotency-Key, None without it (ojs-bulk-operations section 11.3)."""
    raw = request.headers.get(b"idempotency-key")
    return raw.decode("latin-1") if raw is not None else None


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than {limit_bytes} bytes.",
        details={"max_bytes": limit_bytes},
        hint="Send fewer jobs at once, or store large payloads elsewhere and pass a reference.",
    )


def check_content_type(request: Request) -> None:
    """Refuse bodies that are not JSON in UTF-8 (ojs-http-binding section 4.1). Raises InvalidRequest."""
    raw = request.headers.get(b"content-type")
    if raw is None or raw in (OJS_JSON, PLAIN_JSON):
        return
    media, _, parameters = raw.lower().partition(b";")
    charset = next((p.partition(b"=")[2].strip(b' "') for p in parameters.split(b";") if b"charset" in p), b"utf-8")
    if media.strip() not in (OJS_JSON, PLAIN_JSON) or charset not in (b"utf-8", b"utf8"):
        shown = raw[:80].decode("latin-1")
        raise InvalidRequest(
            f"Header 'Content-Type' is '{shown}'; expected application/openjobspec+json or application/json in UTF-8.",
            details={"field": "Content-Type", "received": shown},
        )


class Gate:
    """What every request passes: version, authentication, body, errors."""

    def __init__(self, settings: Settings) -> None:
        path = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._keys = KeyRing(settings.api_key, path) if settings.api_key or path else None
        self._max_body_bytes = settings.max_body_bytes
        self._load = Load()
        self._untold = 0
        self._told_s = 0.0

    async def run(self, handler: Callable[[Request], Awaitable[Reply]], request: Request, scope: Scope | None) -> Reply:
        """Run a handler, open to all if `scope` is None; every exception becomes an OJS error body."""
        REQUEST_ID.set(request.request_id)
        try:
            version = request.headers.get(b"ojs-version")
            if version is not None and version != VERSION:
                raise _unsupported_version(version)  # noqa: TRY301 - this is where errors become answers
            self.admit(request, scope)
            await request.read(self._max_body_bytes)
            if request.body:
                check_content_type(request)
                encoding = request.headers.get(b"content-encoding", b"identity")
                if encoding.lower() != b"identity":
                    raise UnsupportedEncoding(  # noqa: TRY301 - as above
                        f"Header 'Content-Encoding' is '{encoding[:40].decode('latin-1')}'; expected none."
                    )
            if scope is None or b"ojs-block-timeout" in request.headers:
                return await handler(request)
            if not self._load.enter():
                raise _overloaded(self._load.under_way)  # noqa: TRY301 - as above
            try:
                return await handler(request)
            finally:
                self._load.leave()
        except OJSError as error:
            return error_reply(error, request)
        except Unavailable as error:
            self._tell_unavailable(error)
            return error_reply(BackendUnavailable("The backend is not available; try again shortly."), request)
        except ClientGone:
            # It may have closed only its sending side; without an answer Granian would make this a 500.
            return error_reply(InvalidRequest("The connection ended before the request body was complete."), request)
        except Exception:
            log.exception("unexpected error")
            return error_reply(OJSError("Unexpected server error."), request)

    @property
    def is_open(self) -> bool:
        """True when no key is needed."""
        return self._keys is None

    def admit(self, request: Request, scope: Scope | None) -> None:
        """Look at the key, unless there are none or none is needed. Raises Unauthorized, Forbidden."""
        if self._keys is not None and scope is not None:
            _authenticate(self._keys, request, scope)

    def _tell_unavailable(self, error: Unavailable) -> None:
        """Once a second, however many requests meet it."""
        self._untold += 1
        now = time.monotonic()
        if now - self._told_s >= TELL_EVERY_S:
            log.warning("%d requests met an unavailable backend, the last one: %s", self._untold, error)
            self._untold, self._told_s = 0, now


def _authenticate(keys: KeyRing, request: Request, needed: Scope) -> None:
    scheme, _, key = request.headers.get(b"authorization", b"").partition(b" ")
    granted = keys.scopes_of(key.strip()) if scheme.lower() == b"bearer" else None
    if granted is None:
        raise Unauthorized("The API key is missing or wrong.", hint="Send the header 'Authorization: Bearer <key>'.")
    if not granted & needed:
        scope = scope_names(needed)[0]
        raise Forbidden(
            f"The API key lacks the scope '{scope}'; it has {', '.join(scope_names(granted))}.",
            details={"required_scope": scope, "scopes": scope_names(granted)},
            hint="Use a key with this scope; 'ojs-fast keys create' makes one.",
        )


def _overloaded(under_way: int) -> BackendUnavailable:
    """Those that are under way can be done in time, more could not (503, Retry-After)."""
    return BackendUnavailable(
        f"The server is overloaded: {under_way} requests are under way.", hint="Try again shortly."
    )


def _unsupported_version(version: bytes) -> Unsupported:
    shown = version[:40].decode("latin-1")
    return Unsupported(
        f"Header 'OJS-Version' is '{shown}'; this server speaks 1.0.",
        details={"field": "OJS-Version", "received": shown, "supported": ["1.0"]},
    )


def status_of(error: Exception) -> int:
    """The HTTP status that an exception becomes."""
    if isinstance(error, Unavailable):
        return _STATUS[BackendUnavailable]
    return _STATUS.get(type(error), 400) if isinstance(error, OJSError) and type(error) is not OJSError else 500


def error_reply(error: OJSError, request: Request) -> Reply:
    """The error body of CONTRACT section 9."""
    status = status_of(error)
    body: dict[str, Any] = {
        "code": error.code,
        "type": error.code,
        "message": error.message,
        "retryable": error.retryable or status >= 500,
        "request_id": request.request_id.decode("ascii"),
    }
    if error.details:
        body["details"] = error.details
    if error.hint:
        body["hint"] = error.hint
    body["docs_url"] = DOCS_URL + error.code
    headers: RawHeaders = []
    if status == 503:
        headers.append((b"retry-after", b"1"))
    elif isinstance(error, QueueFull):
        facts = error.details or {}
        body |= facts
        headers.append((b"retry-after", b"%d" % QUEUE_FULL_RETRY_S))
        headers.extend(depth_headers(facts["depth"], facts["bound"]))
    elif isinstance(error, BatchTooLarge):
        facts = error.details or {}
        body |= facts
        headers.append((b"x-ojs-max-batch-size", b"%d" % facts["max_batch_size"]))
    elif status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    try:
        encoded = orjson.dumps({"error": body})
    except orjson.JSONEncodeError:
        body.pop("details", None)
        encoded = orjson.dumps({"error": body})
    return Reply(status, encoded, headers)


def depth_headers(depth: int, bound: int) -> RawHeaders:
    """How deep a bounded queue is (ojs-backpressure section 7.2)."""
    return [(b"x-ojs-queue-depth", b"%d" % depth), (b"x-ojs-queue-bound", b"%d" % bound)]


def reply_headers(request: Request, reply: Reply) -> RawHeaders:
    """All headers of an answer (ojs-http-binding section 6.5)."""
    return [
        (b"content-type", reply.content_type or (OJS_JSON if request.accepts_ojs else PLAIN_JSON)),
        (b"ojs-version", VERSION),
        (b"x-request-id", request.request_id),
        *reply.headers,
    ]


def json_reply(value: Any, status: int = 200) -> Reply:
    """Encode a value as the body."""
    return Reply(status, orjson.dumps(value))


async def until_gone(request: Request, stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The chunks of a stream until it ends or the client hangs up; then the stream is closed."""
    await request.watch_client()
    gone = asyncio.ensure_future(request.gone())
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(anext(stream))
            await asyncio.wait((gone, pending), return_when=asyncio.FIRST_COMPLETED)
            if not pending.done():
                return
            try:
                chunk = pending.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        gone.cancel()
        if pending is not None and not pending.done():
            pending.cancel()
        await asyncio.gather(gone, *([pending] if pending else []), return_exceptions=True)
        await stream.aclose()
