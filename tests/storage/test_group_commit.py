"""Group commit under `always`: writes share a sync, and each keeps an outcome of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ojs_fast.storage import group_commit, topology
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import KeyTaken, Unavailable
from ojs_fast.storage.headers import headers
from ojs_fast.storage.records import WRONG_LAST_SEQUENCE, Records
from ojs_fast.storage.recounts import Recounts
from ojs_fast.storage.server import EmbeddedNats
from ojs_fast.storage.work import MOST_PROMISES, WorkQueue
from tests.support.processes import freeze

ONLY_NEW = headers(Nats_Expected_Last_Subject_Sequence=0)
PREFIX = "$KV.ojs-jobs."


@asynccontextmanager
async def grouping(directory: Path) -> AsyncIterator[tuple[Connection, EmbeddedNats]]:
    """A connection that commits in groups, to a NATS that syncs."""
    with EmbeddedNats(directory / "data", durability="always") as nats:
        connection = Connection()
        await connection.open([nats.url], name="test")
        atomic = await topology.ensure(connection, topology.streams(1, 3600, 2**20))
        connection.commit_in_groups(atomic)
        try:
            yield connection, nats
        finally:
            await connection.close()


@pytest.mark.parametrize("count", [1, group_commit.ALONE, group_commit.ALONE + 1, 300, group_commit.BATCH_LIMIT + 50])
async def test_each_write_is_told_its_own_revision(tmp_path: Path, count: int) -> None:
    """However many go together: what is stored under a key has the revision that its writer was told."""
    async with grouping(tmp_path) as (connection, _):
        records = Records(connection)
        keys = [f"key-{number}" for number in range(count)]
        told = await asyncio.gather(*(records.create(key, key.encode()) for key in keys))
        assert await records.get_many(keys) == {
            key: (key.encode(), revision) for key, revision in zip(keys, told, strict=True)
        }


async def test_a_lost_compare_and_set_spoils_nobody_elses_write(tmp_path: Path) -> None:
    """Some of 100 keys are taken: their writers are refused, all others are stored."""
    async with grouping(tmp_path) as (connection, _):
        records = Records(connection)
        keys = [f"key-{number}" for number in range(100)]
        taken = keys[3::17]
        await asyncio.gather(*(records.create(key, b"first") for key in taken))
        outcomes = await asyncio.gather(*(records.create(key, b"second") for key in keys), return_exceptions=True)
        refused = [key for key, outcome in zip(keys, outcomes, strict=True) if isinstance(outcome, KeyTaken)]
        assert refused == taken
        found = await records.get_many(keys)
        assert {key for key in keys if found[key][0] == b"first"} == set(taken)
        assert [found[key][1] for key in keys if key not in taken] == [o for o in outcomes if isinstance(o, int)]


async def test_writes_of_one_key_keep_their_order(tmp_path: Path) -> None:
    """Of 30 creates of one key among others in one turn the first wins; later plain writes lie on top."""
    async with grouping(tmp_path) as (connection, _):
        creates = [connection.write(PREFIX + "one", b"%d" % number, ONLY_NEW) for number in range(30)]
        others = [connection.write(f"{PREFIX}other-{number}", b"x", ONLY_NEW) for number in range(30)]
        codes = [code for _, code, _ in await asyncio.gather(*creates)]
        assert codes == [0] + [WRONG_LAST_SEQUENCE] * 29
        assert {code for _, code, _ in await asyncio.gather(*others)} == {0}
        plain = [connection.write("$KV.ojs-workers.w", b"%d" % number) for number in range(30)]
        assert {code for _, code, _ in await asyncio.gather(*plain)} == {0}
        answer = await connection.request("$JS.API.DIRECT.GET.KV_ojs-workers.$KV.ojs-workers.w")
        assert answer.data == b"29"


async def test_work_messages_of_a_flush_arrive_in_order(tmp_path: Path) -> None:
    """200 messages of one level go together; their shared acknowledgement means that all are there."""
    async with grouping(tmp_path) as (connection, _):
        work = WorkQueue(connection, Recounts(connection))
        work.open()
        shared = {work.publish("q", 0, b"%d" % number) for number in range(200)}
        assert len(shared) == 1
        await shared.pop()
        pulled = await work.take("q", (0,), 200)
        assert [message.payload for message in pulled] == [b"%d" % number for number in range(200)]


async def test_a_take_finds_what_was_promised(tmp_path: Path) -> None:
    """A message that NATS has not acknowledged yet is waited for."""
    async with grouping(tmp_path) as (connection, _):
        work = WorkQueue(connection, Recounts(connection))
        work.open()
        for number in range(200):
            message = work.publish("q", 0, b"%d" % number)
            assert work.promise("q", message)
            assert not message.done()
            assert [one.payload for one in await work.take("q", (0,), 10)] == [b"%d" % number]


async def test_no_more_is_promised_than_nats_keeps_up_with(tmp_path: Path) -> None:
    """Beyond the bound the client has to wait; when the messages have arrived there is room again."""
    async with grouping(tmp_path) as (connection, nats):
        work = WorkQueue(connection, Recounts(connection))
        work.open()
        told: list[bool] = []
        assert nats.pid is not None
        freeze(nats.pid)
        for number in range(MOST_PROMISES + 10):
            told.append(work.promise("q", work.publish("q", 0, b"%d" % number)))
            await asyncio.sleep(0)  # a flush of its own
        os.kill(nats.pid, signal.SIGCONT)
        assert told == [True] * MOST_PROMISES + [False] * 10
        await work.arrived()
        assert work.promise("q", work.publish("q", 0, b"more"))


async def test_what_was_acknowledged_survives_a_killed_nats(tmp_path: Path) -> None:
    """Killed with groups under way: each create ends as stored or unavailable, and what is called stored is there."""
    async with grouping(tmp_path) as (connection, nats):
        records = Records(connection)
        outcomes: dict[str, int | BaseException] = {}

        async def create(number: int) -> None:
            for turn in range(20):
                key = f"key-{number}-{turn}"
                [outcomes[key]] = await asyncio.gather(records.create(key, b"x"), return_exceptions=True)

        writers = [asyncio.create_task(create(number)) for number in range(64)]
        while len(outcomes) < 200:
            await asyncio.wait(writers, timeout=0.001)
        assert nats.pid is not None
        os.kill(nats.pid, signal.SIGKILL)
        await asyncio.gather(*writers)
        assert all(isinstance(outcome, int | Unavailable) for outcome in outcomes.values())
        told = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, int)}
        assert len(told) > 200
        found = await records.get_many(told)
        assert {key: found[key][1] for key in told} == told


async def test_streams_of_an_earlier_version_are_widened(tmp_path: Path) -> None:
    """A work stream that was made without atomic batches gets them, and keeps what lies in it."""
    with EmbeddedNats(tmp_path / "data", durability="always") as nats:
        connection = Connection()
        await connection.open([nats.url], name="test")
        wanted = topology.streams(1, 3600, 2**20)
        earlier = {key: value for key, value in wanted[0].items() if key != "allow_atomic"}
        assert "error" not in await connection.api(f"STREAM.CREATE.{earlier['name']}", earlier)
        await connection.write("ojs.queue.q.jobs", b"1 {}")
        await topology.ensure(connection, wanted)
        info = await connection.api(f"STREAM.INFO.{earlier['name']}")
        assert info["config"]["allow_atomic"] is True
        assert info["state"]["messages"] == 1
        await connection.close()
