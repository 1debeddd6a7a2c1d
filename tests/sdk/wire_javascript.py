"""What the official JavaScript SDK puts on the wire and how it reads the answers (EXTENSIONS section 2).

It parses every body as JSON, whatever its type, and chooses its error class by the status.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

import httpx

from tests.sdk.wire_python import OJS_JSON, Body, send
from tests.support.plain import PLAIN


class JsError(Exception):
    """What the SDK throws: `kind` is the name of its class."""

    def __init__(self, response: httpx.Response) -> None:
        error = response.json()["error"]
        super().__init__(error["message"])
        self.code: str = error["code"]
        self.status = response.status_code
        self.details: Body = error.get("details") or {}
        if self.status == 400:
            self.kind = "OJSValidationError"
        elif self.status == 404:
            self.kind = "OJSNotFoundError"
            self.resource = (self.details["resource_type"], self.details["resource_id"])
        elif self.status == 409:
            self.kind = "OJSDuplicateError" if self.code == "duplicate" else "OJSConflictError"
        elif self.status == 429:
            self.kind = "OJSRateLimitError"
        else:
            self.kind = "OJSServerError" if self.status >= 500 else "OJSError"


class JavaScriptSdk:
    """Client and worker."""

    def __init__(self, url: str) -> None:
        headers = {"Content-Type": OJS_JSON, "Accept": OJS_JSON, "OJS-Version": "1.0"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=30, **PLAIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def send(self, method: str, path: str, body: Body | None = None, **query: Any) -> Any:
        """One call with the SDK's retries; the parsed body."""
        response = send(self.http, method, path, body, query)
        if response.status_code >= 400:
            raise JsError(response)
        return response.json() if response.content else None

    def enqueue(self, kind: str, args: list[Any], **options: Any) -> Body:
        """POST /jobs; reads `job`. Its option `delay` goes out as `delay_until`, unparsed."""
        if "delay" in options:
            options["delay_until"] = options.pop("delay")
        job: Body = self.send("POST", "/jobs", {"type": kind, "args": args, "options": options})["job"]
        return job

    def fetch(self, queue: str, worker_id: str, count: int = 10, visibility_timeout_ms: int = 30_000) -> list[Body]:
        """POST /workers/fetch, ten at most."""
        body = {
            "queues": [queue],
            "count": count,
            "visibility_timeout_ms": visibility_timeout_ms,
            "worker_id": worker_id,
        }
        jobs: list[Body] = self.send("POST", "/workers/fetch", body)["jobs"]
        return jobs

    def heartbeat(self, worker_id: str, job_ids: list[str]) -> str:
        """POST /workers/heartbeat with a number in `active_jobs` and no visibility timeout; reads `state`."""
        body = {
            "worker_id": worker_id,
            "state": "running",
            "active_jobs": len(job_ids),
            "active_job_ids": job_ids,
            "hostname": "host-1",
            "pid": os.getpid(),
            "queues": ["default"],
            "concurrency": 10,
            "labels": ["blue"],
        }
        state: str = self.send("POST", "/workers/heartbeat", body)["state"]
        return state
