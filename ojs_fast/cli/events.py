"""`events`: what happened, and what happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from ojs_fast.cli.client import FIRST_PAUSE_S, LONGEST_PAUSE_S, Body, Client, NoServer, ServerSaid, passes_by, segment
from ojs_fast.cli.exact import dump_exactly, parse_exactly
from ojs_fast.cli.options import asks_server
from ojs_fast.cli.output import Output, cell, find, printable

SILENCE_S = 45.0  # the server sends a heartbeat every 15 s
MOST = 1000
# Where the shapes of `GET /events` and of streams keep what people look at.
PLACES = {
    "time": ("time", "timestamp"),
    "job": ("subject", "data.job_id", "job_id"),
    "queue": ("data.queue", "queue", "data.job.queue"),
    "job type": ("data.job_type", "data.type", "job_type"),
}


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--queue", default="", help="Only of this queue.")
@click.option("--job", "job_id", default="", help="Only of this job; with --follow.")
@click.option("--type", "types", multiple=True, help="Only of this type, such as job.completed. Repeatable.")
@click.option("--after", default="", metavar="ID", help="Only behind this event, or behind this cursor.")
@click.option("--limit", type=click.IntRange(1, MOST), default=100, show_default=True, help="Without --follow.")
@asks_server
def events(
    *,
    client: Client,
    output: Output,
    follow: bool,
    queue: str,
    job_id: str,
    types: tuple[str, ...],
    after: str,
    limit: int,
) -> None:
    """Show events; with --follow those that come, over restarts of the server, none left out as long as it keeps them.

    \b
    Examples:
      ojs-fast events --type job.discarded
      ojs-fast events --follow --queue email
      ojs-fast events --follow --json | jq -r .data.job_id
    """
    if queue and job_id:
        raise click.UsageError("--queue and --job exclude each other.")
    if not follow:
        if job_id:
            raise click.UsageError("--job needs --follow: kept events are filtered by queue and type only.")
        answer = client.get("/events", queues=queue, types=",".join(types), after=after, limit=limit)
        for event in answer["events"]:
            _print(output, event)
        if answer.get("has_more"):
            click.echo(f"There are more: --after {answer['cursor']}", err=True)
        return
    path = f"/jobs/{segment(job_id)}/events" if job_id else f"/queues/{segment(queue)}/events" if queue else None
    for event in _follow(client, path or "/events/stream", ",".join(types), after, ends=bool(job_id)):
        _print(output, event)


def _follow(client: Client, path: str, types: str, after: str, *, ends: bool) -> Iterator[Body]:
    """Events of a stream, connected again and again with `Last-Event-ID`; `ends`: the stream of one job has an end."""
    pause_s = FIRST_PAUSE_S
    query = {"event_types": types} if types else {}
    while True:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        reason = "the stream ended"
        try:
            for event in _parse(client.stream(path, headers, query, silence_s=SILENCE_S)):
                after = event["id"] or after
                pause_s = FIRST_PAUSE_S
                yield event
            if ends:
                return
        except (NoServer, ServerSaid) as error:
            if not passes_by(error):
                raise
            reason = error.message
        click.echo(f"Connecting again in {pause_s:.1f} s ({reason})", err=True)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _parse(lines: Iterator[str]) -> Iterator[Body]:
    """Server-sent events (the part of the format that servers of this protocol use)."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            data: Any = parse_exactly(fields["data"].encode())
            yield {"id": fields.get("id", ""), "type": fields.get("event", ""), "data": data}
        fields = {}


def _print(output: Output, event: Body) -> None:
    if output.as_json:
        click.echo(dump_exactly(event))
        return
    shown = {name: _first(event, name) or _first(event.get("data"), name) for name in PLACES}
    change = f"{find(event, 'data.from')} → {find(event, 'data.to')}" if find(event, "data.to") else ""
    words = [cell(shown["time"]), str(event.get("type", "")).ljust(18), cell(shown["job"])]
    words += [
        text for text in (cell(shown["queue"]), cell(shown["job type"]), printable(change)) if text not in ("-", "")
    ]
    click.echo("  ".join(words))


def _first(event: Any, name: str) -> Any:
    return next((value for path in PLACES[name] if (value := find(event, path)) is not None), None)
