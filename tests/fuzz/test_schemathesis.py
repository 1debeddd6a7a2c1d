"""Schemathesis reads `/openapi.json` and sends what it allows and what it forbids to a real server.

The short run is the same each time. OJS_FUZZ_COUNT makes a long one, of ten minutes at most, from OJS_FUZZ_SEED
(`make fuzz`).
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.openapi import document
from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "fuzz" / "schemathesis.toml"
KEY = "a-key-for-schemathesis"
OPERATIONS = sum(map(len, document()["paths"].values()))
COUNT = int(os.environ.get("OJS_FUZZ_COUNT") or 0)
SEED = int(os.environ.get("OJS_FUZZ_SEED") or (random.SystemRandom().randrange(10**6) if COUNT else 1))
LONG_S = min(600, max(60, COUNT // 10))
#: Boundary values of every member of every body are many; the short run sends examples and some random requests.
SHORT = ("--phases", "examples,fuzzing", "--max-examples", "3", "--generation-deterministic")
LONG = (
    *("--phases", "examples,coverage,fuzzing", "--max-examples", str(max(4, COUNT // OPERATIONS))),
    *("--generation-database", "none", "--max-time", str(LONG_S)),
)
LIMIT_S = 300 + (LONG_S if COUNT else 0)

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 60)]


def test_document_and_server_agree(tmp_path: Path, fresh_server: Callable[..., Server]) -> None:
    """No 5xx, nothing that is not described, valid requests are accepted and others refused."""
    server = fresh_server(env={"OJS_API_KEY": KEY, "OJS_LOG_LEVEL": "warning"})
    sys.stdout.write(f"OJS_FUZZ_SEED={SEED}\n")
    told = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
            *("--no-color", "--workers", "2", "--seed", str(SEED)),
            *(LONG if COUNT else SHORT),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": str(ROOT / "tests" / "fuzz" / "schemathesis_hooks.py"),
            "OJS_FUZZ_URL": server.url,
            "OJS_FUZZ_KEY": KEY,
            "OJS_FUZZ_ALL": "1" if COUNT else "",
        },
        cwd=tmp_path,  # where it leaves its caches
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    sys.stdout.write(told.stdout[-60_000:])
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    cases = re.search(r"Test cases:\s+(\d+) generated", told.stdout)
    assert cases is not None
    assert int(cases[1]) > OPERATIONS
    assert "unexpected error" not in server.log()
