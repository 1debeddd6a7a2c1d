"""Load from many workers and producers at once, over an HTTP client that costs next to nothing.

A failed request tells what is known of its outcome: an HTTP status, or `Broken` when no answer came.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

Body = dict[str, Any]
HEAD = (
    "{method} /ojs/v1{path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/openjobspec+json\r\n"
    "{more}Content-Length: {size}\r\n\r\n"
)
PAUSE_S = 0.02
# Each kill that meets a job while it is active costs it a run, and three (the default) can meet one job.
RETRY = {"max_attempts": 1000}

_numbers = itertools.count(1)


class Broken(Exception):
    """No answer came; the server may have done what was asked or not."""


class Http:
    """One connection, one request at a time; it reconnects by itself after Broken."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.worker_id = f"worker-{next(_numbers)}"

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Body]:
        """`(status, parsed body)`. Raises Broken."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._call(method, path, b"" if body is None else orjson.dumps(body), headers or {})
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            await self.close()
            raise Broken(repr(error)) from error
        except BaseException:
            await self.close()
            raise

    async def _call(self, method: str, path: str, payload: bytes, headers: dict[str, str]) -> tuple[int, Body]:
        if self._streams is not None and self._streams[0].at_eof():
            await self.close()  # the server ends what was idle for ten seconds
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 24)
        reader, writer = self._streams
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(HEAD.format(method=method, path=path, size=len(payload), more=more).encode() + payload)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        status = int(head[9:12])
        data = await reader.readexactly(size)
        return status, orjson.loads(data)

    # -- what workers and producers say ----------------------------------------------------------

    async def enqueue(self, queue: str, **fields: Any) -> str:
        """Enqueue a job and return its id. Raises Broken, also for a refusal by 503."""
        status, body = await self.call(
            "POST", "/jobs", {"type": "load.job", "args": [1], "options": {"queue": queue, "retry": RETRY}, **fields}
        )
        return str(_checked(status, body, 201)["job"]["id"])

    async def enqueue_batch(self, queue: str, count: int) -> list[str]:
        """Enqueue many jobs and return their ids. Raises Broken."""
        options = {"queue": queue, "retry": RETRY}
        jobs = [{"type": "load.job", "args": [number], "options": options} for number in range(count)]
        status, body = await self.call("POST", "/jobs/batch", {"jobs": jobs})
        return [job["id"] for job in _checked(status, body, 201)["jobs"]]

    async def fetch(self, queue: str, count: int = 1, **fields: Any) -> list[Body]:
        """Fetch up to `count` jobs as this connection's worker. Raises Broken."""
        request = {"queues": [queue], "count": count, "worker_id": self.worker_id, **fields}
        status, body = await self.call("POST", "/workers/fetch", request)
        jobs: list[Body] = _checked(status, body, 200)["jobs"]
        return jobs

    async def ack(self, job_id: str) -> int:
        """Complete a job that this worker holds and return the HTTP status. Raises Broken only when no answer came."""
        return (await self.call("POST", "/workers/ack", {"job_id": job_id, "worker_id": self.worker_id}))[0]

    async def get(self, job_id: str) -> Body:
        """Return a job as it is now. Raises Broken."""
        status, body = await self.call("GET", f"/jobs/{job_id}")
        job: Body = _checked(status, body, 200)["job"]
        return job


def _checked(status: int, body: Body, expected: int) -> Body:
    if status == 503:
        raise Broken(f"503 {body}")
    assert status == expected, (status, body)
    return body


@dataclass
class Ledger:
    """What the server acknowledged to its clients, and what it must therefore remember."""

    enqueued: set[str] = field(default_factory=set)
    completed: set[str] = field(default_factory=set)
    #: those of them whose acknowledgement was answered; the others were seen to be completed
    acknowledged: set[str] = field(default_factory=set)
    #: acknowledgements without an answer: they count or not
    unsure: set[str] = field(default_factory=set)
    delivered: Counter[str] = field(default_factory=Counter)

    @property
    def open(self) -> set[str]:
        """Jobs that nobody was told to be completed."""
        return self.enqueued - self.completed

    async def work(
        self, http: Http, queue: str, until: Callable[[], bool], *, count: int = 5, visibility_ms: int = 2000
    ) -> None:
        """Fetch and acknowledge until told to stop, over any number of broken requests."""
        while not until():
            try:
                jobs = await http.fetch(queue, count, visibility_timeout_ms=visibility_ms)
            except Broken:
                jobs = []
            for job in jobs:
                self.delivered[job["id"]] += 1
                assert job["id"] not in self.completed, f"{job['id']} was acknowledged and is delivered again"
            for job in jobs:
                await self._ack(http, job["id"])
            if not jobs:
                await asyncio.sleep(PAUSE_S)

    async def _ack(self, http: Http, job_id: str) -> None:
        try:
            status = await http.ack(job_id)
        except Broken:
            status = 503
        if status == 200:
            assert job_id not in self.acknowledged, f"{job_id} was acknowledged twice"
            self.acknowledged.add(job_id)
            self.completed.add(job_id)
        elif status == 503:
            self.unsure.add(job_id)
        else:
            # Its reservation ran out (the server was away for longer): somebody else has it or had it.
            assert status == 409, f"ack of {job_id} answered {status}"

    async def produce(self, http: Http, queue: str, until: Callable[[], bool], limit: int) -> None:
        """Enqueue, now and then a batch, until told to stop or `limit` jobs are there."""
        for number in range(limit):
            if until() or len(self.enqueued) >= limit:
                return
            try:
                if number % 10 == 9:
                    self.enqueued.update(await http.enqueue_batch(queue, 5))
                else:
                    self.enqueued.add(await http.enqueue(queue))
            except Broken:
                await asyncio.sleep(PAUSE_S)

    async def finish(self, https: list[Http], queue: str, deadline_s: float) -> None:
        """Drain until every job is completed; fails with the states of those that are not."""
        end = time.monotonic() + deadline_s
        stopped = False
        working = [asyncio.create_task(self.work(http, queue, lambda: stopped)) for http in https[1:]]
        left = self.open
        try:
            while left and time.monotonic() < end and not any(task.done() for task in working):
                await asyncio.sleep(PAUSE_S)
                # An acknowledgement whose answer was lost may have counted.
                suspects = self.open if len(self.open) <= len(self.unsure) else self.open & set(list(self.unsure)[:50])
                for job_id in suspects:
                    with contextlib.suppress(Broken):
                        if job_id in self.unsure and (await https[0].get(job_id))["state"] == "completed":
                            self.completed.add(job_id)
                left = self.open
        finally:
            stopped = True
            await asyncio.gather(*working)
        stuck = Counter([(await https[0].get(job_id))["state"] for job_id in sorted(left)[:200]])
        assert not left, (
            f"{len(left)} of {len(self.enqueued)} jobs are not completed: {dict(stuck)}, {sorted(left)[:3]}"
        )

    async def check(self, http: Http, queue: str) -> None:
        """Every job whose completion was acknowledged still is completed, and nothing is left to fetch."""
        for job_id in self.completed:
            job = await http.get(job_id)
            assert job["state"] == "completed", f"{job_id} was acknowledged and is {job['state']}"
        for job in await http.fetch(queue, 100):
            assert job["id"] not in self.enqueued, f"{job['id']} is completed and is delivered again"


@contextlib.asynccontextmanager
async def connections(url: str, count: int, timeout_s: float = 30.0) -> AsyncIterator[list[Http]]:
    """Give `count` connections to one server."""
    made = [Http(url, timeout_s) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            await one.close()
