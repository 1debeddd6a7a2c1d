"""The fenced blocks of the documentation, and how each language is run.

A block that cannot run here says so, and why, in the line before it: `<!-- not run: the reason -->`. A line `# → text`
in a shell block says what its output contains. `ID` stands for the last id that was printed; the server is at the
address that the documents use, 127.0.0.1:8080, in the text only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Documents of which no block is run, and why.
LEFT_OUT = {
    "docs/cli.md": "a reference with placeholders; the tests of the command line run its commands",
    "docs/events.md": "streams without an end, a browser, receivers elsewhere; their own tests do that",
    "docs/releasing.md": "it makes a release",
}
DOCUMENTS = [
    one
    for one in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if str(one.relative_to(ROOT)) not in LEFT_OUT
]
LANGUAGES = {"sh": "bash", "python": sys.executable, "js": "node", "ruby": "ruby"}
ADDRESS = "127.0.0.1:8080"
TIMEOUT_S = 60

_FENCE = re.compile(r"^ *```(\w*)$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_EXPECTED = re.compile(r"^# → (.+)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*$", re.MULTILINE)
_ID = re.compile(r'"(?:job_)?id":\s?"([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block; `not_run` says why it is left out, "" when it is not."""

    document: str
    line: int
    language: str
    text: str
    not_run: str

    @property
    def place(self) -> str:
        """Where it is."""
        return f"{self.document}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """Every block in a language that can be run, in order."""
    found: list[Block] = []
    name, reason, opened = str(document.relative_to(ROOT)), "", -1
    lines = document.read_text(encoding="utf-8").splitlines()
    language = ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence and opened < 0:
            language, opened = fence[1], number
        elif fence:
            if language in LANGUAGES:
                text = textwrap.dedent("\n".join(lines[opened : number - 1]))
                found.append(Block(name, opened + 1, language, text, reason))
            opened, reason = -1, ""
        elif opened < 0 and line.strip():
            marked = _NOT_RUN.match(line.strip())
            reason = marked[1] if marked else ""
    assert opened < 0, f"{name}:{opened}: a block that does not end"
    return found


@dataclass
class Reader:
    """Somebody who types what a document says, from its top to its end, against one server."""

    address: str
    home: Path
    #: what could not be run, and why
    skipped: list[str] = field(default_factory=list)
    _settings: list[str] = field(default_factory=list)
    _last_id: str = "ID"

    def __post_init__(self) -> None:
        tools = self.home / "bin"
        tools.mkdir()
        self._tool("ojs-fast", f'exec {sys.executable} -m ojs_fast "$@"')
        # The documents leave out what only a test needs: that an error is one.
        self._tool("curl", f'exec {shutil.which("curl")} --fail-with-body "$@"')
        (self.home / "docs").symlink_to(ROOT / "docs")

    def _tool(self, name: str, body: str) -> None:
        file = self.home / "bin" / name
        file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        file.chmod(0o755)

    def run(self, block: Block) -> str:
        """Run one block; what it printed. It fails the test when the block fails or prints something else."""
        runtime = shutil.which(LANGUAGES[block.language])
        if runtime is None:
            self.skipped.append(f"{block.place} needs {LANGUAGES[block.language]}, which is not installed")
            return ""
        text = re.sub(r"\bID\b", self._last_id, block.text).replace(ADDRESS, self.address)
        if block.language == "sh":
            text = "\n".join(["set -euo pipefail", *self._settings, text])
        env = os.environ | {
            "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.home),
            "OJS_URL": f"http://{self.address}",
        }
        done = subprocess.run(
            [runtime, *self._script(block, text)],
            cwd=self.home, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        told = f"{block.place}\n{text}\n--- printed:\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"exit code {done.returncode}: {told}"
        for expected in _EXPECTED.findall(block.text):
            assert expected in done.stdout, f"'{expected}' is missing: {told}"
        self._settings += _ASSIGNMENT.findall(block.text.replace(ADDRESS, self.address))
        self._last_id = (_ID.findall(done.stdout) or [self._last_id])[-1]
        return done.stdout

    def _script(self, block: Block, text: str) -> list[str]:
        if block.language == "sh":
            return ["-c", text]
        file = self.home / {"python": "snippet.py", "js": "snippet.mjs", "ruby": "snippet.rb"}[block.language]
        file.write_text(text, encoding="utf-8")
        return [str(file)]
