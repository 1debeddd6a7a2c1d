"""`workflows`: chains, groups, batches and graphs of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ojs_fast.cli.client import Client, segment
from ojs_fast.cli.exact import dump_exactly
from ojs_fast.cli.options import asks_server, limit_option
from ojs_fast.cli.output import Output
from ojs_fast.cli.queues import read_object

COLUMNS = (
    ("ID", "id"),
    ("NAME", "name"),
    ("TYPE", "type"),
    ("STATE", "state"),
    ("CREATED", "created_at"),
    ("ENDED", "completed_at"),
)
FIELDS = (*((header.capitalize(), path) for header, path in COLUMNS), ("Metadata", "metadata"))
STEPS = (("STEP", "id"), ("TYPE", "type"), ("STATE", "state"), ("JOB", "job_id"))
_ID = click.argument("workflow_id", metavar="ID")


@click.group()
def workflows() -> None:
    """List, show, create, cancel and retry workflows.

    \b
    Examples:
      ojs-fast workflows create order.json
      ojs-fast workflows list --state failed
      ojs-fast workflows show 0192d3a4-5b6c-7d8e-9f00-112233445566
    """


@workflows.command("list")
@click.option("--state", default="", help="Only in this state: running, completed, failed, cancelled.")
@click.option("--type", "type_", default="", help="Only of this type: chain, group, batch.")
@limit_option
@asks_server
def list_workflows(*, client: Client, output: Output, state: str, type_: str, limit: int) -> None:
    """List workflows, newest first."""
    output.rows(client.pages("/workflows", "workflows", limit, state=state, type=type_), COLUMNS)


@workflows.command()
@_ID
@asks_server
def show(*, client: Client, output: Output, workflow_id: str) -> None:
    """Show a workflow and its steps."""
    _show(output, client.get(f"/workflows/{segment(workflow_id)}")["workflow"])


def _show(output: Output, workflow: dict[str, Any]) -> None:
    output.one(workflow, FIELDS)
    steps = workflow.get("steps") or workflow.get("jobs") or []
    if steps and not output.as_json:
        click.echo()
        output.rows(steps, STEPS)


@workflows.command()
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@asks_server
def create(*, client: Client, output: Output, path: Path) -> None:
    """Create a workflow from a JSON file, - for standard input; the file is what `POST /ojs/v1/workflows` takes."""
    workflow = client.call("POST", "/workflows", dump_exactly(read_object(path)))["workflow"]
    output.done(workflow, f"{workflow['id']} is {workflow['state']}")


@workflows.command()
@_ID
@asks_server
def cancel(*, client: Client, output: Output, workflow_id: str) -> None:
    """Cancel a workflow; its jobs that run may finish."""
    workflow = client.call("DELETE", f"/workflows/{segment(workflow_id)}")["workflow"]
    output.done(workflow, f"{workflow_id} is {workflow['state']}")


@workflows.command()
@_ID
@asks_server
def retry(*, client: Client, output: Output, workflow_id: str) -> None:
    """Run again what failed of a workflow, as new jobs."""
    workflow = client.call("POST", f"/workflows/{segment(workflow_id)}/retry")["workflow"]
    output.done(workflow, f"{workflow_id} is {workflow['state']}")
