"""Log lines about jobs (ojs-logging): failures with their error, their request, every change on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.api import Api, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

JSON = {"OJS_LOG_FORMAT": "json"}


def lines(server: Server, **wanted: Any) -> list[dict[str, Any]]:
    """The lines with these fields (`__` stands for a dot)."""
    fields = {key.replace("__", "."): value for key, value in wanted.items()}
    parsed = [json.loads(line) for line in server.log().splitlines()]
    return [line for line in parsed if fields.items() <= line.items()]


def test_each_failed_attempt_is_a_line(fresh_server: Callable[..., Server]) -> None:
    """With the fields of section 5.3 and the error: a retry as a warning, the end as an error; no arguments."""
    server = fresh_server(env=JSON)
    with Api(server.url) as api:
        queue = unique_queue()
        job = api.enqueue(queue, kind="a.b", args=["hush"], retry={"max_attempts": 2, "initial_interval": "PT0.01S"})
        for attempt in (1, 2):
            poll(lambda: api.fetch(queue, worker_id="w-1"), what="the job comes again")
            api.nack(job["id"], "no connection", type="ConnectionError", details={"x": "hush"})
            assert len(lines(server, ojs__job_id=job["id"])) == attempt
    first, last = lines(server, ojs__job_id=job["id"])
    expected = {
        "component": "server",
        "category": "lifecycle",
        "ojs.job_type": "a.b",
        "ojs.queue": queue,
        "ojs.worker_id": "w-1",
        "error.type": "ConnectionError",
        "error.message": "no connection",
    }
    for line, severity, attempt, state in ((first, "WARN", 1, "retryable"), (last, "ERROR", 2, "discarded")):
        assert expected.items() <= line.items()
        assert (line["severity"], line["ojs.attempt"], line["ojs.state"]) == (severity, attempt, state)
    assert (first["message"], last["message"]) == ("Job failed, will retry", "Job failed, discarded after 2 attempts")
    assert "hush" not in server.log()


def test_deadlines_are_told_as_what_they_are(fresh_server: Callable[..., Server]) -> None:
    """Execution and visibility timeouts."""
    server = fresh_server(env=JSON)
    with Api(server.url) as api:
        slow, silent = api.enqueue("slow", timeout_ms=50), api.enqueue("silent")
        api.fetch("slow")
        api.fetch("silent", visibility_timeout_ms=50)
        poll(lambda: len(lines(server, severity="ERROR")) == 2, what="both are told")
    assert lines(server, ojs__job_id=slow["id"])[0]["message"] == "Job execution timed out, will retry"
    assert lines(server, ojs__job_id=silent["id"])[0]["message"] == "Job stalled, its reservation ran out, will retry"


def test_a_line_names_its_request(fresh_server: Callable[..., Server]) -> None:
    """Also when many requests are under way at once: none gets the id of another one."""
    server = fresh_server(env=JSON)

    def fail(number: int) -> None:
        with Api(server.url) as api:
            api.http.headers["X-Request-Id"] = f"r-{number}"
            api.enqueue(f"q{number}")
            api.nack(api.fetch(f"q{number}")[0]["id"])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(fail, range(64)))
    told = {line["ojs.queue"]: line["request_id"] for line in lines(server, message="Job failed, will retry")}
    assert told == {f"q{number}": f"r-{number}" for number in range(64)}
    assert not any("request_id" in line for line in lines(server, logger="ojs_fast.node"))


def test_every_change_is_told_on_demand(fresh_server: Callable[..., Server]) -> None:
    """With OJS_LOG_LEVEL=debug, with times for those that completed; else not."""
    server = fresh_server(env={**JSON, "OJS_LOG_LEVEL": "debug"})
    with Api(server.url) as api:
        job = api.enqueue()
        api.fetch()
        api.ack(job["id"])
        other = api.enqueue(scheduled_at="+PT1H")
        api.cancel(other["id"])
    told = [(line["severity"], line["message"]) for line in lines(server, ojs__job_id=job["id"])]
    assert told == [
        ("INFO", "Job enqueued"),
        ("DEBUG", "Job fetched by worker"),
        ("INFO", "Job completed successfully"),
    ]
    done = lines(server, ojs__job_id=job["id"])[-1]
    assert 0 <= done["duration_ms"] <= done["total_elapsed_ms"]
    messages = [line["message"] for line in lines(server, ojs__job_id=other["id"])]
    assert messages == ["Job scheduled", "Job cancelled"]
    quiet = fresh_server(env=JSON)
    with Api(quiet.url) as api:
        job = api.enqueue()
        api.ack(api.fetch()[0]["id"])
    assert lines(quiet, ojs__job_id=job["id"]) == []
