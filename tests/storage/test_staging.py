"""Atomic batches are staged in memory where that is safe, on disk where it is not, and nothing is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from ojs_fast.storage import staging
from ojs_fast.storage.server import EmbeddedNats

STREAM = "S"


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory; what it has in memory goes with it."""
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    yield directory
    shutil.rmtree(staging.area_of(directory), ignore_errors=True)


def embedded(data: Path, durability: str = "always") -> EmbeddedNats:
    """A nats-server on it."""
    return EmbeddedNats(data, durability=durability, staged=[STREAM])


def place(data: Path) -> Path:
    """Where nats-server looks for the batches of the stream."""
    return data / "nats/jetstream/$G/streams" / STREAM / "batches"


async def stage(url: str, name: str = "") -> None:
    """Make the stream, commit a batch, and leave another one open; `name` tells them from those of another call."""
    client = await nats.connect(url)
    try:
        config = b'{"name":"%s","subjects":["s.>"],"storage":"file","retention":"limits","allow_atomic":true}'
        await client.request(f"$JS.API.STREAM.CREATE.{STREAM}", config % STREAM.encode())
        answers = []
        for batch, members in (("whole", 3), ("open", 2)):
            for number in range(1, members + 1):
                fields = {"Nats-Batch-Id": batch + name, "Nats-Batch-Sequence": str(number)}
                if number == 3:
                    fields["Nats-Batch-Commit"] = "1"
                answers.append((await client.request(f"s.{number}", b"x", headers=fields)).data)
        assert answers[-1] == b"", "the open one is taken, and not acknowledged"
        assert b'"count":3' in answers[2], "the other one is committed"
    finally:
        await client.close()


async def test_batches_are_staged_in_memory_and_nothing_stays(data: Path) -> None:
    """With fsync an open batch lies in memory; after an orderly stop neither it nor the link is there."""
    with embedded(data) as server:
        await stage(server.url)
        assert place(data).readlink() == staging.area_of(data) / STREAM
        assert list((staging.area_of(data) / STREAM).iterdir())
    assert not staging.area_of(data).exists()
    assert not place(data).is_symlink()


async def test_they_are_staged_there_again_after_a_kill(data: Path) -> None:
    """The run after one that was killed uses memory as well, and knows that there was no orderly end."""
    first = embedded(data)
    first.start()
    assert not first.was_cut_off
    await stage(first.url)
    assert first._process is not None
    first._stopping.set()
    first._process.kill()
    first.stop()
    with embedded(data) as second:
        assert second.was_cut_off
        assert place(data).readlink() == staging.area_of(data) / STREAM
        await stage(second.url, "-again")
    with embedded(data) as third:
        assert not third.was_cut_off


@pytest.mark.parametrize("why", ["interval", "small", "foreign", "a file"])
async def test_they_are_staged_on_disk(data: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Without fsync, and where memory is short or what lies there is not ours alone; also behind a run that used it."""
    first = embedded(data)
    first.start()
    await stage(first.url)
    first._stopping.set()
    assert first._process is not None
    first._process.kill()
    first.stop()
    area = staging.area_of(data)
    shutil.rmtree(area)  # the machine went down as well
    if why == "small":
        monkeypatch.setattr(staging, "WANTED_BYTES", 2**60)
    elif why == "foreign":
        area.mkdir(mode=0o755)
    elif why == "a file":
        area.touch()
    try:
        with embedded(data, "interval" if why == "interval" else "always") as second:
            assert not place(data).is_symlink()
            await stage(second.url, "-again")
            assert [one for one in place(data).iterdir() if one.is_dir()]
    finally:
        if area.is_file():
            area.unlink()


async def test_a_copy_never_uses_the_memory_of_the_original(data: Path, tmp_path: Path) -> None:
    """A copy of the directory of a running server, with its links: both stage apart."""
    copy = tmp_path / "copy"
    with embedded(data) as original:
        await stage(original.url)
        shutil.copytree(data, copy, symlinks=True)
        with embedded(copy) as second:
            assert second.was_cut_off
            await stage(second.url, "-copy")
            assert place(copy).readlink() == staging.area_of(copy) / STREAM != staging.area_of(data) / STREAM
        await stage(original.url, "-again")
