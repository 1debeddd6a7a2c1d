"""A look at a NATS server before anybody connects: whether it is there, new enough and has JetStream.

Works without asyncio. Must not know who started the server.
"""

from __future__ import annotations

import re
import socket
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

#: Atomic batches, counters and per-key TTL came with it.
REQUIRED_VERSION = (2, 12)

DEFAULT_NATS_PORT = 4222


class NatsStartError(Exception):
    """A NATS server could not be started or used; the message says what to do."""


class ServerInfo(NamedTuple):
    """What a NATS server says about itself to whoever connects."""

    name: str
    version: str
    has_jetstream: bool


def read_info(host: str, port: int, *, timeout_s: float) -> ServerInfo:
    """Connect and read the greeting of a NATS server.

    Raises OSError when nothing answers, ValueError when what answers is no NATS server.
    """
    deadline = time.monotonic() + timeout_s
    with socket.create_connection((host, port), timeout=timeout_s) as conn:
        line = b""
        while b"\n" not in line and len(line) < 1 << 20:
            conn.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = conn.recv(65_536)
            if not chunk:
                break
            line += chunk
    verb, _, body = line.partition(b"\n")[0].partition(b" ")
    if verb != b"INFO":
        raise ValueError(f"not a NATS server: it greeted with {line[:40]!r}")
    info = orjson.loads(body)
    return ServerInfo(str(info.get("server_name", "")), str(info.get("version", "")), info.get("jetstream") is True)


def check_external(urls: list[str], *, timeout_s: float = 5.0) -> ServerInfo:
    """Look for a NATS server of `urls` that serves us and return what it says about itself.

    Raises NatsStartError when none answers, or each that does is too old or without JetStream: one whose disk is full
    has turned it off, and the others go on.
    """
    silent = []
    unfit: NatsStartError | None = None
    for url in urls:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = parts.hostname or "127.0.0.1", parts.port or DEFAULT_NATS_PORT
        try:
            info = read_info(host, port, timeout_s=timeout_s)
        except (OSError, ValueError) as error:
            silent.append(f"{host}:{port} ({error})")
            continue
        try:
            _require(info, f"{host}:{port}")
        except NatsStartError as error:
            unfit = unfit or error
            continue
        return info
    raise unfit or NatsStartError(
        f"no NATS server answers: {', '.join(silent)}; start it, correct NATS_URL, "
        "or unset NATS_URL to use the embedded one"
    )


def _require(info: ServerInfo, where: str) -> None:
    version = tuple(int(part) for part in re.findall(r"\d+", info.version)[:2])
    if version < REQUIRED_VERSION:
        needed = ".".join(map(str, REQUIRED_VERSION))
        raise NatsStartError(
            f"the NATS server at {where} is version {info.version}, but ojs-fast needs {needed} or newer; "
            "upgrade it, or unset NATS_URL to use the embedded one"
        )
    if not info.has_jetstream:
        raise NatsStartError(f"the NATS server at {where} runs without JetStream; start it with -js")
