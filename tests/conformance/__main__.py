"""The command line: `python -m tests.conformance --url http://127.0.0.1:8080 DIR…`."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

import httpx

from . import report
from .cases import Case, LoadError, load
from .runner import RESET_PATH, CaseResult, Runner, Verdict, connect

EPILOG = """\
exit status: 0 all cases passed or failed only where they are known to be defective,
             1 a case failed, 2 nothing could be run (bad arguments, no cases, no server), 130 interrupted

Give each level's directory by itself: many extension cases carry a level of 0 to 4, and would count there.
Cases share queues and fixed job ids. The server must therefore wipe its state when asked to: start it with
OJS_ENABLE_RESET=true.

examples:
  python -m tests.conformance --url http://127.0.0.1:8080 ../shared/conformance/suites/level-0-core
  python -m tests.conformance --filter L1-RTR --verbose ../shared/conformance/suites/level-1-reliable
"""


def at_least_one(text: str) -> int:
    """Read a number of jobs."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Run official Open Job Spec conformance cases against a server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", metavar="DIR", nargs="+", type=Path, help="directory of cases, or one case")
    parser.add_argument(
        "--url", default="http://127.0.0.1:8080", help="where the server listens (default: %(default)s)"
    )
    resets = parser.add_mutually_exclusive_group()
    resets.add_argument(
        "--reset-url",
        default=RESET_PATH,
        metavar="URL",
        help="POST here before each case, a path or a whole URL (default: %(default)s)",
    )
    resets.add_argument("--no-reset", action="store_true", help="leave the server's state alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write a report for machines")
    parser.add_argument(
        "--filter",
        default="",
        metavar="SUBSTR",
        help="run only cases whose id or path contains this, whether in capitals or not",
    )
    parser.add_argument(
        "--jobs",
        type=at_least_one,
        default=1,
        metavar="N",
        help="run N cases side by side, if they share nothing; needs --no-reset (default: %(default)s)",
    )
    parser.add_argument(
        "--extended", action="store_true",
        help="also understand capture, expect, $type and $gte of extension suites, which the official runner ignores",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="show every step, and what is not checked")
    return parser


def say(text: str) -> None:
    """Write a line at once, so that progress shows through a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def find_problem(url: str) -> str | None:
    """Tell why no case could be run against this server; any answer will do."""
    try:
        async with connect(url) as client:
            await client.get("/ojs/manifest")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"no server answers at {url}: {error!r}"
    return None


async def run(cases: list[Case], arguments: argparse.Namespace) -> tuple[list[CaseResult], list[str]]:
    """Run the cases, show progress, and return what they came to, with warnings."""
    done = 0

    def show(result: CaseResult) -> None:
        nonlocal done
        done += 1
        say(report.progress_line(result, done, len(cases)))
        for line in report.step_lines(result) if arguments.verbose else ():
            say(line)

    async with connect(arguments.url) as client:
        runner = Runner(client, None if arguments.no_reset else arguments.reset_url)
        results = await runner.run_all(cases, jobs=arguments.jobs, done=show)
    return results, runner.warnings


def choose(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Case]:
    """Load the cases asked for; leave with a message where the command line makes no sense."""
    if arguments.jobs > 1 and not arguments.no_reset:
        parser.error("--jobs needs --no-reset: a reset would wipe what other cases are doing")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        parser.error(f"--json: {arguments.json.parent} is no directory")
    try:
        cases = load(arguments.places, extended=arguments.extended)
    except LoadError as error:
        parser.error(str(error))
    wanted = arguments.filter.lower()
    cases = [case for case in cases if wanted in f"{case.test_id} {case.key}".lower()]
    if not cases:
        parser.error("no cases there" + (f" that match {arguments.filter!r}" if wanted else ""))
    return cases


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    cases = choose(parser, arguments)
    try:
        if problem := asyncio.run(find_problem(arguments.url)):
            say(problem)
            return 2
        results, warnings = asyncio.run(run(cases, arguments))
    except KeyboardInterrupt:
        return 130
    for line in report.summary(results, warnings):
        say(line)
    if arguments.json is not None:
        content = report.as_json(arguments.url, results, warnings)
        arguments.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(result.verdict is Verdict.FAILED for result in results))


if __name__ == "__main__":
    sys.exit(main())
