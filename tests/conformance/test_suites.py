"""Every official case of the levels that are done must pass against a real server.

The cases are looked for beside the repository; OJS_CONFORMANCE_DIR names another directory that holds
`level-0-core` and the others. Those that wait for a minute or two run all at once, on a server each.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RESET
from tests.support.openapi import acheck
from tests.support.server import Server

from .cases import Case, known_defect, load
from .report import failure_lines
from .runner import Runner, Verdict, connect

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "conformance" / "suites"
SUITES = Path(os.environ.get("OJS_CONFORMANCE_DIR") or DEFAULT)
LEVELS = (
    "level-0-core",
    "level-1-reliable",
    "level-2-scheduled",
    "level-3-workflows",
    "level-4-advanced",
    "ext-backpressure",
    "ext-webhooks",
)
# Read with what the official runner ignores (`capture` and the like), else hardly any could pass.
EXTENSIONS = (
    "ext-admin-api",
    "ext-dead-letter",
    "ext-graceful-shutdown",
    "ext-observability",
    "ext-progress",
    "ext-rate-limiting",
    "ext-schema-registry",
)
LONG_MS = 20_000

pytestmark = pytest.mark.conformance


class OnlyTheKnownDefect(AssertionError):
    """The case failed exactly where it is known to be wrong."""


def parameters(directory: Path, *, extended: bool = False) -> list[Any]:
    """Make a parameter of each case, or one that is skipped when there are none."""
    if not directory.is_dir():
        skip = pytest.mark.skip(reason=f"no cases at {directory}; OJS_CONFORMANCE_DIR names another place")
        return [pytest.param(None, id=directory.name, marks=skip)]
    return [
        pytest.param(case, id=case.key, marks=marks(case))
        for case in load([directory], extended=extended)
        if not is_long(case)
    ]


def is_long(case: Case) -> bool:
    """Whether the case mostly waits."""
    return sum(step.delay_ms for step in case.steps) > LONG_MS


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """Expect a defective case to fail, and to fail in no other way."""
    if (defect := known_defect(case)) is None:
        return []
    return [pytest.mark.xfail(reason=defect.reason, raises=OnlyTheKnownDefect, strict=True)]


@pytest.mark.parametrize("case", [one for level in LEVELS for one in parameters(SUITES / level)])
async def test_an_official_case_passes(case: Case, ojs_server_url: str) -> None:
    """The server answers every step as the case demands."""
    await judge(case, ojs_server_url)


@pytest.mark.parametrize("case", [one for suite in EXTENSIONS for one in parameters(SUITES / suite, extended=True)])
async def test_a_case_of_an_extension_passes(case: Case, ojs_server_url: str) -> None:
    """The same for the extensions that are done."""
    await judge(case, ojs_server_url)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_the_official_cases_that_take_long_pass(fresh_server: Callable[..., Server]) -> None:
    """Side by side, each on a server of its own, because the state is wiped before each case."""
    directories = [SUITES / level for level in LEVELS if (SUITES / level).is_dir()]
    cases = [case for case in load(directories) if is_long(case)] if directories else []
    if not cases:
        pytest.skip(f"no cases at {SUITES}; OJS_CONFORMANCE_DIR names another place")
    servers = [await asyncio.to_thread(fresh_server, env=RESET) for _ in cases]
    await asyncio.gather(*(judge(case, one.url) for case, one in zip(cases, servers, strict=True)))


async def judge(case: Case, url: str) -> None:
    """Run one case; anything but success raises."""
    async with connect(url) as client:
        client.event_hooks = {"response": [acheck]}
        runner = Runner(client)
        result = await runner.run_case(case)
    if runner.warnings:
        pytest.fail(f"the server was not clean: {runner.warnings}")
    told = "\n".join([case.key, *failure_lines(result)])
    if result.verdict is Verdict.KNOWN_DEFECT:
        raise OnlyTheKnownDefect(told)
    if result.verdict is Verdict.FAILED:
        pytest.fail(told, pytrace=False)
