"""What the official Python SDK puts on the wire and how strictly it reads the answers (EXTENSIONS section 2).

It parses a body only when the Content-Type names application/json; until then every answer is text to it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.plain import PLAIN

OJS_JSON = "application/openjobspec+json"
RETRIED = (429, 502, 503, 504)
RETRIES = 3
Body = dict[str, Any]


def send(http: httpx.Client, method: str, path: str, body: Body | None, query: Body) -> httpx.Response:
    """One call of either SDK, with its retries; `path` below /ojs/v1 unless it says so itself."""
    where = path if path.startswith(("/ojs/manifest", "/ojs/v1/")) else f"/ojs/v1{path}"
    left = RETRIES
    while True:
        headers = {"X-Request-ID": str(uuid.uuid4())}
        response = http.request(method, where, json=body, params=query, headers=headers)
        if response.status_code not in RETRIED or not left:
            return response
        left -= 1


class SdkError(Exception):
    """What the SDK raises: `kind` is the name of its class, chosen by `error.code`."""

    KINDS = {  # noqa: RUF012 - a constant
        "duplicate": "DuplicateJobError",
        "not_found": "JobNotFoundError",
        "queue_paused": "QueuePausedError",
        "rate_limited": "RateLimitedError",
    }

    def __init__(self, response: httpx.Response) -> None:
        error = response.json()["error"]
        super().__init__(error["message"])
        self.kind = self.KINDS.get(error["code"], "OJSAPIError")
        self.status = response.status_code
        self.request_id = error["request_id"]
        self.retryable: bool = error["retryable"]
        self.details: Body = error.get("details") or {}


def moment(text: str | None) -> datetime | None:
    """An RFC 3339 time as the SDK reads it."""
    return datetime.fromisoformat(text) if text else None


@dataclass(frozen=True)
class Job:
    """The members that the SDK's Job insists on, and some that it converts."""

    id: str
    type: str
    queue: str
    state: str
    args: list[Any]
    meta: Body
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime | None
    raw: Body

    @classmethod
    def of(cls, raw: Body) -> Self:
        """Read one; KeyError for a member that is missing."""
        uuid.UUID(raw["id"])
        return cls(
            raw["id"],
            raw["type"],
            raw["queue"],
            raw["state"],
            list(raw["args"]),
            dict(raw["meta"]),
            int(raw["priority"]),
            int(raw["attempt"]),
            int(raw["max_attempts"]),
            moment(raw["created_at"]),
            raw,
        )


