"""What events, metrics and access log cost together (`python -m loadtest.observed`).

Two servers run at once, one with all of them and one with none, and take turns with the load: an idle one costs next to
nothing, and turns of a second even out what else happens on the machine.
"""

import argparse
import asyncio
from statistics import median

from loadtest import servers
from loadtest.listeners import window

BARE = ("loadtest.bare",)


async def measure(observed: servers.Running, bare: servers.Running, args: argparse.Namespace) -> None:
    """Take turns and print medians. Raises BenchError."""
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for number in range(args.rounds + 1):
        turns = [(0, bare), (1, observed)]
        pair = [(0.0, 0.0), (0.0, 0.0)]
        for place, running in turns if number % 2 else reversed(turns):
            pair[place] = await window(running, args.seconds, args.connections)
        if number:  # the first one warms up
            found.append((pair[0], pair[1]))
    for place, name in enumerate(("without events, metrics and access log", "with all of them")):
        rate, cost_us = (median(pair[place][n] for pair in found) for n in (0, 1))
        print(f"{name:40} {rate:8.0f} enqueues/s  {cost_us:6.1f} µs of the server's CPU each")
    rates, costs = ([with_all[n] / without[n] for without, with_all in found] for n in (0, 1))
    print(f"{'ratio, median of the rounds':40} {median(rates):8.3f}             {median(costs):6.3f}")
    print(f"{'lowest and highest of the rounds':40} {min(rates):8.3f} to {max(rates):.3f}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1, help="of each turn (default: 1)")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of turns (default: 20)")
    args = parser.parse_args()
    with (
        servers.scratch("observed") as scratch,
        servers.running(servers.OJS, scratch, "interval", OJS_ACCESS_LOG="true", OJS_LOG_FORMAT="json") as observed,
        servers.running(BARE, scratch, "interval") as bare,
    ):
        asyncio.run(measure(observed, bare, args))


if __name__ == "__main__":
    main()
