"""`fetch`: take jobs as a worker does, to look at them or to settle them by hand."""

from __future__ import annotations

import secrets
from typing import Any

import click

from ojs_fast.cli.client import Body, Client, parse_json
from ojs_fast.cli.exact import dump_exactly
from ojs_fast.cli.jobs import COLUMNS
from ojs_fast.cli.options import asks_server
from ojs_fast.cli.output import Output


@click.command()
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many at most.")
@click.option("--worker-id", help="Who takes them.  [default: a random one]")
@click.option("--visibility", type=click.IntRange(1), metavar="MS", help="Milliseconds until others may have them.")
@click.option("--ack", is_flag=True, help="Complete them.")
@click.option("--result", metavar="JSON", help="With --ack.")
@click.option("--nack", metavar="MESSAGE", help="Fail them.")
@click.option("--no-retry", is_flag=True, help="With --nack: discard them at once.")
@click.option("--requeue", is_flag=True, help="Give them back: no attempt is counted as failed.")
@asks_server
def fetch(
    *,
    client: Client,
    output: Output,
    queues: tuple[str, ...],
    count: int,
    worker_id: str | None,
    visibility: int | None,
    ack: bool,
    result: str | None,
    nack: str | None,
    no_retry: bool,
    requeue: bool,
) -> None:
    """Take jobs of queues, the first queue first. Left alone they stay active until their visibility timeout ends.

    \b
    Examples:
      ojs-fast fetch email --requeue
      ojs-fast fetch email billing --count 10 --ack --result '{"by": "hand"}'
      ojs-fast fetch email --nack 'the template is gone' --no-retry
    """
    if (ack, nack is not None, requeue).count(True) > 1:
        raise click.UsageError("--ack, --nack and --requeue exclude each other.")
    if (result is not None and not ack) or (no_retry and nack is None):
        raise click.UsageError("--result needs --ack, --no-retry needs --nack.")
    worker_id = worker_id or f"cli-{secrets.token_hex(4)}"
    body: Body = {"queues": list(queues), "count": count, "worker_id": worker_id}
    if visibility:
        body["visibility_timeout_ms"] = visibility
    parsed = None if result is None else parse_json(result, "--result")
    jobs = client.call("POST", "/workers/fetch", body)["jobs"]
    settled: list[Body] = []
    for job in jobs:
        about: dict[str, Any] = {"job_id": job["id"], "worker_id": worker_id}
        if ack:
            answer = client.call("POST", "/workers/ack", dump_exactly({**about, "result": parsed}))
        elif nack is not None:
            error = {"code": "handler_error", "message": nack, "retryable": not no_retry}
            answer = client.call("POST", "/workers/nack", {**about, "error": error})
        elif requeue:
            answer = client.call("POST", "/workers/nack", {**about, "requeue": True})
        else:
            answer = {"job": job}
        settled.append(answer["job"])
    output.rows(settled, COLUMNS)
    if jobs and not (ack or nack is not None or requeue):
        click.echo(f"{len(jobs)} jobs are active at worker {worker_id} until their visibility timeout ends.", err=True)
