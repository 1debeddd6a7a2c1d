"""Three nats-servers that replicate everything: each may be killed, stopped, frozen and started again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import nats
from nats.aio.client import Client
from nats.js.api import ClusterInfo

from ojs_fast.storage.server import find_binary
from tests.support.processes import free_port, poll

SIZE = 3
READY_S = 30.0
STOP_S = 20.0

_CONFIG = """\
server_name: "n{number}"
host: "127.0.0.1"
port: {port}
max_payload: 8MB
log_file: "{directory}/log"
jetstream {{
  store_dir: "{directory}/store"
  limits: {{ default_max_consumers: -1, batch: {{ max_inflight_per_stream: 4096, max_inflight_total: 16384 }} }}
}}
cluster {{
  name: "test"
  host: "127.0.0.1"
  port: {route}
  routes: [{routes}]
  no_advertise: true
}}
{more}
"""


@dataclass(slots=True)
class _Member:
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None


class NatsCluster:
    """A running cluster; the data goes with it. `more` is added to the configuration of each server."""

    def __init__(self, more: str = "") -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="ojs-cluster-"))
        routes = [free_port() for _ in range(SIZE)]
        self._members: list[_Member] = []
        for number, route in enumerate(routes):
            directory = self._scratch / str(number)
            directory.mkdir()
            member = _Member(directory, free_port())
            text = _CONFIG.format(
                number=number,
                port=member.port,
                directory=directory,
                route=route,
                routes=", ".join(f'"nats://127.0.0.1:{one}"' for one in routes if one != route),
                more=more,
            )
            (directory / "conf").write_text(text, encoding="utf-8")
            self._members.append(member)

    def __enter__(self) -> Self:
        try:
            for number in range(SIZE):
                self.start(number)
            poll(self._has_leader, deadline_s=READY_S, what="the cluster has a leader")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def urls(self) -> list[str]:
        """The addresses of all servers."""
        return [f"nats://127.0.0.1:{member.port}" for member in self._members]

    @property
    def ports(self) -> list[int]:
        """The TCP ports of all servers."""
        return [member.port for member in self._members]

    def store(self, number: int) -> Path:
        """Where a server keeps its data."""
        return self._members[number].directory / "store"

    @property
    def url(self) -> str:
        """The same as a value of NATS_URL."""
        return ",".join(self.urls)

    def start(self, number: int) -> None:
        """Start one server."""
        member = self._members[number]
        member.process = subprocess.Popen(
            [str(find_binary()), "-c", str(member.directory / "conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - the child of a test, which may be killed itself
        )

    def kill(self, number: int) -> None:
        """SIGKILL one server; it stays away until `start`."""
        process = self._running(number)
        process.kill()
        process.wait()

    def pause(self, number: int) -> None:
        """Freeze one server: connections stay open, nothing is answered."""
        self._running(number).send_signal(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """Let it go on."""
        self._running(number).send_signal(signal.SIGCONT)

    async def leader_of(self, stream: str) -> int:
        """The number of the server that leads a stream, once there is one."""
        cluster = await self._await(stream, lambda cluster: bool(cluster.leader))
        return int((cluster.leader or "")[1:])

    async def await_current(self, stream: str) -> None:
        """Wait until a stream has a leader and every replica is up to date."""

        def is_current(cluster: ClusterInfo) -> bool:
            replicas = cluster.replicas or []
            return len(replicas) == SIZE - 1 and all(one.current and not one.offline for one in replicas)

        await self._await(stream, is_current)

    async def _await(self, stream: str, holds: Callable[[ClusterInfo], bool]) -> ClusterInfo:
        async with asyncio.timeout(READY_S):
            while True:
                with contextlib.suppress(nats.errors.Error, nats.js.errors.Error, OSError):
                    async with _client(self.urls) as client:
                        info = await client.jetstream(timeout=2).stream_info(stream)
                    assert info.cluster is not None, f"{stream} is not replicated"
                    if holds(info.cluster):
                        return info.cluster
                await asyncio.sleep(0.05)

    def close(self) -> None:
        """End all servers and remove their data."""
        for member in self._members:
            if member.process is not None and member.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.process.pid, signal.SIGCONT)
                member.process.kill()
                member.process.wait(STOP_S)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _running(self, number: int) -> subprocess.Popen[bytes]:
        process = self._members[number].process
        assert process is not None, f"server {number} does not run"
        return process

    def _has_leader(self) -> bool:
        async def asks() -> bool:
            async with _client(self.urls) as client:
                await client.jetstream().account_info()
            return True

        try:
            return asyncio.run(asks())
        except (nats.errors.Error, OSError, TimeoutError):
            return False


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


async def _quiet(_: Exception) -> None:
    """Servers that are away are no news here."""


@contextlib.asynccontextmanager
async def _client(urls: list[str]) -> AsyncIterator[Client]:
    client: Client = await nats.connect(urls, connect_timeout=2, allow_reconnect=False, error_cb=_quiet)
    try:
        yield client
    finally:
        await client.close()
