"""More than the server can do: it says so at once, keeps what it took, and goes on when the load is gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest

from loadtest.cpu import rss_bytes
from ojs_fast.api.overload import START
from tests.support.api import unique_queue
from tests.support.load import HEAD, connections
from tests.support.nats import Nats
from tests.support.server import Server

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(120)]

TOO_MANY = 300
IDLE, SLOW, REQUESTS = 2000, 500, 200
CONNECTED_AT_ONCE = 200
ANSWERED_S = 30
# What a connection may cost the server.
CONNECTION_BYTES = 40_000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """Let the test open as many connections as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * (START + TOO_MANY)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def connected(port: int, count: int) -> AsyncIterator[list[Streams]]:
    """Give so many connections."""
    made: list[Streams] = []
    try:
        while len(made) < count:
            some = min(CONNECTED_AT_ONCE, count - len(made))
            made += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(some)))
        yield made
    finally:
        for _, writer in made:
            writer.transport.abort()


def enqueue_request(queue: str) -> bytes:
    """The bytes of an enqueue."""
    body = orjson.dumps({"type": "a.b", "args": [], "options": {"queue": queue}})
    return HEAD.format(method="POST", path="/jobs", size=len(body), more="").encode() + body


async def answer(streams: Streams) -> tuple[int, bytes]:
    """`(status, headers)` of the next answer."""
    reader, _ = streams
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
    return int(head[9:12]), head


async def test_what_is_too_much_is_refused_at_once_and_the_rest_is_done() -> None:
    """NATS stands still while requests pile up: those on top are told to come again, the others are answered later."""
    queue = unique_queue()
    with Nats() as nats, Server(nats_url=nats.url) as server:
        async with connections(server.url, 1) as [http], connected(server.port, START + TOO_MANY) as clients:
            await http.enqueue(queue)
            nats.pause()
            try:
                for _, writer in clients:
                    writer.write(enqueue_request(queue))
                waiting = [asyncio.create_task(answer(one)) for one in clients]
                async with asyncio.timeout(ANSWERED_S):
                    refused = [await one for one in itertools.islice(asyncio.as_completed(waiting), TOO_MANY)]
                assert {status for status, _ in refused} == {503}
                assert all(b"\r\nretry-after: 1\r\n" in head for _, head in refused)
            finally:
                nats.resume()
            async with asyncio.timeout(ANSWERED_S):
                statuses = Counter(status for status, _ in await asyncio.gather(*waiting))
            assert statuses[201] > START / 2, statuses
            assert set(statuses) == {201, 503}
            await http.enqueue(queue)


async def test_idle_and_slow_connections_do_not_stop_it(fresh_server: type[Server]) -> None:
    """Thousands that say nothing, and hundreds that say a byte at a time, cost memory only."""
    server, queue = await asyncio.to_thread(fresh_server), unique_queue()
    before = rss_bytes(server.worker_pids[0])
    async with connected(server.port, IDLE), connected(server.port, SLOW) as slow, connections(server.url, 1) as [http]:
        for number in range(REQUESTS):
            for _, writer in slow[number % 5 :: 5]:
                writer.write(enqueue_request(queue)[number // 5 : number // 5 + 1])
            await http.enqueue(queue)
        assert rss_bytes(server.worker_pids[0]) - before < (IDLE + SLOW) * CONNECTION_BYTES
