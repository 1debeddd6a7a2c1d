"""`enqueue`: one job, or a file of them."""

from __future__ import annotations

import io
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from ojs_fast.cli.client import Body, Client, NoServer, ServerSaid, parse_json
from ojs_fast.cli.exact import dump_exactly, parse_exactly
from ojs_fast.cli.options import asks_server
from ojs_fast.cli.output import Output, progress
from ojs_fast.cli.times import span

BATCH_BYTES = 4 * 1024 * 1024
TRIES = 6
LONGEST_PAUSE_S = 30.0

CONFLICTS = ("reject", "ignore", "replace", "replace_except_schedule")

Lines = list[tuple[int, bytes]]


@click.command()
@click.argument("type_", metavar="[TYPE]", required=False)
@click.argument("args", metavar="[ARG]...", nargs=-1)
@click.option("--queue", help="The queue.  [default: default]")
@click.option("--priority", type=click.IntRange(-100, 100), help="From -100 to 100, higher first.")
@click.option("--delay", metavar="DURATION", help="Run it that much later: 30s, 10m, 2h, 1d or PT10M.")
@click.option("--at", metavar="TIME", help="Run it then: RFC 3339, such as 2030-01-31T08:00:00+01:00.")
@click.option("--expires", metavar="TIME", help="Give it up then: RFC 3339.")
@click.option("--max-attempts", type=click.IntRange(0), help="How often it may run.")
@click.option(
    "--unique", metavar="KEYS", help="Not while a job with the same KEYS waits or runs: type,queue,args,meta."
)
@click.option("--unique-period", metavar="DURATION", help="For how long, such as PT1H.")
@click.option(
    "--on-conflict",
    type=click.Choice(CONFLICTS),
    help="What a duplicate does.  [default: reject]",
)
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Repeatable; VALUE is JSON, or a text.")
@click.option("--tag", "tags", multiple=True, help="Repeatable.")
@click.option("--id", "job_id", help="A UUIDv7 of your own.")
@click.option("--option", "more", multiple=True, metavar="NAME=JSON", help="Any other option of the job. Repeatable.")
@click.option("--idempotency-key", help="Repeating the command with the same key creates nothing twice.")
@click.option("--file", "source", metavar="FILE", help="One job per line (NDJSON), - for standard input.")
@click.option("--batch-size", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="With --file.")
@click.option("--skip", type=click.IntRange(0), default=0, help="With --file: leave out that many lines.")
@asks_server
def enqueue(
    *,
    client: Client,
    output: Output,
    type_: str | None,
    args: tuple[str, ...],
    source: str | None,
    batch_size: int,
    skip: int,
    idempotency_key: str | None,
    **given: Any,
) -> None:
    """Enqueue a job of TYPE; each ARG is JSON. Or all jobs of a file.

    \b
    Examples:
      ojs-fast enqueue email.send '"user@example.com"' '{"template": "welcome"}' --queue email
      ojs-fast enqueue report.make --delay 10m --max-attempts 5 --meta trace=abc
      ojs-fast enqueue cache.warm 42 --unique type,args --on-conflict ignore
      ojs-fast enqueue --file jobs.ndjson
      generate-jobs | ojs-fast enqueue --file -

    A line of a file is what `POST /ojs/v1/jobs` takes: {"type": …, "args": […], "options": {…}}. Lines are sent in
    batches, each all or nothing. A batch that met a busy or restarting server is sent again; no job is made twice.
    """
    if source is not None:
        if type_ is not None or any(given.values()):
            raise click.UsageError("--file goes with neither TYPE nor options of a job: the lines say it all.")
        _enqueue_file(client, output, source, batch_size, skip, idempotency_key or f"cli-{secrets.token_hex(8)}")
        return
    if type_ is None:
        raise click.UsageError("Missing argument 'TYPE', or --file.")
    body = dump_exactly(_job(type_, args, **given))
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    answer = client.call("POST", "/jobs", body, headers=headers)
    job = answer["job"]
    how = "was there already" if answer.get("deduplicated") else f"is {job['state']}"
    output.done(job, f"{job['id']} {how} in queue {job['queue']}")


