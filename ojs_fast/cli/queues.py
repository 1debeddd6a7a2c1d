"""`queues`: look at queues, stop and start, configure, empty and remove them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ojs_fast.cli.client import PAGE, Body, Client, parse_json, segment
from ojs_fast.cli.options import asks_server, confirm, yes_option
from ojs_fast.cli.output import Output
from ojs_fast.cli.times import MOMENT

COUNTED = ("available", "active", "scheduled", "retryable", "completed", "discarded", "cancelled")
COLUMNS = (
    ("NAME", "name"),
    ("PAUSED", "paused"),
    ("DEPTH", "depth"),
    *((state.upper(), f"counts.{state}") for state in COUNTED),
)
PURGEABLE = ("available", "scheduled", "retryable", "pending", "completed", "discarded", "cancelled")
_NAME = click.argument("name")


@click.group()
def queues() -> None:
    """Look at queues, pause, configure, empty and delete them.

    \b
    Examples:
      ojs-fast queues list
      ojs-fast queues stats email
      ojs-fast queues config email max_size=1000 'retention={"completed": "P7D"}'
      ojs-fast queues purge email --state available --yes
    """


@queues.command("list")
@asks_server
def list_queues(*, client: Client, output: Output) -> None:
    """List all queues with the numbers of their jobs."""
    page = 1
    items: list[Body] = []
    while True:
        answer = client.get("/admin/queues", page=page, per_page=PAGE)
        items += answer["items"]
        if len(answer["items"]) < PAGE:
            break
        page += 1
    output.rows(items, COLUMNS)


@queues.command()
@_NAME
@asks_server
def show(*, client: Client, output: Output, name: str) -> None:
    """Show a queue: state, numbers, configuration."""
    found = client.get(f"/admin/queues/{segment(name)}")
    fields = [("Name", "name"), ("Paused", "paused"), ("Created", "created_at"), ("Depth", "depth")]
    fields += [(state.capitalize(), f"counts.{state}") for state in COUNTED]
    output.one(found, [*fields, ("Configuration", "configuration")])


@queues.command()
@click.argument("name", required=False)
@asks_server
def stats(*, client: Client, output: Output, name: str | None) -> None:
    """Show the numbers of a queue, exact over all nodes; without NAME of all queues together."""
    found = client.get(f"/queues/{segment(name)}/stats")["stats"] if name else client.get("/admin/stats")
    output.one(found, [(path.replace(".", " ").replace("_", " ").capitalize(), path) for path in _paths(found)])


def _paths(item: Body, prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name, value in item.items():
        paths += _paths(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return paths


@queues.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@asks_server
def pause(*, client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Let no job of these queues start; those that run go on, and enqueues are taken."""
    for name in names:
        output.done(client.call("POST", f"/queues/{segment(name)}/pause")["queue"], f"{name} is paused")


@queues.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@asks_server
def resume(*, client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Undo `pause`."""
    for name in names:
        output.done(client.call("POST", f"/queues/{segment(name)}/resume")["queue"], f"{name} is resumed")


@queues.command()
@_NAME
@click.option("--state", "states", multiple=True, type=click.Choice(PURGEABLE), help="Repeatable.")
@click.option("--older-than", type=MOMENT, help="Only jobs from before: RFC 3339, or how long ago: 90s, 7d.")
@yes_option
@asks_server
def purge(
    *, client: Client, output: Output, name: str, states: tuple[str, ...], older_than: str | None, yes: bool
) -> None:
    """Cancel what waits and delete what ended, in these states; without --state: available, scheduled, retryable."""
    shown = ", ".join(states or PURGEABLE[:3])
    confirm(f"Purge all jobs of {name} that are {shown}?", yes=yes)
    body: Body = {"confirm": True}
    if states:
        body["states"] = list(states)
    if older_than:
        body["older_than"] = older_than
    answer = client.call("POST", f"/queues/{segment(name)}/purge", body)
    output.done(answer, f"{answer['purged_count']} jobs of {name} are purged")


@queues.command()
@_NAME
@click.argument("changes", metavar="[MEMBER=JSON]...", nargs=-1)
@click.option("--file", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A JSON object.")
@asks_server
def config(*, client: Client, output: Output, name: str, changes: tuple[str, ...], path: Path | None) -> None:
    """Show the configuration of a queue, or change the members given; others stay.

    \b
    Examples:
      ojs-fast queues config email
      ojs-fast queues config email 'backpressure={"max_depth": 1000, "strategy": "reject"}'
      ojs-fast queues config email --file email-queue.json
    """
    body = read_object(path) if path else {}
    body |= members(changes)
    where = f"/queues/{segment(name)}/config"
    answer = client.call("PATCH", where, body) if body else client.get(where)
    found = answer["configuration"]
    output.one({"queue": name, **found}, [("Queue", "queue"), *((member, member) for member in found)])


@queues.command()
@_NAME
@click.argument("members_given", metavar="[MEMBER=JSON]...", nargs=-1)
@asks_server
def create(*, client: Client, output: Output, name: str, members_given: tuple[str, ...]) -> None:
    """Create a queue before its first job, with a configuration if you like."""
    body: Body = {"name": name}
    if members_given:
        body["config"] = members(members_given)
    output.done(client.call("POST", "/queues", body)["queue"], f"{name} is created")


@queues.command()
@_NAME
@yes_option
@asks_server
def delete(*, client: Client, output: Output, name: str, yes: bool) -> None:
    """Delete an empty queue with its configuration and its totals."""
    confirm(f"Delete the queue {name}?", yes=yes)
    output.done(client.call("DELETE", f"/queues/{segment(name)}"), f"{name} is deleted")


def members(changes: tuple[str, ...]) -> Body:
    """What `MEMBER=JSON` words say. Raises click.UsageError."""
    found: Body = {}
    for change in changes:
        member, sign, text = change.partition("=")
        if not (member and sign):
            raise click.UsageError(f"{change!r} is not MEMBER=JSON, such as max_size=1000.")
        found[member] = parse_json(text, member)
    return found


def read_object(path: Path) -> Body:
    """The JSON object in a file, - for standard input. Raises click.UsageError."""
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    value: Any = parse_json(text, str(path))
    if not isinstance(value, dict):
        raise click.UsageError(f"{path} holds no JSON object.")
    return value
