"""Each example of `docs/examples` does what it says, against a real server."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.docs.examples import LANGUAGES, Language, Running, running
from tests.support.api import Api, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

pytestmark = pytest.mark.timeout(120)

BEATS = {"OJS_VISIBILITY_MS": "2400"}  # three in that time


@pytest.fixture(params=LANGUAGES, ids=lambda language: language.name)
def language(request: pytest.FixtureRequest) -> Language:
    """Give each language."""
    found: Language = request.param
    return found


@pytest.fixture
def queue() -> str:
    """Give a queue of the test's own."""
    return unique_queue("docs")


@pytest.fixture
def start(language: Language, server: Server, tmp_path: Path, queue: str) -> Iterator[Callable[..., Running]]:
    """Give a factory of the language's worker on the test's queue."""
    opened: list[Any] = []

    def one(url: str = server.url, **env: str) -> Running:
        context = running(
            [*language.command("worker"), queue], {"OJS_URL": url, **env}, tmp_path / f"{len(opened)}.log"
        )
        opened.append(context)
        started: Running = context.__enter__()
        return started

    yield one
    for context in opened:
        context.__exit__(None, None, None)


def state(api: Api, job_id: str) -> str:
    """The state of a job."""
    return str(api.get(job_id)["state"])


def test_the_producer_enqueues(language: Language, server: Server, api: Api, queue: str) -> None:
    """As many as it was told, and it prints their ids."""
    command = [*language.command("producer"), queue, "7"]
    told = subprocess.run(
        command, env=os.environ | {"OJS_URL": server.url}, stdout=PIPE, text=True, timeout=60, check=True
    )
    ids = told.stdout.split()
    jobs = api.fetch(queue, count=10)
    assert [job["id"] for job in jobs] == ids
    assert jobs[0]["args"] == ["user0@example.com", "welcome"]
    assert {job["max_attempts"] for job in jobs} == {5}


def test_the_producer_waits_for_a_full_queue(language: Language, server: Server, api: Api, queue: str) -> None:
    """It gets 429 with Retry-After until somebody makes room; nothing is enqueued twice."""
    api.call("PUT", f"/queues/{queue}/config", {"backpressure": {"max_depth": 2, "strategy": "reject"}})
    command = [*language.command("producer"), queue, "4"]
    with subprocess.Popen(command, env=os.environ | {"OJS_URL": server.url}, stdout=PIPE, text=True) as producer:
        try:
            taken: list[str] = []

            def all_taken() -> bool:
                for job in api.fetch(queue):
                    taken.append(job["id"])
                    api.ack(job["id"])
                return len(taken) == 4

            time.sleep(1.0)  # it fills the queue meanwhile
            assert producer.poll() is None
            poll(all_taken, deadline_s=30, pause_s=0.3, what="room is used")
            told, _ = producer.communicate(timeout=20)
        finally:
            producer.kill()
    assert producer.returncode == 0
    assert told.split() == taken


def test_the_worker_completes_and_fails_jobs(api: Api, queue: str, start: Callable[..., Running]) -> None:
    """Results, errors that are final, errors that are tried again."""
    good = [api.enqueue(queue, kind="email.send", args=[f"u{n}@x.org", "hello"])["id"] for n in range(20)]
    bad = api.enqueue(queue, kind="email.send", args=["nobody", "hello"])["id"]
    retry = {"max_attempts": 2, "initial_interval": "PT0.1S"}
    unknown = api.enqueue(queue, kind="no.handler", retry=retry)["id"]
    worker = start()
    poll(lambda: state(api, unknown) == "discarded", deadline_s=30, what="all is done")
    poll(lambda: {state(api, one) for one in good} == {"completed"}, deadline_s=30, what="all is done")
    worker.terminate()
    assert api.get(good[0])["result"] == {"sent": True}
    failed = api.get(bad)
    assert (failed["state"], failed["attempt"], failed["error"]["code"]) == ("discarded", 1, "handler_error")
    assert failed["error"]["message"].endswith("'nobody' is no e-mail address")
    assert (api.get(unknown)["attempt"], api.get(unknown)["error"]["message"]) == (2, "no handler for no.handler")
    assert {api.get(one)["attempt"] for one in good} == {1}


