"""A line for each request with OJS_ACCESS_LOG, and none without."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.api import Api, unique_queue
from tests.support.plain import PLAIN
from tests.support.processes import poll
from tests.support.server import Server

ON = {"OJS_ACCESS_LOG": "true", "OJS_LOG_FORMAT": "json", "OJS_LOG_LEVEL": "error"}


def told(server: Server) -> list[dict[str, Any]]:
    """The lines about requests, but for those of whoever waited for the server."""
    parsed = [json.loads(line) for line in server.log().splitlines()]
    return [line for line in parsed if line["logger"] == "ojs_fast.access" and line["url.path"] != "/ojs/v1/health"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ojs/manifest", 200),
        ("GET", "/ojs/v1/jobs/none", 404),
        ("GET", "/ojs/v1/nowhere", 404),
        ("PUT", "/ojs/v1/jobs", 405),
        ("GET", "/ojs/v1/queues?page=secret", 401),
        ("GET", "/ojs/v1/a%0Ab%22c", 404),
    ],
)
def test_each_request_is_a_line(fresh_server: Callable[..., Server], method: str, path: str, status: int) -> None:
    """Whatever lane it takes and whatever becomes of it; never with its query string."""
    server = fresh_server(env=ON | ({"OJS_API_KEY": "k"} if status == 401 else {}))
    answer = httpx.request(method, server.url + path, headers={"X-Request-Id": "mine-1"}, **PLAIN)
    assert answer.status_code == status
    [line] = poll(lambda: told(server), what="the request is told")
    shown = path.partition("?")[0].replace("%0A", "\\n").replace("%22", '"')
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "severity": "INFO",
        "severity_number": 9,
        "message": f"{method} {shown} {status}",
        "component": "server",
        "logger": "ojs_fast.access",
        "http.request.method": method,
        "url.path": shown.replace("\\n", "\n"),
        "http.response.status_code": status,
        "http.request.body.size": 0,
        "http.response.body.size": len(answer.content),
        "client.address": "127.0.0.1",
        "request_id": "mine-1",
    }


def test_the_last_lines_are_written_at_shutdown(fresh_server: Callable[..., Server]) -> None:
    """What was gathered leaves before the process ends, in order; a stream is told when it begins."""
    server = fresh_server(env=ON)
    with Api(server.url) as api:
        ids = [api.enqueue(unique_queue())["id"] for _ in range(50)]
        for job_id in ids:
            assert api.request("GET", f"/jobs/{job_id}").status_code == 200
    with httpx.stream("GET", f"{server.url}/ojs/v1/events/stream?queue=q") as stream:
        assert stream.status_code == 200
    server.stop()
    paths = [line["url.path"] for line in told(server)]
    assert paths == ["/ojs/v1/jobs"] * 50 + [f"/ojs/v1/jobs/{one}" for one in ids] + ["/ojs/v1/events/stream"]


def test_text_is_for_human_eyes(fresh_server: Callable[..., Server]) -> None:
    """One line whatever the path holds."""
    server = fresh_server(env=ON | {"OJS_LOG_FORMAT": "text"})
    httpx.get(f"{server.url}/ojs/v1/a%0Ab", **PLAIN)
    shown = "INFO  GET /ojs/v1/a\\nb 404  http.request.method='GET'"
    poll(lambda: any(shown in line for line in server.log().splitlines()), what=shown)


def test_without_it_requests_are_not_logged(fresh_server: Callable[..., Server]) -> None:
    """The default."""
    server = fresh_server(env={"OJS_LOG_FORMAT": "json"})
    with Api(server.url) as api:
        api.enqueue(unique_queue())
    server.stop()
    assert told(server) == []
