"""`keys create`, `list` and `revoke`."""

from __future__ import annotations

from pathlib import Path

import click

from ojs_fast.api.keys import SCOPES, KeysFileError, Scope, create_key, read_keys, revoke_key, scope_names

_FILE = click.option(
    "--file", "path", envvar="OJS_API_KEYS_FILE", required=True, type=click.Path(path_type=Path), help="The keys file."
)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys in the file OJS_API_KEYS_FILE; running servers notice within a second.

    \b
    Examples:
      ojs-fast keys create --file keys.json --name shop --scope produce --scope read
      ojs-fast keys list --file keys.json
      ojs-fast keys revoke --file keys.json --name shop
    """


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
