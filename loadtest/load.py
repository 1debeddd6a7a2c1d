"""`make load`: Locust's scenarios one after the other, with an HTML report of each.

    python -m loadtest.load --url http://127.0.0.1:8080 --scenario mixed bursts --users 40 --seconds 30

Without --url it starts an OJS server of its own. Exits with 1 when a request failed or the sums of a scenario do not
agree (loadtest/locustfile.py).
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from loadtest import servers

SCENARIOS = ("producers", "workers", "mixed", "bursts", "scheduled", "workflows")
STOP_S = 10
# Drain and report come on top of the scenario's own time.
AFTERWARDS_S = 180.0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.load", description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="", help="the server to load (default: one of its own, on an empty directory)")
    parser.add_argument(
        "--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS, metavar="NAME",
        help=f"one or more of {', '.join(SCENARIOS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--users", type=int, default=20, help="producers and workers together (default: 20)")
    parser.add_argument("--seconds", type=int, default=15, help="duration of each scenario (default: 15)")
    parser.add_argument("--report", type=Path, default=Path("load-report"), help="directory for the HTML reports")
    parser.add_argument(
        "--durability", default="interval", choices=("interval", "always"), help="of a server of its own"
    )
    return parser.parse_args(arguments)


def run(url: str, scenario: str, users: int, seconds: int, report: Path) -> bool:
    """Run one scenario against a server; False when something went wrong. Raises subprocess.TimeoutExpired."""
    print(f"\n== {scenario}: {users} users for {seconds} s at {url}", flush=True)
    page = report / f"{scenario}.html"
    command = [
        sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), "--host", url,
        "--headless", "--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s",
        "--stop-timeout", str(STOP_S), "--only-summary", "--html", str(page), "--scenario", scenario,
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(servers.ROOT), os.environ.get("PYTHONPATH"))))}
    code = subprocess.run(command, env=env, check=False, timeout=seconds + AFTERWARDS_S).returncode
    print(f"report: {page}", flush=True)
    return code == 0


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    options = _options(arguments)
    options.report.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        url = options.url.rstrip("/")
        if not url:
            directory = Path(tempfile.gettempdir())
            port = stack.enter_context(servers.running(servers.OJS, directory, options.durability)).port
            url = f"http://{servers.HOST}:{port}"
        failed = [
            name
            for name in options.scenario
            if not run(url, name, options.users, options.seconds, options.report.resolve())
        ]
    print(f"\n{len(options.scenario) - len(failed)} of {len(options.scenario)} scenarios are in order")
    for name in failed:
        print(f"not in order: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
