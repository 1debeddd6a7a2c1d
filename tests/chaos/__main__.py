"""`python -m tests.chaos` (`make chaos`): runs seeds one after the other and tells what broke."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time

from tests.chaos.run import Result, run

DESCRIPTION = """\
Three nodes on three NATS servers (three replicas), producers, workers and operators, and faults: nodes and NATS servers
are killed, frozen and restarted, connections cut, delayed, slowed down and silenced, clocks moved, a disk filled. Then
everything is mended, and every promise is looked at: nothing acknowledged is missing, no completed job runs again, no
attempt is given twice, every job ends, statistics and dead letters are right, unique jobs were, cron counts what it
fired, nothing is left over.
"""


def main() -> int:
    """Run; the exit code is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many runs (default: 20)")
    parser.add_argument("--seed", type=int, help="the first seed (default: at random); the next ones follow it")
    parser.add_argument("--seconds", type=float, default=180, help="how long faults go on in each run (default: 180)")
    parser.add_argument("--longest", type=float, default=40, help="how long one fault may last, s (default: 40)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers and mounts go with us
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    failed = [seed for seed in range(first, first + options.seeds) if not _one(seed, options.seconds, options.longest)]
    print(f"{options.seeds - len(failed)} of {options.seeds} runs kept every promise")
    for seed in failed:
        print(f"again: make chaos SEEDS=1 SEED={seed} SECONDS={options.seconds:g}")
    return 1 if failed else 0


def _one(seed: int, seconds: float, longest_s: float) -> bool:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"  {time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    print(f"seed {seed}", flush=True)
    result = asyncio.run(run(seed, seconds, longest_s, say))
    tell(result)
    return not result.violations


def tell(result: Result) -> None:
    """Print what a run showed."""
    faults = sum("over" not in one for one in result.faults)
    verdict = "VIOLATED" if result.violations else "kept"
    print(
        f"  {verdict}: {result.jobs} jobs, {faults} faults, answers {dict(sorted(result.answers.items()))}", flush=True
    )
    for violation in result.violations:
        print(f"  ! {violation}")
    if result.violations:
        print("\n".join([*result.faults, *result.clues]))
        print(result.logs, flush=True)


if __name__ == "__main__":
    sys.exit(main())
