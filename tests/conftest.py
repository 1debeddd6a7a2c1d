"""Servers, clients and the Hypothesis profile that the tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.api import Api
from tests.support.server import Server

# A shell that runs this in the background has it ignore SIGINT, and so would every command that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Deadlines and slow inputs would measure the machine, not the code.
settings.register_profile("ojs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ojs")

RESET = {"OJS_ENABLE_RESET": "true", "OJS_LOG_LEVEL": "warning"}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Give the server that the tests of one xdist worker share; each uses queues of its own (`unique_queue`)."""
    with Server(env=RESET) as running:
        yield running


@pytest.fixture(scope="session")
def ojs_server_url() -> Iterator[str]:
    """Give the address of the conformance suites' own server, whose state they wipe before each case."""
    with Server(env=RESET) as running:
        yield running.url


@pytest.fixture(scope="session")
def shared_api(server: Server) -> Iterator[Api]:
    """Give the client behind `api`; its connections live as long as the server."""
    with Api(server.url) as client:
        yield client


@pytest.fixture
def api(server: Server, shared_api: Api) -> Api:
    """Give a client of the shared server, which must be alive."""
    assert server.is_running, f"an earlier test brought the shared server down:\n{server.tail()}"
    return shared_api


@pytest.fixture
def fresh_server() -> Iterator[Callable[..., Server]]:
    """Give a factory of servers of the test's own; what still runs at its end must stop cleanly."""
    made: list[Server] = []

    def make(data_dir: Path | None = None, **more: Any) -> Server:
        one = Server(data_dir, **more)
        made.append(one)
        return one.start()

    try:
        yield make
        for one in made:
            if one.is_running:
                one.stop()
    finally:
        for one in made:
            one.close()
