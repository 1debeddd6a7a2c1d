"""A nats-server of its own, for several server processes on one NATS and for nodes inside the test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from ojs_fast.storage.server import EmbeddedNats
from tests.support.processes import descendants, freeze, poll


class Nats:
    """A running nats-server with JetStream; the data goes with it."""

    def __init__(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="ojs-nats-"))
        self._embedded = EmbeddedNats(self._scratch / "data")

    def __enter__(self) -> Self:
        self._embedded.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._embedded.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def url(self) -> str:
        """Address with the token."""
        return self._embedded.url

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return self._embedded.port

    @property
    def pid(self) -> int:
        """Process id of the present nats-server."""
        assert self._embedded.pid is not None
        return self._embedded.pid

    def kill(self) -> None:
        """SIGKILL it and wait until another one runs in its place."""
        before, restarts = self.pid, self._embedded.restarts
        old = [one for one in descendants(os.getpid()) if one.pid == before]
        os.kill(before, signal.SIGKILL)
        poll(lambda: not any(one.is_alive for one in old) and self._embedded.restarts > restarts, what="it runs again")

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        freeze(self.pid)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)
