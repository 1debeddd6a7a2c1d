"""Requests to addresses that clients name (webhooks), never into networks that only this server can reach (SSRF).

Names are resolved here and the connection goes to the address that was checked, so a name that points elsewhere a
moment later gains nothing. A leaf: knows HTTP and addresses, nothing of jobs. The HTTP library is imported by the first
request.
"""

import asyncio
import contextlib
import importlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

if TYPE_CHECKING:
    import httpcore

URL_BYTES = 2048
RESOLVE_S = 2.0
BODY_READ_BYTES = 64 * 1024
BODY_KEPT_BYTES = 1024
REDIRECTS = frozenset({301, 302, 307, 308})
MAX_REDIRECTS = 3
CONNECTIONS = 256
KEPT_CONNECTIONS = 32
# Receivers close idle connections too: the shorter, the fewer requests meet one that is just being closed.
KEPT_S = 1.5
RETRY_AFTER_MAX_S = 86_400

# What `ipaddress` takes for global, in some of its versions: the metadata of clouds, relays, translators, examples.
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "5f00::/16", "3fff::/20"),
    )
)
# IPv4 in IPv6, behind a translator.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_HOST = re.compile(r"[a-zA-Z0-9._-]{1,253}")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]


class BadTarget(Exception):
    """The server does not send anything there; the message says what it would take, or why not."""


@dataclass(slots=True, frozen=True)
class Answer:
    """How one request ended. `status` 0: there was no answer, `error` says why."""

    status: int
    error: str = ""
    #: what the receiver asks for, None when it does not
    retry_after_s: float | None = None
    #: the beginning of the body
    body: bytes = b""
    duration_ms: int = 0

    @property
    def is_success(self) -> bool:
        """True for 2xx."""
        return 200 <= self.status < 300


def is_public(address: Address) -> bool:
    """True for an address that anybody can reach; one that stands for another is judged by that one."""
    inner: Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64 or int(address) < 2**32:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if not inner and (address.is_reserved or address.is_site_local):
            return False
    if inner is not None:
        return is_public(inner)
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


def split_url(url: str, *, allow_private: bool) -> SplitResult:
    """Take a URL apart. Raises BadTarget for one that is not to be called, whatever its host resolves to."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise BadTarget("an https URL such as https://example.com/hook") from None
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise BadTarget("an https URL (http needs OJS_WEBHOOKS_ALLOW_PRIVATE=true)")
    if len(url) > URL_BYTES or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise BadTarget(f"a URL of at most {URL_BYTES} printable ASCII characters, other hosts in Punycode")
    if "@" in parts.netloc or "#" in url or port == 0:
        raise BadTarget("a URL without user, password and fragment, with a port from 1 to 65535 if any")
    if not parts.netloc.startswith("["):
        _check_host(host)
    literal, name = _literal(host), host.rstrip(".")
    is_internal = not is_public(literal) if literal else name == "localhost" or name.endswith(".localhost")
    if is_internal and not allow_private:
        raise BadTarget("a host with a public address (OJS_WEBHOOKS_ALLOW_PRIVATE=true lifts this)")
    return parts


def _check_host(host: str) -> None:
    # `0x7f.1`, `2130706433` and `127.1` are addresses to some resolvers and names to others.
    last = host.rstrip(".").rpartition(".")[2]
    if not _HOST.fullmatch(host) or (_NUMBER.fullmatch(last) and _literal(host) is None):
        raise BadTarget("a host name, an IPv4 address of four decimal numbers, or an IPv6 address in brackets")


def _literal(host: str) -> Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Poster:
    """Sends POST requests, each within one deadline, over shared connections."""

    def __init__(self, *, timeout_s: float, allow_private: bool, resolve: Resolve = resolve) -> None:
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._resolve = resolve
        self._http: Any = None
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def check(self, url: str) -> None:
        """Refuse a URL that leads to where nothing is sent; one that cannot be resolved now may pass.

        Raises BadTarget.
        """
        parts = split_url(url, allow_private=self._allow_private)
        try:
            async with asyncio.timeout(RESOLVE_S):
                await self._addresses(parts.hostname or "", parts.port or 443)
        except (OSError, UnicodeError):  # TimeoutError is one
            return

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Where to connect. Raises BadTarget, OSError."""
        found = await self._resolve(host, port)
        # An address with a zone (fe80::1%eth0) is link-local.
        if not self._allow_private and not all(
            "%" not in one and is_public(ipaddress.ip_address(one)) for one in found
        ):
            raise BadTarget("a host with public addresses only (OJS_WEBHOOKS_ALLOW_PRIVATE=true lifts this)")
        return found

    async def post(self, url: str, headers: dict[str | bytes, str | bytes], body: bytes) -> Answer:
        """Send one request and read the answer; whatever goes wrong is in it."""
        if self._http is None:  # not while everything else waits: it takes a third of a second
            self._http = await asyncio.to_thread(importlib.import_module, "httpcore")
        httpcore = self._http
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._follow(url, headers, body)
        except TimeoutError:
            answer = Answer(0, f"no answer within {self._timeout_s:g} s")
        except BadTarget as error:
            answer = Answer(0, f"refused: expected {error}")
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            OSError,
            UnicodeError,
        ) as error:
            answer = Answer(0, f"{type(error).__name__}: {error}"[:200])
        duration_ms = int((time.monotonic() - began) * 1000)
        return Answer(answer.status, answer.error, answer.retry_after_s, answer.body, duration_ms)

    async def _follow(self, url: str, headers: dict[str | bytes, str | bytes], body: bytes) -> Answer:
        for hops_left in range(MAX_REDIRECTS, -1, -1):
            split_url(url, allow_private=self._allow_private)
            async with self._pooled().stream("POST", url, headers=headers, content=body) as response:
                fields = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status not in REDIRECTS or b"location" not in fields or not hops_left:
                    wait_s = _retry_after_s(fields.get(b"retry-after", ""))
                    return Answer(response.status, "", wait_s, await _beginning(response.aiter_stream()))
                url = urljoin(url, fields[b"location"])
        raise AssertionError("the last hop returns")

    def _pooled(self) -> "httpcore.AsyncConnectionPool":
        if self._pool is None:
            import httpcore

            addresses = self._addresses

            class Checked(httpcore.AnyIOBackend):
                """Connects to the address that was checked, not to the name."""

                async def connect_tcp(self, host: str, port: int, *args: Any, **named: Any) -> Any:
                    for one in (found := await addresses(host, port)):
                        try:
                            return await super().connect_tcp(one, port, *args, **named)
                        except httpcore.ConnectError:
                            if one == found[-1]:
                                raise
                    raise httpcore.ConnectError("the host has no address")

            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=ssl.create_default_context(),
                max_connections=CONNECTIONS,
                max_keepalive_connections=KEPT_CONNECTIONS,
                keepalive_expiry=KEPT_S,
                network_backend=Checked(),
            )
        return self._pool

    async def close(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    # Read on a little, so that the connection can be used again, but not for ever.
    kept, size = b"", 0
    async for chunk in chunks:
        kept = (kept + chunk)[:BODY_KEPT_BYTES]
        size += len(chunk)
        if size > BODY_READ_BYTES:
            break
    return kept


def _retry_after_s(text: str) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date; None without a readable one."""
    if text.isascii() and text.isdigit():
        return float(min(int(text[:10]), RETRY_AFTER_MAX_S))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is not None:
            return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), RETRY_AFTER_MAX_S)
    return None
