"""Statistics of queues: exact once nothing is under way, over all nodes, at a cost that no backlog changes.

Waiting and active jobs are what lies in NATS (`QueueCounts`) and what the nodes hold; ended ones are the nodes'
tallies. Nodes are asked for what they have not written yet, and flush first what others could not see.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.claims import Claims
from ojs_fast.core.clock import NowMs
from ojs_fast.core.counts import Counts
from ojs_fast.core.metrics import Metrics
from ojs_fast.core.peers import ANSWER_S, Peers
from ojs_fast.core.queues import Queue, Queues
from ojs_fast.core.stale import StaleMessages
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Tallies
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.queue_counts import QueueCounts

log = logging.getLogger(__name__)

ASK = b"stats "
ASK_METRICS = b"metrics"
LIVE_STATES = ("available", "active", "scheduled", "retryable")
# Stands for all queues together in what nodes ask one another; no queue can have this name.
ALL = "*"


@dataclass(slots=True, frozen=True)
class Snapshot:
    """One queue at one moment. `oldest_ms`: since when the oldest job waits (epoch ms, 0 = none waits)."""

    queue: Queue
    available: int
    active: int
    scheduled: int
    retryable: int
    counts: Counts
    oldest_ms: int
    computed_ms: int

    @property
    def depth(self) -> int:
        """Jobs that have not ended (ojs-queue-config section 9.3)."""
        return self.available + self.active + self.scheduled + self.retryable

    def states(self) -> dict[str, int]:
        """The number of jobs by state; ended ones since the queue was created."""
        return {
            "available": self.available,
            "active": self.active,
            "scheduled": self.scheduled,
            "retryable": self.retryable,
            # While a dead node's counts come in, a dead letter's retry may be counted before the end that it undoes.
            "completed": max(0, self.counts.completed),
            "discarded": max(0, self.counts.discarded),
            "cancelled": max(0, self.counts.cancelled),
        }

    def throughput(self) -> dict[str, float]:
        """Jobs per minute over the last five minutes (ojs-admin-api section 6.1)."""
        completed, failed, _, _ = self.counts.recent(self.computed_ms, 4)
        return {"processed_per_minute": round(completed / 5, 2), "failed_per_minute": round(failed / 5, 2)}

    def details(self) -> dict[str, Any]:
        """Everything else that ojs-http-binding section 11.2 and ojs-admin-api section 6 name."""
        completed, failed, running_ms, waiting_ms = self.counts.recent(self.computed_ms, 60)
        oldest = _core.format_rfc3339_ms(self.oldest_ms) if self.oldest_ms else None
        return {
            "completed_last_hour": completed,
            "failed_last_hour": failed,
            "avg_duration_ms": running_ms // completed if completed else 0,
            "avg_wait_ms": waiting_ms // completed if completed else 0,
            "throughput_per_second": round(self.throughput()["processed_per_minute"] / 60, 3),
            "throughput": self.throughput(),
            **self.counts.percentiles(self.computed_ms),
            "oldest_available_at": oldest,
            "oldest_waiting_ms": max(0, self.computed_ms - self.oldest_ms) if self.oldest_ms else 0,
        }


class Stats:
    """Answers how many jobs a queue has in each state."""

    def __init__(
        self,
        stores: Stores,
        queues: Queues,
        claims: Claims,
        tallies: Tallies,
        stale: StaleMessages,
        peers: Peers,
        counts: QueueCounts,
        metrics: Metrics,
        clock: NowMs,
    ) -> None:
        self._metrics = metrics
        self._stores = stores
        self._queues = queues
        self._claims = claims
        self._tallies = tallies
        self._stale = stale
        self._peers = peers
        self._counts = counts
        self._clock = clock
        self._scheduled = Bucket(stores.connection, names.SCHEDULED)
        self._retryable = Bucket(stores.connection, names.RETRY)

    async def of(self, queues: list[Queue]) -> list[Snapshot]:
        """One snapshot per queue. Raises Unavailable."""
        wanted = [queue.name for queue in queues]
        heard = await self._reports(wanted)
        return list(await asyncio.gather(*(self._snapshot(queue, heard) for queue in queues)))

    async def overall(self) -> Snapshot:
        """All queues together, at a cost that no number of waiting jobs changes. Raises Unavailable."""
        heard = await self._reports([ALL])
        messages, scheduled, retryable, total = await asyncio.gather(
            self._counts.all_work_messages(),
            self._scheduled.count(),
            self._retryable.count(),
            self._tallies.stored_of_all({report["owner"] for report in heard}),
        )
        for report in heard:
            total.merge(Counts.parse(report["counts"][ALL]))
        active = sum(report["active"][ALL] for report in heard)
        return Snapshot(Queue(ALL, 0), max(0, messages - active), active, scheduled, retryable, total, 0, self._clock())

    async def depth(self, queue: str) -> int:
        """How deep a queue is, once what is under way anywhere has arrived. Raises Unavailable."""
        [snapshot] = await self.of([Queue(queue, 0)])
        return snapshot.depth

    async def dead_letters(self, queues: list[Queue]) -> list[int]:
        """How many dead letters each queue has. Raises Unavailable."""
        return list(await asyncio.gather(*(self._counts.indexed(names.DEAD, queue.name) for queue in queues)))

    async def metrics(self) -> list[dict[str, Any]]:
        """What each node counted since it started; see `Metrics.report`."""
        return [self._metrics.report(), *map(orjson.loads, await self._peers.ask_others(ASK_METRICS))]

    async def _reports(self, wanted: list[str]) -> list[dict[str, Any]]:
        # A node that does not answer is counted by what it has written.
        own, others = await asyncio.gather(self.report(wanted), self._peers.ask_others(ASK + orjson.dumps(wanted)))
        return [own, *map(orjson.loads, others)]

    async def report(self, wanted: list[str]) -> dict[str, Any]:
        """What only this node knows, once all it did before is visible in NATS."""
        try:
            async with asyncio.timeout(ANSWER_S / 2):
                await asyncio.gather(
                    self._stale.flushed(),
                    self._stores.work.arrived(),
                    self._stores.outbox.flushed(),
                    self._tallies.verify(),
                    *(self._stores.work.acks_arrived(name, self._levels(name)) for name in self._named(wanted)),
                )
        except (TimeoutError, Unavailable) as error:
            log.info("counts may lack what is under way: %r", error)
        if wanted == [ALL]:
            counts = {ALL: self._tallies.report_of_all()}
            return {"owner": self._tallies.owner, "counts": counts, "active": {ALL: len(self._claims)}}
        return {
            "owner": self._tallies.owner,
            "counts": self._tallies.report(wanted),
            "active": {name: self._claims.in_queue(name) for name in wanted},
        }

    def _named(self, wanted: list[str]) -> list[str]:
        return [queue.name for queue in self._queues.all()] if wanted == [ALL] else wanted

    def _levels(self, name: str) -> tuple[int, ...]:
        queue = self._queues.known(name)
        return queue.levels if queue else ()

    async def _snapshot(self, queue: Queue, reports: list[dict[str, Any]]) -> Snapshot:
        name = queue.name
        levels = list(queue.levels)
        (messages, scheduled, retryable), total, oldest = await asyncio.gather(
            self._counts.all_of(name),
            self._tallies.stored(name, {report["owner"] for report in reports}),
            self._counts.oldest_messages(name, levels, 1),
        )
        for report in reports:
            total.merge(Counts.parse(report["counts"][name]))
        active = sum(report["active"][name] for report in reports)
        available = max(0, sum(messages.values()) - active)
        oldest_ms = _enqueued_ms(oldest[0][1]) if oldest and available else 0
        return Snapshot(queue, available, active, scheduled, retryable, total, oldest_ms, self._clock())


def _enqueued_ms(payload: bytes) -> int:
    try:
        return _core.Record.parse(_core.split_work_message(payload)[1]).enqueued_ms
    except ValueError:
        return 0
