"""Names the marker of the official cases: `-m conformance` selects them, `-m 'not conformance'` the rest."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "conformance: an official case, run against a real server")
