"""`ojs-fast backup` and `restore`: nothing acknowledged before is missing, nothing completed runs again."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest

from ojs_fast.storage.archive import ArchiveWriter, BadArchive, Entry, open_archive
from tests.cli.backups import STATES, back_up_under_load, cli_of, compare_and_drain, counts, delete_streams, reconciled
from tests.cli.command import COMMAND, Cli
from tests.support.api import Api, ApiError, job_request
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.receiver import Receiver
from tests.support.server import Server

MakeServer = Callable[..., Server]


async def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it(
    fresh_server: MakeServer, tmp_path: Path
) -> None:
    """Every job of before is there afterwards, what was completed stays so, and everything that waits completes."""
    server = fresh_server()
    before = await back_up_under_load(server, cli_of(server.data_dir), tmp_path / "b.tar")
    server.kill()
    cli_of(tmp_path / "new").run("restore", str(tmp_path / "b.tar"))
    await compare_and_drain(fresh_server(tmp_path / "new"), before)


def fill(api: Api) -> dict[str, Any]:
    """Have one of everything, and tell what is to be looked for afterwards."""
    made: dict[str, Any] = {}
    for priority in (0, 5, -5, 5, 0):
        api.enqueue("order", priority=priority, args=(priority,))
    made["big"] = api.enqueue("big", args=("x" * 9_000_000,))["id"]
    made["scheduled"] = api.enqueue("late", scheduled_at="+PT1H")["id"]
    made["pending"] = api.enqueue("late", pending=True)["id"]
    for name, retry in {
        "retryable": {"max_attempts": 3, "initial_interval": "PT1H", "max_interval": "PT1H"},
        "dead": {"max_attempts": 1, "on_exhaustion": "dead_letter"},
    }.items():
        made[name] = api.enqueue("fail", retry=retry)["id"]
        [job] = api.fetch("fail")
        api.nack(job["id"])
    made["completed"] = api.enqueue("work")["id"]
    api.ack(api.fetch("work")[0]["id"], result={"n": 1})
    made["cancelled"] = api.cancel(api.enqueue("work")["id"])["id"]
    made["active"] = [api.enqueue("work")["id"], api.enqueue("work")["id"]]
    api.fetch("work", count=1, worker_id="w-1", visibility_timeout_ms=600_000)
    api.fetch("work", count=1, worker_id="w-2", visibility_timeout_ms=3000)
    made["unique"] = api.enqueue("work", kind="only.one", unique={"keys": ["type"], "on_conflict": "reject"})["id"]
    made["once"] = api.request("POST", "/jobs", job_request("once"), headers={"Idempotency-Key": "k-1"}).json()["job"][
        "id"
    ]
    api.call("POST", "/cron", {"name": "c", "expression": "0 0 1 1 *", "job_template": {"type": "a.b", "args": []}})
    steps = [{"type": f"step.{'abc'[n]}", "args": [n], "options": {"queue": "flow"}} for n in range(3)]
    made["workflow"] = api.call("POST", "/workflows", {"type": "chain", "name": "w", "steps": steps})["workflow"]["id"]
    api.ack(api.fetch("flow")[0]["id"], result={"step": 0})
    api.call("PUT", "/queues/order/config", {"max_size": 7})
    api.call("POST", "/queues/order/pause")
    api.call("POST", "/schemas", {"uri": "urn:a", "type": "a.b", "version": "1.0.0", "schema": {"type": "object"}})
    limit = {"key": "narrow", "concurrency": 1, "on_limit": "wait"}
    made["limited"] = [api.enqueue("narrow", rate_limit=limit)["id"] for _ in range(2)]
    assert len(api.fetch("narrow", count=2)) == 1
    return made


QUEUES = ("order", "big", "late", "fail", "work", "once", "flow", "narrow")


@pytest.mark.slow
def test_everything_comes_back_as_it_was(fresh_server: MakeServer, tmp_path: Path) -> None:
    """Each kind of state, from a running server and from one that is off, into NATS with fsync."""
    server = fresh_server()
    with Api(server.url) as api:
        made = fill(api)
        before = {queue: counts(api, queue) for queue in QUEUES}
    running = cli_of(server.data_dir).one("backup", str(tmp_path))
    assert running["is_one_instant"]
    server.stop()
    off = cli_of(server.data_dir).one("backup", str(tmp_path / "off.tar"))
    assert off["is_one_instant"]

    for number, file in enumerate((running["file"], off["file"])):
        durability = ("always", "interval")[number]
        done = cli_of(tmp_path / str(number), OJS_DURABILITY=durability).one("restore", file)
        assert done["jobs"] == 20
        restored = fresh_server(tmp_path / str(number), env={"OJS_DURABILITY": durability})
        reconciled(restored)
        with Api(restored.url) as api:
            look_for(api, made, before)
        restored.stop()


def look_for(api: Api, made: dict[str, Any], before: dict[str, dict[str, int]]) -> None:
    """Compare, then let everything go on."""
    short = made["active"][1]
    poll(lambda: api.get(short)["state"] == "available", what="the visibility timeout of then ends")
    expected = {**before, "work": {**before["work"], "active": 1, "available": 2}}
    # A step that both reconcile and its workflow published is found by the audit behind them.
    poll(lambda: {queue: counts(api, queue) for queue in QUEUES} == expected, what="all numbers are those of then")
    for state in ("scheduled", "pending", "retryable", "completed", "cancelled"):
        assert api.get(made[state])["state"] == state
    assert api.get(made["completed"])["result"] == {"n": 1}
    assert len(api.get(made["big"])["args"][0]) == 9_000_000
    assert [one["id"] for one in api.dead_letters("fail")] == [made["dead"]]
    assert api.call("POST", f"/dead-letter/{made['dead']}/retry")["job"]["state"] == "available"
    assert counts(api, "fail")["discarded"] == 0

    api.ack(made["active"][0], worker_id="w-1")
    with pytest.raises(ApiError) as refused:
        api.enqueue("work", kind="only.one", unique={"keys": ["type"], "on_conflict": "reject"})
    assert refused.value.error["details"]["existing_job_id"] == made["unique"]
    drained = {job["id"] for job in api.fetch("work", count=10)}
    assert drained == {short, made["unique"]}
    for job_id in drained:
        api.ack(job_id)
    assert counts(api, "work") == {**dict.fromkeys(STATES, 0), "completed": 4, "cancelled": 1}
    api.enqueue("work", kind="only.one", unique={"keys": ["type"], "on_conflict": "reject"})

    again = api.request("POST", "/jobs", job_request("once"), headers={"Idempotency-Key": "k-1"})
    assert again.json()["job"]["id"] == made["once"]
    assert [entry["name"] for entry in api.call("GET", "/cron")["crons"]] == ["c"]

    assert [schema["uri"] for schema in api.call("GET", "/schemas")["schemas"]] == ["urn:a"]
    assert api.fetch("order") == []
    assert api.call("GET", "/queues/order/config")["configuration"] == {"max_size": 7}
    api.call("POST", "/queues/order/resume")
    assert [job["priority"] for job in api.fetch("order", count=9)] == [5, 5, 0, 0, -5]

    for step in (1, 2):
        [job] = poll(lambda: api.fetch("flow"), what="the next step is there")
        assert job["type"] == f"step.{'abc'[step]}"
        assert job["parent_results"][0] == {"step": 0}
        api.ack(job["id"], result={"step": step})
    workflow = f"/workflows/{made['workflow']}"
    poll(lambda: api.call("GET", workflow)["workflow"]["state"] == "completed", what="the workflow completes")

    assert api.fetch("narrow") == []
    api.ack(made["limited"][0])
    assert [job["id"] for job in poll(lambda: api.fetch("narrow"), what="the permit is free")] == [made["limited"][1]]


# -- killed in the middle ------------------------------------------------------------------------


async def await_jobs(url: str) -> None:
    """Wait until `ojs-jobs` has a message."""
    client = await nats.connect(url)
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(nats.js.errors.NotFoundError):
                    if (await client.jetstream().stream_info("KV_ojs-jobs")).state.messages:
                        return
    finally:
        await client.close()


def has_jobs(data_dir: Path) -> bool:
    """Tell whether `ojs-jobs` of an embedded NATS has a message on disk."""
    blocks = (data_dir / "nats" / "jetstream" / "$G" / "streams" / "KV_ojs-jobs" / "msgs").glob("*.blk")
    return any(block.stat().st_size for block in blocks)


@pytest.mark.faults
@pytest.mark.parametrize("is_embedded", [False, True])
def test_a_restore_that_was_killed_stops_every_start_and_begins_again(
    fresh_server: MakeServer, tmp_path: Path, *, is_embedded: bool
) -> None:
    """Kill -9 among the jobs; a server says why it does not start; the second restore brings all."""
    source = fresh_server()
    file, total = str(tmp_path / "b.tar"), 10_000
    with Api(source.url) as api:
        for _ in range(total // 5000):
            api.enqueue_batch([job_request("q")] * 5000)
    cli_of(source.data_dir).run("backup", file)
    source.stop()
    data_dir = tmp_path / "new"
    with contextlib.ExitStack() as stack:
        external = "" if is_embedded else stack.enter_context(Nats()).url
        cli = cli_of(data_dir) if is_embedded else Cli(NATS_URL=external)
        process = subprocess.Popen([*COMMAND, "restore", file], env=cli.env, stderr=subprocess.DEVNULL)
        if is_embedded:
            poll(lambda: has_jobs(data_dir), deadline_s=60, pause_s=0.001, what="jobs are written")
        else:
            asyncio.run(await_jobs(external))
        process.kill()
        process.wait()

        halted = Server(data_dir, nats_url=external)
        halted.launch()
        poll(lambda: not halted.is_running, deadline_s=30, what="the server gives up")
        assert "A restore into this NATS did not finish" in halted.log()
        halted.close()
        assert "has not finished" in cli.fails("backup", str(tmp_path / "c.tar"))

        assert "begun again" in cli.run("restore", file).stderr
        restored = fresh_server(data_dir, nats_url=external)
        reconciled(restored)
        with Api(restored.url) as api:
            assert counts(api, "q") == {**dict.fromkeys(STATES, 0), "available": total}
        restored.stop()
        assert "holds data of ojs-fast already" in cli.fails("restore", file)


def test_a_server_that_is_still_there_spoils_a_restore(fresh_server: MakeServer, tmp_path: Path) -> None:
    """One that was left running while its streams were deleted shows by its lease."""
    with Nats() as target:
        cli = Cli(NATS_URL=target.url)
        left = fresh_server(nats_url=target.url)
        with Api(left.url) as api:
            api.enqueue_batch([job_request("q")] * 5000)
        cli.run("backup", str(tmp_path / "b.tar"))
        asyncio.run(delete_streams([target.url]))
        said = cli.fails("restore", str(tmp_path / "b.tar"))
        assert "is still running on this NATS" in said
        left.kill()
        assert "begun again" in cli.run("restore", str(tmp_path / "b.tar")).stderr


def test_a_server_that_was_killed_can_be_backed_up(fresh_server: MakeServer, tmp_path: Path) -> None:
    """With fsync batches are staged in memory; a backup mends what is torn, since the next start would not know."""
    server = fresh_server(env={"OJS_DURABILITY": "always"})
    with Api(server.url) as api:
        made = {job["id"] for job in api.enqueue_batch([job_request("q")] * 300)}
    server.kill()
    assert (server.data_dir / "running").exists()
    cli_of(server.data_dir, OJS_DURABILITY="always").run("backup", str(tmp_path / "b.tar"))
    assert not (server.data_dir / "running").exists()
    found = open_archive(tmp_path / "b.tar").entries("KV_ojs-jobs")
    assert {entry.subject.removeprefix("$KV.ojs-jobs.") for entry in found} == made
    server.start()
    with Api(server.url) as api:
        poll(lambda: counts(api, "q")["available"] == 300, what="the server itself goes on")


# -- bad files -----------------------------------------------------------------------------------


def small_archive(path: Path) -> Path:
    """Write an archive of some chunks."""
    with ArchiveWriter(path) as archive:
        for number in range(3):
            entry = Entry(number + 1, 0, "", f"$KV.ojs-jobs.{number}", b"{}")
            archive.add("KV_ojs-jobs", entry, is_late=number == 2)
        archive.finish({"instant": "2026-01-01T00:00:00Z", "last_sequences": {}, "version": "0"})
    return path


def test_the_last_message_of_each_subject_counts(tmp_path: Path) -> None:
    """What was written again while the backup was made replaces what was read before; deletions take it away."""
    with ArchiveWriter(tmp_path / "a") as archive:
        for entry, is_late in (
            (Entry(1, 5, "", "a", b"old"), False),
            (Entry(2, 5, "9s", "b", b"kept"), False),
            (Entry(3, 5, "", "c", b"gone"), False),
            (Entry(4, 6, "", "a", b"newer"), True),
            (Entry(5, 6, "", "a", b"newest\nof all"), True),
            (Entry(6, 6, "", "c", b"", is_deletion=True), True),
        ):
            archive.add("s", entry, is_late=is_late)
        archive.finish({})
    found = list(open_archive(tmp_path / "a").entries("s"))
    assert found == [Entry(2, 5, "9s", "b", b"kept"), Entry(5, 6, "", "a", b"newest\nof all")]
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_an_archive_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """A backup that fails half way leaves no file that could be taken for one."""
    with contextlib.suppress(KeyError), ArchiveWriter(tmp_path / "a") as archive:
        archive.add("s", Entry(1, 5, "", "a", b"x"), is_late=False)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_every_cut_and_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """A file that was cut off anywhere, or has one other byte anywhere that matters, is refused."""
    whole = small_archive(tmp_path / "a").read_bytes()
    bad = tmp_path / "bad"
    for size in range(0, len(whole) - 10_240, 97):
        bad.write_bytes(whole[:size])
        with pytest.raises(BadArchive):
            open_archive(bad)
    at = [n for n, byte in enumerate(whole) if byte][::7]
    for place in at:
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = open_archive(bad)
        except BadArchive:
            continue
        # Fields of a tar header that mean nothing here: the time, say.
        assert len(list(found.entries("KV_ojs-jobs"))) == 3


def test_bad_files_change_nothing(tmp_path: Path) -> None:
    """A foreign, a damaged and a newer file are refused before NATS is started."""
    cli = cli_of(tmp_path / "data")
    bad = tmp_path / "bad"
    bad.write_bytes(b"no tar at all" * 1000)
    assert "no backup of ojs-fast" in cli.fails("restore", str(bad))
    bad.write_bytes(small_archive(tmp_path / "a").read_bytes()[:2000])
    assert "nothing was restored" in cli.fails("restore", str(bad))
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_backed_up_is_said(tmp_path: Path, server: Server) -> None:
    """No data, a file that is there, a directory in use."""
    assert "holds no data of ojs-fast" in cli_of(tmp_path / "none").fails("backup", str(tmp_path / "b.tar"))
    (tmp_path / "b.tar").write_text("mine")
    assert "--force" in cli_of(server.data_dir).fails("backup", str(tmp_path / "b.tar"), code=2)
    assert (tmp_path / "b.tar").read_text() == "mine"
    cli_of(server.data_dir).run("backup", str(tmp_path / "b.tar"), "--force")
    assert "a server runs on" in cli_of(server.data_dir).fails("restore", str(tmp_path / "b.tar"))
    with Nats() as empty:
        began = time.monotonic()
        assert "has no stream" in Cli(NATS_URL=empty.url).fails("backup", str(tmp_path / "c.tar"))
        assert time.monotonic() - began < 60
    assert not (tmp_path / "c.tar").exists()


def test_webhooks_go_on(fresh_server: MakeServer, tmp_path: Path) -> None:
    """A restored subscription hears of what happens behind the restore, with the secret of then."""
    open_to_all = {"OJS_WEBHOOKS_ALLOW_PRIVATE": "true"}
    with Receiver() as receiver:
        server = fresh_server(env=open_to_all)
        with Api(server.url) as api:
            wish = {"url": receiver.url, "events": ["job.completed"]}
            api.call("POST", "/webhooks/subscriptions", wish)
            for _ in range(3):
                api.enqueue("q")
                api.ack(api.fetch("q")[0]["id"])
            receiver.await_count(3)
        cli_of(server.data_dir).run("backup", str(tmp_path / "b.tar"))
        server.stop()
        cli_of(tmp_path / "new").run("restore", str(tmp_path / "b.tar"))
        restored = fresh_server(tmp_path / "new", env=open_to_all)
        with Api(restored.url) as api:
            job = api.enqueue("q")
            api.ack(api.fetch("q")[0]["id"])
            poll(
                lambda: any(job["id"] in str(one.event) for one in receiver.received[3:]), what="the event is delivered"
            )
