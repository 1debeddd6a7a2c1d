"""Valid and damaged requests to every endpoint: never a 5xx, clear refusals, which change nothing; memory stays flat.

OJS_FUZZ_COUNT sets how many, OJS_FUZZ_SEED repeats a run: `make fuzz COUNT=100000 SEED=7`.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.cpu import rss_bytes
from tests.fuzz.requests import Request, request
from tests.support.server import Server

COUNT = int(os.environ.get("OJS_FUZZ_COUNT", "3000"))
SEED = int(os.environ.get("OJS_FUZZ_SEED") or random.SystemRandom().randrange(10**6))
REPEATED_AT_ONCE = 40
TRIES = 20
TOLD_EVERY = 2000
GROWTH_LIMIT_BYTES = 60 * 1024 * 1024
#: What refusals must not change. Times pass and leaders flush meanwhile, so only what requests can alter is looked at.
STATE = (
    "/queues", "/cron", "/workflows?limit=100", "/dead-letter?limit=100", "/rate-limits", "/admin/jobs?per_page=100",
    "/admin/workers",
)  # fmt: skip
VOLATILE = {
    "computed_at", "server_time", "pagination", "age_ms", "last_heartbeat", "last_seen_at", "uptime", "uptime_seconds",
    "throughput", "oldest_job_age_ms", "oldest_waiting_ms", "rates", "latency",
    "window_resets_at",
}  # fmt: skip

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(120 + COUNT // 20)]


class Client:
    """One connection that sends whatever it is told to."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def send(self, one: Request) -> tuple[int, bytes, http.client.HTTPMessage]:
        """The answer: `(status, body, headers)`."""
        for attempt in range(2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                self._connection.putrequest(one.method, one.path, skip_accept_encoding=True)
                for name, value in one.headers.items():
                    self._connection.putheader(name, value.encode("latin-1"))
                if one.body is not None or one.method not in ("GET", "HEAD", "OPTIONS", "TRACE"):
                    self._connection.putheader("Content-Length", str(len(one.body or b"")))
                self._connection.endheaders(one.body)
                answer = self._connection.getresponse()
                body = b"" if "/events" in one.path and answer.status == 200 else answer.read()
                if answer.will_close or (body == b"" and answer.status == 200):
                    self.close()
                return answer.status, body, answer.headers
            except (http.client.HTTPException, OSError):
                # The server closes after what it could not read as HTTP; a fresh connection must be answered.
                self.close()
                if attempt:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str) -> Any:
        """The decoded answer to a plain GET."""
        status, body, _ = self.send(Request("GET", "/ojs/v1" + path, None))
        assert status == 200, (path, status, body[:300])
        return json.loads(body)


def steady(value: Any) -> Any:
    """A value without what changes by itself."""
    if isinstance(value, dict):
        return {name: steady(one) for name, one in value.items() if name not in VOLATILE}
    return [steady(one) for one in value] if isinstance(value, list) else value


def state(client: Client) -> dict[str, Any]:
    """What is stored, as operators see it."""
    return {path: steady(client.get(path)) for path in STATE}


def check(one: Request, status: int, body: bytes, headers: http.client.HTTPMessage) -> None:
    """No failure of the server's own, and a refusal that tells what is wrong."""
    assert status < 500, f"{status} {body[:500]!r}\nto {one}"
    if status < 400 or one.method == "HEAD" or not body:
        return
    if not (headers.get("Content-Type") or "").startswith("application/"):
        assert status in (400, 431), f"{status} {body[:200]!r}\nto {one}"  # what no HTTP server could read
        return
    told = json.loads(body)
    # A bulk request of which nothing succeeded says so item by item.
    errors = [told["error"]] if "error" in told else [item["error"] for item in told["items"]]
    for error in errors:
        assert error["code"], f"{status} {body[:300]!r}\nto {one}"
        assert error["message"], f"{status} {body[:300]!r}\nto {one}"


def refusals_change_nothing(client: Client, refused: list[Request]) -> None:
    """Sent once more, those that are refused again leave everything as it was."""
    changed: dict[str, Any] = {}
    for _ in range(TRIES):
        refused = [one for one in refused if 400 <= client.send(one)[0] < 429]
        before = state(client)
        if state(client) != before:
            continue  # jobs that run out of time change by themselves
        still = [one for one in refused if 400 <= client.send(one)[0] < 429]
        after = state(client)
        if before == after:
            return
        changed = {path: (before[path], after[path]) for path in STATE if before[path] != after[path]}
        refused = still
    raise AssertionError(f"{changed}\nwas changed by one of\n" + "\n".join(map(str, refused)))


def test_hostile_requests(fresh_server: Callable[..., Server]) -> None:
    """The whole run."""
    sys.stdout.write(f"OJS_FUZZ_SEED={SEED}\n")
    chance = random.Random(SEED)
    server = fresh_server()
    client = Client(server.port)
    job_ids: list[str] = []
    refused: list[Request] = []
    seen: Counter[int] = Counter()
    memory = 0
    for number in range(COUNT):
        one = request(chance, job_ids, damaged=chance.random() < 0.8)
        status, body, headers = client.send(one)
        seen[status] += 1
        check(one, status, body, headers)
        if status in (200, 201) and one.method == "POST" and one.path.endswith("/jobs"):
            job_ids = [*job_ids[-50:], json.loads(body)["job"]["id"]]
        if 400 <= status < 429 and len(one.body or b"") < 100_000:
            refused.append(one)
        if len(refused) == REPEATED_AT_ONCE:
            refusals_change_nothing(client, refused)
            refused = []
        if number % TOLD_EVERY == TOLD_EVERY - 1:
            sys.stdout.write(f"{number + 1} of {COUNT} requests\n")
            sys.stdout.flush()
        if number == COUNT // 3:
            memory = rss_bytes(server.worker_pids[0])
    sys.stdout.write(f"{COUNT} requests: {dict(sorted(seen.items()))}\n")
    assert len(seen) > 4
    assert rss_bytes(server.worker_pids[0]) - memory < GROWTH_LIMIT_BYTES
    assert client.get("/health")["status"] == "ok"
    client.close()
