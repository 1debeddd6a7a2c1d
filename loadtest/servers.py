"""The servers under test as child processes: the OJS server and the echo, started alike, always on loopback."""

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest import cpu

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
READY_S = 60.0
STOP_S = 45.0

OJS = ("ojs_fast", "serve")
ECHO = ("loadtest.echo",)


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


@dataclass(frozen=True)
class Running:
    """A server that answers: its port and its processes, without and with the name nats-server."""

    port: int
    server_pids: list[int]
    nats_pids: list[int]


def child_env(**settings: str) -> dict[str, str]:
    """The environment of a child: ours, without OJS settings and NATS_URL, which must not bend the figures."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OJS_") and k != "NATS_URL"}
    path = os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH", ""))))
    return inherited | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | settings


def _end_with_parent() -> None:
    # Between fork and exec of the child: when the benchmark is killed, the kernel sends the server a SIGTERM.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as trial:
        port: int = trial.getsockname()[1]
        return port


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A directory for the command `loadtest.<name>`; a BenchError ends it with the message and exit code 1."""
    try:
        with tempfile.TemporaryDirectory(prefix=f"ojs-{name}-") as directory:
            yield Path(directory)
    except BenchError as error:
        sys.exit(f"loadtest.{name}: {error}")


@contextmanager
def running(
    module: tuple[str, ...], directory: Path, durability: str, *, workers: int = 1, **settings: str
) -> Iterator[Running]:
    """Start a server on an empty data directory below `directory`, wait for it, stop it, remove its data.

    `settings` are further variables. Raises BenchError.
    """
    with tempfile.TemporaryDirectory(prefix="ojs-bench-", dir=directory) as scratch:
        port = _free_port()
        log = Path(scratch) / "server.log"
        env = child_env(
            OJS_PORT=str(port),
            OJS_HOST=HOST,
            OJS_DATA_DIR=str(Path(scratch) / "data"),
            OJS_DURABILITY=durability,
            OJS_WORKERS=str(workers),
            **{"OJS_LOG_LEVEL": "warning", "OJS_LOG_FORMAT": "text", **settings},
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                env=env,
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then stops the server in order
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        try:
            _await_answer(process, port, log)
            family = cpu.family(process.pid)
            nats = [pid for pid, name in family.items() if name == "nats-server"]
            yield Running(port, [pid for pid in family if pid not in nats], nats)
            if process.poll() is not None:
                raise BenchError(f"{module[0]} ended under load ({process.returncode}):\n{_tail(log)}")
        finally:
            _stop(process, module[0])


def _await_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"the server ended at start ({process.returncode}):\n{_tail(log)}")
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", "/ojs/v1/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    raise BenchError(f"the server does not answer after {READY_S:.0f} s:\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes], name: str) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"{name} did not stop within {STOP_S:.0f} s and was killed", file=sys.stderr)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]
