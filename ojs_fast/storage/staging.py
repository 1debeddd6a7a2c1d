"""Where the embedded nats-server stages atomic batches: in memory instead of on disk.

nats-server first writes each atomic batch to a store of its own (`streams/<stream>/batches`), syncs that as well, and
removes it when the batch is in the stream: two thirds of what a batch costs (docs/design.md, Durability). Only a
machine that goes down in the middle of a commit needs the staged copy, to complete what the disk has half of; what is
lost with the memory then is mended by `torn`. Knows directories, nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

MEMORY = Path("/dev/shm")
# Some batches at once, each as large as the largest request makes one, with room to spare.
WANTED_BYTES = 256 * 1024 * 1024


def area_of(data_dir: Path) -> Path:
    """The directory in memory that belongs to a data directory, and to no copy of it."""
    status = data_dir.stat()
    return MEMORY / f"ojs-fast-{os.geteuid()}-{status.st_dev:x}-{status.st_ino:x}"


def stage(data_dir: Path, store: Path, streams: Iterable[str], *, in_memory: bool, is_running: bool) -> bool:
    """Let batches for these streams be staged in memory, if there is enough (True); else on disk.

    `store` is JetStream's directory. To be called before nats-server starts, because a link of an earlier run may lead
    nowhere or into the area of what this is a copy of, and when it runs, because streams may be new and links replaced.
    """
    area = _make_area(data_dir) if in_memory else None
    for stream in streams:
        place = _place(store, stream)
        if area is None:
            if place.is_symlink():
                place.unlink()
            continue
        if is_running:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not place.parent.exists():  # nats-server would complain about a stream without anything in it
            continue
        (area / stream).mkdir(mode=0o700, exist_ok=True)
        _link(place, area / stream)
    return area is not None


def clear(data_dir: Path, store: Path, streams: Iterable[str]) -> None:
    """Leave nothing in memory: nats-server has stopped in order and needs nothing of it."""
    stage(data_dir, store, streams, in_memory=False, is_running=False)
    shutil.rmtree(area_of(data_dir), ignore_errors=True)


def _place(store: Path, stream: str) -> Path:
    return store / "jetstream" / "$G" / "streams" / stream / "batches"


def _make_area(data_dir: Path) -> Path | None:
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < WANTED_BYTES:
        return None
    area = area_of(data_dir)
    with contextlib.suppress(FileExistsError):
        area.mkdir(mode=0o700)
    status = area.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return area if is_ours else None


def _link(place: Path, target: Path) -> None:
    if place.is_symlink():
        if place.readlink() == target:
            return
        place.unlink()
    elif place.exists():
        try:
            place.rmdir()
        except OSError:  # nats-server stages a batch there just now, or is to recover one
            return
    try:
        place.symlink_to(target)
    except FileExistsError:  # nats-server was quicker; the next start tries again
        return
