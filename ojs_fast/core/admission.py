"""Backpressure: no queue gets deeper than its bound, over all nodes (ojs-backpressure).

The leader admits jobs to bounded queues; other nodes ask it. It knows an upper limit of each depth (what was
measured, and all it admitted since) and measures again only when that reaches the bound, after everything it
admitted has arrived. So a queue far below its bound costs a request, and a full one is full for certain.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from ojs_fast.core.events import Events
from ojs_fast.core.queue_config import QueueRules
from ojs_fast.core.queues import Queues
from ojs_fast.core.stores import Stores
from ojs_fast.errors import QueueFull
from ojs_fast.storage import names
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.leases import Leases

log = logging.getLogger(__name__)

ADMIT = b"admit "
ARRIVED = b"arrived "
# Jobs also get into a queue without asking (dead letters that are retried), so a measure grows old.
MEASURE_AGAIN_S = 1.0
GRANT_S = 10.0
# A blocked producer asks again; one answer holds for whoever asks within a moment.
ASK_AGAIN_S = 0.05
SLICE_S = 2.0


@dataclass(slots=True)
class Ticket:
    """What an enqueue request brings (`block_s`) and takes along: how full its fullest queue is."""

    block_s: float = 0.0
    queue: str = ""
    depth: int = 0
    bound: int = 0
    warns: bool = False


@dataclass(slots=True)
class _Gate:
    # One bounded queue, on the leader.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    depth: int = 0
    measured: float = float("-inf")
    full: float = float("-inf")
    warned: bool = False
    # grant → (jobs, when it was given); `arrived` is set when there is none.
    granted: dict[int, tuple[int, float]] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


#: Who gave it, the queue, its number.
Grant = tuple[str, str, int]
Measure = Callable[[str], Awaitable[int]]
Drop = Callable[[str, int], Awaitable[int]]


class Admission:
    """Admits jobs to bounded queues."""

    def __init__(
        self,
        stores: Stores,
        queues: Queues,
        leases: Leases,
        events: Events,
        measure: Measure,
        measure_exactly: Measure,
    ) -> None:
        """`measure(queue)` is its depth as NATS tells; `measure_exactly` waits for what is under way anywhere."""
        self._stores = stores
        self._queues = queues
        self._leases = leases
        self._events = events
        self._measure = measure
        self._measure_exactly = measure_exactly
        self.drop: Drop | None = None
        self._gates: dict[str, _Gate] = {}
        self._grants = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def forget(self) -> None:
        """Drop what was measured (after a reset)."""
        self._gates.clear()

    # -- any node --------------------------------------------------------------------------------

    async def enter(self, demand: dict[str, int], job_type: str, ticket: Ticket) -> list[Grant]:
        """Ask for room for new jobs, by queue; hand the result to `leave` when they are stored, or not.

        Raises QueueFull, Unavailable.
        """
        taken: list[Grant] = []
        try:
            for queue, jobs in sorted(demand.items()):
                rules = self._queues.rules.get(queue)
                if rules is not None and rules.max_depth:
                    taken.append(await self._enter(queue, jobs, job_type, rules, ticket))
        except BaseException:
            self.leave(taken, at_once=True)
            raise
        return taken

    async def _enter(self, queue: str, jobs: int, job_type: str, rules: QueueRules, ticket: Ticket) -> Grant:
        blocks = rules.strategy == "block"
        end = time.monotonic() + (ticket.block_s if blocks else 0.0)
        while True:
            left_s = max(0.0, end - time.monotonic())
            owner, answer = await self._ask(queue, jobs, min(SLICE_S, left_s))
            if answer["grant"]:
                break
            if left_s <= 0 or jobs > rules.max_depth:
                raise self._refused(queue, job_type, answer, rules)
        depth, bound = answer["depth"], answer["bound"]
        if depth * (ticket.bound or 1) >= ticket.depth * bound:
            ticket.queue, ticket.depth, ticket.bound = queue, depth, bound
            ticket.warns = depth > rules.warning_threshold * bound
        return owner, queue, answer["grant"]

    def _refused(self, queue: str, job_type: str, answer: dict[str, Any], rules: QueueRules) -> QueueFull:
        facts = {"queue": queue, "depth": answer["depth"], "bound": answer["bound"]}
        self._events.announce("backpressure.rejected", queue, {**facts, "job_type": job_type})
        return QueueFull(
            f"Queue '{queue}' has reached its depth bound ({answer['bound']}).",
            details={**facts, "strategy": rules.strategy},
            hint="Try again later, or raise backpressure.max_depth of the queue.",
        )

    async def _ask(self, queue: str, jobs: int, wait_s: float) -> tuple[str, dict[str, Any]]:
        owner = self._leases.leader_id
        if owner == self._leases.node_id:
            return owner, await self.decide(queue, jobs, wait_s)
        if not owner:
            raise Unavailable("no node leads at the moment, so nobody knows how deep the queue is")
        body = ADMIT + orjson.dumps({"queue": queue, "jobs": jobs, "wait_s": wait_s})
        answer = await self._stores.connection.request(names.node_subject(owner), body)
        return owner, orjson.loads(answer.data)

    def leave(self, taken: list[Grant], *, at_once: bool) -> None:
        """The jobs are stored, or never will be. `at_once`: they are visible in NATS, or nothing was stored."""
        if not taken:
            return
        if at_once:
            self._arrived(taken)
            return
        task = asyncio.create_task(self._leave_later(taken))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _leave_later(self, taken: list[Grant]) -> None:
        # Index entries are written behind.
        await self._stores.outbox.flushed()
        self._arrived(taken)

    def _arrived(self, taken: list[Grant]) -> None:
        for owner, queue, grant in taken:
            if owner == self._leases.node_id:
                self.arrived(queue, grant)
            else:
                body = ARRIVED + orjson.dumps({"queue": queue, "grant": grant})
                self._stores.connection.send(names.node_subject(owner), body)

    # -- the leader ------------------------------------------------------------------------------

    async def answer(self, payload: bytes) -> bytes | None:
        """Another node asks for room, or tells that its jobs have arrived."""
        if payload.startswith(ARRIVED):
            told = orjson.loads(payload[len(ARRIVED) :])
            self.arrived(told["queue"], told["grant"])
            return None
        asked = orjson.loads(payload[len(ADMIT) :])
        return orjson.dumps(await self.decide(asked["queue"], asked["jobs"], asked["wait_s"]))

    def arrived(self, queue: str, grant: int) -> None:
        """The jobs of a grant are visible in NATS, or never will be."""
        gate = self._gates.get(queue)
        if gate is not None and gate.granted.pop(grant, (0, 0.0))[0] and not gate.granted:
            gate.arrived.set()

    async def decide(self, queue: str, jobs: int, wait_s: float) -> dict[str, Any]:
        """Admit now, or within `wait_s`: `{"grant": id or 0, "depth", "bound"}`. Raises Unavailable."""
        gate = self._gates.setdefault(queue, _Gate())
        end = time.monotonic() + wait_s
        while True:
            rules = self._queues.rules.get(queue) or QueueRules()
            async with gate.lock:
                grant = await self._try(gate, queue, jobs, rules)
            if grant or time.monotonic() >= end:
                return {"grant": grant, "depth": gate.depth, "bound": rules.max_depth}
            await asyncio.sleep(min(ASK_AGAIN_S, max(0.0, end - time.monotonic())))

    async def _try(self, gate: _Gate, queue: str, jobs: int, rules: QueueRules) -> int:
        bound, now = rules.max_depth, time.monotonic()
        if bound and jobs > bound:
            return 0
        if bound and now - gate.measured > MEASURE_AGAIN_S:
            gate.depth = await self._measure(queue) + sum(one for one, _ in gate.granted.values())
            gate.measured = now
        if bound and gate.depth + jobs > bound:
            if now - gate.full < ASK_AGAIN_S / 2 and rules.strategy == "block":
                return 0
            await self._all_arrived(gate)
            gate.depth = await self._measure_exactly(queue)
            gate.measured = time.monotonic()
            surplus = gate.depth + jobs - bound
            if surplus > 0 and rules.strategy == "drop_oldest" and self.drop is not None:
                gate.depth -= await self.drop(queue, surplus)
            if gate.depth + jobs > bound:
                gate.full = time.monotonic()
                return 0
        gate.depth += jobs
        grant = next(self._grants)
        gate.granted[grant] = (jobs, time.monotonic())
        gate.arrived.clear()
        self._watch_level(gate, queue, rules)
        return grant

    async def _all_arrived(self, gate: _Gate) -> None:
        # A node that died with its grant never tells.
        while gate.granted:
            oldest = min(since for _, since in gate.granted.values())
            try:
                async with asyncio.timeout(max(0.0, oldest + GRANT_S - time.monotonic())):
                    await gate.arrived.wait()
            except TimeoutError:
                horizon = time.monotonic() - GRANT_S
                gate.granted = {grant: one for grant, one in gate.granted.items() if one[1] > horizon}

    def _watch_level(self, gate: _Gate, queue: str, rules: QueueRules) -> None:
        above = bool(rules.max_depth) and gate.depth > rules.warning_threshold * rules.max_depth
        if above != gate.warned:
            gate.warned = above
            facts = {"queue": queue, "depth": gate.depth, "bound": rules.max_depth}
            self._events.announce("backpressure.warning" if above else "backpressure.cleared", queue, facts)