def _job(
    type_: str,
    args: tuple[str, ...],
    *,
    queue: str | None,
    priority: int | None,
    delay: str | None,
    at: str | None,
    expires: str | None,
    max_attempts: int | None,
    unique: str | None,
    unique_period: str | None,
    on_conflict: str | None,
    meta: tuple[str, ...],
    tags: tuple[str, ...],
    job_id: str | None,
    more: tuple[str, ...],
) -> Body:
    if delay and at:
        raise click.UsageError("--delay and --at exclude each other.")
    if not unique and (unique_period or on_conflict):
        raise click.UsageError("--unique-period and --on-conflict need --unique.")
    options: Body = {
        "queue": queue,
        "priority": priority,
        "scheduled_at": _moment(delay) if delay else at,
        "expires_at": expires,
        "retry": None if max_attempts is None else {"max_attempts": max_attempts},
        "unique": _given({"keys": unique.split(","), "period": unique_period, "on_conflict": on_conflict})
        if unique
        else None,
        "tags": list(tags) or None,
        **{name: parse_json(text, f"--option {name}") for name, text in map(_pair, more)},
    }
    members = {"id": job_id, "meta": {name: _json_or_text(text) for name, text in map(_pair, meta)} or None}
    parsed = [parse_json(text, f"argument {number}") for number, text in enumerate(args, 1)]
    return {"type": type_, "args": parsed, **_given(members), "options": _given(options)}


def _given(members: Body) -> Body:
    return {name: value for name, value in members.items() if value is not None}


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise click.UsageError(f"{text!r} is not NAME=VALUE.")
    return name, value


def _json_or_text(text: str) -> Any:
    try:
        return parse_exactly(text.encode())
    except ValueError:
        return text


def _moment(delay: str) -> str:
    after = span(delay)
    if after is None:
        return "+" + delay.removeprefix("+").upper()  # an ISO 8601 duration, which the server checks
    return f"+PT{after.total_seconds():.3f}S"


# -- files ---------------------------------------------------------------------------------------


def _enqueue_file(client: Client, output: Output, source: str, batch_size: int, skip: int, key: str) -> None:
    done, last = 0, skip
    with _opened(source) as file, progress(_size(file), "Enqueueing") as bar:
        try:
            for number, (lines, read_bytes) in enumerate(_batches(file, batch_size, skip)):
                jobs = _send(client, lines, f"{key}-{number}")
                done += len(lines)
                last = lines[-1][0]
                bar.update(read_bytes)
                if output.as_json:
                    for job in jobs:
                        click.echo(dump_exactly(job))
        except click.ClickException as error:
            more = f"; go on behind them with --skip {last}." if last else "."
            raise click.ClickException(f"{error.message}\n{done} jobs were enqueued before{more}") from error
    if not output.as_json:
        click.echo(f"{done} jobs are enqueued.")


def _opened(source: str) -> BinaryIO:
    if source == "-":
        return sys.stdin.buffer
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise click.UsageError(f"--file {source!r} cannot be read: {error.strerror}.") from error


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END) - file.seek(0) if file.seekable() else 0


def _batches(file: BinaryIO, batch_size: int, skip: int) -> Iterator[tuple[Lines, int]]:
    """Yield `(lines with their numbers, bytes read for them)`. Raises click.ClickException for what is no job."""
    lines: Lines = []
    held = read_bytes = 0
    for number, line in enumerate(file, 1):
        read_bytes += len(line)
        text = line.strip()
        if number <= skip or not text:
            continue
        if lines and (len(lines) == batch_size or held + len(text) > BATCH_BYTES):
            yield lines, read_bytes - len(line)
            lines, held, read_bytes = [], 0, len(line)
        if problem := _problem(text):
            if lines:
                yield lines, read_bytes - len(line)
            raise click.ClickException(f"line {number} is no job: {problem}")
        lines.append((number, text))
        held += len(text)
    if lines:
        yield lines, read_bytes


def _problem(text: bytes) -> str:
    try:
        return "" if isinstance(parse_exactly(text), dict) else "it is no JSON object"
    except ValueError as error:
        return str(error)


def _send(client: Client, lines: Lines, key: str) -> list[Body]:
    """Enqueue one batch, again while the server is busy or away; its key makes that safe."""
    body = b'{"jobs":[' + b",".join(text for _, text in lines) + b"]}"
    headers = {"Idempotency-Key": key}
    try:
        jobs: list[Body] = client.call_again("/jobs/batch", body, TRIES, LONGEST_PAUSE_S, headers=headers)["jobs"]
    except (ServerSaid, NoServer) as error:
        raise _named(error, lines) from error
    return jobs


def _named(error: click.ClickException, lines: Lines) -> click.ClickException:
    """The error with the line it is about, where the server names a job of the batch."""
    field = (error.error.get("details") or {}).get("field", "") if isinstance(error, ServerSaid) else ""
    match = re.match(r"jobs\[(\d+)\]", str(field))
    if match and int(match.group(1)) < len(lines):
        return click.ClickException(f"line {lines[int(match.group(1))][0]}: {error.message}")
    return error
