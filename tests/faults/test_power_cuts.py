"""Power cuts: the data lie on a disk image of their own, which is copied at a random instant under load.

What the kernel had not written by then is not in the copy, because the image is written past the page cache. Needs
root and loop devices. OJS_POWER_CUTS sets how many cuts, OJS_KILL_SEED repeats a run. With `interval` the same run
must lose something, or it proves nothing about `always`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ojs_fast.storage import staging
from tests.support.api import unique_queue
from tests.support.load import Broken, Http, connections
from tests.support.processes import descendants
from tests.support.server import Server

CUTS = int(os.environ.get("OJS_POWER_CUTS", "2"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
IMAGE_BYTES = 256 * 1024 * 1024
BATCH = 20
LOOKED_AT_ONCE = 50
TOOLS = ("losetup", "mount", "umount", "mkfs.ext4")

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60 + 30 * CUTS)]


def run(*command: str) -> str:
    """Run a command; its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """Mount an image such that only what was synced, or written back, gets into it."""
    device = run("losetup", "--find", "--show", "--direct-io=on", str(image))
    try:
        at.mkdir(exist_ok=True)
        run("mount", "-o", "noatime", device, str(at))
        try:
            yield at
        finally:
            run("umount", "--lazy", str(at))
    finally:
        run("losetup", "--detach", device)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty file system in a file; skips where none can be mounted."""
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip("needs root, losetup and mkfs.ext4")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-F", str(path))
    try:
        with mounted(path, tmp_path / "probe"):
            pass
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device can be mounted here: {error.stderr.strip()}")
    return path


class Promises:
    """What clients were told."""

    def __init__(self) -> None:
        self.enqueued: set[str] = set()
        self.completed: set[str] = set()

    async def produce(self, http: Http, queue: str, size: int) -> None:
        """Enqueue one after the other, or batches."""
        while True:
            try:
                self.enqueued.update(await http.enqueue_batch(queue, size) if size > 1 else [await http.enqueue(queue)])
            except Broken:
                return

    async def work(self, http: Http, queue: str) -> None:
        """Fetch and acknowledge."""
        while True:
            try:
                for job in await http.fetch(queue, 5):
                    if await http.ack(job["id"]) == 200:
                        self.completed.add(job["id"])
            except Broken:
                return

    async def broken(self, http: Http) -> list[str]:
        """Which of them the server has forgotten."""
        lost: list[str] = []
        wanted = sorted(self.enqueued)
        for start in range(0, len(wanted), LOOKED_AT_ONCE):
            some = wanted[start : start + LOOKED_AT_ONCE]
            _, answer = await http.call("POST", "/jobs/bulk/get", {"job_ids": some})
            for item in answer["items"]:
                if "job" not in item:
                    lost.append(f"{item['job_id']} is gone")
                elif item["job_id"] in self.completed and item["job"]["state"] != "completed":
                    lost.append(f"{item['job_id']} is {item['job']['state']} again")
        return lost


async def cut(image: Path, durability: str, chance: random.Random) -> list[str]:
    """One power cut; what was promised and is not true afterwards."""
    copy, env = image.with_name("copy.img"), {"OJS_DURABILITY": durability, "OJS_EVENTS_MAX_BYTES": "10485760"}
    queue, batches, promises = unique_queue(), unique_queue(), Promises()
    with mounted(image, image.with_name("disk")) as disk:
        server = Server(disk / "data", env=env)
        try:
            await asyncio.to_thread(server.start)
            async with connections(server.url, 8, timeout_s=10) as https:
                tasks = [asyncio.create_task(promises.produce(http, queue, 1)) for http in https[:4]]
                tasks += [asyncio.create_task(promises.produce(https[4], batches, BATCH))]
                tasks += [asyncio.create_task(promises.work(http, queue)) for http in https[5:]]
                await asyncio.sleep(chance.uniform(0.5, 2.5))
                family = descendants(os.getpid())
                for one in family:
                    os.kill(one.pid, signal.SIGSTOP)
                await asyncio.sleep(0.1)  # answers that were on their way count
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.to_thread(run, "cp", "--sparse=always", str(image), str(copy))
                for one in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, signal.SIGCONT)
            await asyncio.to_thread(server.kill)
            shutil.rmtree(staging.area_of(server.data_dir), ignore_errors=True)  # memory is gone as well
        finally:
            await asyncio.to_thread(server.close)
    with mounted(copy, image.with_name("after")) as disk:
        server = Server(disk / "data", env=env)
        try:
            await asyncio.to_thread(server.start)
            async with connections(server.url, 1) as [http]:
                assert promises.enqueued
                _, stats = await http.call("GET", f"/queues/{batches}/stats")
                assert stats["stats"]["available"] % BATCH == 0, "a batch is there in parts"
                return await promises.broken(http)
        finally:
            await asyncio.to_thread(server.close)
            copy.unlink()


@pytest.mark.slow
async def test_what_was_acknowledged_survives_power_cuts(image: Path) -> None:
    """With `always` nothing is missing and nothing that was completed is open again."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")
    chance = random.Random(SEED)
    for _ in range(CUTS):
        assert await cut(image, "always", chance) == []


@pytest.mark.slow
async def test_the_cut_is_real(image: Path) -> None:
    """With `interval` the last second of acknowledged work is gone: the test above can fail."""
    chance = random.Random(SEED)
    lost = [await cut(image, "interval", chance) for _ in range(CUTS)]
    assert any(lost)
