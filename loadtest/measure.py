"""Runs the groups of rows, one server at a time, and keeps a sample per row and round.

Owns the order of events within a group and what counts as broken; must not know how figures are shown.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from loadtest import clients, cpu, plan, scheduled, servers, workflows
from loadtest.generator import GRACE_S, Load, LoadSpec, Timing
from loadtest.servers import Running
from loadtest.stats import percentile

WARM_UP_S = 1.0
#: Jobs enqueued before a fetch row, per second of its measurement: more than any machine has fetched yet.
#: When they run out all the same, the figure holds for the time until then.
PRELOAD_PER_S = {1: 15_000, 10: 30_000}
PRELOAD_BATCH = 1000
#: Jobs in each upper level, per second: what an even drain of ten levels takes.
LEVEL_PER_S = 300


@dataclass(frozen=True)
class Sample:
    """One row in one round. nan where a figure has no meaning; CPU in µs per request or job, load in cores."""

    row: str
    round: int
    rate: float
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    server_us: float = math.nan
    nats_us: float = math.nan
    load_cores: float = math.nan
    foreign_cores: float = math.nan


class Bench:
    """One run of the benchmark."""

    def __init__(
        self, *, seconds: float, generator: str, directory: Path, durability: str, say: Callable[[str], None]
    ) -> None:
        self._seconds = seconds
        self._generator = generator
        self._directory = directory
        self._durability = durability
        self._say = say
        self._round = 0
        # A server that is not ours, and not empty, may have jobs of an earlier run.
        self.queue_suffix = ""
        self.samples: list[Sample] = []
        self.problems: list[str] = []

    def run_round(self, number: int, groups: list[str]) -> None:
        """Measure the groups once; every second round in reverse. Raises BenchError."""
        self._round = number
        steps = {
            "echo": self._echo,
            "enqueue": self._enqueue,
            "fetch": self._fetch,
            "ceiling": self._ceiling,
            "batch": self._batch,
            "scheduled": self._scheduled,
            "workflow": self._workflow,
        }
        for group in groups if number % 2 else reversed(groups):
            steps[group]()

    # -- groups ----------------------------------------------------------------------------------

    def _echo(self) -> None:
        body = plan.job("bench")
        with self._running(servers.ECHO) as server:
            self._warm_up(server, "/echo", body)
            for connections in plan.CONNECTIONS:
                self._single(server, f"echo-{connections}", "/echo", body, connections)
            for row, workers in ((plan.ECHO_OF_WORKERS, plan.WORKERS), (plan.ECHO_OF_MANY, plan.MANY_WORKERS)):
                self._single(server, row, "/echo", body, workers, generator="bundled")

    def _enqueue(self) -> None:
        with self._running(servers.OJS) as server:
            self._warm_up(server, "/ojs/v1/jobs", plan.job("warm-up"))
            for connections in plan.CONNECTIONS:
                self._single(server, f"enqueue-{connections}", "/ojs/v1/jobs", plan.job("bench"), connections)
            for row in (plan.NUMBERED, plan.UNIQUE):
                body = plan.numbered("numbered", unique=row == plan.UNIQUE)
                self._single(server, row, "/ojs/v1/jobs", body, plan.CONNECTIONS[-1], generator="bundled")

    def _batch(self) -> None:
        path = "/ojs/v1/jobs/batch"
        with self._running(servers.OJS) as server:
            self._warm_up(server, path, plan.batch("warm-up", 100), connections=4)
            for count, connections in plan.BATCHES:
                body = plan.batch("bench", count)
                self._single(server, f"batch-{count}", path, body, connections, jobs=count)

    def _fetch(self) -> None:
        with self._running(servers.OJS) as server:
            self._warm_up(server, "/ojs/v1/jobs", plan.job("warm-up"))
            for fetch in plan.FETCHES:
                queue = self._queue(fetch)
                enqueued = self._preload(server, queue, round(PRELOAD_PER_S[fetch.count] * self._seconds))
                for level in range(1, fetch.levels):
                    count = min(PRELOAD_BATCH, round(LEVEL_PER_S * self._seconds))
                    enqueued += self._preload(server, queue, count, count, level)
                self._work(server, fetch, enqueued)

    def _scheduled(self) -> None:
        with self._running(servers.OJS) as server:
            self._warm_up(server, "/ojs/v1/jobs", plan.job("warm-up"))
            meter = cpu.Meter(server.server_pids, server.nats_pids)
            late = scheduled.steady(server.port, plan.STEADY, plan.DUE_PER_S, self._seconds)
            self._keep(self._lateness(plan.STEADY, late, meter.read()))
            meter = cpu.Meter(server.server_pids, server.nats_pids)
            late = scheduled.storm(server.port, plan.STORM, plan.STORM_JOBS)
            self._keep(self._lateness(plan.STORM, late, meter.read()))

    def _workflow(self) -> None:
        with self._running(servers.OJS) as server:
            self._warm_up(server, "/ojs/v1/jobs", plan.job("warm-up"))
            client = workflows.Client(f"http://{servers.HOST}:{server.port}")
            for size in plan.WORKFLOWS:
                meter = cpu.Meter(server.server_pids, server.nats_pids)
                _, member_s = workflows.member_cost(client, size, "bench")
                usage, members = meter.read(), workflows.MEMBERS_TIMED
                self._keep(
                    Sample(
                        f"workflow-{size}", self._round, 1 / member_s,
                        server_us=usage.server_s / members * 1e6, nats_us=usage.nats_s / members * 1e6,
                    )
                )  # fmt: skip
            waited = sorted(workflows.next_step(client, "bench"))
            p50, p99 = (percentile(waited, percent) * 1000 for percent in (50, 99))
            self._keep(Sample(plan.NEXT_STEP, self._round, len(waited) / sum(waited), p50, p99))

    def _lateness(self, row: str, late: scheduled.Lateness, usage: cpu.Usage) -> Sample:
        return Sample(
            row, self._round, late.jobs / late.seconds, late.p50_ms, late.p99_ms, usage.server_s / late.jobs * 1e6,
            usage.nats_s / late.jobs * 1e6,
        )  # fmt: skip

    def _ceiling(self) -> None:
        command = [sys.executable, "-m", "loadtest.ceiling", f"--seconds={self._seconds}"]
        with tempfile.TemporaryDirectory(prefix="ojs-bench-", dir=self._directory) as scratch:
            command += [f"--directory={scratch}/data", f"--durability={self._durability}"]
            found = json.loads(clients.run_child(command, "", 4 * (self._seconds + GRACE_S) + 60))
        for one in found:
            self._keep(
                Sample(
                    f"ceiling-{one['client']}-{one['in_flight']}",
                    self._round,
                    one["rate"],
                    server_us=one["client_us"],
                    nats_us=one["nats_us"],
                    load_cores=one["client_cores"],
                    foreign_cores=one["foreign_cores"],
                )
            )

    # -- parts -----------------------------------------------------------------------------------

    def _running(self, module: tuple[str, ...]) -> AbstractContextManager[Running]:
        return servers.running(module, self._directory, self._durability)

    def _spec(self, server: Running, path: str, body: bytes, connections: int, seconds: float) -> LoadSpec:
        return LoadSpec("repeat", server.port, connections, seconds, path=path, body=body.decode())

    def _warm_up(self, server: Running, path: str, body: bytes, connections: int = 64) -> None:
        # Allocators, caches and NATS' files are in their steady state afterwards.
        load = clients.bundled(self._spec(server, path, body, connections, WARM_UP_S))
        self._check("warm-up", load)

    def _single(
        self, server: Running, row: str, path: str, body: bytes, connections: int, jobs: int = 1, generator: str = ""
    ) -> None:
        spec = self._spec(server, path, body, connections, self._seconds)
        meter = cpu.Meter(server.server_pids, server.nats_pids)
        load = clients.repeat(spec, generator or self._generator)
        self._check(row, load)
        self._keep(self._sample(row, load, meter.read(), load.requests * jobs))

    def _queue(self, fetch: plan.Fetch) -> str:
        return f"{fetch.key}{self.queue_suffix}-{self._round}" if self.queue_suffix else fetch.key

    def _preload(self, server: Running, queue: str, jobs: int, batch: int = PRELOAD_BATCH, priority: int = 0) -> int:
        requests = max(1, jobs // batch)
        spec = LoadSpec(
            "repeat", server.port, 2, 120.0, path="/ojs/v1/jobs/batch",
            body=plan.batch(queue, batch, priority).decode(), max_requests=requests,
        )  # fmt: skip
        load = clients.bundled(spec)
        self._check(f"preload of {queue}", load)
        if load.requests < requests:
            self._problem(f"preload of {queue}: {load.requests} of {requests} batches within {spec.seconds:.0f} s")
        return load.requests * batch

    def _work(self, server: Running, fetch: plan.Fetch, enqueued: int) -> None:
        row = fetch.key
        spec = LoadSpec(
            "work",
            server.port,
            fetch.workers,
            self._seconds,
            queue=self._queue(fetch),
            fetch=fetch.count,
            ackers=fetch.ackers,
        )
        meter = cpu.Meter(server.server_pids, server.nats_pids)
        load = clients.bundled(spec)
        usage = meter.read()
        self._check(row, load)
        for problem in accounting_problems(load, enqueued):
            self._problem(f"{row}: {problem}")
        self._keep(self._sample(row, load, usage, load.acked))
        for part, timing in (("call", load.fetch_call), ("ack", load.ack_call)):
            known = timing or Timing(0, math.nan, math.nan)
            rate = known.calls / load.seconds if load.seconds else math.nan
            self._keep(Sample(f"{row}-{part}", self._round, rate, known.p50_ms, known.p99_ms))

    def _sample(self, row: str, load: Load, usage: cpu.Usage, units: int) -> Sample:
        if not units or not load.seconds:
            return Sample(row, self._round, math.nan)
        return Sample(
            row,
            self._round,
            units / load.seconds,
            load.p50_ms,
            load.p99_ms,
            usage.server_s / units * 1e6,
            usage.nats_s / units * 1e6,
            load.cpu_s / load.seconds,
            usage.foreign_cores,
        )

    def _check(self, what: str, load: Load) -> None:
        if load.failures:
            self._problem(f"{what}: {load.failures} failures, the first: {load.first_failure}")
        elif not load.requests:
            self._problem(f"{what}: no request succeeded")

    def _problem(self, text: str) -> None:
        self.problems.append(f"round {self._round}: {text}")
        self._say(f"PROBLEM {text}")

    def _keep(self, sample: Sample) -> None:
        self.samples.append(sample)
        text = f"  round {sample.round}  {sample.row:<20} {sample.rate:>9,.0f}/s"
        if not math.isnan(sample.p50_ms):
            text += f"  p50 {sample.p50_ms:.2f} ms  p99 {sample.p99_ms:.2f} ms"
        if not math.isnan(sample.foreign_cores):
            text += f"  others {sample.foreign_cores:.2f} cores"
        self._say(text)


def accounting_problems(load: Load, enqueued: int) -> list[str]:
    """What is wrong with the sums of a fetch + ack run: each job fetched once and acknowledged once, none lost."""
    problems = []
    if load.acked != load.fetched:
        problems.append(f"{load.fetched} jobs fetched, {load.acked} acknowledged")
    if load.duplicates:
        problems.append(f"{load.duplicates} jobs were handed out more than once")
    if load.is_drained and load.fetched != enqueued:
        problems.append(f"the queue is empty after {load.fetched} of {enqueued} jobs")
    return problems
