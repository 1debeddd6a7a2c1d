"""The command `ojs-fast`: `serve`, `check` and `keys`.

Owns the command line. Must not know how anything is served.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ojs_fast import __version__
from ojs_fast.api.keys import SCOPES, KeysFileError, Scope, create_key, read_keys, revoke_key, scope_names
from ojs_fast.config import Settings, SettingsError

EXIT_BAD_SETTINGS = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ojs-fast")
def main() -> None:
    """Run ojs-fast, an Open Job Spec server over NATS JetStream. Settings are environment variables: see `check`."""


@main.command()
def serve() -> None:
    """Serve until SIGTERM or Ctrl-C, then let requests under way finish and exit with 0."""
    settings = read_settings()
    from ojs_fast.serve import run  # `check` and `--help` need no server

    sys.exit(run(settings))


@main.command()
def check() -> None:
    """Print the effective settings, secrets masked; exit with 2 if one is bad."""
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


_FILE = click.option(
    "--file", "path", envvar="OJS_API_KEYS_FILE", required=True, type=click.Path(path_type=Path), help="The keys file."
)


@main.group()
def keys() -> None:
    """Make, list and revoke API keys in the file OJS_API_KEYS_FILE; running servers notice within a second."""


@keys.command("create")
@_FILE
@click.option("--name", required=True, help="Who uses the key.")
@click.option("--scope", "scopes", required=True, multiple=True, type=click.Choice(list(SCOPES)), help="Repeatable.")
def create(path: Path, name: str, scopes: tuple[str, ...]) -> None:
    """Print a new key, once: only its hash is stored."""
    granted = Scope(0)
    for scope in scopes:
        granted |= SCOPES[scope]
    try:
        click.echo(create_key(path, name, granted))
    except KeysFileError as error:
        raise click.ClickException(str(error)) from error


@keys.command("list")
@_FILE
def list_keys(path: Path) -> None:
    """Print the names and scopes of all keys."""
    try:
        for key in read_keys(path):
            click.echo(f"{key.name}  {','.join(scope_names(key.scopes))}")
    except KeysFileError as error:
        raise click.ClickException(str(error)) from error


@keys.command("revoke")
@_FILE
@click.option("--name", required=True, help="The key's name.")
def revoke(path: Path, name: str) -> None:
    """Remove a key."""
    try:
        revoke_key(path, name)
    except KeysFileError as error:
        raise click.ClickException(str(error)) from error


def read_settings() -> Settings:
    """Read the environment, or print what is wrong with it and exit with 2."""
    try:
        return Settings.from_env(os.environ)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"ojs-fast: {problem}", err=True)
        sys.exit(EXIT_BAD_SETTINGS)


if __name__ == "__main__":
    main()
