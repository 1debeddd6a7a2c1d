"""Producers and workers for Locust, against any OJS server.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --headless -u 40 -r 20 -t 30s -s 10

Needs nothing of ojs-fast. Prints at the end how many jobs went in, were fetched and were acknowledged; `-s 10`
lets workers acknowledge what they hold before they stop, so that the last two agree.
`OJS_API_KEY` in the environment is sent as the bearer key.
"""

import itertools
import os
import time
from argparse import Namespace
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

CONTENT_TYPE = "application/openjobspec+json"
IDLE_S = 0.1

counts = {"enqueued": 0, "fetched": 0, "acknowledged": 0}
_numbers = itertools.count(1)


def add_options(parser: LocustArgumentParser) -> None:
    """Options of this file; the web page shows them too."""
    parser.add_argument("--queue", default="load", help="queue that producers fill and workers drain")
    parser.add_argument("--fetch", type=int, default=10, help="jobs that a worker asks for in a call")


def print_sums(environment: Environment, **_: Any) -> None:
    """Jobs in and out; what is still waiting or came from an earlier run explains a difference."""
    del environment
    print(", ".join(f"{count} jobs {name}" for name, count in counts.items()))


# Locust leaves `add_listener` without types.
events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.quitting.add_listener(print_sums)  # type: ignore[no-untyped-call]


class OjsUser(FastHttpUser):
    """What producers and workers share."""

    abstract = True
    wait_time = constant(0)

    @property
    def options(self) -> Namespace:
        """The command line."""
        options: Namespace = self.environment.parsed_options
        return options

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST and return the decoded answer; empty when it failed, which Locust has counted then."""
        headers = {"Content-Type": CONTENT_TYPE}
        key = os.environ.get("OJS_API_KEY")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        with self.client.post(path, json=body, headers=headers, catch_response=True) as response:
            if not 200 <= response.status_code < 300:
                response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
                return {}
            answer: dict[str, Any] = response.json()
            return answer


class Producer(OjsUser):
    """Enqueues, mostly one job at a time."""

    weight = 1

    def job(self) -> dict[str, Any]:
        """One job of the size of a usual e-mail."""
        args = ["user@example.com", "welcome", {"locale": "en", "n": next(_numbers)}]
        return {"type": "email.send", "args": args, "options": {"queue": self.options.queue}}

    @task(20)
    def enqueue(self) -> None:
        """One job."""
        if self.call("/ojs/v1/jobs", self.job()):
            counts["enqueued"] += 1

    @task(1)
    def enqueue_batch(self) -> None:
        """Twenty jobs in a call."""
        answer = self.call("/ojs/v1/jobs/batch", {"jobs": [self.job() for _ in range(20)]})
        counts["enqueued"] += len(answer.get("jobs", []))


class Worker(OjsUser):
    """Fetches and acknowledges at once: its jobs take no time, so that only the server is measured."""

    weight = 1

    def on_start(self) -> None:
        """Give every worker a name of its own."""
        self.worker_id = f"locust-{os.getpid()}-{next(_numbers)}"

    @task
    def work(self) -> None:
        """Fetch some jobs and acknowledge each."""
        asked = {"queues": [self.options.queue], "count": self.options.fetch, "worker_id": self.worker_id}
        jobs = self.call("/ojs/v1/workers/fetch", asked).get("jobs", [])
        counts["fetched"] += len(jobs)
        for job in jobs:
            if self.call("/ojs/v1/workers/ack", {"job_id": job["id"], "worker_id": self.worker_id}):
                counts["acknowledged"] += 1
        if not jobs:
            time.sleep(IDLE_S)  # Locust has made it gevent's
