"""Nodes are replaced one after the other while clients go on: nobody sees a failed request."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from functools import partial

import httpx
import pytest

from tests.support.nats import Nats
from tests.support.plain import PLAIN
from tests.support.processes import poll
from tests.support.server import Server

CLIENTS = 3

pytestmark = [pytest.mark.faults]


def _leaderships(servers: list[Server]) -> list[tuple[str, Server]]:
    pattern = r"^(\S+) INFO  this node is the scheduler leader"
    return sorted(
        ((told, one) for one in servers for told in re.findall(pattern, one.log(), re.MULTILINE)), key=lambda x: x[0]
    )


def _has_more_than(servers: list[Server], count: int) -> bool:
    return len(_leaderships(servers)) > count


class _Client(threading.Thread):
    """Enqueues with ids of its own; on a broken connection it sends the same job to the next server."""

    def __init__(self, servers: list[Server], number: int, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self._urls = itertools.cycle([one.url for one in servers])
        self._number = number
        self._done = done
        self.stored: list[str] = []
        self.failed: list[str] = []

    def run(self) -> None:
        """Enqueue until told to stop."""
        with httpx.Client(timeout=20, **PLAIN) as http:
            for count in itertools.count():
                if self._done.is_set():
                    return
                job_id = f"01900000-0000-7000-8{self._number:03x}-{count:012x}"
                answer = self._enqueue(http, {"id": job_id, "type": "t", "args": []})
                if answer is None:
                    return
                # A job that was sent twice may have arrived the first time.
                if answer.status_code in (201, 409):
                    self.stored.append(job_id)
                else:
                    self.failed.append(f"{answer.status_code} {answer.text[:200]}")

    def _enqueue(self, http: httpx.Client, job: dict[str, object]) -> httpx.Response | None:
        while True:
            try:
                return http.post(next(self._urls) + "/ojs/v1/jobs", json=job)
            except httpx.TransportError:
                if self._done.is_set():
                    return None


def test_a_rolling_restart_fails_no_request_and_always_leaves_a_leader(fresh_server: Callable[..., Server]) -> None:
    """Clients that repeat a request whose connection broke get an answer to each; every stored job is there."""
    with Nats() as nats:
        servers = [fresh_server(nats_url=nats.url) for _ in range(3)]
        poll(lambda: _leaderships(servers), what="a first leader")
        done = threading.Event()
        clients = [_Client(servers, number, done) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            for one in servers:
                led = _leaderships(servers)
                one.stop()
                if led[-1][1] is one:
                    poll(partial(_has_more_than, servers, len(led)), what="a successor")
                one.start()
        finally:
            done.set()
            for client in clients:
                client.join(30)
        assert [failure for client in clients for failure in client.failed] == []
        stored = [job_id for client in clients for job_id in client.stored]
        assert len(stored) > CLIENTS
        with httpx.Client(**PLAIN) as http:
            for job_id in stored[:: max(1, len(stored) // 200)]:
                assert http.get(f"{servers[0].url}/ojs/v1/jobs/{job_id}").status_code == 200
