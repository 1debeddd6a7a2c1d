"""`backup` and `restore`: what NATS holds, as a file and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ojs_fast import __version__
from ojs_fast.cli.output import Output, progress
from ojs_fast.cli.server import read_settings
from ojs_fast.config import Settings
from ojs_fast.storage import names, topology, torn
from ojs_fast.storage.access import NatsAccess
from ojs_fast.storage.archive import Archive, ArchiveWriter, BadArchive, open_archive
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import StorageError
from ojs_fast.storage.probe import NatsStartError, check_external
from ojs_fast.storage.server import EmbeddedNats, running_url

_TROUBLE = (StorageError, NatsStartError, BadArchive, OSError)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a sentence.")


class _Unfinished(Exception):
    """A restore broke off behind its beginning."""


# Servers, and what to show them; None for the embedded one, whose address says it.
_Place = tuple[list[str], NatsAccess | None]


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
    try:
        with _nats_of_backup(settings) as place, ArchiveWriter(path) as archive:
            about = asyncio.run(_back_up(place, archive))
            size = archive.finish({"version": __version__, **about})
    except _TROUBLE as error:
        raise click.ClickException(f"no backup was made: {error}") from error
    about |= {"file": str(path), "bytes": size}
    count = about["messages"][names.bucket_stream(names.JOBS)]
    how = "of one instant" if about["is_one_instant"] else "of a few milliseconds"
    sentence = f"{path}: {count} messages of ojs-jobs, {size} bytes, as of {about['instant']} ({how})"
    Output(as_json=as_json).done(about, sentence)


@contextmanager
def _nats_of_backup(settings: Settings) -> Iterator[_Place]:
    """Reach NATS, or start the embedded one when no server runs on its directory. Raises NatsStartError, OSError."""
    if not settings.is_embedded:
        yield _external(settings)
    elif url := running_url(settings.data_dir):
        yield [url], None
    elif not (settings.data_dir / "nats").is_dir():
        raise NatsStartError(f"{settings.data_dir} holds no data of ojs-fast; set OJS_DATA_DIR or NATS_URL")
    else:
        with _embedded(settings, settings.durability) as url:
            yield [url], None


@contextmanager
def _embedded(settings: Settings, durability: str) -> Iterator[str]:
    """Run the embedded nats-server; what a power cut tore is mended, because the next start will not know of it."""
    with EmbeddedNats(settings.data_dir, durability=durability, staged=names.STAGED_IN_MEMORY) as nats:
        if nats.was_cut_off:
            asyncio.run(torn.mend(nats.url))
        yield nats.url


def _external(settings: Settings) -> _Place:
    access = NatsAccess.from_settings(settings)
    check_external(settings.nats_servers)
    return settings.nats_servers, access


async def _back_up(place: _Place, archive: ArchiveWriter) -> dict[str, Any]:
    from ojs_fast.storage.snapshot import Snapshot

    connection = Connection()
    await connection.open(place[0], name="ojs-fast backup", access=place[1])
    try:
        began = time.time()
        read = 0

        def tell(count: int) -> None:
            nonlocal read
            read += count
            bar.update(count)

        snapshot = Snapshot(connection, archive, tell)
        with progress(await snapshot.begin(), "Backing up") as bar:
            about = await snapshot.run()
        return {"began_ms": int(began * 1000), **about}
    finally:
        await connection.close()


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
    settings = read_settings()
    try:
        with progress(path.stat().st_size, "Checking") as bar:
            archive = open_archive(path, bar.update)
        with _nats_of_restore(settings) as place:
            jobs = asyncio.run(_restore(settings, place, archive))
    except _Unfinished as error:
        raise click.ClickException(f"the restore did not finish: {error}. Run it again: it starts over.") from error
    except _TROUBLE as error:
        raise click.ClickException(f"nothing was restored: {error}") from error
    about = {"jobs": jobs, "instant": archive.manifest["instant"], "version": archive.manifest["version"]}
    sentence = f"{jobs} jobs are restored as they were at {about['instant']}. Start a server: it delivers them."
    Output(as_json=as_json).done(about, sentence)


@contextmanager
def _nats_of_restore(settings: Settings) -> Iterator[_Place]:
    if not settings.is_embedded:
        yield _external(settings)
        return
    if running_url(settings.data_dir):
        raise NatsStartError(
            f"a server runs on {settings.data_dir}; stop it, or set OJS_DATA_DIR to an empty directory"
        )
    # Whatever the setting: a power cut must not leave data without the marker, nor take the marker before the data.
    with _embedded(settings, "always") as url:
        yield [url], None


async def _restore(settings: Settings, place: _Place, archive: Archive) -> int:
    from ojs_fast.core.clock import now_ms
    from ojs_fast.core.restore import Restore
    from ojs_fast.storage.recounts import Recounts
    from ojs_fast.storage.refill import Refill
    from ojs_fast.storage.work import WorkQueue

    connection = Connection()
    await connection.open(place[0], name="ojs-fast restore", access=place[1])
    try:
        wanted = topology.streams(settings.nats_replicas, settings.events_max_age_s, settings.events_max_bytes)
        refill = Refill(connection, archive)
        if await refill.begin(wanted):
            click.echo("A restore that was interrupted is begun again.", err=True)
        connection.is_replicated = settings.nats_replicas > 1
        if settings.is_embedded:
            connection.commit_in_groups(config["subjects"][0] for config in wanted if config.get("allow_atomic"))
        work = WorkQueue(connection, Recounts(connection), settings.nats_replicas)
        work.open()
        try:
            with progress(archive.messages, "Restoring") as bar:
                restored = Restore(connection, work, refill, archive, now_ms, bar.update)
                await restored.run()
            if not settings.is_embedded:
                await restored.check_alone()
            await refill.finish()
        except (StorageError, OSError) as error:
            raise _Unfinished(str(error)) from error
        return restored.jobs
    finally:
        await connection.close()
