"""`completion`: click's own, as a script for each shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands and options.

    \b
    Examples:
      ojs-fast completion bash > ~/.local/share/bash-completion/completions/ojs-fast
      ojs-fast completion zsh > ~/.zfunc/_ojs-fast
      ojs-fast completion fish > ~/.config/fish/completions/ojs-fast.fish
    """
    made = get_completion_class(shell)
    assert made is not None, "click knows these shells"
    click.echo(made(ctx.find_root().command, {}, "ojs-fast", "_OJS_FAST_COMPLETE").source())
