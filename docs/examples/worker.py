"""A worker: python worker.py QUEUE… Several jobs at a time, heartbeats, directives, a graceful end.

Settings: OJS_URL, OJS_API_KEY; OJS_CONCURRENCY, how many jobs at a time; OJS_VISIBILITY_MS, how long a job stays ours
without a heartbeat; OJS_GRACE_S, how long running jobs may go on after SIGTERM before they are given back.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ojs

CONCURRENCY = int(os.environ.get("OJS_CONCURRENCY", "8"))
VISIBILITY_MS = int(os.environ.get("OJS_VISIBILITY_MS", "30000"))
GRACE_S = float(os.environ.get("OJS_GRACE_S", "25"))

Job = dict[str, Any]


class Permanent(Exception):
    """Raised by a handler: no further attempt would help."""


def send_email(job: Job) -> Any:
    """What it returns becomes the job's result."""
    address, template = job["args"]
    if "@" not in address:
        raise Permanent(f"{address!r} is no e-mail address")
    print(f"sent {template} to {address}", flush=True)
    return {"sent": True}


def make_report(job: Job) -> Any:
    """Takes `args[0]` seconds; heartbeats keep the job ours meanwhile."""
    time.sleep(job["args"][0])
    return {"pages": 3}


HANDLERS: dict[str, Callable[[Job], Any]] = {"email.send": send_email, "report.make": make_report}


class Worker:
    """Fetches in the main thread, runs handlers in a pool, beats in a thread of its own."""

    def __init__(self, queues: list[str]) -> None:
        self.queues = queues
        self.id = f"{socket.gethostname()}-{os.getpid()}"
        self.running: dict[str, Job] = {}
        self.directive = "running"
        self.stopping = threading.Event()
        self.give_up_at = float("inf")

    def work(self) -> None:
        """Until SIGTERM, Ctrl-C or the directive `terminate`."""
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        signal.signal(signal.SIGINT, lambda *_: self.stopping.set())
        threading.Thread(target=self.beat_forever, daemon=True).start()
        pool = ThreadPoolExecutor(CONCURRENCY)
        while not self.stopping.is_set():
            free = CONCURRENCY - len(self.running)
            jobs = self.fetch(free) if free and self.directive == "running" else []
            for job in jobs:
                self.running[job["id"]] = job
                pool.submit(self.run, job)
            if not jobs:
                self.stopping.wait(0.2)
        self.finish()

    def fetch(self, count: int) -> list[Job]:
        """Up to `count` jobs, ours for VISIBILITY_MS; waits for a server that is away until we are told to stop."""
        body = {
            "queues": self.queues, "count": count, "worker_id": self.id, "visibility_timeout_ms": VISIBILITY_MS,
        }  # fmt: skip
        try:
            jobs: list[Job] = ojs.post("/workers/fetch", body, waits=lambda: not self.stopping.is_set())["jobs"]
        except ojs.Away:
            return []
        return jobs

    def run(self, job: Job) -> None:
        """One job: ack with the result, nack with the error."""
        try:
            handler = HANDLERS.get(job["type"])
            if handler is None:
                raise LookupError(f"no handler for {job['type']}")  # noqa: TRY301 - any failure of the job ends below
            outcome: Job = {"result": handler(job)}
            path = "/workers/ack"
        except Exception as error:  # noqa: BLE001 - whatever it is, the server decides about the next attempt
            outcome = {"error": {
                "code": "handler_error",
                "type": type(error).__name__,
                "message": str(error) or type(error).__name__,
                "retryable": not isinstance(error, Permanent),
            }}  # fmt: skip
            path = "/workers/nack"
        self.tell(path, job["id"], outcome)
        self.running.pop(job["id"], None)

    def tell(self, path: str, job_id: str, outcome: Job) -> None:
        """End a job at the server, however long that is away."""
        body = {"job_id": job_id, "worker_id": self.id, **outcome}
        try:
            ojs.post(path, body, waits=lambda: time.monotonic() < self.give_up_at)
        except ojs.Refused as refused:
            # 409, 404: an earlier try arrived after all, or the job is not ours any more.
            print(f"{job_id}: {refused}", file=sys.stderr, flush=True)
        except ojs.Away:
            print(f"{job_id}: nobody was told; it comes back by itself", file=sys.stderr, flush=True)

    def beat_forever(self) -> None:
        """Three beats per reservation; the answer says what the operator wants of us."""
        while True:
            body = {
                "worker_id": self.id, "active_jobs": list(self.running), "visibility_timeout_ms": VISIBILITY_MS,
            }  # fmt: skip
            try:
                self.directive = ojs.post("/workers/heartbeat", body, waits=lambda: False)["state"]
            except (ojs.Away, ojs.Refused) as error:
                print(f"heartbeat: {error}", file=sys.stderr, flush=True)
            if self.directive == "terminate":
                self.stopping.set()
            time.sleep(VISIBILITY_MS / 3000)

    def finish(self) -> None:
        """Wait for what runs, and give back what takes longer."""
        self.give_up_at = time.monotonic() + GRACE_S
        while self.running and time.monotonic() < self.give_up_at:
            time.sleep(0.05)
        self.give_up_at = time.monotonic() + 5
        for job_id in list(self.running):
            self.tell("/workers/nack", job_id, {"requeue": True})
        sys.stdout.flush()
        os._exit(0)  # the pool would wait for the handlers that we have given up


if __name__ == "__main__":
    Worker(sys.argv[1:] or ["email"]).work()
