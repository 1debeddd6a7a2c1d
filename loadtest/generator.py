"""The bundled load generator, a process of its own: a job description on stdin, the figures on stdout, both JSON.

Closed loop: each connection sends its next request when the last one is answered. Hand-made requests over
bare `asyncio.Protocol`s on uvloop, because a client library would need more CPU than the server it loads.
"""

import asyncio
import itertools
import json
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

from loadtest.responses import BadResponse, job_ids, parse_head, request
from loadtest.stats import percentile

CONNECT_S = 10.0
GRACE_S = 30.0  # how long requests under way may take to finish when the time is up
EMPTY_LIMIT = 20  # that many empty fetches in a row mean that the queue is drained
SHOWN = 160  # bytes of an answer that was not 2xx
NUMBER = b"NUMBER000000"
PARK = b""  # what a flow gives as its next request when it has to wait for another connection
FAILURE_LIMIT = 100  # a server that refuses everything need not be asked a million times
BACKLOG = 1000  # how many jobs of a `flow` wait or run at most


@dataclass(frozen=True)
class LoadSpec:
    """What to send. Kind `repeat`: `body` to `path`, each time with another number in the place of `NUMBER`.

    Kind `work`: fetch `fetch` jobs of `queue`, acknowledge each; `connections` are workers then, each with `ackers`
    further connections (0: it acknowledges over its own).

    Kind `flow`: as many producers as workers, each with a connection; producers pause while BACKLOG jobs have not
    ended, and workers go on until all have.
    """

    kind: str
    port: int
    connections: int
    seconds: float
    host: str = "127.0.0.1"
    path: str = ""
    body: str = ""
    max_requests: int = 2_000_000
    queue: str = ""
    fetch: int = 1
    ackers: int = 0


@dataclass(frozen=True)
class Timing:
    """Latencies of one kind of call."""

    calls: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Load:
    """What came out. `requests` counts the answers that were 2xx, `failures` all others."""

    requests: int
    failures: int
    first_failure: str
    seconds: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
    fetched: int = 0
    acked: int = 0
    duplicates: int = 0
    is_drained: bool = False
    fetch_call: Timing | None = None
    ack_call: Timing | None = None
    enqueued: int = 0


class Run:
    """What the connections of one run share."""

    def __init__(self, spec: LoadSpec) -> None:
        self.spec = spec
        self.began = self.last = time.perf_counter()
        self.deadline = math.inf
        self.left = spec.max_requests
        self.latencies: list[float] = []
        self.acks: list[float] = []
        self.seen: set[bytes] = set()
        self.requests = self.failures = self.enqueued = self.fetched = self.acked = 0
        self.producers = spec.connections if spec.kind == "flow" else 0
        self.parked: list[Produce] = []
        self.first_failure = ""
        self.drained_workers = 0
        self.open_lanes = 0  # set when the connections stand
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """The clock runs from here."""
        self.began = self.last = time.perf_counter()
        self.deadline = self.began + self.spec.seconds

    def may_send(self) -> bool:
        """Whether there is time and allowance for another request."""
        if self.left <= 0 or self.failures >= FAILURE_LIMIT or time.perf_counter() >= self.deadline:
            return False
        self.left -= 1
        return True

    def may_fetch(self) -> bool:
        """The same for a worker, who also has to work off what producers left."""
        if self.spec.kind != "flow":
            return self.may_send()
        return self.failures < FAILURE_LIMIT and (self.producers > 0 or self.acked < self.enqueued)

    def fail(self, reason: str) -> None:
        """Count something that did not succeed."""
        self.failures += 1
        self.first_failure = self.first_failure or reason

    def end_lane(self) -> None:
        """One connection is done; the last ends the run."""
        self.open_lanes -= 1
        if self.open_lanes == 0 and not self.ended.done():
            self.ended.set_result(None)


