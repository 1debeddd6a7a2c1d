"""HTTP below the level of a client library: exact bytes out, parsed answers in."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.openapi import described

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def status_code(self) -> int:
        """The name that httpx uses."""
        return self.status

    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.content)


class Wire:
    """One TCP connection to a server."""

    def __init__(self, url: str, timeout_s: float = 15.0) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "127.0.0.1", address.port or 80), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._reader.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def finish_sending(self) -> None:
        """Say that nothing more comes; answers can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self, *, to_head: bool = False) -> Answer | None:
        """Read the next answer, of a HEAD request without its body; None when the server hung up instead."""
        try:
            first = self._reader.readline()
        except ConnectionResetError:
            return None
        if not first:
            return None
        headers: dict[str, str] = {}
        while (line := self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        content = b"" if to_head else self._reader.read(int(headers.get("content-length", "0")))
        return Answer(int(first.split()[1]), headers, content)


def head(method: str, target: str, *headers: str, length: int | None = None) -> bytes:
    """Make the head of a request; `length` adds Content-Length."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(target: str, body: bytes, *headers: str) -> bytes:
    """Make a whole POST request in OJS JSON."""
    content_type = "Content-Type: application/openjobspec+json"
    return head("POST", target, content_type, *headers, length=len(body)) + body


def ask(url: str, data: bytes) -> Answer:
    """Send one request on a connection of its own and return the answer."""
    with Wire(url) as wire:
        wire.send(data)
        answer = wire.answer(to_head=data.startswith(b"HEAD "))
        assert answer is not None, "the server hung up without an answer"
    if "ojs-version" in answer.headers:  # else the HTTP server below could not read the request
        method, target, _ = data.split(maxsplit=2)
        path = target.partition(b"?")[0].decode("latin-1")
        described().check(method.decode(), path, answer.status, answer.headers, answer.content)
    return answer
