"""The raw JetStream ceiling: create a record, publish its work message, nothing else, from one process.

A process of its own with an embedded nats-server of its own; prints a JSON list of `Ceiling`s. Both client
paths write the same bytes to the same streams and await one PubAck per write.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from loadtest import cpu, plan
from ojs_fast import _core
from ojs_fast.storage import names, topology
from ojs_fast.storage.connection import Connection, PubAck
from ojs_fast.storage.headers import headers
from ojs_fast.storage.server import EmbeddedNats

WARM_UP_S = 0.5
CREATE = {"Nats-Expected-Last-Subject-Sequence": "0"}

#: Creates one record and publishes its work message. Raises RuntimeError when JetStream refuses one.
Step = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Ceiling:
    """One figure: the client (`own` or `nats-py`), how much was in flight, what it reached and what it cost."""

    client: str
    in_flight: int
    rate: float
    client_us: float
    nats_us: float
    client_cores: float
    foreign_cores: float


class Writes:
    """The subjects and payloads of one job after the other."""

    def __init__(self) -> None:
        # As long as a job id and as unique; making real ones is no work of JetStream's.
        self._prefix = str(uuid.uuid4())[:23]
        self._ids = itertools.count()
        self.record = b'{"fill":"%s"}' % (b"x" * (plan.RECORD_BYTES - 11))
        self.work_subject = names.work_subject("bench", 0)

    def next_record_subject(self) -> str:
        """Where the next record goes."""
        return names.bucket_subject(names.JOBS, f"{self._prefix}-{next(self._ids):012x}")


def _check(ack: PubAck) -> int:
    sequence, code, description = ack
    if code:
        raise RuntimeError(f"JetStream refuses a write: {description} (error {code})")
    return sequence


def own_connection(connection: Connection) -> Step:
    """The step over the server's own connection."""
    writes, create = Writes(), headers(Nats_Expected_Last_Subject_Sequence=0)

    async def step() -> None:
        revision = _check(await connection.write(writes.next_record_subject(), writes.record, create))
        _check(await connection.write(writes.work_subject, b"%d %s" % (revision, writes.record)))

    return step


async def nats_py(client: Client) -> Step:
    """The step over nats-py's public API: publish with a reply subject below one wildcard inbox."""
    writes, inbox = Writes(), client.new_inbox()
    waiting: dict[str, asyncio.Future[PubAck]] = {}
    loop = asyncio.get_running_loop()
    count = 0

    async def acked(message: Msg) -> None:
        waiting.pop(message.subject).set_result(_core.parse_pub_ack(message.data))

    await client.subscribe(inbox + ".*", cb=acked, pending_msgs_limit=0, pending_bytes_limit=0)

    async def write(subject: str, payload: bytes, header: dict[str, str] | None = None) -> int:
        nonlocal count
        count += 1
        token = f"{inbox}.{count}"
        future = waiting[token] = loop.create_future()
        await client.publish(subject, payload, reply=token, headers=header)
        return _check(await future)

    async def step() -> None:
        revision = await write(writes.next_record_subject(), writes.record, CREATE)
        await write(writes.work_subject, b"%d %s" % (revision, writes.record))

    return step


async def rate(step: Step, in_flight: int, seconds: float) -> tuple[int, float]:
    """Keep that many steps in flight for a while: `(steps done, seconds taken)`."""
    began = time.perf_counter()
    deadline = began + seconds
    done = 0

    async def lane() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            await step()
            done += 1

    async with asyncio.timeout(seconds + 30), asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(lane())
    return done, time.perf_counter() - began


async def measure(client: str, step: Step, in_flight: int, seconds: float, nats_pid: int) -> Ceiling:
    """One figure, after a warm-up."""
    await rate(step, in_flight, WARM_UP_S)
    # This process is what stands in the server's place here, so nothing else is ours.
    meter, cpu_s = cpu.Meter((), (nats_pid,)), cpu.own_cpu_s()
    done, took_s = await rate(step, in_flight, seconds)
    usage, cpu_s = meter.read(), cpu.own_cpu_s() - cpu_s
    return Ceiling(
        client, in_flight, done / took_s, cpu_s / done * 1e6, usage.nats_s / done * 1e6, cpu_s / took_s,
        usage.foreign_cores,
    )  # fmt: skip


async def run(url: str, nats_pid: int, seconds: float) -> list[Ceiling]:
    """All figures, against a running nats-server without streams."""
    connection = Connection()
    await connection.open([url], name="ojs-bench")
    client = await nats.connect(url)
    try:
        await topology.ensure(connection, topology.streams(1, 3600, 2**30))
        steps = {"own": own_connection(connection), "nats-py": await nats_py(client)}
        return [
            await measure(name, steps[name], in_flight, seconds, nats_pid)
            for in_flight in plan.IN_FLIGHT
            for name in steps
        ]
    finally:
        await client.close()
        await connection.close()


def main() -> int:
    """Start nats-server, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.ceiling", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="data directory of the nats-server")
    parser.add_argument("--seconds", type=float, default=3.0, help="per figure (default: %(default)s)")
    parser.add_argument("--durability", choices=("interval", "always"), default="interval")
    options = parser.parse_args()
    with EmbeddedNats(options.directory, durability=options.durability) as server:
        found = uvloop.run(run(server.url, server.pid or 0, options.seconds))
    print(json.dumps([asdict(one) for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
