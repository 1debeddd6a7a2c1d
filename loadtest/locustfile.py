"""Producers and workers for Locust, against any OJS server.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --headless -u 40 -r 20 -t 30s -s 10 --scenario mixed

Needs nothing of ojs-fast; `python -m loadtest.load` runs it. When the time is over the jobs that are left are worked
off, and the sums must agree: every job that went in is completed once, every workflow ends. If they do not, the exit
code is 1. `OJS_API_KEY` in the environment is sent as the bearer key. One process only: the ledger is in its memory.
"""

import itertools
import os
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment

from loadtest.ledger import Ledger

CONTENT_TYPE = "application/openjobspec+json"
IDLE_S = 0.1
DRAINERS = 16
BURST_EVERY_S, BURST_JOBS = 5.0, 200
STORM_EVERY_S, STORM_JOBS, LEAD_S = 5.0, 100, 1.0
PREFILL_JOBS, PREFILL_BATCH = 20_000, 1000

ledger = Ledger()
_numbers = itertools.count(1)


class OjsUser(FastHttpUser):
    """What all have in common."""

    abstract = True
    wait_time = constant(0)
    concurrency = DRAINERS  # connections of a user; one of them works off what all have left

    @property
    def options(self) -> Namespace:
        """The command line."""
        return _options(self.environment)

    def call(self, path: str, body: dict[str, Any], name: str = "") -> dict[str, Any]:
        """POST and return the decoded answer; empty when it failed, which Locust has counted then."""
        return _call(self.client, path, body, name)

    def job(self, **options: Any) -> dict[str, Any]:
        """One job of the size of a usual e-mail."""
        args = ["user@example.com", "welcome", {"locale": "en", "n": next(_numbers)}]
        return {"type": "email.send", "args": args, "options": {"queue": self.options.queue, **options}}

    def enqueue_batch(self, count: int, name: str, **options: Any) -> None:
        """Many jobs in a call."""
        answer = self.call("/ojs/v1/jobs/batch", {"jobs": [self.job(**options) for _ in range(count)]}, name)
        ledger.went_in([job["id"] for job in answer.get("jobs", [])], count)


class Producer(OjsUser):
    """Enqueues, mostly one job at a time."""

    @task(20)
    def enqueue(self) -> None:
        """One job."""
        answer = self.call("/ojs/v1/jobs", self.job())
        ledger.went_in([answer["job"]["id"]] if answer else [], 1)

    @task(1)
    def enqueue_some(self) -> None:
        """Twenty jobs in a call."""
        self.enqueue_batch(20, "batch of 20")


class BurstProducer(OjsUser):
    """Silent, then as fast as it can, all of them at once."""

    @task
    def burst(self) -> None:
        """Wait for the next burst, then enqueue one job after the other."""
        time.sleep(BURST_EVERY_S - time.time() % BURST_EVERY_S)
        for _ in range(BURST_JOBS):
            answer = self.call("/ojs/v1/jobs", self.job())
            ledger.went_in([answer["job"]["id"]] if answer else [], 1)


class StormProducer(OjsUser):
    """Schedules jobs, all of them for the same moments."""

    @task
    def storm(self) -> None:
        """Schedule some for the next moment and wait until it is over."""
        due = (time.time() + LEAD_S) // STORM_EVERY_S * STORM_EVERY_S + STORM_EVERY_S
        text = datetime.fromtimestamp(due, UTC).isoformat(timespec="milliseconds")
        self.enqueue_batch(STORM_JOBS, f"batch of {STORM_JOBS}, scheduled", scheduled_at=text)
        time.sleep(max(0.0, due - time.time()))


class WorkflowProducer(OjsUser):
    """Starts chains and groups."""

    def begin(self, kind: str, members: str, count: int) -> None:
        """One workflow of so many jobs; which ones, the workers will see."""
        body = {"type": kind, "name": f"load-{kind}", members: [self.job() for _ in range(count)]}
        answer = self.call("/ojs/v1/workflows", body, f"workflow: {kind} of {count}")
        workflow = answer.get("workflow", answer)
        if "id" in workflow:
            ledger.workflows.add(workflow["id"])

    @task(1)
    def chain(self) -> None:
        """Three steps, one after the other."""
        self.begin("chain", "steps", 3)

    @task(1)
    def group(self) -> None:
        """Five jobs side by side."""
        self.begin("group", "jobs", 5)


class Worker(OjsUser):
    """Fetches and acknowledges at once: its jobs take no time, so that only the server is measured."""

    def on_start(self) -> None:
        """Give every worker a name of its own."""
        self.worker_id = f"locust-{os.getpid()}-{next(_numbers)}"

    @task
    def work(self) -> None:
        """Fetch some jobs and acknowledge each."""
        if not _work(self.client, self.options, self.worker_id, self.options.fetch):
            time.sleep(IDLE_S)  # Locust has made it gevent's


