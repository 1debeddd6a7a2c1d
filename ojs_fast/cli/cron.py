"""`cron`: jobs by schedule."""

from __future__ import annotations

import click

from ojs_fast.cli.client import Body, Client, parse_json, segment
from ojs_fast.cli.exact import dump_exactly
from ojs_fast.cli.options import asks_server, confirm, limit_option, yes_option
from ojs_fast.cli.output import Output

COLUMNS = (
    ("NAME", "name"),
    ("EXPRESSION", "expression"),
    ("TIMEZONE", "timezone"),
    ("STATUS", "status"),
    ("OVERLAP", "overlap_policy"),
    ("NEXT RUN", "next_run_at"),
    ("RUNS", "run_count"),
    ("TYPE", "job_template.type"),
)
FIELDS = (
    ("Name", "name"),
    ("Description", "description"),
    ("Expression", "expression"),
    ("Time zone", "timezone"),
    ("Overlap", "overlap_policy"),
    ("Status", "status"),
    ("Job", "job_template"),
    ("Next run", "next_run_at"),
    ("Last run", "last_run_at"),
    ("Last job", "last_job_id"),
    ("Runs", "run_count"),
    ("Created", "created_at"),
    ("Updated", "updated_at"),
)
_NAME = click.argument("name")


@click.group()
def cron() -> None:
    """List, register, pause and delete jobs by schedule.

    \b
    Examples:
      ojs-fast cron add daily-report '0 9 * * MON-FRI' report.make '"daily"' --timezone Europe/Berlin
      ojs-fast cron list
      ojs-fast cron pause daily-report
    """


@cron.command("list")
@limit_option
@asks_server
def list_cron(*, client: Client, output: Output, limit: int) -> None:
    """List all cron jobs."""
    output.rows(client.pages("/cron", "crons", limit), COLUMNS)


@cron.command()
@_NAME
@asks_server
def show(*, client: Client, output: Output, name: str) -> None:
    """Show a cron job."""
    output.one(client.get(f"/cron/{segment(name)}")["cron"], FIELDS)


@cron.command()
@_NAME
@click.argument("expression")
@click.argument("type_", metavar="TYPE")
@click.argument("args", metavar="[ARG]...", nargs=-1)
@click.option("--queue", help="The queue of its jobs.")
@click.option("--timezone", help="An IANA name such as Europe/Berlin.  [default: UTC]")
@click.option("--overlap", type=click.Choice(["skip", "allow", "cancel_previous", "enqueue"]), help="While one runs.")
@click.option("--description", help="For people.")
@click.option("--paused", is_flag=True, help="Do not start it yet.")
@click.option("--option", "options", multiple=True, metavar="NAME=JSON", help="An option of its jobs. Repeatable.")
@asks_server
def add(
    *,
    client: Client,
    output: Output,
    name: str,
    expression: str,
    type_: str,
    args: tuple[str, ...],
    queue: str | None,
    timezone: str | None,
    overlap: str | None,
    description: str | None,
    paused: bool,
    options: tuple[str, ...],
) -> None:
    """Register a cron job, or update the one of this name. Each ARG is JSON."""
    from ojs_fast.cli.queues import members

    template: Body = {
        "type": type_,
        "args": [parse_json(text, f"argument {number}") for number, text in enumerate(args, 1)],
        "options": {**({"queue": queue} if queue else {}), **members(options)},
    }
    given = {"timezone": timezone, "overlap_policy": overlap, "description": description}
    body: Body = {"name": name, "expression": expression, "job_template": template, "enabled": not paused}
    body |= {field: value for field, value in given.items() if value is not None}
    entry = client.call("POST", "/cron", dump_exactly(body))["cron"]
    output.done(entry, f"{name} runs next at {entry['next_run_at']}" if not paused else f"{name} is registered, paused")


@cron.command()
@_NAME
@asks_server
def pause(*, client: Client, output: Output, name: str) -> None:
    """Start no more runs until `resume`."""
    entry = client.call("PATCH", f"/cron/{segment(name)}", {"enabled": False})["cron"]
    output.done(entry, f"{name} is paused")


@cron.command()
@_NAME
@asks_server
def resume(*, client: Client, output: Output, name: str) -> None:
    """Undo `pause`; what was missed meanwhile is not made up for."""
    entry = client.call("PATCH", f"/cron/{segment(name)}", {"enabled": True})["cron"]
    output.done(entry, f"{name} runs next at {entry['next_run_at']}")


@cron.command()
@_NAME
@yes_option
@asks_server
def delete(*, client: Client, output: Output, name: str, yes: bool) -> None:
    """Delete a cron job; its jobs stay."""
    confirm(f"Delete the cron job {name}?", yes=yes)
    output.done(client.call("DELETE", f"/cron/{segment(name)}")["cron"], f"{name} is deleted")