def test_heartbeats_keep_a_long_job(api: Api, queue: str, start: Callable[..., Running]) -> None:
    """Twice as long as its reservation, and it runs once."""
    job_id = api.enqueue(queue, kind="report.make", args=[10])["id"]
    worker = start(OJS_VISIBILITY_MS="5000")  # on a busy machine a beat of the shell worker takes a second or two
    poll(lambda: state(api, job_id) == "completed", deadline_s=30, what="the report is made")
    worker.terminate()
    job = api.get(job_id)
    assert (job["attempt"], job["result"]) == (1, {"pages": 3})
    assert "errors" not in job


def test_at_sigterm_it_finishes_what_it_can_and_gives_back_the_rest(
    language: Language, api: Api, queue: str, start: Callable[..., Running]
) -> None:
    """Nothing waits for a reservation to end."""
    long = api.enqueue(queue, kind="report.make", args=[60], priority=1)["id"]
    short = api.enqueue(queue, kind="report.make", args=[1])["id"]
    worker = start(OJS_GRACE_S="3")
    first = {long} if language.name == "shell" else {long, short}  # one at a time there
    poll(lambda: all(state(api, one) == "active" for one in first), deadline_s=20, what="it runs them")
    later = api.enqueue(queue, kind="report.make", args=[60])["id"]
    if language.name != "shell":
        poll(lambda: state(api, later) == "active", deadline_s=20, what="it runs that too")
    worker.terminate()
    assert (state(api, long), state(api, later)) == ("available", "available")
    assert state(api, short) == ("available" if language.name == "shell" else "completed")
    assert "errors" not in api.get(long)


def test_directives_are_obeyed(api: Api, queue: str, start: Callable[..., Running]) -> None:
    """Quiet: no new jobs. Resumed: go on. Terminate: finish and end."""
    worker = start(**BEATS)
    path = f"/admin/workers/{worker.worker_id(api)}"
    first = api.enqueue(queue, kind="report.make", args=[0])["id"]
    poll(lambda: state(api, first) == "completed", what="it works")
    api.call("POST", f"{path}/quiet")
    time.sleep(0.8)  # the next beat tells it; the server itself gives it nothing from here on
    waiting = api.enqueue(queue, kind="report.make", args=[0])["id"]
    time.sleep(0.8)
    assert state(api, waiting) == "available"
    assert worker.process.poll() is None
    api.call("POST", f"{path}/resume")
    poll(lambda: state(api, waiting) == "completed", what="it goes on")
    last = api.enqueue(queue, kind="report.make", args=[1])["id"]
    poll(lambda: state(api, last) == "active", what="it works")
    api.call("POST", f"{path}/terminate")
    worker.ends()
    assert state(api, last) == "completed"


def test_it_survives_a_server_that_is_killed_and_comes_back(
    language: Language, queue: str, start: Callable[..., Running], fresh_server: Callable[..., Server]
) -> None:
    """It waits, with growing pauses, and what it was about to acknowledge is acknowledged then."""
    language.command("worker")
    own = fresh_server()
    with Api(own.url) as api:
        held = api.enqueue(queue, kind="report.make", args=[2])["id"]
        worker = start(own.url, OJS_VISIBILITY_MS="20000", OJS_GRACE_S="15")
        poll(lambda: state(api, held) == "active", deadline_s=20, what="it runs")
        own.kill()
        time.sleep(3)  # the job ends while nobody can be told
        assert worker.process.poll() is None
        own.start()
        later = api.enqueue(queue, kind="email.send", args=["a@x.org", "hello"])["id"]
        for one in (held, later):
            poll(lambda one=one: state(api, one) == "completed", deadline_s=60, what="all is done")  # type: ignore[misc]
        assert api.get(held)["attempt"] == 1
        worker.terminate()
