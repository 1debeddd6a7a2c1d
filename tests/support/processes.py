"""Processes under test: who descends from whom, who is alive, how to wait for something."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

#: Below the ephemeral range (a client that polls a port in that range may connect to itself) and below the one the
#: embedded nats-server draws from.
PORTS = range(10_000, 20_000)


class Process(NamedTuple):
    """A process id that is never mistaken for a later process of the same number."""

    pid: int
    born: int

    @property
    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return any(one == self for one, _ in _running(self.pid))

    @property
    def name(self) -> str:
        """The program's name, "" when it is gone."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/comm").read_text(encoding="utf-8").strip()
        return ""

    @property
    def command(self) -> bytes:
        """Its command line; b"" once it has ended."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return b""


def freeze(pid: int) -> None:
    """SIGSTOP a process and wait until it stands still: a thread that waits for a core ends its system call first."""
    os.kill(pid, signal.SIGSTOP)
    tasks = [Path(f"/proc/{pid}/task/{thread}") for thread in threads(pid)]
    poll(lambda: all(_fields(task)[0] == "T" for task in tasks), what="all threads stand still")


def threads(pid: int) -> list[int]:
    """The thread ids of a process."""
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def policies(pid: int) -> dict[int, int]:
    """The scheduling policy of each thread of a process, by thread id."""
    return {thread: os.sched_getscheduler(thread) for thread in threads(pid)}


def may_run_as_batch() -> bool:
    """Whether processes of ours may choose SCHED_BATCH; some sandboxes forbid it."""
    trial = "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"
    return subprocess.run([sys.executable, "-c", trial], capture_output=True, check=False).returncode == 0


def poll(condition: Callable[[], T], *, deadline_s: float = 15.0, pause_s: float = 0.01, what: str = "") -> T:
    """Wait until the condition holds and return what it gave; fails the test at the deadline."""
    end = time.monotonic() + deadline_s
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what or condition}"
        time.sleep(pause_s)
    return result


def descendants(pid: int) -> list[Process]:
    """All living processes that `pid` started, directly or not."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for process, parent in _running(int(entry.name)):
                children.setdefault(parent, []).append(process)
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found.append(child)
            waiting.append(child.pid)
    return found


def _running(pid: int) -> list[tuple[Process, int]]:
    """`[(process, parent's pid)]`, empty when there is none or it is a zombie."""
    with suppress(OSError):
        fields = _fields(Path(f"/proc/{pid}"))
        if fields[0] not in "ZX":
            return [(Process(pid, int(fields[19])), int(fields[1]))]
    return []


def _fields(entry: Path) -> list[str]:
    """What /proc tells of a process or a thread behind its name; its state comes first."""
    return (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def unread_bytes(port: int) -> int:
    """What the process that listens on a loopback port was sent and has not read yet."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(int(one[4].partition(":")[2], 16) for one in fields if int(one[1].partition(":")[2], 16) == port)


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    chooser = random.SystemRandom()  # Hypothesis seeds the common one: every worker would draw the same ports
    while True:
        port = chooser.choice(PORTS)
        with suppress(OSError), socket.socket() as trial:
            trial.bind(("127.0.0.1", port))
            return port
