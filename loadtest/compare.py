"""Are the load generators cheap enough? `python -m loadtest.compare`: wrk, the bundled one and httpx on the echo.

A generator is good when it needs far less CPU per request than the server it loads.
"""

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from loadtest import clients, cpu, plan, servers
from loadtest.generator import Load, LoadSpec

CONNECTIONS = 8
SECONDS = 3.0


async def _httpx(spec: LoadSpec) -> Load:
    url = f"http://{spec.host}:{spec.port}{spec.path}"
    cpu_s, began = cpu.own_cpu_s(), time.perf_counter()
    count = 0

    async def lane(client: httpx.AsyncClient) -> None:
        nonlocal count
        while time.perf_counter() < began + spec.seconds:
            (await client.post(url, content=spec.body)).raise_for_status()
            count += 1

    async with httpx.AsyncClient(trust_env=False) as client, asyncio.TaskGroup() as group:
        for _ in range(spec.connections):
            group.create_task(lane(client))
    took_s = time.perf_counter() - began
    return Load(count, 0, "", took_s, cpu.own_cpu_s() - cpu_s, math.nan, math.nan)


def with_httpx(spec: LoadSpec) -> Load:
    """Run the plain httpx client, in this process."""
    return asyncio.run(_httpx(spec))


def main() -> int:
    """Measure and print a line per generator."""
    found: dict[str, tuple[Load, float]] = {}
    with servers.running(servers.ECHO, Path(tempfile.gettempdir()), "interval") as server:
        spec = LoadSpec("repeat", server.port, CONNECTIONS, SECONDS, path="/echo", body=plan.job("bench").decode())
        makers: dict[str, Callable[[LoadSpec], Load]] = {"wrk": clients.wrk} if clients.wrk_path() else {}
        makers |= {"bundled": clients.bundled, "httpx": with_httpx}
        for name, make in makers.items():
            meter = cpu.Meter(server.server_pids, server.nats_pids)
            load = make(spec)
            found[name] = (load, meter.read().server_s)
    print(f"{'generator':<10}{'req/s':>9}{'its CPU µs/req':>16}{'server µs/req':>15}{'req per CPU s':>15}")
    for name, (load, server_s) in found.items():
        own_us, server_us = load.cpu_s / load.requests * 1e6, server_s / load.requests * 1e6
        rate, per_cpu = load.requests / load.seconds, load.requests / load.cpu_s
        print(f"{name:<10}{rate:>9,.0f}{own_us:>16.1f}{server_us:>15.1f}{per_cpu:>15,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
