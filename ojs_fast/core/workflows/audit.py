"""Audit: goes through unfinished workflows from their records, in case a crash left one half done. On the leader.

What a dead node's last job records tell is repaired by reconcile at once; the audit finds the rest: a creation
or a cancellation that stopped half way, a nested workflow whose end did not reach the outer one. A workflow is
looked at when it is 10 s old, then each time its age has doubled, at least hourly, and when a node has died.
"""

import asyncio
import logging

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.workflows.driver import Driver
from ojs_fast.core.workflows.store import WorkflowStore
from ojs_fast.forever import forever
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

EVERY_S = 1.0
FIRST_MS = 10_000
LAST_MS = 3_600_000
AT_ONCE = 50
LOOK_S = 1.0


class Auditor:
    """Knows the unfinished workflows while this node leads."""

    def __init__(self, store: WorkflowStore, driver: Driver, clock: NowMs) -> None:
        self._store = store
        self._driver = driver
        self._clock = clock
        self._due_ms: dict[str, int] = {}
        self._after = 0
        self._is_new = True
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin with all of them: this node became the leader."""
        self.forget()
        self._task = asyncio.create_task(forever(self._run))

    async def stop(self) -> None:
        """Stop: this node no longer leads."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def forget(self) -> None:
        """Drop what is known, to begin anew."""
        self._due_ms.clear()
        self._after = 0
        self._is_new = True

    def node_died(self) -> None:
        """Look at every unfinished workflow now."""
        self._due_ms = dict.fromkeys(self._due_ms, 0)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                if not await self._step():
                    await self._nap()
            except Unavailable as error:
                log.info("audit is tried again: %s", error)
                await self._nap()

    async def _nap(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(EVERY_S):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _step(self) -> bool:
        """Look at those that are due; True when there may be more. Raises Unavailable."""
        opened, self._after = await self._store.opened(self._after)
        for workflow_id in opened:
            first_ms = 0 if self._is_new else _core.uuid7_ms(workflow_id) + FIRST_MS
            self._due_ms.setdefault(workflow_id, first_ms)
        self._is_new = False
        now_ms = self._clock()
        due = [workflow_id for workflow_id, due_ms in self._due_ms.items() if due_ms <= now_ms][:AT_ONCE]
        still_open = await self._store.still_open(due) if due else set()
        for workflow_id in due:
            if workflow_id not in still_open:
                del self._due_ms[workflow_id]
                continue
            age_ms = now_ms - _core.uuid7_ms(workflow_id)
            self._due_ms[workflow_id] = now_ms + min(max(age_ms, FIRST_MS), LAST_MS)
            self._driver.look(workflow_id)
        await asyncio.gather(*(self._driver.settled(workflow_id, LOOK_S) for workflow_id in still_open))
        return len(due) == AT_ONCE
