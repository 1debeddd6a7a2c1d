"""Power cuts in the middle of a commit whose staged copy was in memory: all of a batch or nothing of it is there.

The cut is made exact: nats-server is killed, the memory cleared, and the stream's file cut off within the batch, as a
disk leaves it that got only the first part.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import ANY

import pytest

from ojs_fast.storage import names, records, staging, topology, torn
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.records import Records
from ojs_fast.storage.server import EmbeddedNats

pytestmark = pytest.mark.faults

PREFIX = names.bucket_subject(names.JOBS, "")
RECORD = b"r" * 300
COUNT = 40

Commit = Callable[[Connection], Awaitable[object]]

#: Mends, and dies before its write number argv[2].
DOOMED = """
import asyncio, os, signal, sys
from ojs_fast.storage import torn, wire
send, left = wire.Wire.send_frame, int(sys.argv[2])
def doomed(self, frame):
    global left
    if frame.startswith((b"PUB $JS.API.STREAM.MSG.DELETE", b"HPUB")) or b"MSG.DELETE" in frame[:60]:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    send(self, frame)
wire.Wire.send_frame = doomed
asyncio.run(torn.mend(sys.argv[1]))
"""


@asynccontextmanager
async def connected(nats: EmbeddedNats) -> AsyncIterator[Connection]:
    """A connection like the server's own to an embedded NATS with fsync."""
    connection = Connection()
    await connection.open([nats.url], name="test")
    connection.commit_in_groups(await topology.ensure(connection, topology.streams(1, 3600, 2**20)))
    connection.stages_in_memory = True
    try:
        yield connection
    finally:
        await connection.close()


def start(data: Path) -> EmbeddedNats:
    """NATS as the server starts it."""
    nats = EmbeddedNats(data, durability="always", staged=names.STAGED_IN_MEMORY)
    nats.start()
    return nats


def kill(nats: EmbeddedNats) -> None:
    """No farewell, and no restart."""
    nats._stopping.set()
    assert nats.pid is not None
    os.kill(nats.pid, signal.SIGKILL)
    nats.stop()


def size(data: Path) -> int:
    """Bytes of the file that holds the records."""
    [file] = (data / "nats/jetstream/$G/streams/KV_ojs-jobs/msgs").glob("*.blk")
    return file.stat().st_size


async def torn_at(data: Path, share: float, before: Commit, commit: Commit) -> EmbeddedNats:
    """Let a batch be committed and the machine go down when the disk had that share of it; NATS, started again."""
    nats = start(data)
    async with connected(nats) as connection:
        await before(connection)
        old = size(data)
        await commit(connection)
        new = size(data)
    kill(nats)
    shutil.rmtree(staging.area_of(data))
    [file] = (data / "nats/jetstream/$G/streams/KV_ojs-jobs/msgs").glob("*.blk")
    os.truncate(file, old + round((new - old) * share))
    (file.parent / "index.db").unlink(missing_ok=True)  # written now and then only
    return start(data)


async def nothing(_: Connection) -> None:
    """Nothing comes before the batch."""


def keys(count: int = COUNT) -> list[str]:
    """Ids of records."""
    return [f"job-{number:03}" for number in range(count)]


async def there(nats: EmbeddedNats) -> dict[str, bytes]:
    """The records that exist."""
    async with connected(nats) as connection:
        found = await Records(connection).get_many(keys())
    return {key: stored for key, (stored, _) in found.items()}


async def old_records(connection: Connection) -> None:
    """Records that the batch is going to replace, half of all."""
    await asyncio.gather(*(Records(connection).create(key, b"old " + key.encode()) for key in keys(COUNT // 2)))


async def create(connection: Connection) -> None:
    """A batch of new records."""
    await Records(connection).create_all([(key, RECORD) for key in keys()])


async def replace(connection: Connection) -> None:
    """A batch that replaces half of the records and creates the others."""
    found = await Records(connection).get_many(keys(COUNT // 2))
    await Records(connection).replace_all([(key, RECORD, found[key][1] if key in found else 0, 0) for key in keys()])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.97])
async def test_a_torn_batch_of_new_records_is_taken_back(tmp_path: Path, share: float) -> None:
    """Nobody was told of it; its ids are free again."""
    nats = await torn_at(tmp_path / "data", share, nothing, create)
    try:
        found = await there(nats)
        assert 0 < len(found) < COUNT, "the cut is within the batch"
        assert await torn.mend(nats.url) == len(found)
        assert await there(nats) == {}
        assert await torn.mend(nats.url) == 0
        async with connected(nats) as connection:
            await create(connection)
        assert await torn.mend(nats.url) == 0
        assert await there(nats) == dict.fromkeys(keys(), RECORD)
    finally:
        nats.stop()


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9, 0.998])
async def test_a_torn_batch_that_replaces_is_completed(tmp_path: Path, share: float) -> None:
    """What it replaced is gone already, so it is completed from its note, at the revisions that it demands."""
    nats = await torn_at(tmp_path / "data", share, old_records, replace)
    try:
        whole = dict.fromkeys(keys(), RECORD)
        assert (await there(nats) == whole) == (share > 0.99), "of the last one only the end of the note is missing"
        await torn.mend(nats.url)
        assert await there(nats) == whole
        assert await torn.mend(nats.url) == 0
        assert await there(nats) == whole
    finally:
        nats.stop()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.8, 0.93, 0.95, 0.97, 0.99])
