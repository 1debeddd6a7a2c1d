"""The workers and producers under `docs/examples`, as processes of their runtimes."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.processes import poll

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = DOCS / "examples"
ENDS_S = 20.0


@dataclass(frozen=True)
class Language:
    """How its examples are started, and what has to be installed for that."""

    name: str
    ending: str
    needs: tuple[str, ...]

    def command(self, program: str) -> list[str]:
        """What runs `worker` or `producer`; skips the test where the runtime is missing."""
        for tool in self.needs:
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed, which docs/examples/{program}{self.ending} needs")
        file = EXAMPLES / f"{program}{self.ending}"
        if self.name == "go":
            return [str(built_go(program))]
        return [*{"python": [sys.executable], "node": ["node"], "shell": ["bash"]}[self.name], str(file)]


LANGUAGES = (
    Language("python", ".py", ()),
    Language("node", ".mjs", ("node",)),
    Language("go", ".go", ("go",)),
    Language("shell", ".sh", ("bash", "curl", "jq")),
)


@cache
def built_go(program: str) -> Path:
    """The program, compiled once: `go run` would stand between it and its signals."""
    folder = Path(tempfile.mkdtemp(prefix="ojs-go-"))
    atexit.register(shutil.rmtree, folder)
    target = folder / program
    sources = [str(EXAMPLES / f"{name}.go") for name in (program, "ojs")]
    subprocess.run(["go", "build", "-o", str(target), *sources], check=True, timeout=120)
    return target


class Running:
    """One worker process."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, env={**os.environ, **env}, stdout=output, stderr=output)
        self._log = log

    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_alive(self) -> bool:
        """True; it fails the test when it has ended."""
        code = self.process.poll()
        assert code is None, f"it ended with {code}:\n{self.log()}"
        return True

    def worker_id(self, api: Api) -> str:
        """The name that it goes by, once it has beaten."""
        ending = f"-{self.process.pid}"
        return poll(
            lambda: next((w for w in worker_ids(api) if w.endswith(ending)), ""), what="it beats\n" + self.log()
        )

    def ends(self) -> None:
        """Wait until it has ended; it must have meant to."""
        code = self.process.wait(ENDS_S)
        assert code == 0, f"exit code {code}:\n{self.log()}"

    def terminate(self) -> None:
        """SIGTERM, and wait."""
        self.process.send_signal(signal.SIGTERM)
        self.ends()


def worker_ids(api: Api) -> list[str]:
    """Who has beaten lately."""
    return [str(one["id"]) for one in api.call("GET", "/admin/workers", params={"per_page": 100})["items"]]


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[Running]:
    """Run a worker that is killed at the end if it still runs."""
    one = Running(command, env, log)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(ENDS_S)
        sys.stdout.write(one.log()[-4000:])
