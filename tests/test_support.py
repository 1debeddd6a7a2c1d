"""The harness itself: servers start, die, come back and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.support.api import Api, ApiError, unique_queue
from tests.support.processes import Process, descendants
from tests.support.server import Server
from tests.support.strict import LEFT, tell_tasks


def test_the_client_goes_through_the_life_of_a_job(api: Api) -> None:
    """Enqueue, fetch, heartbeat, nack, ack, cancel and the refusals come back parsed."""
    queue = unique_queue()
    first = api.enqueue(queue, args=[1, None, "x"], meta={"k": "v"}, retry={"initial_interval": "PT0.05S"})
    assert (first["state"], first["args"], first["queue"]) == ("available", [1, None, "x"], queue)
    [fetched] = api.fetch(queue, worker_id="w1")
    assert fetched["id"] == first["id"]
    assert api.heartbeat("w1", [first["id"]])["jobs_extended"] == [first["id"]]
    assert api.nack(first["id"], requeue=True)["state"] == "available"
    assert api.fetch(queue)[0]["attempt"] == 2
    assert api.ack(first["id"], result={"ok": True})["state"] == "completed"
    assert api.get(first["id"])["result"] == {"ok": True}
    with pytest.raises(ApiError) as refused:
        api.ack(first["id"])
    assert (refused.value.status, refused.value.code) == (409, "conflict")
    assert api.cancel(api.enqueue(queue)["id"])["state"] == "cancelled"
    assert api.fetch(queue) == []


@pytest.mark.faults
def test_a_server_is_killed_stopped_and_restarted(fresh_server: Callable[..., Server]) -> None:
    """After each of the three the port is free, the children are gone and the data is there."""
    server = fresh_server()
    with Api(server.url) as api:
        job = api.enqueue()
        family = descendants(server.pid)
        assert {server.nats_pid, *server.worker_pids} <= {one.pid for one in family}
        server.kill()
        assert not any(one.is_alive for one in family)
        server.restart()
        assert api.get(job["id"])["state"] == "available"
        old = server.nats
        server.kill_nats()
        new: Process = server.nats
        assert new != old
        server.await_ready()
        server.restart()
        assert api.get(job["id"])["state"] == "available"


async def test_a_task_that_still_runs_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """So that `Server.stop` fails on it."""
    task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    await tell_tasks()
    assert LEFT in caplog.text
    assert "forgotten" in caplog.text
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    caplog.clear()
    await tell_tasks()
    assert not caplog.text