class PythonSdk:
    """Client and worker; `headers` is the option of the same name, by which users make it parse."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, *, transport: Any = None) -> None:
        self.requests: list[httpx.Request] = []
        self.http = httpx.Client(
            base_url=url,
            headers={"Content-Type": OJS_JSON, "Accept": OJS_JSON, "OJS-Version": "1.0", **(headers or {})},
            transport=transport,
            timeout=30,
            event_hooks={"request": [self.requests.append]},
            **PLAIN,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def send(self, method: str, path: str, body: Body | None = None, **query: Any) -> Any:
        """One call with the SDK's retries; the parsed body, or text when the SDK would not parse it."""
        response = send(self.http, method, path, body, query)
        if response.status_code >= 400:
            raise SdkError(response)
        if "application/json" not in response.headers["Content-Type"]:
            return response.text
        return response.json()

    # -- producer --------------------------------------------------------------------------------

    def enqueue(self, kind: str, args: list[Any], *, meta: Body | None = None, **options: Any) -> Job:
        """POST /jobs; reads `job`."""
        return Job.of(self.send("POST", "/jobs", request(kind, args, meta, options))["job"])

    def enqueue_batch(self, bodies: list[Body]) -> list[Job]:
        """POST /jobs/batch; reads `jobs`."""
        return [Job.of(one) for one in self.send("POST", "/jobs/batch", {"jobs": bodies})["jobs"]]

    def get(self, job_id: str) -> Job:
        """GET /jobs/{id}; reads `job`."""
        return Job.of(self.send("GET", f"/jobs/{job_id}")["job"])

    def cancel(self, job_id: str) -> Job:
        """DELETE /jobs/{id}; reads `job`."""
        return Job.of(self.send("DELETE", f"/jobs/{job_id}")["job"])

    # -- worker ----------------------------------------------------------------------------------

    def fetch(self, queue: str, worker_id: str, visibility_timeout_ms: int = 30_000) -> Job | None:
        """POST /workers/fetch, one at a time."""
        body = {
            "queues": [queue],
            "count": 1,
            "visibility_timeout_ms": visibility_timeout_ms,
            "worker_id": worker_id,
        }
        jobs = self.send("POST", "/workers/fetch", body)["jobs"]
        return Job.of(jobs[0]) if jobs else None

    def ack(self, job_id: str, result: Any = None) -> None:
        """POST /workers/ack without worker_id; the status is all that it looks at. After a failed one it nacks."""
        body = {"job_id": job_id} if result is None else {"job_id": job_id, "result": result}
        self.send("POST", "/workers/ack", body)

    def nack(self, job_id: str, message: str, *, code: str = "handler_error", retryable: bool = True) -> None:
        """POST /workers/nack."""
        error = {"code": code, "message": message, "retryable": retryable, "details": {"error_class": "ValueError"}}
        self.send("POST", "/workers/nack", {"job_id": job_id, "error": error})

    def heartbeat(self, worker_id: str, job_ids: list[str], visibility_timeout_ms: int = 30_000) -> str:
        """POST /workers/heartbeat; reads `state`."""
        body = {"worker_id": worker_id, "active_jobs": job_ids, "visibility_timeout_ms": visibility_timeout_ms}
        state: str = self.send("POST", "/workers/heartbeat", body)["state"]
        return state

    def progress(self, job_id: str, percentage: float, message: str | None = None, data: Body | None = None) -> None:
        """POST /workers/progress; ignores the answer."""
        more = {name: value for name, value in (("message", message), ("data", data)) if value is not None}
        self.send("POST", "/workers/progress", {"job_id": job_id, "percentage": percentage, **more})

    def replay_log(self, job_id: str) -> list[Any]:
        """What a durable handler reads first, at the doubled prefix: `checkpoint.metadata._replay_log`."""
        told = self.send("GET", f"/ojs/v1/ojs/v1/checkpoints/{job_id}/resume")
        if not told["has_checkpoint"]:
            return []
        log: list[Any] = told["checkpoint"]["metadata"]["_replay_log"]
        return log

    # -- workflows, events -----------------------------------------------------------------------

    def workflow(self, name: str, steps: list[Body]) -> Body:
        """POST /workflows, a graph without `type`."""
        return self.read_workflow(self.send("POST", "/workflows", {"name": name, "steps": steps}))

    def read_workflow(self, answer: Body) -> Body:
        """The members that the SDK's Workflow insists on, of every step as well."""
        workflow: Body = answer["workflow"]
        for member in ("id", "name", "state"):
            assert isinstance(workflow[member], str)
        for step in workflow.get("steps", []):
            assert isinstance(step["id"], str)
            assert isinstance(step["type"], str)
        return workflow

    @contextmanager
    def subscribe(self, channel: str) -> Iterator[Iterator[tuple[str, str, Body]]]:
        """GET /events/stream: `(event, id, data)` one after the other, once the stream is open."""
        headers = {"Accept": "text/event-stream", "Authorization": "Bearer key"}
        with self.http.stream("GET", "/ojs/v1/events/stream", params={"channel": channel}, headers=headers) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str, Body]]:
    fields = dict.fromkeys(("event", "id", "data"), "")
    for line in lines:
        name, _, value = line.partition(":")
        if name in fields:
            fields[name] = value.strip()
        elif not line and fields["data"]:
            yield fields["event"], fields["id"], json.loads(fields["data"])
            fields = dict.fromkeys(fields, "")


def request(kind: str, args: list[Any], meta: Body | None, options: Body) -> Body:
    """The body of an enqueue: `meta` and `options` only when there are any."""
    body: Body = {"type": kind, "args": args}
    if meta:
        body["meta"] = meta
    if options:
        body["options"] = options
    return body


class ParsingHook(httpx.HTTPTransport):
    """The other way to make it parse: a transport that tells it application/json."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Rename the media type of the answer."""
        response = super().handle_request(request)
        if response.headers.get("Content-Type") == OJS_JSON:
            response.headers["Content-Type"] = "application/json"
        return response
