"""What goes wrong: nodes, NATS servers, the wires between them, clocks and a disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from tests.chaos.node import ChaosServer
from tests.support.nats_cluster import SIZE, NatsCluster
from tests.support.processes import descendants
from tests.support.relay import Relay

NODES = 3
DISK_BYTES = 256 * 1024 * 1024
START_S = 60.0
# The event log must fit on the small disk.
SETTINGS = {"OJS_NATS_REPLICAS": "3", "OJS_LOG_LEVEL": "warning", "OJS_EVENTS_MAX_BYTES": str(16 * 1024 * 1024)}


class World:
    """Three nodes on three NATS servers, each node by relays of its own."""

    def __init__(
        self, cluster: NatsCluster, relays: list[list[Relay]], chance: random.Random, longest_s: float
    ) -> None:
        """`longest_s`: how long a fault may last."""
        self.cluster = cluster
        self.relays = relays
        self.chance = chance
        self.longest_s = longest_s
        self.log: list[str] = []
        self.small_disk: Path | None = None
        self.nodes = [
            ChaosServer(",".join(f"nats://127.0.0.1:{relay.port}" for relay in row), SETTINGS) for row in relays
        ]
        self._busy: set[str] = set()

    async def start(self, node: int) -> None:
        """Start a node as a supervisor does: again until it stands."""
        server = self.nodes[node]
        async with asyncio.timeout(START_S):
            while True:
                await asyncio.to_thread(server.launch)
                try:
                    await asyncio.to_thread(server.await_ready)
                    return
                except AssertionError:
                    if server.is_running:
                        await asyncio.to_thread(server.kill)

    # -- faults: each takes something that no other one has, for a while -------------------------------

    async def kill_node(self, node: int) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self.nodes[node].kill)
        await asyncio.sleep(self.chance.uniform(0, 5))
        await self.start(node)

    async def restart_node(self, node: int) -> None:
        """SIGTERM."""
        await asyncio.to_thread(self.nodes[node].stop)
        await self.start(node)

    async def freeze_node(self, node: int) -> None:
        """SIGSTOP to all of its processes."""
        family = [self.nodes[node].pid, *(child.pid for child in descendants(self.nodes[node].pid))]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(1, self.longest_s))
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def move_clock(self, node: int) -> None:
        """A wall clock that jumps by up to an hour, and back."""
        ahead_ms = int(self.chance.choice([-1, 1]) * 10 ** self.chance.uniform(2, 6.5))
        with contextlib.suppress(httpx.HTTPError):
            await asyncio.to_thread(self.nodes[node].move_clock, ahead_ms)
            await asyncio.sleep(self.chance.uniform(1, self.longest_s))
        with contextlib.suppress(httpx.HTTPError):
            await asyncio.to_thread(self.nodes[node].move_clock, 0)

    async def cut_wires(self, node: int) -> None:
        """Every connection of a node breaks."""
        for relay in self.relays[node]:
            relay.cut()
            await asyncio.sleep(self.chance.uniform(0, 0.3))

    async def silence_wires(self, node: int) -> None:
        """Half open: nothing arrives, and nobody is told."""
        for relay in self.relays[node]:
            relay.silence()
        await asyncio.sleep(self.chance.uniform(1, self.longest_s))
        for relay in self.relays[node]:
            relay.heal()

    async def slow_wires(self, node: int) -> None:
        """Late, or narrow."""
        for relay in self.relays[node]:
            if self.chance.random() < 0.5:
                relay.delay_s = self.chance.uniform(0.02, 0.3)
            else:
                relay.bytes_per_s = self.chance.randint(20_000, 200_000)
        await asyncio.sleep(self.chance.uniform(1, self.longest_s))
        for relay in self.relays[node]:
            relay.heal()

    async def kill_nats(self, server: int) -> None:
        """SIGKILL."""
        self.cluster.kill(server)
        await asyncio.sleep(self.chance.uniform(0, 5))
        self.cluster.start(server)
        await self._caught_up()

    async def freeze_nats(self, server: int) -> None:
        """SIGSTOP."""
        self.cluster.pause(server)
        await asyncio.sleep(self.chance.uniform(1, self.longest_s))
        self.cluster.resume(server)
        await self._caught_up()

    async def fill_disk(self, server: int) -> None:
        """No space left for a NATS server; an operator makes room and starts it again."""
        assert self.small_disk is not None
        ballast = self.small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        await asyncio.sleep(self.chance.uniform(1, self.longest_s))
        ballast.unlink()
        self.cluster.kill(server)
        self.cluster.start(server)
        await self._caught_up()

    async def _caught_up(self) -> None:
        # Two of three must stand at any time, or nobody promised anything.
        for stream in ("KV_ojs-jobs", "OJS"):
            await self.cluster.await_current(stream)

    # -- when ------------------------------------------------------------------------------------------

    async def disturb(self, until: Callable[[], bool], say: Callable[[str], None]) -> None:
        """One fault after the other, two at a time, never two of the same part."""
        lanes = [asyncio.create_task(self._lane(until, say)) for _ in range(2)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()

    async def _lane(self, until: Callable[[], bool], say: Callable[[str], None]) -> None:
        of_nodes = [
            self.kill_node, self.kill_node, self.restart_node, self.freeze_node, self.move_clock,
            self.cut_wires, self.silence_wires, self.slow_wires,
        ]  # fmt: skip
        while not until():
            await asyncio.sleep(self.chance.uniform(0.3, 2))
            if self.chance.random() < 0.3 and "nats" not in self._busy:
                await self._one("nats", *self._nats_fault(), say)
                continue
            node = self.chance.randrange(NODES)
            if f"node {node}" not in self._busy:
                await self._one(f"node {node}", self.chance.choice(of_nodes), node, say)

    def _nats_fault(self) -> tuple[Callable[[int], Awaitable[None]], int]:
        server = self.chance.randrange(SIZE)
        faults = [self.kill_nats, self.kill_nats, self.freeze_nats]
        if self.small_disk is not None and server == 0:
            faults.append(self.fill_disk)
        return self.chance.choice(faults), server

    async def _one(
        self, part: str, fault: Callable[[int], Awaitable[None]], number: int, say: Callable[[str], None]
    ) -> None:
        self._busy.add(part)
        loop = asyncio.get_running_loop()
        began = loop.time()
        say(f"{fault.__name__} {number}")
        self.log.append(f"{fault.__name__} {number}")
        try:
            await fault(number)
        finally:
            self._busy.discard(part)
            self.log.append(f"{fault.__name__} {number} over after {loop.time() - began:.1f} s")


@asynccontextmanager
async def world(chance: random.Random, longest_s: float) -> AsyncIterator[World]:
    """Give a world in which everything stands."""
    async with AsyncExitStack() as stack:
        cluster = NatsCluster()
        stack.push(cluster)
        disk = _small_disk(cluster.store(0), stack)
        await asyncio.to_thread(cluster.__enter__)
        relays = [[await stack.enter_async_context(Relay(port)) for port in cluster.ports] for _ in range(NODES)]
        made = World(cluster, relays, chance, longest_s)
        made.small_disk = disk
        for node in made.nodes:
            stack.callback(node.close)
        await asyncio.gather(*(made.start(number) for number in range(NODES)))
        yield made


def _small_disk(at: Path, stack: AsyncExitStack) -> Path | None:
    """Mount a small file system for a NATS server; None where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return None
    at.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(at)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        return None
    stack.callback(subprocess.run, ["umount", "--lazy", str(at)], check=False)
    return at
