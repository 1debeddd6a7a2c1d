"""What listeners cost: enqueues with and without many open event streams (`python -m loadtest.listeners`).

The listeners follow other queues than the one that is enqueued to, as dashboards do. Windows with and without them take
turns on one server, and the CPU time of the server for each enqueue says more than the rate where others use the
machine as well.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

from loadtest import cpu, servers
from loadtest.clients import bundled
from loadtest.generator import LoadSpec

QUEUES = 20
AT_ONCE = 100
BODY = '{"type":"bench.job","args":[1],"options":{"queue":"%s"}}'


class Listener(asyncio.Protocol):
    """One open stream; `open` is done when its first bytes are there."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"GET /ojs/v1/queues/%s/events HTTP/1.1\r\nHost: x\r\n\r\n" % self._queue.encode())

    def data_received(self, data: bytes) -> None:
        """Look at the first bytes, drop the rest."""
        if not self.open.done():
            if data.startswith(b"HTTP/1.1 200 "):
                self.open.set_result(None)
            else:
                self.open.set_exception(servers.BenchError(f"a listener got {data[:100]!r}"))


@asynccontextmanager
async def listening(port: int, count: int) -> AsyncIterator[None]:
    """Keep so many streams open, spread over QUEUES queues. Raises BenchError."""
    loop, transports = asyncio.get_running_loop(), []
    try:
        for start in range(0, count, AT_ONCE):
            part = [
                await loop.create_connection(lambda n=n: Listener(f"quiet-{n % QUEUES}"), servers.HOST, port)  # type: ignore[misc]
                for n in range(start, min(start + AT_ONCE, count))
            ]
            transports += [transport for transport, _ in part]
            async with asyncio.timeout(60):
                await asyncio.gather(*(listener.open for _, listener in part))
        yield
    finally:
        for transport in transports:
            transport.close()


async def window(running: servers.Running, seconds: float, connections: int) -> tuple[float, float]:
    """`(enqueues per second, µs of the server's CPU for each)`. Raises BenchError."""
    spec = LoadSpec("repeat", running.port, connections, seconds, path="/ojs/v1/jobs", body=BODY % "busy")
    before = cpu.process_cpu_s(running.server_pids)
    load = await asyncio.to_thread(bundled, spec)
    used = cpu.process_cpu_s(running.server_pids) - before
    if load.failures or not load.requests:
        raise servers.BenchError(f"{load.failures} enqueues failed: {load.first_failure}")
    return load.requests / load.seconds, used / load.requests * 1e6


async def measure(running: servers.Running, args: argparse.Namespace) -> None:
    """Take turns and print medians. Raises BenchError."""
    for number in range(QUEUES):
        spec = LoadSpec(
            "repeat", running.port, 1, 5, path="/ojs/v1/jobs", body=BODY % f"quiet-{number}", max_requests=1
        )
        await asyncio.to_thread(bundled, spec)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    await window(running, args.seconds, args.connections)  # warms up
    for _ in range(args.rounds):
        found[False].append(await window(running, args.seconds, args.connections))
        async with listening(running.port, args.listeners):
            found[True].append(await window(running, args.seconds, args.connections))
        await asyncio.sleep(1)  # the server notices that they are gone
    rates, costs = ({who: median(one[n] for one in windows) for who, windows in found.items()} for n in (0, 1))
    print(f"without listeners        {rates[False]:8.0f} enqueues/s  {costs[False]:6.1f} µs of CPU each")
    print(f"with {args.listeners:5d} listeners     {rates[True]:8.0f} enqueues/s  {costs[True]:6.1f} µs of CPU each")
    print(f"ratio                    {rates[True] / rates[False]:8.3f}             {costs[True] / costs[False]:6.3f}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listeners", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with servers.scratch("listeners") as scratch, servers.running(servers.OJS, scratch, "interval") as running:
        asyncio.run(measure(running, args))


if __name__ == "__main__":
    main()
