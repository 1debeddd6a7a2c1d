"""OpenTelemetry traces (ojs-distributed-tracing): what a receiver gets, what jobs carry, what it may not cost."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api import Api, ApiError, job_request, unique_queue
from tests.support.nats import Nats
from tests.support.otlp import ERROR, INTERNAL, OK, SERVER, Receiver
from tests.support.plain import PLAIN
from tests.support.processes import poll
from tests.support.server import Server

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Give the receiver that the tests of this module share."""
    with Receiver() as one:
        yield one


@pytest.fixture(scope="module")
def traced_api(receiver: Receiver) -> Iterator[Api]:
    """Give a client of a server that sends its traces there."""
    env = {"OJS_OTEL_ENDPOINT": receiver.url, "OJS_LOG_FORMAT": "json", **SOON}
    with Server(env=env) as server, Api(server.url) as api:
        yield api


def span_of(job: dict[str, Any]) -> tuple[str, str]:
    """The trace and the span that a job's meta names."""
    _, trace_id, span_id, _ = job["meta"]["traceparent"].split("-")
    return trace_id, span_id


def test_a_job_carries_the_span_that_enqueued_it_to_its_worker(traced_api: Api, receiver: Receiver) -> None:
    """Producer's request → enqueue (its child) → meta → a link of fetch and ack, each in its caller's trace."""
    queue, api = unique_queue(), traced_api
    api.http.headers["traceparent"], api.http.headers["tracestate"] = PARENT, "vendor=1"
    try:
        job = api.enqueue(queue, kind="email.send", priority=7)
    finally:
        del api.http.headers["traceparent"], api.http.headers["tracestate"]
    enqueue = receiver.await_span("ojs.enqueue", ojs__job__id=job["id"])
    assert (enqueue.kind, enqueue.status, enqueue.trace_id, enqueue.parent_id) == (SERVER, OK, TRACE, SPAN)
    assert job["meta"] == {"traceparent": f"00-{TRACE}-{enqueue.span_id}-01", "tracestate": "vendor=1"}
    expected = {
        "messaging.system": "ojs",
        "messaging.operation.type": "publish",
        "messaging.destination.name": queue,
        "messaging.message.id": job["id"],
        "ojs.job.type": "email.send",
        "ojs.job.queue": queue,
        "ojs.job.state": "available",
        "ojs.job.priority": 7,
        "ojs.backend.type": "nats",
        "http.route": "/ojs/v1/jobs",
        "http.response.status_code": 201,
    }
    assert expected.items() <= enqueue.about.items()
    (fetched,) = api.fetch(queue, worker_id="w-1")
    assert fetched["meta"] == job["meta"]
    api.ack(job["id"], worker_id="w-1")
    for name, state in (("ojs.fetch", "active"), ("ojs.ack", "completed")):
        span = receiver.await_span(name, ojs__job__id=job["id"])
        assert span.links == [(TRACE, enqueue.span_id)]
        assert span.trace_id != TRACE
        told = {key: span.about[f"ojs.{key}"] for key in ("job.state", "job.attempt", "job.queue", "worker.id")}
        assert told == {"job.state": state, "job.attempt": 1, "job.queue": queue, "worker.id": "w-1"}
    assert api.get(job["id"])["meta"] == job["meta"]


@pytest.mark.parametrize("where", ["meta", "metadata"])
def test_what_a_producer_put_into_meta_is_kept(traced_api: Api, receiver: Receiver, where: str) -> None:
    """Its traceparent is neither replaced nor given a tracestate of ours; the rest of meta stays as well."""
    meta = {"traceparent": PARENT, "tenant": "a", "baggage": "k=v"}
    queue, fields = unique_queue(), dict[str, Any]({where: meta})
    job = traced_api.enqueue(queue, **fields)
    assert job["meta"] == meta
    assert traced_api.fetch(queue)[0]["meta"] == meta
    assert receiver.await_span("ojs.fetch", ojs__job__id=job["id"]).links == [(TRACE, SPAN)]


def test_meta_of_any_shape_takes_the_context(traced_api: Api) -> None:
    """Empty, full, with numbers beyond a double, or too full for more: then the job is left without."""
    queue = unique_queue()
    assert list(traced_api.enqueue(queue, meta={})["meta"]) == ["traceparent"]
    assert list(traced_api.enqueue(queue, meta={"a": {"b": "}"}})["meta"]) == ["a", "traceparent"]
    raw = '{"type":"a.b","args":[1e400],"meta": {"n": 1e400 } ,"options":{"queue":"' + queue + '"}}'
    stored = traced_api.http.post("/ojs/v1/jobs", content=raw)
    assert stored.status_code == 201
    assert '"n": 1e400 ,"traceparent":"00-' in stored.text
    filling = {"x": "y" * (65_536 - len('{"x":""}'))}
    assert traced_api.enqueue(queue, meta=filling)["meta"] == filling
    deep: list[Any] = []
    for _ in range(96):
        deep = [deep]
    assert "traceparent" in traced_api.enqueue(queue, args=[deep])["meta"]


