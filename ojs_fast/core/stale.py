"""Work messages whose job has moved on without a fetch: found by time and deleted, so that counts are exact.

They are harmless (their claim fails), but they lie in the queue until somebody pulls them. Written behind; what a
crash leaves is found by reconcile, or dropped when it is pulled.
"""

import asyncio
import logging
from typing import Any, NamedTuple

from ojs_fast import _core
from ojs_fast.core.own import own_record
from ojs_fast.core.stores import Stores
from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.work import WorkMessage, ack_sequence

log = logging.getLogger(__name__)

# Cancels that come together share the search.
GATHER_S = 0.01
# A message is published right after its record; the clocks of node and NATS may differ. The second try looks wide.
MARGINS_MS = (250, 15_000)
AGAIN_S = 0.2
PAGE = 500

_Level = tuple[str, int]


class _Left(NamedTuple):
    # What a job left at one level: messages published in this span (epoch ms), stale because of this revision.
    since_ms: int
    until_ms: int
    revision: int
    messages: int = 1

    def and_(self, other: "_Left") -> "_Left":
        return _Left(
            min(self.since_ms, other.since_ms),
            max(self.until_ms, other.until_ms),
            max(self.revision, other.revision),
            self.messages + other.messages,
        )


MOVED = "moved"  # Record.extra: [when the priority was changed, the one before, when that one's message was published]


def moved_of(record: _core.Record) -> tuple[int, int, int] | None:
    """The last change of priority since the job became available: `(at, priority before, its message's time)`."""
    if record.extra is None or MOVED not in record.extra:
        return None
    at_ms, level, since_ms = record.extra[MOVED]
    # Whatever made the job available again later published a message of its own.
    return (at_ms, level, since_ms) if at_ms >= record.enqueued_ms else None


def published_ms(record: _core.Record) -> int:
    """When the last work message of an available job was published (epoch ms)."""
    moved = moved_of(record)
    return moved[0] if moved is not None else record.enqueued_ms