async def test_a_note_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """One that no message can hold: cut within it nothing was replaced, behind it, also among its markers, all is."""
    monkeypatch.setattr(records, "NOTE_PIECE_BYTES", 1500)
    nats = await torn_at(tmp_path / "data", share, old_records, replace)
    try:
        old = {key: b"old " + key.encode() for key in keys(COUNT // 2)}
        await torn.mend(nats.url)
        assert await there(nats) == (old if share < 0.5 else dict.fromkeys(keys(), RECORD))
        async with connected(nats) as connection:
            pieces = await Bucket(connection, names.JOBS).keys("torn.>")
            assert [await connection.last(names.bucket_stream(names.JOBS), PREFIX + key) for key in pieces] == [
                (b"", ANY) for _ in pieces
            ]
        assert await torn.mend(nats.url) == 0
        assert await there(nats) == (old if share < 0.5 else dict.fromkeys(keys(), RECORD))
    finally:
        nats.stop()


async def test_a_batch_may_replace_more_than_a_message_can_hold(tmp_path: Path) -> None:
    """Its note is cut into pieces; nothing of them stays."""
    nats = start(tmp_path / "data")
    try:
        async with connected(nats) as connection:
            big = [(key, b"r" * 5_000_000, 0, 0) for key in keys(14)]
            revisions = await Records(connection).replace_all(big)
            found = await Records(connection).get_many(keys(14))
        assert [found[key][1] for key in keys(14)] == revisions
        kill(nats)
        nats = start(tmp_path / "data")
        assert nats.was_cut_off
        assert await torn.mend(nats.url) == 0
        assert set(await there(nats)) == set(keys(14))
    finally:
        nats.stop()


async def test_without_its_note_nothing_was_replaced(tmp_path: Path) -> None:
    """The note comes first: a cut within it leaves everything as it was."""
    nats = await torn_at(tmp_path / "data", 0.2, old_records, replace)
    try:
        before = await there(nats)
        assert await torn.mend(nats.url) == 0
        assert await there(nats) == before == {key: b"old " + key.encode() for key in keys(COUNT // 2)}
    finally:
        nats.stop()


async def test_a_group_commit_is_no_whole(tmp_path: Path) -> None:
    """Writes that only shared a sync stay, each for itself: some may have replaced others."""

    async def group(connection: Connection) -> None:
        await asyncio.gather(*(Records(connection).create(key, RECORD) for key in keys()))

    nats = await torn_at(tmp_path / "data", 0.5, nothing, group)
    try:
        before = await there(nats)
        assert 0 < len(before) < COUNT
        assert await torn.mend(nats.url) == 0
        assert await there(nats) == before
    finally:
        nats.stop()


@pytest.mark.parametrize(
    ("commit", "before", "share", "piece_bytes"),
    [(create, nothing, 0.7, 2**20), (replace, old_records, 0.7, 2**20), (replace, old_records, 0.9, 1500)],
    ids=["create", "replace", "replace, a note in pieces"],
)
async def test_death_in_the_middle_of_mending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: Commit, before: Commit, share: float, piece_bytes: int
) -> None:
    """Killed before its first, third, … write, it is begun again and comes to the same end."""
    monkeypatch.setattr(records, "NOTE_PIECE_BYTES", piece_bytes)
    nats = await torn_at(tmp_path / "data", share, before, commit)
    try:
        deaths = 0
        for writes in (0, 2, 5):
            doomed = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", DOOMED, nats.url, str(writes)], check=False
            )
            deaths += doomed.returncode == -signal.SIGKILL
        assert deaths == 3
        await torn.mend(nats.url)
        assert await there(nats) == ({} if commit is create else dict.fromkeys(keys(), RECORD))
    finally:
        nats.stop()
