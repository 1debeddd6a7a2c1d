"""Batches: written ahead where that is safe, else by atomic batches with group commit.

Those that wait while a commit is under way share the next one: an atomic batch costs nats-server about 2 ms before
its first message (docs/performance.md). Sharing keeps each of them all-or-nothing: a commit that is refused is tried
again batch by batch. Knows records only as bytes.
"""

import asyncio
from collections import deque

from ojs_fast.storage.errors import BatchRefused, KeyTaken
from ojs_fast.storage.intents import Batch, IntentLog
from ojs_fast.storage.records import ATOMIC_BATCH_DEFAULT, Records

COMMITS_AT_ONCE = 1
SHARED_BYTES = 8 * 1024 * 1024

# A batch and who waits for the revision of its last record.
_Member = tuple[Batch, "asyncio.Future[int]"]


class BatchWriter:
    """Creates many records at once, each batch all or nothing."""

    def __init__(self, records: Records, intents: IntentLog, *, write_ahead: bool) -> None:
        """`write_ahead`: NATS is ours alone and acknowledges before it syncs."""
        self._records = records
        self._intents = intents
        self._write_ahead = write_ahead
        self._waiting: deque[_Member] = deque()
        self._commits: set[asyncio.Task[None]] = set()

    async def create_all(self, batch: Batch, *, ids_are_new: bool = False) -> list[int]:
        """Create the records of one batch; their revisions, 0 for one that was changed meanwhile.

        `ids_are_new`: this node has just made all ids. Raises KeyTaken, BatchRefused, Unavailable; see
        `Records.create_all`.
        """
        if ids_are_new and self._write_ahead and self._intents.fits(batch):
            return await self._intents.create_all(batch)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        self._start()
        last = await future
        return list(range(last - len(batch) + 1, last + 1))

    def _start(self) -> None:
        while self._waiting and len(self._commits) < COMMITS_AT_ONCE:
            task = asyncio.create_task(self._commit(self._next_group()))
            self._commits.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._commits.discard(task)
        self._start()

    def _next_group(self) -> list[_Member]:
        group: list[_Member] = []
        jobs = size = 0
        ids: set[str] = set()
        while self._waiting:
            batch, _ = self._waiting[0]
            jobs += len(batch)
            size += sum(len(stored) for _, stored in batch)
            ids.update(job_id for job_id, _ in batch)
            # Twins in one commit would be refused together; apart, the first of them wins.
            if group and (jobs > ATOMIC_BATCH_DEFAULT or size > SHARED_BYTES or len(ids) < jobs):
                break
            group.append(self._waiting.popleft())
        return group

    async def _commit(self, group: list[_Member]) -> None:
        try:
            last = await self._records.create_all([record for batch, _ in group for record in batch])
        except (KeyTaken, BatchRefused) as error:
            if len(group) == 1:
                _settle(group[0][1], error)
                return
            for member in group:
                await self._commit([member])
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            for _, future in group:
                _settle(future, error)
        else:
            for batch, future in reversed(group):
                _settle(future, last)
                last -= len(batch)


def _settle(future: "asyncio.Future[int]", outcome: int | Exception) -> None:
    if future.done():  # its request was cancelled
        return
    if isinstance(outcome, int):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
