"""How the processes of a server share the cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.processes import may_run_as_batch, policies
from tests.support.server import Server

pytestmark = pytest.mark.skipif(
    not may_run_as_batch(), reason="the scheduling policy SCHED_BATCH is not permitted here"
)


def test_threads_leave_the_core_to_those_who_work(server: Server) -> None:
    """The event loop's and those of Granian run as batch."""
    for worker in server.worker_pids:
        assert set(policies(worker).values()) == {os.SCHED_BATCH}


def test_the_policy_of_an_operator_stays(fresh_server: Callable[..., Server]) -> None:
    """As `chrt --idle 0 ojs-fast serve` sets it, for all that the server consists of."""
    with ThreadPoolExecutor(1) as threads:  # what it may not undo ends with it
        threads.submit(os.sched_setscheduler, 0, os.SCHED_IDLE, os.sched_param(0)).result()
        server = threads.submit(fresh_server).result()
    for pid in (*server.worker_pids, server.nats_pid):
        assert set(policies(pid).values()) == {os.SCHED_IDLE}
