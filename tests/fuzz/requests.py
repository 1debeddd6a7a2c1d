"""Valid requests for every endpoint, and ways to damage them. Everything comes from one `random.Random`."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.support.api import CONTENT_TYPE

KNOWN_ID = "01900000-0000-7000-8000-000000000000"
NAMES = ("fuzz-a", "fuzz.b", "fuzz_c", "nobody")
JOB = {
    "type": "fuzz.job",
    "args": [1, "two", {"three": [None, True]}],
    "meta": {"k": "v", "n": 1},
    "priority": 3,
    "options": {
        "queue": "fuzz-a",
        "retry": {"max_attempts": 2, "initial_interval": "PT1S", "backoff_coefficient": 2.0, "jitter": False},
        "unique": {"keys": ["type", "args"], "period": "PT1M", "on_conflict": "ignore"},
        "rate_limit": {"key": "k", "concurrency": 5, "rate": {"limit": 10, "period": "PT1M"}},
        "scheduled_at": "2099-01-01T00:00:00Z",
        "expires_at": "2099-02-01T00:00:00Z",
        "visibility_timeout_ms": 30_000,
        "timeout_ms": 1000,
        "result_ttl": 60,
        "tags": ["a"],
    },
}
PLAIN = {"type": "fuzz.job", "args": [], "options": {"queue": "fuzz.b"}}
OLD = "2020-01-01T00:00:00Z"
FILTER = {"queue": "fuzz-a", "state": "completed", "type": "fuzz.*", "since": OLD, "meta": {"k": "v"}}
ERROR = {"code": "c", "message": "m", "type": "T", "retryable": True, "details": {"error_class": "E", "x": 1}}

#: Method, path, query parameters, body (None: without).
TEMPLATES: tuple[tuple[str, str, dict[str, str], Any], ...] = (
    ("POST", "/jobs", {}, JOB),
    ("POST", "/jobs", {}, PLAIN),
    ("POST", "/jobs/batch", {}, {"jobs": [PLAIN, JOB]}),
    ("POST", "/jobs/bulk", {}, {"jobs": [PLAIN, JOB], "atomicity": "partial", "idempotency_key": "k"}),
    ("POST", "/jobs/bulk/cancel", {}, {"filter": FILTER}),
    ("POST", "/jobs/bulk/retry", {}, {"job_ids": ["{id}"]}),
    ("POST", "/jobs/bulk/delete", {}, {"filter": {**FILTER, "priority": 3, "until": "2020-01-02T00:00:00Z"}}),
    ("POST", "/jobs/bulk/get", {}, {"job_ids": ["{id}", KNOWN_ID]}),
    ("GET", "/jobs/{id}", {}, None),
    ("PATCH", "/jobs/{id}", {}, {"priority": 5}),
    ("DELETE", "/jobs/{id}", {}, None),
    ("POST", "/jobs/{id}/activate", {}, {}),
    ("POST", "/jobs/{id}/ack", {}, {"result": {"a": 1}}),
    ("POST", "/workers/fetch", {}, {
        "queues": ["fuzz-a", "fuzz.b"], "count": 2, "worker_id": "w", "visibility_timeout_ms": 60_000,
    }),
    ("POST", "/workers/ack", {}, {"job_id": "{id}", "worker_id": "w", "result": [1]}),
    ("POST", "/workers/nack", {}, {"job_id": "{id}", "worker_id": "w", "error": ERROR, "requeue": False}),
    ("POST", "/workers/heartbeat", {}, {"worker_id": "w", "active_jobs": ["{id}"], "visibility_timeout_ms": 60_000}),
    ("POST", "/workers/progress", {}, {"job_id": "{id}", "percentage": 50, "message": "half", "data": {"n": 1}}),
    ("PUT", "/jobs/{id}/progress", {}, {"progress": 0.5, "message": "half", "data": {"n": 1}, "worker_id": "w"}),
    ("GET", "/jobs/{id}/progress", {}, None),
    ("PUT", "/jobs/{id}/checkpoint", {}, {"state": {"at": 1}, "worker_id": "w"}),
    ("GET", "/jobs/{id}/checkpoint", {}, None),
    ("DELETE", "/jobs/{id}/checkpoint", {}, None),
    ("POST", "/checkpoints/{id}", {}, {"metadata": {"_replay_log": [1]}}),
    ("GET", "/checkpoints/{id}/resume", {}, None),
    ("POST", "/schemas", {}, {"uri": "urn:fuzz:{name}", "type": "a.b", "version": 1, "schema": {"type": "array"}}),
    ("GET", "/schemas", {"limit": "5", "offset": "0"}, None),
    ("GET", "/schemas/{name}", {}, None),
    ("DELETE", "/schemas/{name}", {}, None),
    ("GET", "/workers/{name}/health", {}, None),
    ("PUT", "/admin/schemas/{name}/1", {}, {"schema": {"type": "array"}}),
    ("GET", "/admin/schemas/{name}/versions", {}, None),
    ("GET", "/dead-letter", {"queue": "fuzz-a", "limit": "5", "offset": "0"}, None),
    ("DELETE", "/dead-letter", {}, {"confirm": True, "filter": {"queue": "nobody", "older_than": OLD}}),
    ("GET", "/dead-letter/stats", {}, None),
    ("POST", "/dead-letter/retry", {}, {"confirm": True, "queue": "nobody"}),
    ("POST", "/dead-letter/{id}/retry", {}, {}),
    ("GET", "/queues", {}, None),
    ("POST", "/queues", {}, {"name": "{name}", "config": {"backpressure": {"max_depth": 1000, "strategy": "reject"}}}),
    ("GET", "/queues/{name}/stats", {}, None),
    ("PUT", "/queues/{name}/config", {}, {"retention": {"completed": "PT1H"}, "default_timeout_ms": 1000}),
    ("POST", "/queues/{name}/purge", {}, {"confirm": True, "states": ["completed"], "older_than": OLD}),
    ("POST", "/queues/{name}/pause", {}, {}),
    ("POST", "/queues/{name}/resume", {}, {}),
    ("DELETE", "/queues/{name}", {}, None),
    ("POST", "/cron", {}, {
        "name": "{name}", "expression": "0 0 1 1 *", "timezone": "Europe/Berlin", "overlap_policy": "skip",
        "enabled": False, "job_template": PLAIN,
    }),
    ("PATCH", "/cron/{name}", {}, {"enabled": False}),
    ("GET", "/cron", {"limit": "5"}, None),
    ("DELETE", "/cron/{name}", {}, None),
    ("PUT", "/rate-limits/{name}", {}, {"concurrency": 5, "rate": {"limit": 5, "period": "PT1S"}}),
    ("GET", "/rate-limits/{name}", {}, None),
    ("DELETE", "/rate-limits/{name}", {}, None),
    ("POST", "/workflows", {}, {"type": "chain", "name": "w", "steps": [PLAIN, PLAIN]}),
    ("POST", "/workflows", {}, {"type": "group", "jobs": [PLAIN, {"type": "chain", "steps": [PLAIN, PLAIN]}]}),
    ("POST", "/workflows", {}, {
        "type": "batch", "jobs": [PLAIN], "callbacks": {"on_success": PLAIN, "on_failure": PLAIN, "on_complete": PLAIN},
    }),
    ("POST", "/workflows", {}, {"steps": [{"id": "a", **PLAIN}, {"id": "b", "depends_on": ["a"], **PLAIN}]}),
    ("GET", "/workflows", {"limit": "5", "state": "running"}, None),
    ("DELETE", "/workflows/{id}", {}, None),
    ("POST", "/workflows/{id}/retry", {}, {}),
    ("GET", "/webhooks/subscriptions", {"page": "1", "per_page": "5"}, None),
    ("POST", "/webhooks/subscriptions", {}, {
        "url": "https://hook.invalid/x?y=z", "events": ["job.*", "queue.paused"], "active": False,
        "filter": {"queues": ["fuzz-a"], "job_types": ["fuzz.job"]}, "metadata": {"a": [1]},
        "secret": "a-secret-of-ours",
    }),
    ("PATCH", "/webhooks/subscriptions/{id}", {}, {"events": ["*"], "active": True}),
    ("POST", "/webhooks/subscriptions/{id}/rotate-secret", {}, {}),
    ("DELETE", "/webhooks/subscriptions/{id}", {}, None),
    ("GET", "/webhooks/deliveries", {"status": "dead", "limit": "5", "after": "del_1", "subscription_id": "x"}, None),
    ("GET", "/webhooks/deliveries/{id}", {}, None),
    ("POST", "/webhooks/deliveries/{id}/retry", {}, {}),
    ("GET", "/events", {"types": "job.completed", "limit": "5", "after": ""}, None),
    ("GET", "/admin/jobs", {"state": "completed", "type": "fuzz.*", "per_page": "5", "sort": "priority"}, None),
    ("POST", "/admin/jobs/bulk/cancel", {}, {"confirm": True, "filter": {**FILTER, "queue": "nobody"}}),
    ("GET", "/admin/stats/history", {"period": "5m", "since": "2020-01-01T00:00:00Z"}, None),
    ("GET", "/admin/workers", {"page": "1"}, None),
    ("POST", "/admin/workers/{name}/quiet", {}, {}),
    ("GET", "/admin/dead-letter", {"page": "1", "per_page": "5"}, None),
    ("PUT", "/admin/queues/{name}/rate-limit", {}, {"rate": {"limit": 5, "period": "PT1S"}}),
)  # fmt: skip

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.1, -0.0, 1e308, "", " ", "x" * 300,
    "x" * 70_000,
    "\0", "\ud800", "💥" * 100, "a.b.c", "*", ">", "../..", "$KV", "P1D", "PT0S", "P99999999Y", "2026-13-45T99:99:99Z",
    "0000-01-01T00:00:00Z", KNOWN_ID, KNOWN_ID.upper(), [], {}, [[]], [{}], {"": ""}, {"a": {"b": {"c": []}}},
    [None] * 2000,
    {"\0": 1}, {"\ud800": 1}, "available", "completed", "reject", "NaN",
)  # fmt: skip
PATH_PARTS = (
    "",
    "%00",
    "%2e%2e",
    "a%2Fb",
    "x" * 300,
    "%F0%9F%92%A5",
    "%ff",
    "*",
    "%3E",
    "..",
    "a b".replace(" ", "%20"),
)
CONTENT_TYPES = (
    "text/plain", "application/json; charset=latin-1", "application/x-www-form-urlencoded", "", "application/json;",
    "\xff",
)  # fmt: skip
HEADERS = (
    ("OJS-Version", "2.0"), ("OJS-Version", ""), ("Idempotency-Key", ""), ("Idempotency-Key", "k" * 300),
    ("Idempotency-Key", "\xff\xfe"), ("X-Request-Id", "\xff" * 200), ("Content-Encoding", "gzip"), ("Accept", "\xff"),
    ("Authorization", "Bearer x"), ("OJS-Block-Timeout", "-1"), ("OJS-Block-Timeout", "x"), ("Last-Event-ID", "x"),
)  # fmt: skip


@dataclass(slots=True)
class Request:
    """What goes over the wire."""

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = self.body if self.body is None or len(self.body) < 600 else self.body[:600] + b"..."
        return f"{self.method} {self.path[:300]} {self.headers} {shown!r}"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: `(container, key)`."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    found = [(value, key) for key in keys]
    for key in keys:
        found += _places(value[key])
    return found


def _filled(value: Any, known: dict[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in known.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, dict):
        return {key: _filled(one, known) for key, one in value.items()}
    return [_filled(one, known) for one in value] if isinstance(value, list) else value


def _damaged_value(chance: Random, body: Any) -> Any:
    places = _places(body)
    if not places or chance.random() < 0.05:
        return chance.choice(ODD)
    container, key = chance.choice(places)
    action = chance.randrange(5)
    if action == 0 and isinstance(container, dict):
        del container[key]
    elif action == 1 and isinstance(container, dict):
        container[str(chance.choice(ODD))[:50]] = chance.choice(ODD)
    elif action == 2 and isinstance(container, list):
        container.extend(copy.deepcopy(container[:3]) * chance.randint(1, 50))
    else:
        container[key] = copy.deepcopy(chance.choice(ODD))
    return body


def _damaged_bytes(chance: Random, raw: bytes) -> bytes:
    at = chance.randrange(len(raw) + 1)
    action = chance.randrange(7)
    if action == 0:
        return raw[:at]
    if action == 1:
        return raw[:at] + bytes([chance.randrange(256)]) + raw[at:]
    if action == 2:
        return raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :]
    if action == 3:
        return b"[" * chance.choice((50, 200, 20_000)) + raw
    if action == 4:
        return raw[:1] + b'"type":"a.b","queues":["x"],"job_id":7,' + raw[1:]  # members twice
    if action == 5:
        return b"\xef\xbb\xbf" + raw
    return raw.replace(b'"', b'"\\ud800', 1)


def request(chance: Random, job_ids: list[str], *, damaged: bool) -> Request:
    """A request to one of the endpoints, as it should be or damaged."""
    method, path, query, body = chance.choice(TEMPLATES)
    known = {"id": chance.choice(job_ids) if job_ids else KNOWN_ID, "name": chance.choice(NAMES)}
    path, body, query = _filled(path, known), _filled(copy.deepcopy(body), known), dict(query)
    headers = {"Content-Type": CONTENT_TYPE}
    kinds = chance.sample(("value", "value", "value", "bytes", "path", "query", "header", "type", "method"), 2)
    kinds = kinds[: chance.choice((1, 1, 2))] if damaged else []
    if "value" in kinds:
        body = _damaged_value(chance, body)
    raw = None if body is None else json.dumps(body).encode()
    if "bytes" in kinds and raw is not None:
        raw = _damaged_bytes(chance, raw)
    if "path" in kinds:
        parts = path.split("/")
        parts[chance.randrange(1, len(parts))] = chance.choice(PATH_PARTS)
        path = "/".join(parts)
    if "query" in kinds:
        names = [*query, "limit", "offset", "page", "state", "since", "x" * 40]
        query[chance.choice(names)] = chance.choice(
            ("", "-1", "1e9", "99999999999999999999", "%00", "%ff", "x", "a" * 3000)
        )
    if "header" in kinds:
        headers.update([chance.choice(HEADERS)])
    if "type" in kinds:
        headers["Content-Type"] = chance.choice(CONTENT_TYPES)
    if "method" in kinds:
        method = chance.choice(("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"))
    text = "&".join(f"{name}={value}" for name, value in query.items())
    return Request(method, "/ojs/v1" + path + (f"?{text}" if text else ""), raw, headers)
