"""Keeps the registry of queues and what lies in NATS in step: no job in a queue that nobody looks at.

A queue that is deleted while a job enters it comes back; consumers of queues that are idle and empty are removed,
because tens of thousands strain NATS (they are made anew by the next fetch). Dead letters beyond the number to be
kept go, the oldest first.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from ojs_fast.core.dead_letters import DeadLetters
from ojs_fast.core.queues import Queues
from ojs_fast.core.tallies import Tallies
from ojs_fast.errors import OJSError
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.leases import Leases
from ojs_fast.storage.queue_counts import QueueCounts

log = logging.getLogger(__name__)

# A node that still knew the queue may have a job under way when the removal reaches it.
LOOKS_S = (0.0, 2.0)
SWEEP_S = 300.0
IDLE_S = 3600.0


class Janitor:
    """One per node for removed queues; the leader's also for consumers."""

    def __init__(
        self,
        queues: Queues,
        counts: QueueCounts,
        tallies: Tallies,
        leases: Leases,
        dead_letters: DeadLetters,
        dead_letters_kept: int,
    ) -> None:
        """`dead_letters_kept`: how many may stay (0 = all)."""
        self._dead_letters = dead_letters
        self._dead_letters_kept = dead_letters_kept
        self._queues = queues
        self._counts = counts
        self._tallies = tallies
        self._leases = leases
        self._tasks: set[asyncio.Task[None]] = set()
        queues.on_removed(self._removed)

    async def open(self) -> None:
        """Start to sweep."""
        self._start(self._sweep_loop())

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _removed(self, name: str) -> None:
        self._tallies.forget_queue(name)
        self._start(self._revive_if_needed(name))

    async def _revive_if_needed(self, name: str) -> None:
        for pause_s in LOOKS_S:
            await asyncio.sleep(pause_s)
            try:
                messages, scheduled, retryable = await self._counts.all_of(name)
                for level in messages or ([0] if scheduled or retryable else []):
                    log.warning("queue %s got a job while it was deleted; it comes back", name)
                    await self._queues.ensure(name, level)
                if await self._queues.find(name) is None:
                    await self._counts.remove_counting(name)
                    await self._tallies.erase(name)
            except Unavailable as error:
                log.warning("nobody knows whether queue %s is empty: %s", name, error)

    async def _sweep_loop(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if not self._leases.is_leader:
                continue
            try:
                removed = await self._counts.remove_idle(IDLE_S)
                log.debug("%d idle consumers are removed", removed)
                if self._dead_letters_kept:
                    pruned = await self._dead_letters.prune(self._dead_letters_kept)
                    log.debug("%d dead letters are pruned", pruned)
            except (Unavailable, OJSError) as error:
                log.info("sweeping goes on later: %s", error)
