"""Group commit for batches: those that wait while commits are under way share the next one.

An atomic batch costs nats-server about 2 ms before its first message (docs/performance.md), so many small
ones at once are dear. Sharing keeps each of them all-or-nothing: a commit that is refused is tried again
batch by batch. Knows records only as bytes.
"""

import asyncio
from collections import deque

from ojs_fast.storage.errors import BatchRefused, KeyTaken
from ojs_fast.storage.records import ATOMIC_BATCH_DEFAULT, Records

COMMITS_AT_ONCE = 1
SHARED_BYTES = 8 * 1024 * 1024

Batch = list[tuple[str, bytes]]
# A batch and who waits for the revision of its last record.
_Member = tuple[Batch, "asyncio.Future[int]"]


class BatchWriter:
    """Creates many records at once, each batch all or nothing."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._waiting: deque[_Member] = deque()
        self._commits: set[asyncio.Task[None]] = set()

    async def create_all(self, batch: Batch) -> int:
        """Write one batch; the revision of its last record, the others' are contiguous below it.

        Raises KeyTaken, BatchRefused, Unavailable; see `Records.create_all`.
        """
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        self._start()
        return await future

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
