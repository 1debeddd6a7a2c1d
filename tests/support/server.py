"""A real server: `python -m ojs_fast serve` as a process of its own, which tests may kill, stop and restart."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from ojs_fast.storage.staging import area_of
from tests.support.plain import PLAIN
from tests.support.processes import Process, descendants, free_port, poll
from tests.support.strict import LEFT

ROOT = Path(__file__).resolve().parents[2]
READY_S = 30.0
STOP_S = 30.0
GONE_S = 15.0
LOG_LINES_SHOWN = 60


class Server:
    """One server process; with `nats_url` on that NATS, else with an embedded one in `data_dir`.

    `data_dir` unset: a temporary directory, removed by `close`. `env` adds settings. `module` is what is run.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        nats_url: str = "",
        env: dict[str, str] | None = None,
        module: str = "tests.support.strict",
    ) -> None:
        self._module = module
        self._scratch = Path(tempfile.mkdtemp(prefix="ojs-test-"))
        self.data_dir = data_dir or self._scratch / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OJS_", "OTEL_")) and name != "NATS_URL"
        }
        self._env = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OJS_PORT": str(self.port),
            "OJS_DATA_DIR": str(self.data_dir),
            "OJS_LOG_FORMAT": "text",
            # Quicker on the disks that tests run on; those that are about durability say what they want.
            "OJS_DURABILITY": "interval",
            **({"NATS_URL": nats_url} if nats_url else {}),
            **(env or {}),
        }
        self._log_file = self._scratch / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[Process] = []

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self.is_running:
                self.stop()
        finally:
            self.close()

    # -- life ------------------------------------------------------------------------------------

    def start(self, *, deadline_s: float = READY_S) -> Self:
        """Start it and wait until it answers."""
        self.launch()
        self.await_ready(deadline_s=deadline_s)
        return self

    def launch(self) -> None:
        """Start it without waiting."""
        assert not self.is_running, "it runs already"
        with self._log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, "serve"],
                env=self._env,
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def await_ready(self, *, deadline_s: float = READY_S) -> None:
        """Wait until `GET /ojs/v1/health` answers 200."""

        def answers() -> bool:
            assert self.is_running, (
                f"the server ended with {self._process and self._process.returncode}:\n{self.tail()}"
            )
            try:
                return httpx.get(f"{self.url}/ojs/v1/health", timeout=5, **PLAIN).status_code == 200
            except httpx.TransportError:
                return False

        poll(answers, deadline_s=deadline_s, pause_s=0.02, what=f"the server at {self.url} answers\n{self.tail()}")

    @property
    def is_running(self) -> bool:
        """Whether the main process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the main process."""
        assert self._process is not None
        return self._process.pid

    @property
    def nats(self) -> Process:
        """The embedded nats-server; waits for one that is being restarted."""
        return poll(
            lambda: [child for child in descendants(self.pid) if child.name == "nats-server"],
            what="a nats-server runs",
        )[0]

    @property
    def nats_pid(self) -> int:
        """Process id of the embedded nats-server."""
        return self.nats.pid

    @property
    def exit_code(self) -> int | None:
        """How the main process ended, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of Granian's workers, the ones that hold a node each."""
        return [child.pid for child in descendants(self.pid) if b"spawn_main" in child.command]

    def kill(self) -> None:
        """SIGKILL the main process and wait until all its children are gone."""
        family = self._signal(signal.SIGKILL)
        poll(lambda: not any(one.is_alive for one in family), deadline_s=GONE_S, what="the children end as well")

    def stop(self) -> None:
        """SIGTERM; the exit code must be 0 and no process may be left."""
        family = self._signal(signal.SIGTERM)
        assert self._process is not None
        code = self._process.returncode
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.tail()}"
        assert LEFT not in self.log(), f"{self.url} left something behind:\n{self.tail()}"
        poll(lambda: not any(one.is_alive for one in family), deadline_s=GONE_S, what="no process is left behind")

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the main process, and wait for nothing."""
        assert self._process is not None
        self._process.send_signal(signum)

    def restart(self) -> Self:
        """Stop it if it runs, then start it again on the same port and data."""
        if self.is_running:
            self.stop()
        return self.start()

    def _signal(self, signum: signal.Signals) -> list[Process]:
        assert self._process is not None
        family = descendants(self._process.pid)
        self._process.send_signal(signum)
        self._process.wait(STOP_S)
        return family

    def kill_nats(self) -> None:
        """SIGKILL the embedded nats-server and wait until that process is gone."""
        nats = self.nats
        os.kill(nats.pid, signal.SIGKILL)
        poll(lambda: not nats.is_alive, what="nats-server is gone")

    def close(self) -> None:
        """Kill what still runs, show the end of the log for pytest to print, clean up; may be repeated."""
        if self.is_running:
            self.kill()
        if self.data_dir.exists():
            shutil.rmtree(area_of(self.data_dir), ignore_errors=True)  # what a killed one left in memory
        if self._scratch.exists():
            sys.stdout.write(f"--- end of the log of {self.url}\n{self.tail()}\n")
            shutil.rmtree(self._scratch, ignore_errors=True)

    # -- what it tells ---------------------------------------------------------------------------

    def log(self) -> str:
        """All that it wrote to standard output and error, over every restart."""
        return self._log_file.read_text(encoding="utf-8", errors="replace") if self._log_file.exists() else ""

    def tail(self) -> str:
        """Give the last lines of the log."""
        return "\n".join(self.log().splitlines()[-LOG_LINES_SHOWN:])

    def nats_url(self) -> str:
        """Address and token of the embedded nats-server, for a look into its streams."""
        text = (self.data_dir / "nats-server.conf").read_text(encoding="utf-8")
        fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and "{" not in line)
        token = text.partition('token: "')[2].partition('"')[0]
        return f"nats://{token}@127.0.0.1:{fields['port']}"
