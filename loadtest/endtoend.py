"""Producers and workers at once, one job a call, for minutes (`python -m loadtest.endtoend --seconds 300`).

Prints jobs per second beside requests per second of the echo, measured before and after over as many connections, and
what the memory of server and NATS did. Fails when a call failed or a job was not completed exactly once.
"""

import argparse
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from loadtest import cpu, plan, servers
from loadtest.clients import bundled
from loadtest.generator import Load, LoadSpec

ECHO_S = 5.0
WARM_UP_S = 5.0
SAMPLE_S = 5.0


def _echo(scratch: Path, args: argparse.Namespace) -> float:
    seconds, body = min(ECHO_S, args.seconds), plan.job("bench").decode()
    with servers.running(servers.ECHO, scratch, args.durability) as echo:
        spec = LoadSpec("repeat", echo.port, 2 * args.connections, seconds, path="/echo", body=body)
        bundled(replace(spec, seconds=seconds / 5))
        load = bundled(spec)
    return load.requests / load.seconds


def _resident_mb(running: servers.Running) -> tuple[float, float]:
    return cpu.resident_mb(running.server_pids), cpu.resident_mb(running.nats_pids)


def _flow(running: servers.Running, queue: str, connections: int, seconds: float) -> Load:
    body = plan.job(queue).decode()
    load = bundled(LoadSpec("flow", running.port, connections, seconds, path="/ojs/v1/jobs", body=body, queue=queue))
    if load.failures or load.duplicates or not load.enqueued == load.fetched == load.acked:
        raise servers.BenchError(
            f"{load.enqueued} jobs enqueued, {load.fetched} fetched ({load.duplicates} twice), {load.acked} completed; "
            f"{load.failures} calls failed, the first: {load.first_failure or 'none'}"
        )
    return load


def measure(scratch: Path, args: argparse.Namespace) -> None:
    """Run it and print. Raises BenchError."""
    before = _echo(scratch, args)
    with servers.running(servers.OJS, scratch, args.durability) as running:
        _flow(running, "warm-up", args.connections, min(WARM_UP_S, args.seconds))
        memory = [_resident_mb(running)]
        ended = threading.Event()

        def watch() -> None:
            began_s = time.monotonic()
            while not ended.wait(SAMPLE_S):
                memory.append(_resident_mb(running))
                print(
                    f"\r{time.monotonic() - began_s:5.0f} s of {args.seconds:.0f}", end="", file=sys.stderr, flush=True
                )

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            load = _flow(running, "bench", args.connections, args.seconds)
        finally:
            ended.set()
            watcher.join()
        memory.append(_resident_mb(running))
    after = _echo(scratch, args)
    rate, echo = load.acked / load.seconds, (before + after) / 2
    print(f"\n{load.acked} jobs in {load.seconds:.0f} s, each completed once: {rate:.0f} jobs/s")
    print(f"echo over as many connections, before and after: {before:.0f} and {after:.0f} requests/s")
    print(f"jobs per request of the echo: {rate / echo:.3f}")
    for name, at in (("server", 0), ("NATS", 1)):
        tenths = [memory[round(n * (len(memory) - 1) / 10)][at] for n in range(11)]
        print(f"resident memory of {name}, in MB, start to end: {' '.join(f'{one:.0f}' for one in tenths)}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16, help="producers, and as many workers (default: 16)")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--durability", choices=("interval", "always"), default="interval")
    args = parser.parse_args()
    with servers.scratch("endtoend") as scratch:
        measure(scratch, args)


if __name__ == "__main__":
    main()
