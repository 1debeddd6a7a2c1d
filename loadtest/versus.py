"""The same load on another OJS server that runs already, and ours ÷ theirs."""

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from loadtest.measure import Bench
from loadtest.report import Line
from loadtest.servers import HOST, Running

#: What any OJS server can be asked for; the other groups are baselines or look inside.
GROUPS = ("enqueue", "fetch", "batch")
LOOPBACK = (HOST, "localhost")


def port_of(url: str) -> int:
    """The port of a server on this machine. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in LOOPBACK or parts.path not in ("", "/"):
        raise ValueError(f"{url!r}; expected http://{HOST}:PORT, a server on this machine")
    return parts.port or 80


class Theirs(Bench):
    """Measures a server that it neither starts nor stops, so without its CPU time."""

    def __init__(self, port: int, **how: Any) -> None:
        super().__init__(**how)
        self._port = port
        self.queue_suffix = f"-{secrets.token_hex(3)}"

    def _running(self, _: tuple[str, ...]) -> AbstractContextManager[Running]:
        return nullcontext(Running(self._port, [], []))


def table(ours: Sequence[Line], theirs: Sequence[Line]) -> str:
    """A line per row that both have: rates and latencies, and how many times theirs ours is."""
    other = {line.row.key: line for line in theirs}
    text = [f"{'ours ÷ theirs':<46}{'ours':>10}{'theirs':>10}{'rate':>8}{'p50':>8}{'p99':>8}"]
    for line in ours:
        one = other.get(line.row.key)
        if one is None or line.row.is_part:
            continue
        text.append(
            f"{line.row.title:<46}{line.rate:>10,.0f}{one.rate:>10,.0f}{line.rate / one.rate:>8.2f}"
            f"{line.p50_ms / one.p50_ms:>8.2f}{line.p99_ms / one.p99_ms:>8.2f}"
        )
    return "\n".join(text)
