"""GET /metrics: what Prometheus reads is what happened, on whatever node; /ready."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from functools import partial

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ojs_fast import __version__
from tests.support.api import Api, unique_queue
from tests.support.docker import health_check
from tests.support.nats import Nats
from tests.support.openapi import check
from tests.support.plain import PLAIN
from tests.support.server import Server

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(server: Server) -> Samples:
    """Every sample by name and labels, without the node."""
    reply = httpx.get(f"{server.url}/metrics", **PLAIN)
    check(reply)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "node"))
            found[sample.name, labels] = found.get((sample.name, labels), 0) + sample.value
    return found


def test_what_happened_on_two_nodes_is_read_from_either() -> None:
    """Counters, histograms and depths, each by queue; jobs enqueued at one node, run at the other."""
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(Nats())
        first, second = (stack.enter_context(Server(nats_url=nats.url)) for _ in range(2))
        one, two = (stack.enter_context(Api(server.url)) for server in (first, second))
        queue = unique_queue()
        for _ in range(4):
            one.enqueue(queue, kind="a.b", retry={"max_attempts": 1})
        jobs = [two.fetch(queue)[0]["id"] for _ in range(3)]
        two.ack(jobs[0])
        one.ack(jobs[1])
        two.nack(jobs[2])
        one.heartbeat("w-1")
        by_queue, by_type = (("queue", queue),), (("queue", queue), ("type", "a.b"))
        for server in (first, second):
            found = scrape(server)
            assert found["ojs_job_enqueued_total", by_type] == 4
            assert found["ojs_job_completed_total", by_type] == 2
            assert found["ojs_job_failed_total", by_type] == 1
            assert found["ojs_job_duration_seconds_count", (*by_queue, ("state", "completed"), by_type[1])] == 2
            assert found["ojs_job_duration_seconds_count", (*by_queue, ("state", "discarded"), by_type[1])] == 1
            assert found["ojs_job_queue_time_seconds_count", by_type] == 3
            assert found["ojs_job_queue_time_seconds_bucket", (("le", "+Inf"), *by_type)] == 3
            assert found["ojs_job_queue_time_seconds_sum", by_type] >= 0
            assert found["ojs_queue_depth", (*by_queue, ("state", "available"))] == 1
            assert found["ojs_queue_depth", (*by_queue, ("state", "active"))] == 0
            assert found["ojs_workers_active", ()] == 1
            assert found["ojs_http_request_duration_seconds_count", (("operation", "enqueue"), ("status", "201"))] == 4
            assert found["ojs_http_request_duration_seconds_count", (("operation", "ack"), ("status", "200"))] == 2
            assert found["ojs_node_leader", ()] == 1
            assert found["ojs_node_info", (("version", __version__),)] == 2


def test_all_processes_of_a_server_are_told_whichever_answers() -> None:
    """Granian hands a connection to either of two; the sums are the same."""
    with Server(env={"OJS_WORKERS": "2"}) as server:
        queue = unique_queue()
        for _ in range(40):
            with Api(server.url) as api:  # a connection each
                api.enqueue(queue, kind="a.b")
        for _ in range(10):
            found = scrape(server)
            assert found["ojs_node_info", (("version", __version__),)] == 2
            assert found["ojs_job_enqueued_total", (("queue", queue), ("type", "a.b"))] == 40
            assert found["ojs_http_request_duration_seconds_count", (("operation", "enqueue"), ("status", "201"))] == 40
            assert found["ojs_node_leader", ()] == 1


def test_dead_letters_are_counted_by_queue(server: Server, api: Api) -> None:
    """Those that are there now, those that came or were retried; a deleted one is only not there any more."""
    queue, other = unique_queue(), unique_queue()

    def die(name: str) -> str:
        job_id = str(api.enqueue(name, kind="a.b", retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})["id"])
        api.fetch(name)
        api.nack(job_id)
        return job_id

    _, third, fourth, last, _ = [die(name) for name in (queue, queue, queue, queue, other)]
    api.call("DELETE", f"/dead-letter/{third}")
    api.call("DELETE", f"/dead-letter/{fourth}")
    assert scrape(server)["ojs_dead_letter_total", (("queue", queue),)] == 2
    api.call("POST", f"/dead-letter/{last}/retry", {})
    found = scrape(server)
    by_type = (("queue", queue), ("type", "a.b"))
    assert found["ojs_dead_letter_added_total", by_type] == 4
    assert found["ojs_dead_letter_retried_total", by_type] == 1
    assert found["ojs_dead_letter_total", (("queue", queue),)] == 1
    assert found["ojs_dead_letter_total", (("queue", other),)] == 1


def test_the_media_type_follows_the_client(server: Server) -> None:
    """A client that accepts exactly text/plain gets exactly that."""
    reply = httpx.get(f"{server.url}/metrics", headers={"Accept": "text/plain"}, **PLAIN)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/plain")


def test_metrics_need_the_key_and_readiness_does_not(fresh_server: Callable[..., Server]) -> None:
    """As health and manifest, /ready is open."""
    server = fresh_server(env={"OJS_API_KEY": "secret"})
    assert httpx.get(f"{server.url}/metrics", **PLAIN).status_code == 401
    ready = httpx.get(f"{server.url}/ready", **PLAIN)
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


def test_probes_of_docker_and_kubernetes_need_no_key(fresh_server: Callable[..., Server]) -> None:
    """What docker/Dockerfile runs passes while the server runs, and fails when it does not."""
    server = fresh_server(env={"OJS_API_KEY": "secret"})
    for path in ("/ojs/v1/health", "/ready", "/ojs/manifest"):
        assert httpx.get(f"{server.url}{path}", **PLAIN).status_code == 200
    check = partial(subprocess.run, health_check(), env={"OJS_PORT": str(server.port)}, capture_output=True, timeout=30)
    assert check(check=False).returncode == 0
    server.stop()
    assert check(check=False).returncode == 1
