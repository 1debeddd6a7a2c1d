"""The command `ojs-fast` and the table of its commands.

Each command's module is imported when the command is called, so that `serve` loads no HTTP client.
"""

from __future__ import annotations

import importlib

import click

from ojs_fast import __version__

#: Name → module below `ojs_fast.cli` and the command in it, in the order of `--help`.
COMMANDS = {
    "serve": "server.serve",
    "check": "server.check",
    "keys": "keys.keys",
    "backup": "backup.backup",
    "restore": "backup.restore",
    "enqueue": "enqueue.enqueue",
    "fetch": "fetch.fetch",
    "work": "work.work",
    "job": "jobs.job",
    "queues": "queues.queues",
    "cron": "cron.cron",
    "workflows": "workflows.workflows",
    "dead-letter": "dead_letters.dead_letter",
    "events": "events.events",
    "conformance": "checkout.conformance",
    "bench": "checkout.bench",
    "completion": "completion.completion",
}


class LateCommands(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(".")
        command: click.Command = getattr(importlib.import_module(f"ojs_fast.cli.{module}"), attribute)
        return command


@click.group(cls=LateCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ojs-fast")
def main() -> None:
    """Run ojs-fast, an Open Job Spec server over NATS JetStream, and work with one.

    \b
    Settings of the server are environment variables: see `check`.
    Commands that ask a server find it by --url or OJS_URL, and show their key by OJS_API_KEY.
    """
