"""`dead-letter`: jobs out of retries."""

from __future__ import annotations

import click

from ojs_fast.cli.client import Body, Client, segment
from ojs_fast.cli.jobs import FIELDS
from ojs_fast.cli.options import Command, asks_server, confirm, limit_option, yes_option
from ojs_fast.cli.output import Output
from ojs_fast.cli.times import MOMENT

COLUMNS = (
    ("ID", "id"),
    ("QUEUE", "queue"),
    ("TYPE", "type"),
    ("ATTEMPTS", "attempt"),
    ("DISCARDED", "discarded_at"),
    ("ERROR", "error.message"),
)


def filtered(command: Command) -> Command:
    """Options that choose dead letters by what they are like."""
    for option in (
        click.option("--older-than", default="", type=MOMENT, help="Only from before: RFC 3339, or how long ago: 30d."),
        click.option("--error-type", default="", help="Only with this type of error."),
        click.option("--type", "type_", default="", help="Only of this type."),
        click.option("--queue", default="", help="Only of this queue."),
    ):
        command = option(command)
    return command


@click.group("dead-letter")
def dead_letter() -> None:
    """List, retry and remove jobs that are out of retries.

    \b
    Examples:
      ojs-fast dead-letter list --queue email
      ojs-fast dead-letter retry 0192d3a4-5b6c-7d8e-9f00-112233445566
      ojs-fast dead-letter retry --all --queue email --yes
      ojs-fast dead-letter purge --older-than 30d --yes
    """


@dead_letter.command("list")
@filtered
@limit_option
@asks_server
def list_dead(*, client: Client, output: Output, limit: int, **filters: str) -> None:
    """List dead letters."""
    names = {"type_": "type", "older_than": "until"}
    wanted = {names.get(name, name): value for name, value in filters.items()}
    output.rows(client.pages("/dead-letter", "jobs", limit, **wanted), COLUMNS)


@dead_letter.command()
@click.argument("job_id", metavar="ID")
@asks_server
def show(*, client: Client, output: Output, job_id: str) -> None:
    """Show a dead letter with all its errors."""
    output.one(client.get(f"/dead-letter/{segment(job_id)}")["job"], [*FIELDS, ("Errors", "errors")])


@dead_letter.command()
@asks_server
def stats(*, client: Client, output: Output) -> None:
    """Count dead letters by queue and error."""
    found = client.get("/dead-letter/stats")
    output.one(found, [(name.replace("_", " ").capitalize(), name) for name in found])


@dead_letter.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the filters let through.")
@filtered
@yes_option
@asks_server
def retry(*, client: Client, output: Output, ids: tuple[str, ...], everything: bool, yes: bool, **filters: str) -> None:
    """Let dead letters run again, from their first attempt on."""
    if bool(ids) == everything:
        raise click.UsageError("Name jobs, or say --all.")
    for job_id in ids:
        job = client.call("POST", f"/dead-letter/{segment(job_id)}/retry")["job"]
        output.done(job, f"{job_id} is {job['state']}")
    if everything:
        confirm("Retry all dead letters that match?", yes=yes)
        answer = client.call("POST", "/dead-letter/retry", _body(filters))
        output.done(answer, f"{answer['retried']} of {answer['matched']} dead letters run again")


@dead_letter.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@yes_option
@asks_server
def delete(*, client: Client, output: Output, ids: tuple[str, ...], yes: bool) -> None:
    """Remove dead letters."""
    confirm(f"Remove {len(ids)} dead letters?", yes=yes)
    for job_id in ids:
        output.done(client.call("DELETE", f"/dead-letter/{segment(job_id)}"), f"{job_id} is removed")


@dead_letter.command()
@filtered
@yes_option
@asks_server
def purge(*, client: Client, output: Output, yes: bool, **filters: str) -> None:
    """Remove all dead letters that the filters let through."""
    confirm("Remove all dead letters that match?", yes=yes)
    answer = client.call("DELETE", "/dead-letter", _body(filters))
    output.done(answer, f"{answer['purged_count']} of {answer['matched']} dead letters are removed")


def _body(filters: dict[str, str]) -> Body:
    names = {"type_": "type"}
    wanted = {names.get(name, name): value for name, value in filters.items() if value}
    return {"confirm": True, "filter": wanted}
