"""Workflows: what completing a member costs at several sizes, and how soon the next step can be fetched.

    python -m loadtest.workflows --url http://127.0.0.1:8080

Against a running server; it leaves finished workflows in queues of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import httpx

SIZES = (10, 1000, 10_000)
MEMBERS_TIMED = 2000  # of each size: many small groups, or the first members of a large one
STEPS = 200
FETCH_LIMIT_S = 5.0

Body = dict[str, Any]


class Client:
    """The few calls that are timed."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60, headers={"Content-Type": "application/openjobspec+json"})

    def call(self, method: str, path: str, body: Body | None = None) -> Body:
        """Send one request and return its parsed body. Raises httpx.HTTPStatusError."""
        response = self._http.request(method, f"/ojs/v1{path}", json=body)
        response.raise_for_status()
        parsed: Body = response.json()
        return parsed

    def fetch(self, queue: str, count: int) -> list[Body]:
        """Fetch up to `count` jobs."""
        body = {"queues": [queue], "count": count, "worker_id": "loadtest"}
        jobs: list[Body] = self.call("POST", "/workers/fetch", body)["jobs"]
        return jobs

    def ack(self, job_id: str) -> None:
        """Complete a job."""
        self.call("POST", "/workers/ack", {"job_id": job_id, "result": {"done": True}})


def member_cost(client: Client, size: int, tag: str, *, is_group: bool = True) -> tuple[float, float]:
    """`(seconds to create a group, seconds per member to fetch and complete it)`; one request at a time.

    Without `is_group` the same jobs in a plain batch, for comparison.
    """
    queue = f"load-wf-{tag}-{size}-{'group' if is_group else 'plain'}"
    job = {"type": "load.member", "args": [1], "options": {"queue": queue}}
    created: list[float] = []
    done = 0
    spent = 0.0
    while done < MEMBERS_TIMED:
        start = time.perf_counter()
        if is_group:
            client.call("POST", "/workflows", {"type": "group", "jobs": [job] * size})
        else:
            client.call("POST", "/jobs/batch", {"jobs": [job] * size})
        created.append(time.perf_counter() - start)
        wanted = min(size, MEMBERS_TIMED - done)
        start = time.perf_counter()
        for _ in range(0, wanted, 10):
            for one in client.fetch(queue, 10):
                client.ack(one["id"])
                done += 1
        spent += time.perf_counter() - start
    return statistics.median(created), spent / done


def next_step(client: Client, tag: str) -> list[float]:
    """Seconds from the answer to an ack until the chain's next step was fetched, for each step."""
    queue = f"load-wf-{tag}-chain"
    step = {"type": "load.step", "args": [1], "options": {"queue": queue}}
    client.call("POST", "/workflows", {"type": "chain", "steps": [step] * STEPS})
    waited: list[float] = []
    [job] = client.fetch(queue, 1)
    for _ in range(STEPS - 1):
        client.ack(job["id"])
        start = time.perf_counter()
        while not (jobs := client.fetch(queue, 1)):
            if time.perf_counter() - start > FETCH_LIMIT_S:
                raise SystemExit("the next step did not come")
        waited.append(time.perf_counter() - start)
        job = jobs[0]
    client.ack(job["id"])
    return waited


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.workflows", description=__doc__)
    parser.add_argument("--url", required=True, help="the server to measure")
    client = Client(parser.parse_args().url)
    tag = f"{time.time_ns() // 1_000_000:x}"
    print("| members | create the group | fetch and complete one | the same, plain jobs |\n|--:|--:|--:|--:|")
    for size in SIZES:
        created_s, member_s = member_cost(client, size, tag)
        _, plain_s = member_cost(client, size, tag, is_group=False)
        print(f"| {size} | {created_s * 1000:.1f} ms | {member_s * 1e6:.0f} µs | {plain_s * 1e6:.0f} µs |")
    waited = sorted(next_step(client, tag))
    median, late = statistics.median(waited), waited[int(len(waited) * 0.99)]
    print(f"\nack → next step fetched: median {median * 1000:.2f} ms, p99 {late * 1000:.2f} ms ({len(waited)} steps)")


if __name__ == "__main__":
    main()
