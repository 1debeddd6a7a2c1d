"""`conformance` and `bench`: tools of the source checkout, which an installed package does not have."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

import ojs_fast

ROOT = Path(ojs_fast.__file__).resolve().parent.parent
PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(context_settings=PASSED_ON)
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def conformance(arguments: tuple[str, ...]) -> None:
    """Run the official conformance cases against a server; in a source checkout only.

    \b
    Examples:
      ojs-fast conformance --help
      ojs-fast conformance --url http://127.0.0.1:8080 suites/level-0-core
    """
    _run("tests.conformance", arguments)


@click.command(context_settings=PASSED_ON)
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure the server against its baselines on this machine; in a source checkout only.

    \b
    Examples:
      ojs-fast bench --help
      ojs-fast bench --quick --only enqueue
    """
    _run("loadtest", arguments)


def _run(module: str, arguments: tuple[str, ...]) -> None:
    """Become `python -m module`. Raises click.ClickException where the module is not."""
    if not (ROOT / module.replace(".", "/") / "__main__.py").is_file():
        raise click.ClickException(
            f"{module} is not part of the installed package; it is in ojs-fast's source repository: run it in a "
            "checkout, set up by `make build`"
        )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], {**os.environ, "PYTHONPATH": path})
