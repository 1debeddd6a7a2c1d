"""What `backup` and `restore` do: reach NATS as the server does, and move everything. Imported when one is called."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ojs_fast import __version__
from ojs_fast.cli.output import progress
from ojs_fast.config import Settings
from ojs_fast.core.clock import now_ms
from ojs_fast.core.restore import Restore
from ojs_fast.storage import names, topology, torn
from ojs_fast.storage.access import NatsAccess
from ojs_fast.storage.archive import Archive, ArchiveWriter, BadArchive, open_archive
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import StorageError
from ojs_fast.storage.probe import NatsStartError, check_external
from ojs_fast.storage.recounts import Recounts
from ojs_fast.storage.refill import Refill
from ojs_fast.storage.server import EmbeddedNats, running_url
from ojs_fast.storage.snapshot import Snapshot
from ojs_fast.storage.work import WorkQueue

_TROUBLE = (StorageError, NatsStartError, BadArchive, OSError)


class _Unfinished(Exception):
    """A restore broke off behind its beginning."""


# Servers, and what to show them; None for the embedded one, whose address says it.
_Place = tuple[list[str], NatsAccess | None]


def back_up(settings: Settings, path: Path) -> dict[str, Any]:
    """Write a backup; what its manifest says, `bytes`, and the number of `records`. Raises click.ClickException."""
    try:
        with _nats_of_backup(settings) as place, ArchiveWriter(path) as archive:
            about = asyncio.run(_back_up(place, archive))
            size = archive.finish({"version": __version__, **about})
    except _TROUBLE as error:
        raise click.ClickException(f"no backup was made: {error}") from error
    return {**about, "file": str(path), "bytes": size, "records": about["messages"][names.bucket_stream(names.JOBS)]}


def bring_back(settings: Settings, path: Path) -> dict[str, Any]:
    """Restore a backup; how many `jobs`, of which `instant` and `version`. Raises click.ClickException."""
    try:
        with progress(path.stat().st_size, "Checking") as bar:
            archive = open_archive(path, bar.update)
        with _nats_of_restore(settings) as place:
            jobs = asyncio.run(_restore(settings, place, archive))
    except _Unfinished as error:
        raise click.ClickException(f"the restore did not finish: {error}. Run it again: it starts over.") from error
    except _TROUBLE as error:
        raise click.ClickException(f"nothing was restored: {error}") from error
    return {"jobs": jobs, "instant": archive.manifest["instant"], "version": archive.manifest["version"]}


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
    connection = Connection()
    await connection.open(place[0], name="ojs-fast backup", access=place[1])
    try:
        began_ms = int(time.time() * 1000)
        snapshot = Snapshot(connection, archive)
        with progress(await snapshot.begin(), "Backing up") as bar:
            return {"began_ms": began_ms, **await snapshot.run(bar.update)}
    finally:
        await connection.close()


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
