"""`backup` and `restore`: what NATS holds, as a file and back."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ojs_fast.cli.output import Output
from ojs_fast.cli.server import read_settings

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a sentence.")


@click.command()
@click.argument("path", metavar="FILE|DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over FILE.")
@_JSON
def backup(*, path: Path, force: bool, as_json: bool) -> None:
    """Write all jobs, workflows, cron jobs, queues, limits and totals into FILE, or a new file in DIR.

    Servers may go on. NATS is found by the settings of the server (`ojs-fast check`): NATS_URL and OJS_NATS_…, or the
    directory OJS_DATA_DIR, whether a server runs on it or not. The file holds all that jobs carry: keep it safe.

    \b
    Examples:
      ojs-fast backup /var/backups/ojs/
      OJS_DATA_DIR=/var/lib/ojs ojs-fast backup jobs.tar
      NATS_URL=nats://127.0.0.1:4222 ojs-fast backup jobs.tar
    """
    settings = read_settings()
    if path.is_dir():
        path /= time.strftime("ojs-backup-%Y%m%dT%H%M%SZ.tar", time.gmtime())
    if path.exists() and not force:
        raise click.UsageError(f"{path} exists; --force writes over it.")
    from ojs_fast.cli.transfer import back_up

    about = back_up(settings, path)
    how = "of one instant" if about["is_one_instant"] else "of a few milliseconds"
    sentence = f"{path}: {about['records']} records, {about['bytes']} bytes, as of {about['instant']} ({how})"
    Output(as_json=as_json).done(about, sentence)


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_JSON
def restore(*, path: Path, as_json: bool) -> None:
    """Bring back what `backup` wrote, into a NATS that holds nothing of ojs-fast yet.

    All servers must be off. The file is looked through first; one that is damaged or cut off changes nothing. A restore
    that was interrupted is simply begun again; until it has ended no server starts. Jobs that were active stay with
    their workers until their visibility timeout ends.

    \b
    Examples:
      OJS_DATA_DIR=/var/lib/ojs-new ojs-fast restore jobs.tar
      NATS_URL=nats://127.0.0.1:4222 ojs-fast restore jobs.tar
    """
    from ojs_fast.cli.transfer import bring_back

    about = bring_back(read_settings(), path)
    sentence = (
        f"{about['jobs']} jobs are restored as they were at {about['instant']}. Start a server: it delivers them."
    )
    Output(as_json=as_json).done(about, sentence)
