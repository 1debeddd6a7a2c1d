"""One test for each way in which a node can die in the middle of a workflow (docs/design.md, crash windows).

The half-done state is written into NATS by hand before a server starts; its audit or its reconcile goes on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import nats
import orjson
import pytest
from nats.js import JetStreamContext

from ojs_fast import _core
from ojs_fast.core.workflows.model import FEATURE, Header, Member, Segment, encode_chunk, job_id, nested_id
from ojs_fast.storage import names
from tests.faults.test_crash_windows import REPAIRED_S, now_ms
from tests.support.api import Api, Body, unique_queue
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.server import Server

pytestmark = pytest.mark.faults

DEAD_NODE = "0123456789ab"


class Left:
    """Writes what a node left behind: `rows` has a workflow's id by the name of its crash window."""

    def __init__(self, js: JetStreamContext, queues: dict[str, str]) -> None:
        self.js = js
        self.queues = queues
        self.rows: dict[str, str] = {}

    async def put(self, key: str, data: bytes) -> None:
        """Write a key of `ojs-workflows`."""
        await self.js.publish(names.bucket_subject(names.WORKFLOWS, key), data)

    def member(self, row: str, place: str) -> Member:
        """Define a job."""
        raw = orjson.dumps({"type": "wf.job", "args": [place], "options": {"queue": self.queues[row]}})
        return Member(place, "wf.job", raw)

    async def workflow(
        self, row: str, type_: str, count: int, *, is_open: bool = True, id_: str = "", **more: Any
    ) -> Header:
        """Write a workflow whose members' arguments are their indexes, callbacks' their names."""
        id_ = id_ or _core.uuid7(now_ms(), os.urandom(10))
        fields: Body = {"id": id_, "type": type_, "name": row, "count": count, "jobs": count, "nested": 0}
        header = Header(**(fields | {"created_ms": now_ms(), "chunks": [0]} | more))
        members = [self.member(row, str(index)) for index in range(count)]
        if header.nested:
            raw = orjson.dumps({"type": "chain", "steps": [orjson.loads(members[0].raw)]})
            members[0] = Member("0", "chain", raw, nested=True)
        members += [self.member(row, name) for name in header.callbacks]
        if is_open:
            await self.put(f"{id_}.open", b"1")
        await self.put(f"{id_}.d.0", encode_chunk(members))
        await self.put(id_, header.encode())
        self.rows.setdefault(row, id_)
        return header

    async def outcomes(self, header: Header, outcomes: str, segment: int = 0) -> None:
        """Write a segment."""
        await self.put(f"{header.id}.s.{segment}", Segment(outcomes).encode())

    async def job(self, header: Header, index: int, state: str = "available") -> None:
        """Write the record of a member, of the node that died."""
        queue = self.queues[header.name]
        id_ = job_id(header.id, index, 0)
        body = b',"args":["%d"],"meta":{},"parent_results":[]' % index
        record = _core.Record(id_, "wf.job", queue, body)
        record.created_ms = record.enqueued_ms = now_ms()
        record.node_id = DEAD_NODE
        record.extra = {FEATURE: [header.id, index, 0]}
        if state != "available":
            record.claim(now_ms(), "w", 60_000, 60_000)
        if state == "completed":
            record.complete(now_ms(), b'"result"')
        if state == "discarded":
            record.fail(b'{"code":"x","message":"y","type":"x"}')
            record.discard(now_ms(), dead_letter=False)
        ack = await self.js.publish(names.bucket_subject(names.JOBS, id_), record.serialize())
        if state == "available":
            payload = _core.work_message(ack.seq, record.serialize())
            await self.js.publish(names.work_subject(queue, 0), payload)


ROWS = (
    "created", "orphan", "unmarked", "marked", "unfired", "fired", "cancelled", "nested", "unborn", "retried", "ended",
)  # fmt: skip


