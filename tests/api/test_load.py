"""`make load`: every scenario ends with sums that agree, and one that cannot work says so."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def load(url: str, report: Path, *scenarios: str) -> subprocess.CompletedProcess[str]:
    """Run scenarios for two seconds each."""
    command = [sys.executable, "-m", "loadtest.load", "--url", url, "--scenario", *scenarios, "--users", "8"]
    command += ["--seconds", "2", "--report", str(report)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_every_scenario_works(fresh_server: Callable[..., Server], tmp_path: Path) -> None:
    """Exit code 0, a report each, and jobs were really moved."""
    scenarios = ("producers", "workers", "mixed", "bursts", "scheduled", "workflows")
    done = load(fresh_server().url, tmp_path, *scenarios)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 scenarios are in order" in done.stdout
    assert sorted(path.stem for path in tmp_path.glob("*.html")) == sorted(scenarios)
    sums = [line for line in done.stdout.splitlines() if line.endswith(" acknowledged")]
    assert len(sums) == 6
    assert not any(line.split(", ")[-1].startswith("0 ") for line in sums)


def test_a_server_that_does_not_answer_is_a_failure(tmp_path: Path) -> None:
    """Exit code 1, and the scenario is named."""
    done = load("http://127.0.0.1:9", tmp_path, "mixed")
    assert done.returncode == 1
    assert "not in order: mixed" in done.stdout


def test_what_observing_costs_is_measured() -> None:
    """`loadtest.observed` starts both of its servers and compares them."""
    command = [sys.executable, "-m", "loadtest.observed", "--rounds", "1", "--seconds", "0.3", "--connections", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ratio, median of the rounds" in done.stdout


def test_with_and_without_a_backlog() -> None:
    """`loadtest.backlog` compares every kind of load."""
    command = [sys.executable, "-m", "loadtest.backlog", "--jobs", "20000", "--seconds", "0.3", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for load in ("batches of 100", "enqueue", "fetch 10 + acks", "fetch 1 + ack"):
        [line] = [line for line in done.stdout.splitlines() if line.startswith(load + ",")]
        assert re.search(r" [0-9,]+ +[0-9,]+ +[0-9.]+ \(", line)
    assert "MB by 20,000 waiting jobs" in done.stdout


def test_producers_and_workers_at_once() -> None:
    """`loadtest.endtoend` completes what it enqueues and says so beside the echo."""
    command = [sys.executable, "-m", "loadtest.endtoend", "--seconds", "1", "--connections", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each completed once" in done.stdout
    assert "jobs per request of the echo: 0." in done.stdout
