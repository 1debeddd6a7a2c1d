"""Just enough HTTP/1.1 to read the answers of a keep-alive connection. Pure; knows no sockets."""

import re
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024

# Servers write this header in one of two ways; looking for both is far cheaper than a regex without case.
_USUAL = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_ANY = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_BODILESS = frozenset({204, 304})
_JOB_ID = re.compile(rb'"id" ?: ?"([^"\\]{1,255})"')


class BadResponse(ValueError):
    """The server does not speak the part of HTTP/1.1 that is understood here."""


class Head(NamedTuple):
    """Status and where the body lies: `buffer[start:end]`."""

    status: int
    start: int
    end: int


def parse_head(buffer: bytes) -> Head | None:
    """The first response's head, or None while it is incomplete; the body may still be on its way.

    Raises BadResponse, also for chunked bodies: none of the calls measured here is answered with one.
    """
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        if len(buffer) > MAX_HEAD_BYTES:
            raise BadResponse(f"no end of the head in {len(buffer)} bytes")
        return None
    if not buffer.startswith(b"HTTP/1.1 ") or not buffer[9:12].isdigit():
        raise BadResponse(f"not an HTTP/1.1 response: {buffer[:40]!r}")
    status = int(buffer[9:12])
    start = head_end + 4
    return Head(status, start, start + _length(buffer, status, head_end + 2))


def _length(buffer: bytes, status: int, limit: int) -> int:
    for name in _USUAL:
        at = buffer.find(name, 0, limit)
        if at >= 0:
            at += len(name)
            digits = buffer[at : buffer.index(b"\r\n", at)].strip()
            if digits.isdigit():
                return int(digits)
    found = _ANY.search(buffer, 0, limit)
    if found:
        return int(found[1])
    if status in _BODILESS:
        return 0
    raise BadResponse(f"a response of status {status} without Content-Length")


def job_ids(body: bytes) -> list[bytes]:
    """The ids of the jobs in a fetch response; `plan.JOB` has no member `id` of its own that could be mistaken."""
    return _JOB_ID.findall(body)


def request(method: str, host: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """A complete HTTP/1.1 request with an OJS body."""
    fields = {"Host": host, "Content-Type": "application/openjobspec+json", "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (fields | (headers or {})).items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
