"""A small client of the server's HTTP interface that returns parsed bodies."""

from __future__ import annotations

import itertools
import os
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.openapi import check
from tests.support.plain import PLAIN

CONTENT_TYPE = "application/openjobspec+json"
Body = dict[str, Any]

_numbers = itertools.count(1)


class ApiError(Exception):
    """An answer that is no success; `code` is that of the OJS error body."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code} {response.text[:500]}")
        self.response = response
        self.status = response.status_code
        try:
            self.error: Body = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            self.error = {}
        self.code = str(self.error.get("code", ""))


def unique_queue(prefix: str = "q") -> str:
    """Return a queue name that no other test uses, so that tests can share a server."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}-{os.urandom(3).hex()}"


class Api:
    """One client; every method returns the parsed body and raises ApiError on anything but 2xx."""

    def __init__(self, url: str, *, api_key: str = "", timeout_s: float = 30.0) -> None:
        headers = {"Content-Type": CONTENT_TYPE}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self.url = url
        self.http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, event_hooks={"response": [check]}, **PLAIN
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def request(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Send any request below `/ojs/v1` (or the manifest) and return the answer, whatever it is."""
        where = path if path.startswith("/ojs") else f"/ojs/v1{path}"
        if body is not None:
            more["json"] = body
        return self.http.request(method, where, **more)

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Body:
        """Send a request and return its parsed body."""
        response = self.request(method, path, body, **more)
        if not response.is_success:
            raise ApiError(response)
        parsed: Body = response.json()
        return parsed

    # -- jobs ------------------------------------------------------------------------------------

    def enqueue(self, queue: str = "default", *, kind: str = "test.job", args: Any = (), **fields: Any) -> Body:
        """Enqueue one job and return it. `fields` that are top-level ones go there, others into `options`."""
        job: Body = self.call("POST", "/jobs", job_request(queue, kind=kind, args=args, **fields))["job"]
        return job

    def enqueue_batch(self, jobs: list[Body]) -> list[Body]:
        """Enqueue what `job_request` made, all or nothing."""
        stored: list[Body] = self.call("POST", "/jobs/batch", {"jobs": jobs})["jobs"]
        return stored

    def get(self, job_id: str) -> Body:
        """Return a job as it is now."""
        job: Body = self.call("GET", f"/jobs/{job_id}")["job"]
        return job

    def cancel(self, job_id: str) -> Body:
        """Cancel a job and return it."""
        job: Body = self.call("DELETE", f"/jobs/{job_id}")["job"]
        return job

    def activate(self, job_id: str) -> Body:
        """Make a pending job available."""
        job: Body = self.call("POST", f"/jobs/{job_id}/activate", {})["job"]
        return job

    # -- workers ---------------------------------------------------------------------------------

    def fetch(self, *queues: str, count: int = 1, **fields: Any) -> list[Body]:
        """Fetch up to `count` jobs; `fields`: worker_id, visibility_timeout_ms."""
        body = {"queues": list(queues or ("default",)), "count": count, **fields}
        jobs: list[Body] = self.call("POST", "/workers/fetch", body)["jobs"]
        return jobs

    def ack(self, job_id: str, **fields: Any) -> Body:
        """Complete a job; `fields`: result, worker_id."""
        return self.call("POST", "/workers/ack", {"job_id": job_id, **fields})

    def nack(self, job_id: str, message: str = "it failed", *, requeue: bool = False, **error: Any) -> Body:
        """Fail a job; `error`: code, type, retryable, details."""
        body: Body = {"job_id": job_id, "error": {"code": "handler_error", "message": message, **error}}
        if requeue:
            body["requeue"] = True
        return self.call("POST", "/workers/nack", body)

    def heartbeat(self, worker_id: str, active_jobs: list[str] | None = None, **fields: Any) -> Body:
        """Say that a worker lives; `fields`: visibility_timeout_ms."""
        body = {"worker_id": worker_id, "active_jobs": active_jobs or [], **fields}
        return self.call("POST", "/workers/heartbeat", body)

    # -- the rest --------------------------------------------------------------------------------

    def dead_letters(self, queue: str = "", **query: Any) -> list[Body]:
        """List dead letters."""
        params = {"queue": queue, **query} if queue else query
        jobs: list[Body] = self.call("GET", "/dead-letter", params=params)["jobs"]
        return jobs

    def events(self, **query: Any) -> list[Body]:
        """List events; `query`: types, queues, job_types, limit, after."""
        events: list[Body] = self.call("GET", "/events", params=query)["events"]
        return events

    def health(self) -> Body:
        """Return the health report of a healthy server."""
        return self.call("GET", "/health")

    def reset(self) -> None:
        """Wipe everything."""
        self.call("POST", "/admin/reset")


TOP_LEVEL = frozenset({"id", "meta", "schema"})


def job_request(queue: str = "default", *, kind: str = "test.job", args: Any = (), **fields: Any) -> Body:
    """Make the body of an enqueue request."""
    top = {name: value for name, value in fields.items() if name in TOP_LEVEL}
    options = {"queue": queue, **{name: value for name, value in fields.items() if name not in TOP_LEVEL}}
    return {"type": kind, "args": list(args) if isinstance(args, tuple) else args, **top, "options": options}
