"""Every official case of levels 0 and 1, queue operations and backpressure must pass against a real server.

The cases are looked for beside the repository; OJS_CONFORMANCE_DIR names another directory that holds
`level-0-core` and `level-1-reliable`.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from .cases import Case, known_defect, load
from .report import failure_lines
from .runner import Runner, Verdict, connect

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "conformance" / "suites"
SUITES = Path(os.environ.get("OJS_CONFORMANCE_DIR") or DEFAULT)
LEVELS = ("level-0-core", "level-1-reliable", "level-4-advanced/queue-ops", "ext-backpressure")

pytestmark = pytest.mark.conformance


class OnlyTheKnownDefect(AssertionError):
    """The case failed exactly where it is known to be wrong."""


def parameters(directory: Path) -> list[Any]:
    """Make a parameter of each case, or one that is skipped when there are none."""
    if not directory.is_dir():
        skip = pytest.mark.skip(reason=f"no cases at {directory}; OJS_CONFORMANCE_DIR names another place")
        return [pytest.param(None, id=directory.name, marks=skip)]
    return [pytest.param(case, id=case.key, marks=marks(case)) for case in load([directory])]


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """Expect a defective case to fail, and to fail in no other way."""
    if (defect := known_defect(case)) is None:
        return []
    return [pytest.mark.xfail(reason=defect.reason, raises=OnlyTheKnownDefect, strict=True)]


@pytest.mark.parametrize("case", [one for level in LEVELS for one in parameters(SUITES / level)])
async def test_an_official_case_passes(case: Case, ojs_server_url: str) -> None:
    """The server answers every step as the case demands."""
    async with connect(ojs_server_url) as client:
        runner = Runner(client)
        result = await runner.run_case(case)
    if runner.warnings:
        pytest.fail(f"the server was not clean: {runner.warnings}")
    told = "\n".join([case.key, *failure_lines(result)])
    if result.verdict is Verdict.KNOWN_DEFECT:
        raise OnlyTheKnownDefect(told)
    if result.verdict is Verdict.FAILED:
        pytest.fail(told, pytrace=False)
