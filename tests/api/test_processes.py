"""How the processes of a server share the cores."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.support.processes import may_run_as_batch, policies, poll, threads
from tests.support.server import Server

batch = pytest.mark.skipif(not may_run_as_batch(), reason="the scheduling policy SCHED_BATCH is not permitted here")

AT_ONCE = 256
HEALTH = b"GET /ojs/v1/health HTTP/1.1\r\nHost: here\r\n\r\n"


@batch
def test_threads_leave_the_core_to_those_who_work(server: Server) -> None:
    """The event loop's and those of Granian run as batch."""
    for worker in server.worker_pids:
        assert set(policies(worker).values()) == {os.SCHED_BATCH}


@batch
def test_the_policy_of_an_operator_stays(fresh_server: Callable[..., Server]) -> None:
    """As `chrt --idle 0 ojs-fast serve` sets it, for all that the server consists of."""
    with ThreadPoolExecutor(1) as pool:  # what it may not undo ends with it
        pool.submit(os.sched_setscheduler, 0, os.SCHED_IDLE, os.sched_param(0)).result()
        server = pool.submit(fresh_server).result()
    for pid in (*server.worker_pids, server.nats_pid):
        assert set(policies(pid).values()) == {os.SCHED_IDLE}


def _on_one_core(pid: int) -> list[int]:
    """The threads of a process that may use a single core only."""
    return [thread for thread in threads(pid) if len(os.sched_getaffinity(thread)) == 1]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is a single core here")
def test_who_hands_over_requests_shares_the_core_of_the_event_loop(server: Server) -> None:
    """While there are many of them; the event loop itself is free to go."""
    (worker,) = server.worker_pids
    assert _on_one_core(worker) == []
    with ExitStack() as clients:
        sockets = [
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            for _ in range(AT_ONCE)
        ]

        def found() -> list[int]:
            for one in sockets:
                one.sendall(HEALTH)
            held = _on_one_core(worker)
            for one in sockets:
                assert one.recv(4096).startswith(b"HTTP/1.1 200")
            return held or _on_one_core(worker)

        (hand_over,) = poll(found, pause_s=0, what="a thread stays on one core")
        assert hand_over != worker
    poll(lambda: _on_one_core(worker) == [], what="it may go again when nothing is left to do")
