"""Who used the processors: process trees and the whole machine, read from /proc (Linux)."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def parse_stat(text: str) -> tuple[str, int, float]:
    """`(name, parent, CPU seconds of all threads)` from /proc/PID/stat. Raises ValueError."""
    # The name is in parentheses and may hold spaces and parentheses itself.
    name, _, rest = text[text.index("(") + 1 :].rpartition(")")
    fields = rest.split()
    return name, int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def parse_machine(text: str) -> float:
    """Seconds that all processors were busy, from /proc/stat. Time stolen by other machines counts as busy."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(n) for n in text.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def process_cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of these processes; one that has ended counts nothing."""
    total = 0.0
    for pid in pids:
        try:
            total += parse_stat((_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace"))[2]
        except OSError:
            continue
    return total


def rss_bytes(pid: int) -> int:
    """Resident memory of a process. Raises OSError when there is none."""
    return int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


def resident_mb(pids: Sequence[int]) -> float:
    """Resident memory of processes together. Raises OSError when one is gone."""
    return sum(map(rss_bytes, pids)) / 1e6


def family(pid: int) -> dict[int, str]:
    """A process and all its descendants: `{process id: name}`."""
    names: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, parent, _ = parse_stat((entry / "stat").read_text(encoding="ascii", errors="replace"))
        except OSError:
            continue  # ended in the meantime
        names[int(entry.name)] = name
        children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        one = todo.pop()
        if one in names and one not in found:
            found[one] = names[one]
            todo += children.get(one, [])
    return found


def machine_busy_s() -> float:
    """Seconds that all processors together were busy since boot."""
    return parse_machine((_PROC / "stat").read_text(encoding="ascii"))


def own_cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass(frozen=True)
class Usage:
    """CPU seconds of server and nats-server, and how many processors strangers kept busy."""

    server_s: float
    nats_s: float
    foreign_cores: float


class Meter:
    """Measures from its making to `read`. `ours` gives the CPU seconds that are neither server's nor strangers'."""

    def __init__(self, server: Sequence[int], nats: Sequence[int], ours: Callable[[], float] = own_cpu_s) -> None:
        self._server, self._nats, self._ours = server, nats, ours
        self._began = self._marks()

    def _marks(self) -> tuple[float, float, float, float, float]:
        return (
            process_cpu_s(self._server),
            process_cpu_s(self._nats),
            self._ours(),
            machine_busy_s(),
            time.monotonic(),
        )

    def read(self) -> Usage:
        """What was used since."""
        server_s, nats_s, ours_s, busy_s, seconds = (
            now - before for now, before in zip(self._marks(), self._began, strict=True)
        )
        foreign = (busy_s - server_s - nats_s - ours_s) / seconds if seconds > 0 else 0.0
        return Usage(server_s, nats_s, max(0.0, foreign))


def foreign_cores(seconds: float) -> float:
    """How many processors strangers keep busy, watched for a while; to be called when nothing of ours runs."""
    meter = Meter((), ())
    time.sleep(seconds)
    return meter.read().foreign_cores