class StaleMessages:
    """Deletes what jobs leave behind in stream `OJS`."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._left: dict[_Level, dict[str, _Left]] = {}
        self._refused: list[tuple[str, WorkMessage]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to search."""
        self._task = asyncio.create_task(forever(self._loop))

    async def close(self) -> None:
        """Stop searching; reconcile finds the rest."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def forget(self) -> None:
        """Drop what was to be searched (after a reset)."""
        self._left.clear()
        self._refused.clear()

    def left_by(self, record: _core.Record, revision: int) -> None:
        """An available job was cancelled, discarded or given another priority: its last message is still there.

        `revision` is that of the record: messages of older ones are stale.
        """
        if record.state in ("cancelled", "discarded") and record.enqueued_ms:
            self._left_at(record, record.priority, published_ms(record), revision)
        elif record.state == "available" and (moved := moved_of(record)):
            _, level, since_ms = moved
            self._left_at(record, level, since_ms, revision)

    def _left_at(self, record: _core.Record, level: int, at_ms: int, revision: int) -> None:
        self._add((record.queue, level), record.id, _Left(at_ms, at_ms, revision))
        self._woken()

    def _add(self, level: _Level, job_id: str, left: _Left) -> None:
        jobs = self._left.setdefault(level, {})
        jobs[job_id] = left.and_(jobs[job_id]) if job_id in jobs else left

    def refused(self, message: WorkMessage, job_id: str) -> None:
        """The claim of a message failed: it is stale, unless NATS delivered the message of an active job again."""
        self._refused.append((job_id, message))
        self._woken()

    def _woken(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def flushed(self) -> None:
        """Wait until nothing is left to delete."""
        await self._idle.wait()

    async def _loop(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            await self._stores.connection.wait_up()
            self._wake.clear()
            left, self._left = self._left, {}
            refused, self._refused = self._refused, []
            try:
                await self._stores.work.arrived()
                await self._settle_refused(refused)
                for level, jobs in left.items():
                    await self._search(level, dict(jobs))
            except Unavailable as error:
                log.info("stale work messages are searched again: %s", error)
                for level, jobs in left.items():
                    for job_id, one in jobs.items():
                        self._add(level, job_id, one)
                self._refused.extend(refused)
                self._wake.set()
                await asyncio.sleep(AGAIN_S)
            if not self._wake.is_set():
                self._idle.set()

    async def _settle_refused(self, refused: list[tuple[str, WorkMessage]]) -> None:
        found = await self._stores.records.get_many(job_id for job_id, _ in refused)
        for job_id, message in refused:
            stored, revision = found.get(job_id, (b"", 0))
            record = own_record(stored)
            if record is not None and revision == _core.split_work_message(message.payload)[0]:
                self._stores.work.give_back(message)  # not stale at all, whatever refused it
            elif record is None or not _is_own(record, ack_sequence(message.ack_subject)):
                self._stores.work.ack(message.ack_subject)

    async def _search(self, level: _Level, jobs: dict[str, _Left]) -> None:
        subject = names.work_subject(*level)
        for margin_ms in MARGINS_MS:
            since_ms = min(left.since_ms for left in jobs.values()) - margin_ms
            until_ms = max(left.until_ms for left in jobs.values()) + margin_ms
            query: dict[str, Any] = {"start_time": _core.format_rfc3339_ms(max(0, since_ms))}
            while jobs and (page := await self._stores.work.messages(query, subject)):
                query = {"seq": page[-1][0] + 1}
                last_ms = await self._delete_of(page, jobs)
                if last_ms > until_ms or len(page) < PAGE:
                    break
            if not jobs:
                return

    async def _delete_of(self, page: list[tuple[int, str, bytes]], jobs: dict[str, _Left]) -> int:
        last_ms, doomed = 0, []
        for sequence, _, payload in page:
            try:
                revision, stored = _core.split_work_message(payload)
                record = _core.Record.parse(stored)
            except ValueError as error:
                log.error("a foreign message in stream OJS is left alone: %s", error)
                continue
            last_ms = published_ms(record)
            left = jobs.get(record.id)
            if left is not None and revision < left.revision:
                jobs[record.id] = left._replace(messages=left.messages - 1)
                if left.messages == 1:
                    del jobs[record.id]
                doomed.append(sequence)
        await asyncio.gather(*(self._stores.work.delete(sequence) for sequence in doomed))
        return last_ms

    # -- after NATS was away ---------------------------------------------------------------------

    async def audit(self, query: dict[str, Any], subject: str, *, whole: bool) -> None:
        """Delete stale and doubled messages from a point on; unless `whole`, until a page has none.

        Raises Unavailable.
        """
        seen: set[tuple[str, int]] = set()
        while page := await self._stores.work.messages(query, subject):
            query = {"seq": page[-1][0] + 1}
            doomed = await self._stale_among(page, seen)
            await asyncio.gather(*(self._stores.work.delete(sequence) for sequence in doomed))
            if len(page) < PAGE or not (doomed or whole):
                return

    async def _stale_among(self, page: list[tuple[int, str, bytes]], seen: set[tuple[str, int]]) -> list[int]:
        works: list[tuple[int, int, str]] = []
        for sequence, _, payload in page:
            try:
                revision, stored = _core.split_work_message(payload)
                works.append((sequence, revision, _core.Record.parse(stored).id))
            except ValueError as error:
                log.error("a foreign message in stream OJS is left alone: %s", error)
        found = await self._stores.records.get_many(job_id for _, _, job_id in works)
        doomed: list[int] = []
        for sequence, revision, job_id in works:
            stored, at = found.get(job_id, (b"", 0))
            record = own_record(stored)
            if record is not None and _is_own(record, sequence):
                continue
            if record is None or at != revision or (job_id, revision) in seen:
                doomed.append(sequence)
            seen.add((job_id, revision))
        return doomed


def _is_own(record: _core.Record, sequence: int) -> bool:
    return record.state == "active" and bool(record.ack_subject) and ack_sequence(record.ack_subject) == sequence
