"""A snapshot while everything is written again and again: no subject that was there is missing."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ojs_fast.storage import names, topology
from ojs_fast.storage.archive import ArchiveWriter, open_archive
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.snapshot import Snapshot
from tests.support.nats import Nats

KEYS = 6000
JOBS = names.bucket_stream(names.JOBS)


@asynccontextmanager
async def connected(nats: Nats) -> AsyncIterator[Connection]:
    """Give a connection to streams of ours."""
    connection = Connection()
    await connection.open([nats.url], name="test")
    await topology.ensure(connection, topology.streams(1, 3600, 1 << 30))
    try:
        yield connection
    finally:
        await connection.close()


def subject(number: int) -> str:
    """Name a record."""
    return names.bucket_subject(names.JOBS, str(number))


async def write(connection: Connection, numbers: list[int], value: int) -> None:
    """Write these records and wait until they are stored."""
    for code in [(await one)[1] for one in [connection.write(subject(n), b"%d" % value) for n in numbers]]:
        assert code == 0


async def test_no_subject_is_missing_whatever_is_written_meanwhile(tmp_path: Path) -> None:
    """Each has a value of the moment before the snapshot, or a later one; two of the same subject never count."""
    with Nats() as nats:
        async with connected(nats) as connection, connected(nats) as reader:
            for start in range(0, KEYS, 1000):
                await write(connection, list(range(start, start + 1000)), 0)
            newest = [0] * KEYS
            stopped = False
            chosen = random.Random(1)

            async def churn(first: int) -> None:
                for value in itertools.count(1):
                    if stopped:
                        return
                    numbers = chosen.sample(range(first, KEYS, 2), 100)
                    await write(connection, numbers, value)
                    for number in numbers:
                        newest[number] = value

            churning = [asyncio.create_task(churn(first)) for first in range(2)]
            await asyncio.sleep(0.2)
            before = list(newest)
            with ArchiveWriter(tmp_path / "a") as archive:
                snapshot = Snapshot(reader, archive)
                await snapshot.begin()
                about = await snapshot.run()
                archive.finish(about)
            stopped = True
            await asyncio.gather(*churning)
    assert newest != before
    entries = list(open_archive(tmp_path / "a").entries(JOBS))
    assert len(entries) == KEYS
    found = {entry.subject: int(entry.data) for entry in entries}
    late = [n for n in range(KEYS) if not found[subject(n)] >= before[n]]
    assert late == []
    assert [entry.sequence for entry in entries] == sorted(entry.sequence for entry in entries)


async def test_a_quiet_one_is_of_one_instant(tmp_path: Path) -> None:
    """Without writes two rounds find nothing; deletions are deletions, times to live are kept."""
    with Nats() as nats:
        async with connected(nats) as connection:
            await write(connection, [1, 2], 7)
            marker = b"NATS/1.0\r\nKV-Operation: DEL\r\nNats-TTL: 60s\r\n\r\n"
            await connection.write(subject(2), b"", marker)
            await connection.write(subject(3), b"x", b"NATS/1.0\r\nNats-TTL: 500s\r\n\r\n")
            with ArchiveWriter(tmp_path / "a") as archive:
                snapshot = Snapshot(connection, archive)
                assert await snapshot.begin() == 3
                about = await snapshot.run()
                archive.finish(about)
    assert about["is_one_instant"]
    assert about["last_sequences"][JOBS] == 4
    entries = list(open_archive(tmp_path / "a").entries(JOBS))
    assert [(one.subject, one.data, one.ttl) for one in entries] == [(subject(1), b"7", ""), (subject(3), b"x", "500s")]
