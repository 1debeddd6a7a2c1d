"""`python -m loadtest.curves` (`make curves`): how rates go with connections, payload, queues, backlog, processes.

Each point is one measurement, so look at the shape; `make bench` has the medians. Writes a plot (SVG)
per curve and all figures as JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from loadtest import clients, cpu, plan, servers
from loadtest.generator import LoadSpec
from loadtest.servers import BenchError, Running

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PAYLOAD_BYTES = (100, 1024, 4096, 16_384, 65_536, 262_144)
QUEUES = (1, 10, 100, 1000)
BACKLOGS = (0, 1000, 10_000, 100_000, 1_000_000)
PROCESSES = (1, 2)
PAYLOAD_CONNECTIONS, MOST = 16, 64
JOBS = "/ojs/v1/jobs"
BATCH = 1000

#: Line of a plot → `[(x, rate per second)]`.
Curve = dict[str, list[tuple[int, float]]]


class Curves:
    """Measures them one after the other."""

    def __init__(self, seconds: float, directory: Path, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._directory = directory
        self._say = say

    def _rate(self, server: Running, path: str, body: bytes, connections: int, jobs: int = 1) -> float:
        spec = LoadSpec("repeat", server.port, connections, self._seconds, path=path, body=body.decode())
        load = clients.bundled(spec)
        if load.failures or not load.requests:
            raise BenchError(f"{load.failures} failures at {path}, the first: {load.first_failure}")
        return load.requests * jobs / load.seconds

    def _keep(self, curve: Curve, line: str, x: int, rate: float) -> None:
        curve.setdefault(line, []).append((x, round(rate, 1)))
        self._say(f"  {line:<40} {x:>9,} {rate:>10,.0f}/s")

    def connections(self) -> Curve:
        """Single enqueue at more and more connections, beside the echo."""
        curve: Curve = {}
        body = plan.job("bench")
        for line, module, path, durability in (
            ("echo", servers.ECHO, "/echo", "interval"),
            ("enqueue, OJS_DURABILITY=interval", servers.OJS, JOBS, "interval"),
            ("enqueue, OJS_DURABILITY=always", servers.OJS, JOBS, "always"),
        ):
            with servers.running(module, self._directory, durability) as server:
                for count in CONNECTIONS:
                    self._keep(curve, line, count, self._rate(server, path, body, count))
        return curve

    def payload(self) -> Curve:
        """Single enqueue of larger and larger jobs, beside the echo of the same body."""
        curve: Curve = {}
        for line, module, path in (("echo", servers.ECHO, "/echo"), ("enqueue", servers.OJS, JOBS)):
            with servers.running(module, self._directory, "interval") as server:
                for size in PAYLOAD_BYTES:
                    body = b'{"type":"a.b","args":["%s"],"options":{"queue":"bench"}}' % (b"x" * size)
                    self._keep(curve, line, size, self._rate(server, path, body, PAYLOAD_CONNECTIONS))
        return curve

    def queues(self) -> Curve:
        """Batches of 1,000 jobs over more and more queues."""
        curve: Curve = {}
        with servers.running(servers.OJS, self._directory, "interval") as server:
            for count in QUEUES:
                jobs = [plan.job(f"bench-{number % count}") for number in range(BATCH)]
                body = b'{"jobs":[%s]}' % b",".join(jobs)
                self._keep(
                    curve, "jobs in batches of 1,000", count, self._rate(server, f"{JOBS}/batch", body, 2, BATCH)
                )
        return curve

    def backlog(self) -> Curve:
        """Enqueue and fetch + ack while more and more jobs wait in the same queue."""
        curve: Curve = {}
        with servers.running(servers.OJS, self._directory, "interval") as server:
            waiting = 0
            for wanted in BACKLOGS:
                waiting += self._fill(server, wanted - waiting)
                memory_mb = cpu.resident_mb(server.server_pids)
                self._keep(curve, "enqueue, 64 connections", wanted, self._rate(server, JOBS, plan.job("bench"), MOST))
                spec = LoadSpec("work", server.port, plan.WORKERS, self._seconds, queue="bench")
                load = clients.bundled(spec)
                self._keep(curve, "fetch 1 + ack, 16 workers", wanted, load.acked / load.seconds)
                self._say(f"  the server holds {memory_mb:.0f} MB")
        return curve

    def _fill(self, server: Running, jobs: int) -> int:
        batches = max(0, jobs) // clients.FILL_BATCH
        if batches:
            clients.fill(server.port, "bench", batches)
        return batches * clients.FILL_BATCH

    def processes(self) -> Curve:
        """Single enqueue and batches by one and by two processes (OJS_WORKERS)."""
        curve: Curve = {}
        for count in PROCESSES:
            with servers.running(servers.OJS, self._directory, "interval", workers=count) as server:
                rate = self._rate(server, JOBS, plan.job("bench"), MOST)
                self._keep(curve, "enqueue, 64 connections", count, rate)
                rate = self._rate(server, f"{JOBS}/batch", plan.batch("bench", 100), 4, 100)
                self._keep(curve, "jobs in batches of 100", count, rate)
        return curve


def plot(path: Path, name: str, title: str, curve: Curve) -> None:
    """Draw a curve as SVG, both axes from zero or logarithmic in x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for line, points in curve.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=line)
    axes.set_xscale("symlog" if name == "backlog" else "log", base=2 if name in ("connections", "processes") else 10)
    xs = sorted({x for points in curve.values() for x, _ in points})
    axes.set_xticks(xs, [f"{x:,}" for x in xs], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(name)
    axes.set_ylabel("per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path / f"{name}.svg", metadata={"Date": None})


def main() -> int:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.curves", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each point (default: 3)")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="where to (default: docs/figures)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="for temporary data")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    curves = Curves(options.seconds, options.directory, say)
    found: dict[str, Curve] = {}
    for measure in (curves.connections, curves.payload, curves.queues, curves.backlog, curves.processes):
        name, title = measure.__name__, (measure.__doc__ or "").strip()
        say(f"{name}: {title}")
        found[name] = measure()
        plot(options.output, name, title, found[name])
    (options.output / "curves.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
