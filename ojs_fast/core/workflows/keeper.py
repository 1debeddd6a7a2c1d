"""How long workflows stay: as long as they run, then for their retention; and what a retry opens again."""

from functools import partial

from ojs_fast.core.workflows.members import Members
from ojs_fast.core.workflows.model import CANCELLED, FAILED, Header, Segment, job_id
from ojs_fast.core.workflows.store import Run, WorkflowStore


class Keeper:
    """Sets and takes back the time to live of whole workflows."""

    def __init__(self, store: WorkflowStore, members: Members, retention_s: int) -> None:
        """`retention_s`: how long workflows that ended stay, 0 = for ever."""
        self._store = store
        self._members = members
        self._retention_s = retention_s

    async def wrap_up(self, run: Run, late: list[str]) -> None:
        """Let an ended workflow leave in time, or only the jobs that ended after all others were wrapped up.

        Raises OJSError, RevisionConflict, Unavailable.
        """
        if not self._retention_s:
            return
        if await self._store.still_open([run.header.id]):
            await self._keep(run, self._retention_s)
        else:
            await self.keep_late(late)

    async def keep_late(self, ids: list[str]) -> None:
        """Let jobs leave in time that ended after their workflow was cancelled. Raises Unavailable."""
        if ids:
            await self._members.keep_jobs(ids, self._retention_s)

    async def _keep(self, run: Run, ttl_s: int) -> None:
        """Let a whole workflow leave the store in `ttl_s` seconds, 0 = never."""

        async def keep_nested(workflow_id: str, ttl_s: int) -> None:
            inner = await self._store.find(workflow_id)
            if inner is not None:
                await self._keep(inner, ttl_s)

        if run.header.generation:
            await self._store.read_segments(run, range(run.header.segments + 1))
        await self._members.keep(run, ttl_s, keep_nested)
        if not await self._store.keep(run, ttl_s) and ttl_s:
            await self._keep(run, 0)  # somebody retried it meanwhile

    async def reopen(self, run: Run) -> None:
        """Open what did not complete in earlier generations. Raises OJSError, RevisionConflict, Unavailable."""
        header = run.header
        numbers = range(header.segments + (1 if header.callbacks else 0))
        run.segments.clear()
        await self._store.read_segments(run, numbers)
        total = header.count + len(header.callbacks)
        left_behind = [
            job_id(header.id, index, run.generation(index))
            for index in range(total)
            if run.outcome(index) in (FAILED, CANCELLED)
        ]
        await self._members.keep_jobs(left_behind, self._retention_s)
        for number in numbers:
            await self._store.change(run, number, partial(_open_again, header.generation))
        if header.parent is None and self._retention_s:
            await self._keep(run, 0)
        await self._store.mark_open(header.id)  # who wrapped it up may have been slower than this retry
        await self._store.update(run, partial(_reset_done, header.generation))


def _open_again(generation: int, segment: Segment) -> bool:
    return segment.reopen(generation)


def _reset_done(generation: int, header: Header) -> bool:
    if not header.resetting or header.generation != generation:
        return False
    header.resetting = False
    return True