class Repeat:
    """The same request again and again, or one that differs by its number."""

    _numbers = itertools.count(10**11)  # as many digits as NUMBER

    def __init__(self, run: Run, _number: int) -> None:
        self._run = run
        self.lane: Lane | None = None
        spec = run.spec
        self._request = request("POST", f"{spec.host}:{spec.port}", spec.path, spec.body.encode())

    def flows(self) -> "list[Repeat]":
        """One connection."""
        return [self]

    def next(self) -> bytes | None:
        """The next request; None ends the connection's part."""
        if not self._run.may_send():
            return None
        if NUMBER in self._request:
            return self._request.replace(NUMBER, b"%d" % next(self._numbers))
        return self._request

    def answered(self, status: int, body: bytes, seconds: float) -> None:
        """Take an answer in."""
        if status >= 300:
            self._run.fail(f"status {status}: {body[:SHOWN]!r}")
            return
        self._run.requests += 1
        self._run.latencies.append(seconds)


class Produce(Repeat):
    """A producer that does not get too far ahead of the workers."""

    def next(self) -> bytes | None:
        """The next request; PARK while too many jobs have not ended, None when the time is up."""
        run = self._run
        if run.enqueued - run.acked >= BACKLOG and time.perf_counter() < run.deadline:
            run.parked.append(self)
            return PARK
        message = super().next()
        if message is None:
            run.producers -= 1
        return message

    def answered(self, status: int, body: bytes, seconds: float) -> None:
        """Take an answer in."""
        super().answered(status, body, seconds)
        self._run.enqueued += status < 300


class Work:
    """A worker: fetch, acknowledge each job with a call of its own, fetch again.

    One connection: the acknowledgements go one after the other. With `ackers`, each has a connection of its
    own and takes its share, as the jobs of a concurrent worker end independently of one another.
    """

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        spec = run.spec
        self._host = f"{spec.host}:{spec.port}"
        self._worker = f"bench-{number}"
        body = json.dumps({"queues": [spec.queue], "count": spec.fetch, "worker_id": self._worker})
        self._fetch = request("POST", self._host, "/ojs/v1/workers/fetch", body.encode())
        self._held: list[bytes] = []
        self._unsettled = 0
        self._is_ack = False
        self._empty = 0
        self._ackers = [Acker(self) for _ in range(spec.ackers)]
        self.is_done = False
        self.lane: Lane | None = None

    def flows(self) -> "list[Work | Acker]":
        """One for each connection of this worker."""
        return [self, *self._ackers]

    def next(self) -> bytes | None:
        """The next request. What is held is acknowledged even when the time is up, so that the sums must agree."""
        if self._ackers:
            if self._unsettled:
                self._wake_ackers()
                return PARK
        elif self._held:
            self._is_ack = True
            return self.next_ack()
        self._is_ack = False
        if (self._empty < EMPTY_LIMIT or self._run.producers) and self._run.may_fetch():
            return self._fetch
        self._run.drained_workers += self._empty >= EMPTY_LIMIT
        self.is_done = True
        self._wake_ackers()
        return None

    def next_ack(self) -> bytes:
        """The acknowledgement of the oldest job held; PARK when there is none."""
        if not self._held:
            return PARK
        body = b'{"job_id":"%s","worker_id":"%s"}' % (self._held.pop(), self._worker.encode())
        return request("POST", self._host, "/ojs/v1/workers/ack", body)

    def _wake_ackers(self) -> None:
        for acker in self._ackers:
            if acker.lane is not None:
                acker.lane.proceed()

    def answered(self, status: int, body: bytes, seconds: float) -> None:
        """Take an answer to this connection's last request in."""
        if self._is_ack:
            self.acked(status, body, seconds)
            return
        run = self._run
        if status >= 300:
            run.fail(f"fetch: status {status}: {body[:SHOWN]!r}")
            return
        run.requests += 1
        found = job_ids(body)
        if not found:
            self._empty += 1
            return
        self._empty = 0
        run.latencies.append(seconds)
        run.fetched += len(found)
        run.seen.update(found)
        found.reverse()  # taken from the end, oldest first
        self._held, self._unsettled = found, len(found)

    def acked(self, status: int, body: bytes, seconds: float) -> None:
        """Take the answer to an acknowledgement in."""
        self._unsettled -= 1
        if status < 300:
            self._run.requests += 1
            self._run.acked += 1
            self._run.acks.append(seconds)
            if self._run.parked and (parked := self._run.parked.pop()).lane is not None:
                parked.lane.proceed()
        else:
            self._run.fail(f"ack: status {status}: {body[:SHOWN]!r}")
        if self._ackers and not self._unsettled and self.lane is not None:
            self.lane.proceed()