def test_uniqueness_and_idempotency_do_not_see_the_context(traced_api: Api) -> None:
    """Two jobs that differ in nothing but the trace are twins, and a repeated request is the same one."""
    queue = unique_queue()
    unique = {"keys": ["type", "meta"], "meta_keys": ["order", "traceparent"], "on_conflict": "ignore"}
    first, second = (traced_api.enqueue(queue, meta={"order": 1}, unique=unique) for _ in range(2))
    assert (first["id"], first["meta"]) == (second["id"], second["meta"])
    replies = [
        traced_api.request("POST", "/jobs", job_request(queue), headers={"Idempotency-Key": queue}) for _ in range(2)
    ]
    first_meta, second_meta = (one.json()["job"]["meta"] for one in replies)
    assert first_meta == second_meta != {}
    assert replies[1].headers["Idempotency-Replayed"] == "true"


def test_many_jobs_are_told_by_number_and_links(traced_api: Api, receiver: Receiver) -> None:
    """A batch is one span whose context all its jobs carry; the fetch of them links there."""
    queue = unique_queue()
    jobs = traced_api.enqueue_batch([job_request(queue), job_request(queue, meta={"traceparent": PARENT})])
    mine = span_of(jobs[0])
    assert mine != span_of(jobs[1]) == (TRACE, SPAN)
    batch = poll(lambda: [one for one in receiver.spans if (one.trace_id, one.span_id) == mine], what="the batch")[0]
    assert (batch.name, batch.about["messaging.batch.message_count"]) == ("ojs.enqueue_batch", 2)
    traced_api.fetch(queue, count=5)
    fetch = receiver.await_span("ojs.fetch", ojs__job__queue=queue, messaging__batch__message_count=2)
    assert fetch.links == [mine, (TRACE, SPAN)]


def test_errors_are_told(traced_api: Api, receiver: Receiver) -> None:
    """Status, type, message and an event; the job that was meant."""
    missing = "01890a5d-ac96-774b-bcce-b302099a8057"
    with pytest.raises(ApiError):
        traced_api.ack(missing)
    span = receiver.await_span("ojs.ack", ojs__job__id=missing)
    assert (span.status, span.events) == (ERROR, ["exception"])
    assert (span.about["error.type"], span.about["http.response.status_code"]) == ("not_found", 404)
    assert missing in span.about["error.message"]
    queue = unique_queue()
    traced_api.call("POST", f"/queues/{queue}/pause", {})
    assert receiver.await_span("ojs.queues.pause").status == OK


def test_background_work_has_spans_of_its_own(traced_api: Api, receiver: Receiver) -> None:
    """Promotion, expiry, visibility, cron; the job of a cron tick carries the tick's context."""
    queue, api = unique_queue(), traced_api
    api.enqueue(queue, scheduled_at="+PT0.1S")
    api.enqueue(queue, expires_at="+PT0.2S", scheduled_at="+PT1H")
    assert receiver.await_span("ojs.scheduler.poll", ojs__index="ojs-scheduled").kind == INTERNAL
    assert receiver.await_span("ojs.expiry.check", ojs__index="ojs-expiry").status != ERROR
    poll(lambda: api.fetch(queue, visibility_timeout_ms=50), what="the promoted job is fetched")
    assert receiver.await_span("ojs.visibility.check", ojs__job__queue=queue).about["ojs.job.attempt"] == 1
    name = unique_queue("cron")
    template = {"type": "report.make", "args": [], "options": {"queue": name}}
    api.call("POST", "/cron", {"name": name, "expression": "@every 1s", "job_template": template})
    (job,) = poll(lambda: api.fetch(name), what="the cron job's run")
    api.call("DELETE", f"/cron/{name}")
    tick = receiver.await_span("ojs.cron.trigger", ojs__cron__name=name, ojs__job__id=job["id"])
    assert span_of(job) == (tick.trace_id, tick.span_id)


def test_steps_of_a_workflow_carry_the_step_before_and_its_origin(traced_api: Api, receiver: Receiver) -> None:
    """Section 6.3: `traceparent` of what made the step, `ojs.workflow.trace_origin` of whoever made the workflow."""
    queue, api = unique_queue(), traced_api
    step = {"type": "a.b", "args": [], "options": {"queue": queue}}
    nested = {"type": "group", "name": "inner", "jobs": [step]}
    made = api.call("POST", "/workflows", {"type": "chain", "name": "c", "steps": [step, nested]})
    (first,) = api.fetch(queue)
    created = receiver.await_span("ojs.workflows")
    assert span_of(first) == (created.trace_id, created.span_id)
    origin = first["meta"]["ojs.workflow.trace_origin"]
    assert origin == first["meta"]["traceparent"]
    api.ack(first["id"])
    (second,) = poll(lambda: api.fetch(queue), what="the second step")
    assert second["meta"]["ojs.workflow.trace_origin"] == origin
    advance = receiver.await_span("ojs.workflow.advance", ojs__workflow__id=made["id"], ojs__workflow__step=0)
    assert advance.about["ojs.workflow.type"] == "chain"
    assert span_of(second) == (advance.trace_id, advance.span_id)
    assert receiver.await_span("ojs.ack", ojs__job__id=first["id"]).span_id == advance.parent_id


