"""The one HTTP client of all commands: where the server is, how it lets us in, what its errors say."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import orjson

from ojs_fast import __version__
from ojs_fast.cli.exact import parse_exactly

if TYPE_CHECKING:  # late where it is used: help and completion need no HTTP
    import httpx

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
WORTH_A_REPEAT = (429, 502, 503, 504)
DEFAULT_URL = "http://127.0.0.1:8080"
CONTENT_TYPE = "application/openjobspec+json"
PAGE = 100

Body = dict[str, Any]


class ServerSaid(click.ClickException):
    """The server refused a request: its message, hint and code. Exit code 1."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        try:
            self.error: Body = parse_exactly(response.content)["error"]
            message = str(self.error["message"])
        except (ValueError, KeyError, TypeError):
            self.error, message = {}, f"the server answered {response.status_code} {response.text[:200]}".rstrip()
        self.code = str(self.error.get("code", response.status_code))
        lines = [f"{message} ({self.code})"]
        if self.error.get("hint"):
            lines.append(f"Hint: {self.error['hint']}")
        if self.status == 401:
            lines.append("Hint: give a key by --api-key or OJS_API_KEY; `ojs-fast keys create` makes one.")
        super().__init__("\n".join(lines))


class NoServer(click.ClickException):
    """Nobody answered; the message says what to do next. Exit code 1."""


def passes_by(error: click.ClickException) -> bool:
    """True for a server that is busy, restarting or away: the same request may succeed later."""
    return not isinstance(error, ServerSaid) or error.status in WORTH_A_REPEAT


class Client:
    """A server, as commands see it. Every call raises ServerSaid or NoServer."""

    def __init__(self, url: str, *, api_key: str = "", ca: str = "", timeout_s: float = 30.0) -> None:
        """`url` may end in `/ojs/v1`. Raises click.UsageError for one that is none."""
        import httpx

        self.url = url.rstrip("/").removesuffix("/ojs/v1")
        headers = {"Content-Type": CONTENT_TYPE, "User-Agent": f"ojs-fast/{__version__}"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            scheme = httpx.URL(self.url).scheme
            if scheme not in ("http", "https"):
                raise click.UsageError(f"--url is {url!r}; expected http:// or https:// and a host.")
            trust: Any = True
            if ca:
                trust = ssl.create_default_context(cafile=ca)
            elif scheme == "http":
                # Loading all authorities' certificates takes longer than the request that needs none.
                trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, verify=trust)
        except httpx.InvalidURL as error:
            raise click.UsageError(f"--url is {url!r}; expected http:// or https:// and a host ({error}).") from error
        except (OSError, UnicodeEncodeError) as error:  # ssl.SSLError is one
            raise click.UsageError(f"--ca is {ca!r} and cannot be used ({error}); expected a PEM file.") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Send a request below `/ojs/v1`; `body` is bytes, or something for JSON. Raises as the class says."""
        import httpx

        if body is not None:
            more["content"] = body if isinstance(body, bytes) else orjson.dumps(body)
        try:
            response = self._http.request(method, f"/ojs/v1{path}", **more)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise ServerSaid(response)
        return response

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """`send`, and the parsed answer."""
        response = self.send(method, path, body, **more)
        try:
            return parse_exactly(response.content) if response.content else {}
        except ValueError as error:
            raise NoServer(f"{self.url} answers, but not as an Open Job Spec server ({error}).") from error

    def call_again(self, path: str, body: bytes, tries: int, longest_s: float = LONGEST_PAUSE_S, **more: Any) -> Any:
        """POST until the server is neither busy nor away, so many times; only for what may come twice."""
        pause_s = FIRST_PAUSE_S
        for _ in range(tries - 1):
            try:
                return self.call("POST", path, body, **more)
            except (NoServer, ServerSaid) as error:
                if not passes_by(error):
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, longest_s)
        return self.call("POST", path, body, **more)

    def get(self, path: str, **query: Any) -> Any:
        """GET; members of `query` that are empty are left out."""
        return self.call("GET", path, params={name: value for name, value in query.items() if value not in ("", None)})

    def pages(self, path: str, key: str, limit: int, **query: Any) -> Iterator[Body]:
        """Items of an endpoint with `limit` and `offset`, page by page, `limit` in all (0: every one)."""
        offset = 0
        while True:
            size = min(PAGE, limit - offset) if limit else PAGE
            items = self.get(path, limit=size, offset=offset, **query)[key]
            yield from items
            offset += len(items)
            if len(items) < size or (limit and offset >= limit):
                return

    def stream(self, path: str, headers: dict[str, str], query: Body, *, silence_s: float) -> Iterator[str]:
        """The lines of a stream; `silence_s`: how long it may be silent."""
        import httpx

        timeout = httpx.Timeout(10.0, read=silence_s)
        try:
            with self._http.stream("GET", f"/ojs/v1{path}", headers=headers, params=query, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise ServerSaid(response)
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> NoServer:
        import httpx

        if isinstance(error, httpx.TimeoutException):
            return NoServer(f"{self.url} did not answer in time; --timeout allows more seconds.")
        if isinstance(error, httpx.ConnectError) and "CERTIFICATE" in str(error):
            return NoServer(
                f"the certificate of {self.url} is not trusted ({error}); --ca names the CA that signed it."
            )
        return NoServer(
            f"no server answers at {self.url} ({error}). "
            "Start one with `ojs-fast serve`, or say where it is by --url or OJS_URL."
        )


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def parse_json(text: str, what: str) -> Any:
    """Parse what a user typed. Raises click.UsageError naming it."""
    try:
        return parse_exactly(text.encode())
    except (ValueError, UnicodeEncodeError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise click.UsageError(
            f"{what} is {text[:80]!r}, which is not JSON ({reason}); a text needs double quotes: '\"{text[:20]}\"'."
        ) from error