class Acker:
    """One connection over which a worker acknowledges some of its jobs."""

    def __init__(self, worker: Work) -> None:
        self._worker = worker
        self.lane: Lane | None = None

    def next(self) -> bytes | None:
        """The next acknowledgement; PARK while there is none, None when the worker has ended."""
        return None if self._worker.is_done else self._worker.next_ack()

    def answered(self, status: int, body: bytes, seconds: float) -> None:
        """Take an answer in."""
        self._worker.acked(status, body, seconds)


class Lane(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, run: Run, flow: Repeat | Work | Acker) -> None:
        self._run = run
        self._flow = flow
        self._is_waiting = False
        flow.lane = self
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self._sent_at = 0.0
        self._is_done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # Not an asyncio.Transport by class under uvloop, but one by behaviour.
        self._transport = cast("asyncio.Transport", transport)

    def proceed(self) -> None:
        """Send the next request, or end; nothing while an answer is due."""
        if self._is_waiting or self._is_done:
            return
        message = self._flow.next()
        if message == PARK:
            return
        if message is None or self._transport is None:
            self._end()
            return
        self._is_waiting = True
        self._sent_at = time.perf_counter()
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._missing > 0:  # a long body is put together once, not with every piece
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts = []
        elif self._buffer:
            data = self._buffer + data
        try:
            self._take(data)
        except BadResponse as error:
            self._run.fail(str(error))
            self._end()

    def _take(self, data: bytes) -> None:
        head = parse_head(data)
        if head is None:
            self._buffer = data
            return
        self._buffer = b""
        missing = head.end - len(data)
        if missing > 0:
            self._parts, self._missing = [data], missing
            return
        self._missing = 0
        now = time.perf_counter()
        if missing < 0:
            raise BadResponse(f"{-missing} bytes more than one response")
        self._run.last = now
        self._is_waiting = False
        self._flow.answered(head.status, data[head.start : head.end], now - self._sent_at)
        self.proceed()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        if not self._is_done:
            self._run.fail(f"the server closed the connection: {error!r}")
            self._end()

    def _end(self) -> None:
        if self._is_done:
            return
        self._is_done = True
        if self._transport is not None:
            self._transport.close()
        self._run.end_lane()


def _timing(latencies: list[float]) -> Timing:
    latencies.sort()
    return Timing(len(latencies), percentile(latencies, 50) * 1000, percentile(latencies, 99) * 1000)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def generate(spec: LoadSpec) -> Load:
    """Send the load and return the figures. Raises OSError or TimeoutError when the server is not there."""
    loop = asyncio.get_running_loop()
    run = Run(spec)
    kinds: dict[str, tuple[type[Repeat | Work], ...]] = {"repeat": (Repeat,), "work": (Work,), "flow": (Produce, Work)}
    lanes = [
        Lane(run, flow)
        for number in range(spec.connections)
        for kind in kinds[spec.kind]
        for flow in kind(run, number).flows()
    ]
    run.open_lanes = len(lanes)
    async with asyncio.timeout(CONNECT_S):
        for lane in lanes:
            await loop.create_connection(lambda lane=lane: lane, spec.host, spec.port)  # type: ignore[misc]
    cpu_s = _cpu_s()
    run.start()
    for lane in lanes:
        lane.proceed()
    async with asyncio.timeout(spec.seconds + GRACE_S):
        await run.ended
    cpu_s = _cpu_s() - cpu_s
    first, acks = _timing(run.latencies), _timing(run.acks)
    is_work = spec.kind != "repeat"
    both = _timing(run.latencies + run.acks) if is_work else first
    return Load(
        requests=run.requests,
        enqueued=run.enqueued,
        failures=run.failures,
        first_failure=run.first_failure,
        seconds=run.last - run.began,
        cpu_s=cpu_s,
        p50_ms=both.p50_ms,
        p99_ms=both.p99_ms,
        fetched=run.fetched,
        acked=run.acked,
        duplicates=run.fetched - len(run.seen),
        is_drained=run.drained_workers == spec.connections,
        fetch_call=first if is_work else None,
        ack_call=acks if is_work else None,
    )


def main() -> int:
    """Read a LoadSpec, write a Load."""
    spec = LoadSpec(**json.load(sys.stdin))
    print(json.dumps(asdict(uvloop.run(generate(spec)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