def test_log_lines_name_their_span(fresh_server: Callable[..., Server], receiver: Receiver) -> None:
    """ojs-logging section 7.2."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OJS_LOG_FORMAT": "json", **SOON}
    server = fresh_server(env=env)
    with Api(server.url) as api:
        job = api.enqueue()
        api.fetch(visibility_timeout_ms=50)
        span = receiver.await_span("ojs.visibility.check", ojs__job__id=job["id"])
    lines = [json.loads(line) for line in server.log().splitlines()]
    (line,) = [one for one in lines if one.get("ojs.job_id") == job["id"]]
    assert (line["trace.trace_id"], line["trace.span_id"]) == (span.trace_id, span.span_id)


@pytest.mark.faults
def test_every_process_sends_and_the_death_of_one_is_a_span(receiver: Receiver) -> None:
    """Two workers of one server and another server: each under the id of its node."""
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(Nats())
        env = {"OJS_OTEL_ENDPOINT": receiver.url, **SOON}
        first = stack.enter_context(Server(nats_url=nats.url, env=env))
        second = stack.enter_context(Server(nats_url=nats.url, env={**env, "OJS_WORKERS": "2"}))
        about = {"service.name": "ojs-fast", "telemetry.sdk.language": "python"}

        def instances() -> set[str]:
            httpx.post(f"{second.url}/ojs/v1/workers/fetch", json={"queues": ["two-workers"]}, **PLAIN)
            spans = [one for one in list(receiver.spans) if one.about.get("ojs.job.queue") == "two-workers"]
            assert all(about.items() <= one.resource.items() for one in spans)
            return {str(one.resource["service.instance.id"]) for one in spans}

        poll(lambda: len(instances()) == 2, what="both workers' spans arrive")
        metrics = httpx.get(f"{second.url}/metrics", **PLAIN).text
        assert all(f'node="{instance}"' in metrics for instance in instances())
        first.kill()
        reaper = receiver.await_span("ojs.reaper.check", ojs__nodes__dead=1)
        assert reaper.resource["service.instance.id"] in instances()


def test_a_receiver_that_is_away_costs_a_log_line(fresh_server: Callable[..., Server]) -> None:
    """Requests are answered, the server stops in time, and what comes after its return is delivered."""
    away = Receiver()
    env = {"OJS_OTEL_ENDPOINT": away.url, "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32"}
    server = fresh_server(env={**env, **SOON, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"})
    with Api(server.url) as api:
        for _ in range(300):
            api.enqueue()
        poll(lambda: "OpenTelemetry complains" in server.log(), what="a complaint")
        with away:
            api.enqueue("after-its-return")
            assert away.await_span("ojs.enqueue", ojs__job__queue="after-its-return").status == OK
        for _ in range(100):
            api.enqueue()
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 15  # the SDK alone would wait for 30 s
    assert server.log().count("OpenTelemetry complains") <= 2


def test_the_last_spans_are_sent_at_shutdown(fresh_server: Callable[..., Server]) -> None:
    """What is still queued when the server stops."""
    with Receiver() as receiver:
        server = fresh_server(env={"OJS_OTEL_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"})
        with Api(server.url) as api:
            job = api.enqueue()
        assert receiver.spans == []
        server.stop()
        assert receiver.await_span("ojs.enqueue").about["ojs.job.id"] == job["id"]


def _maps(server: Server) -> str:
    return "".join(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in server.worker_pids)


def test_without_traces_nothing_is_loaded_and_nothing_written(server: Server, receiver: Receiver) -> None:
    """The SDK's protobuf is a shared object, which shows whether it was imported."""
    with Api(server.url) as api, Server(env={"OJS_OTEL_ENDPOINT": receiver.url}) as traced:
        api.http.headers["traceparent"] = PARENT
        assert api.enqueue(unique_queue())["meta"] == {}
        assert "_upb" in _maps(traced)
        assert "_upb" not in _maps(server)


def test_traces_without_the_extra_are_a_start_error(tmp_path: Path) -> None:
    """The message says what to install."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()  # hides the one that is installed
    server = Server(env={"OJS_OTEL_ENABLED": "true", "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"})
    try:
        server.launch()
        poll(lambda: not server.is_running, what="it ends")
        assert "pip install 'ojs-fast[otel]'" in server.log()
    finally:
        server.close()
