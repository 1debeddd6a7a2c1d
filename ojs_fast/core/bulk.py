"""Many jobs in one request, each with an outcome of its own (ojs-bulk-operations)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ojs_fast import _core
from ojs_fast.core.admission import Ticket
from ojs_fast.core.dead_letters import DeadLetters
from ojs_fast.core.events import Events
from ojs_fast.core.idempotency import DerivedIds, is_own, made_before
from ojs_fast.core.job_search import JobFilter, JobSearch
from ojs_fast.core.jobs import WAITING_STATES, Jobs
from ojs_fast.errors import Conflict, Duplicate, OJSError
from ojs_fast.storage.errors import RevisionConflict

AT_ONCE = 200
RETRIABLE = ("discarded", "retryable")


@dataclass(slots=True, frozen=True)
class Item:
    """What became of one job. `status` is done, duplicate or failed; `stored` is its record where there is one."""

    index: int
    job_id: str
    status: str
    stored: bytes = b""
    error: OJSError | None = None


@dataclass(slots=True)
class Outcome:
    """What became of all of them; `items` are the first `keeps` of them (None = all)."""

    keeps: int | None = None
    items: list[Item] = field(default_factory=list)
    done: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """How many there were."""
        return self.done + self.failed

    def add(self, item: Item) -> None:
        """Count one, and keep it if there is room."""
        if item.status == "failed":
            self.failed += 1
        else:
            self.done += 1
        if self.keeps is None or len(self.items) < self.keeps:
            self.items.append(item)


class Bulk:
    """Enqueue, cancel, retry, delete, get."""

    def __init__(self, jobs: Jobs, dead_letters: DeadLetters, search: JobSearch, events: Events) -> None:
        self._jobs = jobs
        self._dead_letters = dead_letters
        self._search = search
        self._events = events
        self._actions: dict[str, Callable[[str], Awaitable[bytes]]] = {
            "cancel": self._cancel,
            "retry": self._retry,
            "delete": self._delete,
            "get": self._get,
        }

    # -- enqueue ---------------------------------------------------------------------------------

    async def enqueue(self, bodies: list[bytes], ticket: Ticket | None, ids: DerivedIds | None) -> Outcome:
        """Each job for itself: what is refused leaves the others alone (section 5.3, partial)."""
        outcome = Outcome()
        # Asking again for what is there could find another job in its way by now.
        made = await self._jobs.existing(map(ids.at, range(len(bodies)))) if ids is not None and ids.is_retry else {}

        async def one(index: int) -> Item:
            if ids is not None and (there := made.get(ids.at(index))):
                return Item(index, ids.at(index), "done", there)
            new_id = None if ids is None else lambda _: ids.at(index)
            try:
                job_id, stored, is_new = await self._jobs.enqueue(bodies[index], ticket, new_id)
            except Duplicate as duplicate:
                if ids is not None and is_own(duplicate, ids):
                    job_id, stored = await made_before(self._jobs, bodies[index], duplicate)
                    return Item(index, job_id, "done", stored)
                return Item(index, (duplicate.details or {}).get("existing_job_id", ""), "failed", error=duplicate)
            except OJSError as error:
                return Item(index, "", "failed", error=error)
            is_own_job = is_new or (ids is not None and job_id == ids.at(index))
            return Item(index, job_id, "done" if is_own_job else "duplicate", stored)

        for start in range(0, len(bodies), AT_ONCE):
            for item in await asyncio.gather(*map(one, range(start, min(start + AT_ONCE, len(bodies))))):
                outcome.add(item)
        self._announce("enqueue", outcome, "succeeded", "failed")
        return outcome

    # -- jobs that exist -------------------------------------------------------------------------

    async def act(self, action: str, job_ids: list[str]) -> Outcome:
        """Do one of cancel, retry, delete, get to each job. Raises Unavailable."""
        return await self._act(action, _one_page(job_ids), Outcome())

    async def act_on_matching(self, action: str, wanted: JobFilter, keeps: int) -> Outcome:
        """The same to all that match, telling of the first `keeps`. Raises Unavailable."""
        return await self._act(action, self._search.ids(wanted), Outcome(keeps))

    async def _act(self, action: str, pages: AsyncIterator[list[str]], outcome: Outcome) -> Outcome:
        act = self._actions[action]

        async def one(index: int, job_id: str) -> Item:
            try:
                return Item(index, job_id, "done", await act(job_id))
            except OJSError as error:
                return Item(index, job_id, "failed", error=error)

        async for job_ids in pages:
            for start in range(0, len(job_ids), AT_ONCE):
                some = job_ids[start : start + AT_ONCE]
                first = outcome.total
                for item in await asyncio.gather(*(one(first + n, job_id) for n, job_id in enumerate(some))):
                    outcome.add(item)
        if action != "get":
            self._announce(
                action, outcome, {"cancel": "cancelled", "retry": "retried"}.get(action, "deleted"), "skipped"
            )
        return outcome

    def _announce(self, action: str, outcome: Outcome, done: str, failed: str) -> None:
        facts = {"total": outcome.total, done: outcome.done, failed: outcome.failed}
        self._events.announce(f"bulk.{action}.completed", "bulk", facts)

    async def _get(self, job_id: str) -> bytes:
        return (await self._jobs.load(job_id))[1]

    async def _cancel(self, job_id: str) -> bytes:
        return (await self._jobs.cancel(job_id, WAITING_STATES))[1]

    async def _retry(self, job_id: str) -> bytes:
        record, _, _ = await self._jobs.load(job_id)
        if record.state == "discarded":
            return (await self._dead_letters.revive(job_id))[1]

        def promote(record: _core.Record, now_ms: int) -> None:
            if record.state != "retryable":
                raise _core.IllegalTransition("retry", record.state, RETRIABLE)
            record.promote(now_ms)

        record, stored = await self._jobs.change(job_id, "retry", promote)
        self._events.job("job.enqueued", record, before="retryable")
        return stored

    async def _delete(self, job_id: str) -> bytes:
        record, stored, revision = await self._jobs.load(job_id)
        if not _core.is_terminal(record.state):
            raise Conflict(
                f"Cannot delete job '{job_id}' in state '{record.state}'; expected a final one.",
                details={"job_id": job_id, "current_state": record.state},
                hint="Cancel it first.",
            )
        try:
            await self._jobs.remove(record, revision)
        except RevisionConflict:
            raise Conflict(f"Job '{job_id}' has just been changed.", details={"job_id": job_id}) from None
        return stored


async def _one_page(job_ids: list[str]) -> AsyncIterator[list[str]]:
    yield job_ids


def reason(error: OJSError) -> dict[str, Any]:
    """What a client is told about an item that failed."""
    told: dict[str, Any] = {"code": error.code, "message": error.message, "retryable": error.retryable}
    if error.details:
        told["details"] = error.details
    return told