async def write(left: Left) -> None:
    """Leave behind every row."""
    await left.workflow("created", "chain", 2)

    left.rows["orphan"] = _core.uuid7(now_ms() - 3_600_000, os.urandom(10))
    await left.put(f"{left.rows['orphan']}.open", b"1")
    await left.put(f"{left.rows['orphan']}.d.0", encode_chunk([left.member("orphan", "0")]))

    header = await left.workflow("unmarked", "chain", 2, is_open=False)
    await left.job(header, 0, "completed")

    header = await left.workflow("marked", "chain", 2)
    await left.job(header, 0, "completed")
    await left.outcomes(header, "c.")

    for row, fired in (("unfired", None), ("fired", ["on_complete", "on_failure"])):
        header = await left.workflow(
            row, "batch", 2, callbacks=["on_complete", "on_success", "on_failure"], fired=fired
        )
        await left.job(header, 0, "completed")
        await left.job(header, 1, "discarded")
        await left.outcomes(header, "cf")

    header = await left.workflow("cancelled", "group", 2, state="cancelled", ended_ms=now_ms())
    await left.job(header, 0)

    header = await left.workflow("nested", "chain", 2, nested=1)
    await left.workflow(
        "nested", "chain", 1, is_open=False, id_=nested_id(header.id, 0), parent=[header.id, 0, 0],
        state="completed", ended_ms=now_ms(),
    )  # fmt: skip

    await left.workflow("unborn", "chain", 2, nested=1)

    header = await left.workflow("retried", "chain", 2, generation=1, resetting=True)
    await left.job(header, 0, "discarded")
    await left.outcomes(header, "fx")

    header = await left.workflow("ended", "chain", 1, state="completed", ended_ms=now_ms())
    await left.job(header, 0, "completed")
    await left.outcomes(header, "c")

    lease = {"node_id": DEAD_NODE, "boot_id": "", "started_ms": 0, "renewed_ms": now_ms(), "closed": False}
    await left.js.publish(names.bucket_subject(names.NODES, f"node.{DEAD_NODE}"), orjson.dumps(lease))


