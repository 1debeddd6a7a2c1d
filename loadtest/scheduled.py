"""Scheduled jobs: how late they become fetchable, and what enqueue feels when very many are due at once."""

import http.client
import json
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loadtest.servers import HOST, BenchError
from loadtest.stats import percentile

BATCH = 1000
LEAD_S = 2.0
PATIENCE_S = 60.0
POLL_S = 0.001
FETCH = 1000
STORM_S = 10.0


@dataclass(frozen=True)
class Lateness:
    """How many jobs, how long it took, and the latencies in ms that the row is about."""

    jobs: int
    seconds: float
    p50_ms: float
    p99_ms: float


class Client:
    """One keep-alive connection. Raises BenchError on anything but 2xx."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)

    def post(self, path: str, body: Any) -> Any:
        """Send a request and decode the answer."""
        self._connection.request(
            "POST", "/ojs/v1" + path, json.dumps(body), {"Content-Type": "application/openjobspec+json"}
        )
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise BenchError(f"POST {path}: {answer.status} {text[:200]!r}")
        return json.loads(text)

    def schedule(self, queue: str, dues: list[float]) -> None:
        """Enqueue a job for each due time (epoch seconds)."""
        jobs = [
            {"type": "bench.job", "args": [1], "options": {"queue": queue, "scheduled_at": _text(due)}} for due in dues
        ]
        for start in range(0, len(jobs), BATCH):
            self.post("/jobs/batch", {"jobs": jobs[start : start + BATCH]})

    def fetch(self, queue: str) -> list[Any]:
        """Fetch some jobs."""
        found: list[Any] = self.post("/workers/fetch", {"queues": [queue], "count": FETCH})["jobs"]
        return found


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def steady(port: int, queue: str, per_s: int, seconds: float) -> Lateness:
    """Jobs due at an even rate: the time from due to the fetch that gets them, which asks all the time."""
    client, count = Client(port), round(per_s * seconds)
    start = time.time() + LEAD_S
    client.schedule(queue, [start + number / per_s for number in range(count)])
    late: list[float] = []
    end = start + seconds + PATIENCE_S
    while len(late) < count:
        if time.time() > end:
            raise BenchError(f"{count - len(late)} of {count} scheduled jobs were not promoted in {PATIENCE_S:.0f} s")
        jobs = client.fetch(queue)
        now = time.time()
        late += [(now - _moment(job["scheduled_at"])) * 1000 for job in jobs]
        if not jobs:
            time.sleep(POLL_S)
    late.sort()
    return Lateness(count, time.time() - start, percentile(late, 50), percentile(late, 99))


def storm(port: int, queue: str, count: int) -> Lateness:
    """Many jobs due at one instant: the time until the last one is promoted, and enqueue's latencies meanwhile."""
    client, other = Client(port), Client(port)
    began = time.time()
    client.schedule(queue, [began + 3600])  # the queue exists, the server is warm
    due = time.time() + LEAD_S + count / 5000
    client.schedule(queue, [due] * count)
    if time.time() >= due:
        raise BenchError(f"{count} jobs could not be enqueued before they were due")
    latencies: list[float] = []
    ended = threading.Event()

    def produce() -> None:
        while not ended.wait(0.002):
            sent = time.perf_counter()
            other.post("/jobs", {"type": "bench.job", "args": [1], "options": {"queue": queue + "-other"}})
            latencies.append((time.perf_counter() - sent) * 1000)

    time.sleep(max(0.0, due - time.time()))
    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(STORM_S)
    ended.set()
    producer.join()
    promoted: list[float] = []
    client = Client(port)  # the server has closed the first connection, which was idle for so long
    while len(promoted) < count:
        if time.time() > due + PATIENCE_S:
            raise BenchError(f"{count - len(promoted)} of {count} scheduled jobs were not promoted")
        promoted += [_moment(job["enqueued_at"]) for job in client.fetch(queue)]
    latencies.sort()
    return Lateness(count, max(promoted) - due, percentile(latencies, 50), percentile(latencies, 99))
