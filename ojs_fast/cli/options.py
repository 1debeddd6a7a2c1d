"""Options that commands share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from ojs_fast.cli.client import DEFAULT_URL, Client
from ojs_fast.cli.output import Output

Command = Callable[..., None]

_OPTIONS = (
    click.option("--url", envvar="OJS_URL", default=DEFAULT_URL, show_default=True, help="The server. [env: OJS_URL]"),
    click.option("--api-key", envvar="OJS_API_KEY", default="", help="The key to show. [env: OJS_API_KEY]"),
    click.option("--ca", envvar="OJS_CA", default="", help="PEM file of the CA to trust. [env: OJS_CA]"),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=30.0,
        show_default=True,
        help="Seconds to wait for an answer.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line instead of a table."),
)


def asks_server(command: Command) -> Command:
    """Give a command the options that name the server, and call it with `client` and `output`."""

    @functools.wraps(command)
    def run(*, url: str, api_key: str, ca: str, timeout: float, as_json: bool, **more: Any) -> None:
        client = Client(url, api_key=api_key, ca=ca, timeout_s=timeout)
        try:
            command(client=client, output=Output(as_json=as_json), **more)
        finally:
            client.close()

    wrapped: Command = run
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


limit_option = click.option(
    "--limit", type=click.IntRange(0), default=50, show_default=True, help="How many at most; 0 for all."
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises click.UsageError where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody can answer here; say --yes.")
    click.confirm(question, abort=True, err=True)
