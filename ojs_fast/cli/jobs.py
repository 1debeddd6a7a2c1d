"""`job`: look at jobs, find them, and change what can be changed."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ojs_fast.cli.client import PAGE, Body, Client, ServerSaid, segment
from ojs_fast.cli.options import asks_server, limit_option
from ojs_fast.cli.output import Output
from ojs_fast.cli.times import MOMENT

STATES = ("pending", "scheduled", "available", "active", "retryable", "completed", "discarded", "cancelled")
COLUMNS = (
    ("ID", "id"),
    ("QUEUE", "queue"),
    ("TYPE", "type"),
    ("STATE", "state"),
    ("PRIORITY", "priority"),
    ("ATTEMPT", "attempt"),
    ("CREATED", "created_at"),
    ("ARGS", "args"),
)
FIELDS = (
    ("Id", "id"),
    ("Type", "type"),
    ("Queue", "queue"),
    ("State", "state"),
    ("Args", "args"),
    ("Meta", "meta"),
    ("Priority", "priority"),
    ("Attempt", "attempt"),
    ("Attempts allowed", "max_attempts"),
    ("Created", "created_at"),
    ("Enqueued", "enqueued_at"),
    ("Scheduled", "scheduled_at"),
    ("Started", "started_at"),
    ("Next attempt", "next_attempt_at"),
    ("Completed", "completed_at"),
    ("Cancelled", "cancelled_at"),
    ("Discarded", "discarded_at"),
    ("Expires", "expires_at"),
    ("Worker", "worker_id"),
    ("Workflow", "workflow_id"),
    ("Tags", "tags"),
    ("Result", "result"),
    ("Error", "error.message"),
)
ERRORS = (("ATTEMPT", "attempt"), ("AT", "occurred_at"), ("CODE", "code"), ("MESSAGE", "message"))
_IDS = click.argument("ids", metavar="ID...", nargs=-1, required=True)


@click.group()
def job() -> None:
    """Look at jobs, find them, cancel, retry, activate, reprioritize them.

    \b
    Examples:
      ojs-fast job list --queue email --state retryable
      ojs-fast job show 0192d3a4-5b6c-7d8e-9f00-112233445566
      ojs-fast job list --state scheduled --json | jq -r .id | xargs ojs-fast job cancel
    """


@job.command()
@_IDS
@asks_server
def show(*, client: Client, output: Output, ids: tuple[str, ...]) -> None:
    """Show jobs, whatever their state."""
    for number, job_id in enumerate(ids):
        found = client.get(f"/jobs/{segment(job_id)}")["job"]
        if number and not output.as_json:
            click.echo()
        output.one(found, FIELDS)
        if not output.as_json and len(found.get("errors") or ()) > 1:
            output.rows(found["errors"], ERRORS)


@job.command("list")
@click.option("--queue", default="", help="Only of this queue.")
@click.option("--state", type=click.Choice(STATES), help="Only in this state.")
@click.option("--type", "type_", default="", help="Only of this type; may end in *.")
@click.option("--since", default="", type=MOMENT, help="Created since then: RFC 3339, or how long ago: 90s, 1h, 7d.")
@click.option("--until", default="", type=MOMENT, help="Created before.")
@click.option("--order", type=click.Choice(["desc", "asc"]), default="desc", help="Newest (desc) or oldest first.")
@limit_option
@asks_server
def list_jobs(*, client: Client, output: Output, limit: int, type_: str, **query: str) -> None:
    """Find jobs. Needs a key with the scope read."""
    jobs = _pages(client, limit, {"type": type_, **query})
    output.rows(jobs, COLUMNS)


def _pages(client: Client, limit: int, query: dict[str, str]) -> Iterator[Body]:
    page = shown = 0
    size = min(PAGE, limit or PAGE)
    while True:
        page += 1
        answer = client.get("/admin/jobs", page=page, per_page=size, **query)
        for item in answer["items"]:
            yield item
            shown += 1
            if shown == limit:
                return
        if len(answer["items"]) < size:
            if not answer["pagination"].get("total_is_exact", True):
                click.echo("There may be more: only the newest finished jobs were looked at.", err=True)
            return


@job.command()
@_IDS
@asks_server
def cancel(*, client: Client, output: Output, ids: tuple[str, ...]) -> None:
    """Cancel jobs that have not ended."""
    _each(client, output, ids, "DELETE", "/jobs/{}", "cancelled")


@job.command()
@_IDS
@asks_server
def retry(*, client: Client, output: Output, ids: tuple[str, ...]) -> None:
    """Let discarded jobs run again, from their first attempt on. Needs a key with the scope admin."""
    _each(client, output, ids, "POST", "/admin/jobs/{}/retry", "available again")


@job.command()
@_IDS
@asks_server
def activate(*, client: Client, output: Output, ids: tuple[str, ...]) -> None:
    """Make pending jobs available."""
    _each(client, output, ids, "POST", "/jobs/{}/activate", "available")


@job.command()
@_IDS
@click.option("--to", "priority", type=click.IntRange(-100, 100), required=True, help="From -100 to 100, higher first.")
@asks_server
def priority(*, client: Client, output: Output, priority: int, ids: tuple[str, ...]) -> None:
    """Give waiting jobs another priority.

    \b
    Example:
      ojs-fast job priority 0192d3a4-5b6c-7d8e-9f00-112233445566 --to 50
    """
    _each(client, output, ids, "PATCH", "/jobs/{}", f"has priority {priority}", {"priority": priority})


def _each(
    client: Client, output: Output, ids: tuple[str, ...], method: str, path: str, what: str, body: Body | None = None
) -> None:
    """The same for every id; one that fails is told, the others go on, and the exit code is 1."""
    failed = False
    for job_id in ids:
        try:
            answer = client.call(method, path.format(segment(job_id)), body)
        except ServerSaid as error:
            error.show()
            failed = True
            continue
        output.done(answer.get("job", answer), f"{job_id} {what}")
    if failed:
        raise SystemExit(1)
