"""Runs `python -m ojs_fast` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "ojs_fast"]
RUN_S = 60.0


def environment(**env: str) -> dict[str, str]:
    """Give the environment without settings of ours, and `env`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("OJS_") and name != "NATS_URL"
    }
    return {**inherited, "PYTHONPATH": str(ROOT), **env}


class Cli:
    """The command, against one server or with other settings."""

    def __init__(self, **env: str) -> None:
        self.env = environment(**env)

    def run(self, *words: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run it; the exit code must be `code`."""
        done = subprocess.run(
            [*COMMAND, *words], env=self.env, input=stdin, capture_output=True, text=True, timeout=RUN_S, check=False
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def text(self, *words: str, stdin: str = "") -> str:
        """What it prints."""
        return self.run(*words, stdin=stdin).stdout

    def json(self, *words: str, stdin: str = "") -> list[Any]:
        """What it prints with `--json`: one object per line."""
        return [json.loads(line) for line in self.text(*words, "--json", stdin=stdin).splitlines()]

    def one(self, *words: str, stdin: str = "") -> Any:
        """`json`, which must be a single object."""
        [found] = self.json(*words, stdin=stdin)
        return found

    def fails(self, *words: str, code: int = 1, stdin: str = "") -> str:
        """Run it; it must fail with that code. What it says about it."""
        return self.run(*words, code=code, stdin=stdin).stderr
