"""The command against the shared server."""

from __future__ import annotations

import pytest

from tests.cli.command import Cli
from tests.support.server import Server


@pytest.fixture
def cli(server: Server) -> Cli:
    """Give the command with OJS_URL set."""
    return Cli(OJS_URL=server.url)
