"""`serve` and `check`."""

from __future__ import annotations

import os
import sys

import click

from ojs_fast.config import Settings, SettingsError

EXIT_BAD_SETTINGS = 2


@click.command()
def serve() -> None:
    """Serve until SIGTERM or Ctrl-C, then let requests under way finish and exit with 0.

    \b
    Examples:
      ojs-fast serve
      OJS_PORT=9000 OJS_DATA_DIR=/var/lib/ojs OJS_API_KEY=secret ojs-fast serve
      NATS_URL=nats://127.0.0.1:4222 ojs-fast serve
    """
    settings = read_settings()
    from ojs_fast.serve import run  # `check` and `--help` need no server

    sys.exit(run(settings))


@click.command()
def check() -> None:
    """Print the effective settings, secrets masked; exit with 2 if one is bad.

    \b
    Example:
      ojs-fast check
    """
    settings = read_settings()
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    rows = [
        (one.name, one.value or "-", "default" if one.is_default else "set", one.description)
        for one in settings.describe()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


def read_settings() -> Settings:
    """Read the environment, or print what is wrong with it and exit with 2."""
    try:
        return Settings.from_env(os.environ)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"ojs-fast: {problem}", err=True)
        sys.exit(EXIT_BAD_SETTINGS)