class Scene:
    """The repaired NATS and a client of the server that repairs it."""

    def __init__(self, nats_url: str, api: Api, left: Left) -> None:
        self.nats_url = nats_url
        self.api = api
        self.rows = left.rows
        self.queues = left.queues

    def fetched(self, row: str) -> Body:
        """Wait for the next job of a row, complete it."""
        queue = self.queues[row]
        [job] = poll(lambda: self.api.fetch(queue), deadline_s=REPAIRED_S, pause_s=0.05, what=f"{row} goes on")
        assert self.api.ack(job["id"], result=job["args"][0])["state"] == "completed"
        return job

    def get(self, row: str) -> Body:
        """Return the workflow of a row."""
        workflow: Body = self.api.call("GET", f"/workflows/{self.rows[row]}")["workflow"]
        return workflow

    def kept(self, key: str) -> dict[str, str] | None:
        """The headers of what lies under a key, None when nothing does."""

        async def ask() -> dict[str, str] | None:
            client = await nats.connect(self.nats_url)
            try:
                stream = names.bucket_stream(names.WORKFLOWS)
                found = await client.jetstream().get_last_msg(stream, names.bucket_subject(names.WORKFLOWS, key))
            except nats.js.errors.NotFoundError:
                return None
            finally:
                await client.close()
            return None if (found.headers or {}).get("KV-Operation") else dict(found.headers or {})

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Write the state, start the server, give both."""
    with Nats() as running:
        queues = {row: unique_queue(row) for row in ROWS}
        with Server(nats_url=running.url) as first, Api(first.url) as api:
            for queue in queues.values():
                api.cancel(api.enqueue(queue)["id"])
                assert api.fetch(queue) == []

        async def leave() -> Left:
            client = await nats.connect(running.url)
            try:
                left = Left(client.jetstream(), queues)
                await write(left)
                return left
            finally:
                await client.close()

        left = asyncio.run(leave())
        with Server(nats_url=running.url) as server, Api(server.url) as api:
            yield Scene(running.url, api, left)


def test_a_stored_workflow_without_jobs_starts(scene: Scene) -> None:
    """Died right after the header: it runs from its first step on."""
    assert [scene.fetched("created")["args"], scene.fetched("created")["args"]] == [["0"], ["1"]]
    assert scene.get("created")["state"] == "completed"


def test_a_definition_without_header_goes(scene: Scene) -> None:
    """Died before the header, so the client has no id: nothing is left of it."""
    id_ = scene.rows["orphan"]
    gone: Callable[[], bool] = lambda: scene.kept(f"{id_}.open") is None and scene.kept(f"{id_}.d.0") is None  # noqa: E731
    poll(gone, deadline_s=REPAIRED_S, pause_s=0.1, what="the orphan is erased")
    assert scene.api.fetch(scene.queues["orphan"]) == []


@pytest.mark.parametrize("row", ["unmarked", "marked"])
def test_the_step_behind_a_completed_one_starts(scene: Scene, row: str) -> None:
    """Died between record and mark, or between mark and next step: reconcile and audit find either."""
    job = scene.fetched(row)
    assert (job["args"], job["parent_results"]) == (["1"], ["result"])
    assert scene.api.fetch(scene.queues[row]) == []
    assert scene.get(row)["state"] == "completed"


@pytest.mark.parametrize("row", ["unfired", "fired"])
def test_callbacks_that_were_due_are_fired_once(scene: Scene, row: str) -> None:
    """Died before the decision was stored, or before its jobs were."""
    assert {scene.fetched(row)["args"][0], scene.fetched(row)["args"][0]} == {"on_complete", "on_failure"}
    assert scene.api.fetch(scene.queues[row]) == []
    assert scene.get(row)["state"] == "completed"


def test_a_cancellation_is_finished(scene: Scene) -> None:
    """Died right after the header said so: what waits is cancelled, what was not created never is."""

    def cancelled() -> bool:
        return [step["state"] for step in scene.get("cancelled")["steps"]] == ["cancelled"] * 2

    poll(cancelled, deadline_s=REPAIRED_S, pause_s=0.05, what="all is cancelled")
    poll(lambda: scene.get("cancelled")["jobs_cancelled"] == 2, deadline_s=REPAIRED_S, what="all is marked")
    job = scene.api.get(job_id(scene.rows["cancelled"], 0, 0))
    assert job["state"] == "cancelled"
    assert scene.api.fetch(scene.queues["cancelled"]) == []


def test_the_end_of_a_nested_workflow_reaches_the_outer_one(scene: Scene) -> None:
    """Died between the two."""
    assert scene.fetched("nested")["args"] == ["1"]
    assert scene.get("nested")["state"] == "completed"


def test_a_nested_workflow_that_was_due_is_created(scene: Scene) -> None:
    """Died before that."""
    assert scene.fetched("unborn")["workflow_id"] == nested_id(scene.rows["unborn"], 0)
    assert scene.fetched("unborn")["args"] == ["1"]
    assert scene.get("unborn")["state"] == "completed"


def test_a_retry_is_finished(scene: Scene) -> None:
    """Died before what had not completed was opened again."""
    job = scene.fetched("retried")
    assert (job["args"], job["id"]) == (["0"], job_id(scene.rows["retried"], 0, 1))
    assert scene.fetched("retried")["args"] == ["1"]
    assert scene.get("retried")["state"] == "completed"


def test_an_ended_workflow_gets_its_time_to_live(scene: Scene) -> None:
    """Died before header, segments and definition had one; then the audit is done with it."""
    id_ = scene.rows["ended"]
    poll(lambda: scene.kept(f"{id_}.open") is None, deadline_s=REPAIRED_S, pause_s=0.1, what="the marker goes")
    for key in (id_, f"{id_}.d.0", f"{id_}.s.0"):
        found = scene.kept(key)
        assert found is not None
        assert found["Nats-TTL"] == "604800s"
