"""SIGTERM while requests are under way: they finish, or the time for that is over; nothing is left behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.support.api import Api, unique_queue
from tests.support.nats import Nats
from tests.support.processes import poll, unread_bytes
from tests.support.server import Server
from tests.support.slow_start import BETWEEN

TIMEOUT_MS = 2000
# Of a request that waits much longer than that for room in a bounded queue.
BLOCKED_S = 60
# Longer than all that a server sends to NATS by itself meanwhile.
LONG = 30_000
# Nothing tells that a request waits for room, or that a signal has arrived.
UNDER_WAY_S = 0.3

pytestmark = [pytest.mark.faults]


def blocked(api: Api, server: Server, pool: ThreadPoolExecutor) -> tuple[str, Future[httpx.Response]]:
    """A full queue, and an enqueue that waits for room in it."""
    queue = unique_queue()
    api.call("PUT", f"/queues/{queue}/config", {"backpressure": {"max_depth": 1, "strategy": "block"}})
    api.enqueue(queue)
    waiting = pool.submit(
        httpx.post,
        f"{server.url}/ojs/v1/jobs",
        json={"type": "a.b", "args": [], "options": {"queue": queue}},
        headers={"OJS-Block-Timeout": str(BLOCKED_S)},
        timeout=BLOCKED_S,
    )
    time.sleep(UNDER_WAY_S)
    return queue, waiting


def test_a_request_under_way_is_finished() -> None:
    """The server waits for its answer, here as long as NATS stands still, and ends with 0."""
    with Nats() as nats, Server(nats_url=nats.url) as server, ThreadPoolExecutor(1) as pool:
        queue = unique_queue()
        with Api(server.url) as api:
            api.enqueue(queue)
            nats.pause()
            waiting = pool.submit(api.enqueue, queue, args=["x" * LONG])
            poll(lambda: unread_bytes(nats.port) > LONG, what="the job is on its way to NATS")
            server.send(signal.SIGTERM)
            time.sleep(UNDER_WAY_S)
            nats.resume()
            assert waiting.result()["state"] == "available"
        # Not by `stop`: its SIGTERM may come when the process has no handler any more.
        poll(lambda: server.exit_code is not None, what="it ends")
        assert server.exit_code == 0


def test_what_takes_too_long_is_given_up(fresh_server: Callable[..., Server]) -> None:
    """After OJS_SHUTDOWN_TIMEOUT_MS the server ends all the same, and a new one finds what was acknowledged."""
    server = fresh_server(env={"OJS_SHUTDOWN_TIMEOUT_MS": str(TIMEOUT_MS)})
    with Api(server.url) as api, ThreadPoolExecutor(1) as pool:
        queue, waiting = blocked(api, server, pool)
        began = time.monotonic()
        server.send(signal.SIGTERM)
        poll(lambda: not server.is_running, deadline_s=20, what="it ends")
        assert time.monotonic() - began < BLOCKED_S / 2
        with pytest.raises(httpx.TransportError):
            waiting.result()
        server.start()
        [job] = poll(lambda: api.fetch(queue), what="the job is there")
        api.ack(job["id"])
        assert api.fetch(queue) == []


def test_a_signal_right_after_the_start_is_not_lost() -> None:
    """It comes while Granian has ended its first run of the event loop and not begun the second."""
    server = Server(module="tests.support.slow_start")
    try:
        server.launch()
        poll(lambda: BETWEEN in server.log(), what="the worker has started")
        server.stop()
        assert "refused to gracefully stop" not in server.log()
    finally:
        server.close()
