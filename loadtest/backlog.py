"""What waiting jobs cost those that come and go (`python -m loadtest.backlog --jobs 1000000`).

Two servers run at once, one with the backlog and one without, and take turns with each load, so that what else happens
on the machine meets both. Workers of the first take what waits, workers of the other what was enqueued just before.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from loadtest import cpu, plan, servers
from loadtest.clients import FILL_BATCH, bundled, fill
from loadtest.generator import Load, LoadSpec
from loadtest.servers import Running

JOBS, BATCH = "/ojs/v1/jobs", "/ojs/v1/jobs/batch"
WAITING, COMING = "waiting", "coming"


@dataclass(frozen=True)
class Turn:
    """One load: `rate` gives the jobs per second of a server whose workers take from the queue named."""

    title: str
    rate: Callable[[Running, str, float], float]


def _checked(load: Load) -> Load:
    if load.failures or load.duplicates or not load.requests:
        raise servers.BenchError(
            f"{load.requests} calls succeeded, {load.failures} failed, {load.duplicates} jobs came twice; "
            f"the first failure: {load.first_failure or 'none'}"
        )
    return load


def _enqueue(running: Running, path: str, body: bytes, connections: int, seconds: float) -> float:
    load = _checked(bundled(LoadSpec("repeat", running.port, connections, seconds, path=path, body=body.decode())))
    return load.requests / load.seconds


def _fetch(running: Running, queue: str, count: int, seconds: float) -> float:
    load = _checked(bundled(LoadSpec("work", running.port, plan.WORKERS, seconds, queue=queue, fetch=count)))
    if load.is_drained:
        raise servers.BenchError(f"queue {queue} was drained within the {seconds:g} s that were to be measured")
    return load.acked / load.seconds


# Workers come after those that enqueue, who make more than workers take in the same time.
TURNS = (
    Turn("batches of 100, 4 connections", lambda r, _, s: 100 * _enqueue(r, BATCH, plan.batch(COMING, 100), 4, s)),
    Turn("enqueue, 64 connections", lambda r, _, s: _enqueue(r, JOBS, plan.job(COMING), 64, s)),
    Turn(f"fetch 10 + acks, {plan.WORKERS} workers", lambda r, queue, s: _fetch(r, queue, 10, s)),
    Turn(f"fetch 1 + ack, {plan.WORKERS} workers", lambda r, queue, s: _fetch(r, queue, 1, s)),
)


def measure(empty: Running, full: Running, args: argparse.Namespace) -> None:
    """Take turns and print medians. Raises BenchError."""
    for running in (empty, full):
        _enqueue(running, JOBS, plan.job(COMING), 64, args.seconds)
    batches = -(-args.jobs // FILL_BATCH)
    before_mb = cpu.resident_mb(full.server_pids)
    fill(full.port, WAITING, batches)
    grown_mb = cpu.resident_mb(full.server_pids) - before_mb
    found: dict[str, list[tuple[float, float]]] = {turn.title: [] for turn in TURNS}
    for number in range(args.rounds):
        for turn in TURNS:
            pair = {WAITING: 0.0, COMING: 0.0}
            sides = [(empty, COMING), (full, WAITING)]
            for running, queue in sides if number % 2 else reversed(sides):
                pair[queue] = turn.rate(running, queue, args.seconds)
            found[turn.title].append((pair[COMING], pair[WAITING]))
        print(f"\rround {number + 1} of {args.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    _print(found.items(), batches * FILL_BATCH)
    print(f"resident memory of the server: {grown_mb:+.0f} MB by {batches * FILL_BATCH:,} waiting jobs")


def _print(found: Iterable[tuple[str, list[tuple[float, float]]]], jobs: int) -> None:
    print(f"{'jobs/s, medians':32} {'empty':>9} {f'{jobs:,} wait':>16}   median ratio (lowest to highest)")
    for title, pairs in found:
        empty, full = (median(pair[side] for pair in pairs) for side in (0, 1))
        ratios = [with_backlog / without for without, with_backlog in pairs]
        print(f"{title:32} {empty:9,.0f} {full:16,.0f}   {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--jobs", type=int, default=1_000_000, help="how many wait, rounded up to thousands (default: 1,000,000)"
    )
    parser.add_argument("--seconds", type=float, default=3, help="of each turn (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns of each load (default: 5)")
    args = parser.parse_args()
    with (
        servers.scratch("backlog") as scratch,
        servers.running(servers.OJS, scratch, "interval") as empty,
        servers.running(servers.OJS, scratch, "interval") as full,
    ):
        measure(empty, full, args)


if __name__ == "__main__":
    main()