class ScheduledWorker(Worker):
    """Reports how late scheduled jobs arrive, too."""

    @task
    def work(self) -> None:
        """Fetch, report, acknowledge."""
        if not _work(self.client, self.options, self.worker_id, self.options.fetch, _report_late):
            time.sleep(IDLE_S / 10)


#: scenario → who takes part, and how many for each of the others
SCENARIOS: dict[str, dict[type[OjsUser], int]] = {
    "producers": {Producer: 1},
    "workers": {Worker: 1},
    "mixed": {Producer: 1, Worker: 1},
    "bursts": {BurstProducer: 1, Worker: 1},
    "scheduled": {StormProducer: 1, ScheduledWorker: 1},
    "workflows": {WorkflowProducer: 1, Worker: 3},
}


def _options(environment: Environment) -> Namespace:
    options: Namespace | None = environment.parsed_options
    assert options is not None  # Locust makes it from the command line
    return options


def _call(client: FastHttpSession, path: str, body: dict[str, Any], name: str = "") -> dict[str, Any]:
    headers = {"Content-Type": CONTENT_TYPE}
    key = os.environ.get("OJS_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    with client.post(path, json=body, headers=headers, catch_response=True, name=name or path) as response:
        if not 200 <= response.status_code < 300:
            response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
            return {}
        answer: dict[str, Any] = response.json()
        return answer


def _work(
    client: FastHttpSession,
    options: Namespace,
    worker_id: str,
    count: int,
    look: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Fetch and acknowledge; how many were fetched."""
    asked = {"queues": [options.queue], "count": count, "worker_id": worker_id}
    jobs = _call(client, "/ojs/v1/workers/fetch", asked).get("jobs", [])
    for job in jobs:
        if look is not None:
            look(job)
        ledger.fetched += 1
        if _call(client, "/ojs/v1/workers/ack", {"job_id": job["id"], "worker_id": worker_id}):
            ledger.came_out(job["id"])
    return len(jobs)


def _report_late(job: dict[str, Any]) -> None:
    late_ms = (time.time() - datetime.fromisoformat(job["scheduled_at"]).timestamp()) * 1000
    events.request.fire(  # type: ignore[no-untyped-call]  # as below
        request_type="LATE", name="scheduled job, due to fetched", response_time=late_ms, response_length=0
    )


# -- before and after ----------------------------------------------------------------------------


def add_options(parser: LocustArgumentParser) -> None:
    """Options of this file; the web page shows them too."""
    parser.add_argument("--scenario", default="mixed", choices=list(SCENARIOS), help="who takes part")
    parser.add_argument("--queue", default=f"load-{os.urandom(4).hex()}", help="queue that is filled and drained")
    parser.add_argument("--fetch", type=int, default=10, help="jobs that a worker asks for in a call")
    parser.add_argument("--drain-s", type=float, default=120.0, help="how long working off what is left may take")


def choose(environment: Environment, **_: Any) -> None:
    """Let those of the scenario take part."""
    options = _options(environment)
    OjsUser.host = options.host
    taking_part = SCENARIOS[options.scenario]
    for user_class, weight in taking_part.items():
        user_class.weight = weight
    environment.user_classes = list(taking_part)


def prefill(environment: Environment, **_: Any) -> None:
    """Give workers without producers something to do."""
    if _options(environment).scenario == "workers":
        user = Producer(environment)
        for _number in range(PREFILL_JOBS // PREFILL_BATCH):
            user.enqueue_batch(PREFILL_BATCH, f"prefill: batch of {PREFILL_BATCH}")


def settle(environment: Environment, **_: Any) -> None:
    """Work off what is left, then compare; runs when the last user has stopped."""
    options = _options(environment)
    end = time.monotonic() + options.drain_s
    user = Worker(environment)

    def drain(number: int) -> None:
        while time.monotonic() < end and ledger.is_open:
            if not _work(user.client, options, f"locust-drain-{number}", options.fetch):
                ledger.workflows -= {one for one in list(ledger.workflows)[:20] if _has_ended(user.client, one)}
                time.sleep(IDLE_S)

    with ThreadPoolExecutor(DRAINERS) as pool:  # Locust has made these gevent's, too
        list(pool.map(drain, range(DRAINERS)))
    complaints = ledger.complaints()
    print(ledger.summary())
    for complaint in complaints:
        print(f"WRONG: {complaint}")
    if complaints:
        environment.process_exit_code = 1


def _has_ended(client: FastHttpSession, workflow_id: str) -> bool:
    with client.get(f"/ojs/v1/workflows/{workflow_id}", catch_response=True, name="workflow: state") as response:
        answer = response.json() if response.status_code == 200 else {}
        return bool(answer.get("workflow", answer).get("state") == "completed")


# Locust leaves `add_listener` without types.
events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.init.add_listener(choose)  # type: ignore[no-untyped-call]
events.test_start.add_listener(prefill)  # type: ignore[no-untyped-call]
events.test_stop.add_listener(settle)  # type: ignore[no-untyped-call]
