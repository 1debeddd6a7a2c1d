"""Dead letters: jobs that ran out of runs with `on_exhaustion: dead_letter` (ojs-dead-letter)."""

import asyncio
import base64
import binascii
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.events import Events
from ojs_fast.core.job_search import takes_type
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.own import own_record
from ojs_fast.core.propagate import dead_key
from ojs_fast.core.stores import Stores
from ojs_fast.errors import InvalidRequest, NotFound, OJSError
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import READ_AT_ONCE
from ojs_fast.storage.errors import RevisionConflict

PAGE = 200
AT_ONCE = 100
ERRORS_TOLD = 100
# How long a list waits for entries that are written behind.
ENTERED_S = 1.0
UNKNOWN = "Unknown"


# A dead letter's record, its bytes, and the revision of its index entry.
_Dead = tuple[_core.Record, bytes, int]


@dataclass(slots=True, frozen=True)
class Page:
    """One page of a listing. `jobs` are records' bytes; `next_cursor` is "" on the last page."""

    jobs: list[bytes]
    total: int
    next_cursor: str


@dataclass(slots=True, frozen=True)
class DeadFilter:
    """What a dead letter must be like; empty members ask for nothing. `type_` may end in `*`.

    Times are of its death (epoch ms).
    """

    queue: str = ""
    type_: str = ""
    error_type: str = ""
    since_ms: int = 0
    until_ms: int = 0

    @property
    def asks_more_than_queue(self) -> bool:
        """True when the number of a queue's entries is not the answer."""
        return bool(self.type_ or self.error_type or self.since_ms or self.until_ms)

    def takes_entry(self, entry: dict[str, Any]) -> bool:
        """True unless the index entry alone tells that it is none of those."""
        if not takes_type(self.type_, str(entry.get("type", ""))):
            return False
        return self.since_ms <= entry["dead_at_ms"] and not (self.until_ms and entry["dead_at_ms"] >= self.until_ms)


@dataclass(slots=True)
class Outcome:
    """What a request about many dead letters did. `errors`: `[(job id, message)]`, the first of them."""

    matched: int = 0
    succeeded: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)


class DeadLetters:
    """List, retry, delete; one by one or many."""

    def __init__(self, stores: Stores, jobs: Jobs, events: Events) -> None:
        self._stores = stores
        self._jobs = jobs
        self._events = events
        self._bucket = Bucket(stores.connection, names.DEAD, {"job_id": str, "queue": str, "dead_at_ms": int})

    async def page(self, wanted: DeadFilter, limit: int, cursor: str, offset: int) -> Page:
        """Those that match, oldest first; `offset` counts from the cursor on. Raises InvalidRequest, Unavailable."""
        after = _decode_cursor(cursor)
        if wanted.asks_more_than_queue:
            return await self._search(wanted, limit, after, offset)
        return await self._page_of_queue(wanted.queue, limit, after, offset)

    async def _page_of_queue(self, queue: str, limit: int, after: int, offset: int) -> Page:
        keys = _keys(queue)
        await self._stores.outbox.flushed_within(ENTERED_S)
        while offset > 0:
            skipped = await self._bucket.page(after, min(offset, PAGE), keys)
            if not skipped:
                break
            after = skipped[-1][2]
            offset -= len(skipped)
        entries = await self._bucket.page(after, limit + 1, keys) if offset <= 0 else []
        while len(jobs := await self._living(entries[:limit])) < len(entries[:limit]):
            entries = await self._bucket.page(after, limit + 1, keys)
        more = len(entries) > limit
        total = await self._bucket.count(keys)
        return Page([stored for _, stored, _ in jobs], total, _encode_cursor(entries[limit - 1][2]) if more else "")

    async def _search(self, wanted: DeadFilter, limit: int, after: int, offset: int) -> Page:
        jobs: list[bytes] = []
        total = behind = last = 0
        async for found in self._matching(wanted):
            total += len(found)
            for _, stored, revision in found:
                behind += revision > after
                if revision > after and offset < behind <= offset + limit:
                    jobs.append(stored)
                    last = revision
        return Page(jobs, total, _encode_cursor(last) if behind > offset + limit else "")

    async def _living(self, entries: list[tuple[str, Any, int]]) -> list[_Dead]:
        """The dead letters of these entries; what a node left that died behind a retry or a removal is erased."""
        found = await self._stores.records.get_many(entry["job_id"] for _, entry, _ in entries)
        living: list[_Dead] = []
        for key, entry, revision in entries:
            stored = found.get(entry["job_id"], (b"", 0))[0]
            record = own_record(stored)
            if record is not None and record.dead_letter:
                living.append((record, stored, revision))
            else:
                await self._bucket.erase(key, revision)  # a job that died again has a later one
        return living

    # -- many ------------------------------------------------------------------------------------

    async def _matching(self, wanted: DeadFilter) -> AsyncIterator[list[_Dead]]:
        after = 0
        await self._stores.outbox.flushed_within(ENTERED_S)
        while entries := await self._bucket.page(after, READ_AT_ONCE, _keys(wanted.queue)):
            after = entries[-1][2]
            living = await self._living([one for one in entries if wanted.takes_entry(one[1])])
            yield [dead for dead in living if wanted.error_type in ("", error_type(dead[0]))]

    async def stats(self) -> dict[str, Any]:
        """How many there are, of which queues and errors, from when to when (ojs-dead-letter 10.1)."""
        by_queue: Counter[str] = Counter()
        by_error: Counter[str] = Counter()
        times: list[int] = []
        async for found in self._matching(DeadFilter()):
            by_queue.update(record.queue for record, _, _ in found)
            by_error.update(error_type(record) for record, _, _ in found)
            times += (record.ended_ms for record, _, _ in found)
            times = [min(times), max(times)] if times else []
        return {
            "total": sum(by_queue.values()),
            "by_queue": dict(by_queue),
            "by_error_type": dict(by_error),
            "oldest_at": _core.format_rfc3339_ms(min(times)) if times else None,
            "newest_at": _core.format_rfc3339_ms(max(times)) if times else None,
        }

    async def retry_all(self, wanted: DeadFilter) -> Outcome:
        """`retry` of all that match. Raises Unavailable."""
        return await self._each(wanted, self.retry)

    async def delete_all(self, wanted: DeadFilter) -> Outcome:
        """`delete` of all that match. Raises Unavailable."""
        return await self._each(wanted, self.delete)

    async def _each(self, wanted: DeadFilter, act: Callable[[str], Awaitable[object]]) -> Outcome:
        outcome = Outcome()

        async def one(job_id: str) -> None:
            try:
                await act(job_id)
            except OJSError as error:
                if len(outcome.errors) < ERRORS_TOLD:
                    outcome.errors.append((job_id, error.message))
            else:
                outcome.succeeded += 1

        async for found in self._matching(wanted):
            outcome.matched += len(found)
            for start in range(0, len(found), AT_ONCE):
                await asyncio.gather(*(one(record.id) for record, _, _ in found[start : start + AT_ONCE]))
        return outcome

    async def prune(self, keep: int) -> int:
        """Delete the oldest beyond `keep`; how many entries went. Raises Unavailable."""
        gone = pruned = 0
        excess = await self._bucket.count() - keep
        while gone < excess:
            entries = await self._bucket.page(0, min(excess - gone, AT_ONCE))
            if not entries:
                break
            for key, entry, revision in entries:
                try:
                    self._events.count("dead_letter.pruned", await self._remove(entry["job_id"]))
                    pruned += 1
                except NotFound:  # retried or gone meanwhile: only the entry was left
                    await self._bucket.erase(key, revision)
            gone += len(entries)
        if pruned:
            self._events.announce("dead_letter.pruned", "dead-letter", {"count": pruned})
        return gone

    # -- one -------------------------------------------------------------------------------------

    async def _find(self, job_id: str) -> tuple[_core.Record, bytes, int]:
        record, stored, revision = await self._jobs.load(job_id)
        if not (record.state == "discarded" and record.dead_letter):
            raise NotFound(
                f"Dead letter '{job_id}' not found: the job is {record.state}.",
                details={"resource_type": "dead_letter", "resource_id": job_id, "current_state": record.state},
                hint="Only jobs discarded under on_exhaustion=dead_letter are dead letters.",
            )
        return record, stored, revision

    async def get(self, job_id: str) -> bytes:
        """The public JSON of one dead letter. Raises NotFound, Unavailable."""
        _, stored, _ = await self._find(job_id)
        return _core.public_job(stored)

    async def retry(self, job_id: str) -> tuple[_core.Record, bytes]:
        """`discarded` → available with all runs back, same id. Raises NotFound, Conflict, Unavailable."""
        record, _, _ = await self._find(job_id)
        return await self._revive(record)

    async def revive(self, job_id: str) -> tuple[_core.Record, bytes]:
        """`retry`, also of a discarded job that is no dead letter. Raises NotFound, Conflict, Unavailable."""
        record, _, _ = await self._jobs.load(job_id)
        return await self._revive(record)

    async def _revive(self, record: _core.Record) -> tuple[_core.Record, bytes]:
        key, was_dead_letter = dead_key(record), record.dead_letter
        _, entered = await self._bucket.last(key)
        record, stored = await self._jobs.change(record.id, "retry", lambda r, now: r.revive(now))
        if entered:
            await self._bucket.erase(key, entered)  # not the entry of a job that has died again by now
        self._events.job("job.enqueued", record, before="discarded")
        if was_dead_letter:
            self._events.dead_letter("retried", record)
        return record, stored

    async def delete(self, job_id: str) -> None:
        """Remove a dead letter and its job for good. Raises NotFound, Unavailable."""
        self._events.dead_letter("deleted", await self._remove(job_id))

    async def _remove(self, job_id: str) -> _core.Record:
        while True:
            record, _, revision = await self._find(job_id)
            try:
                await self._stores.records.delete(job_id, revision)
            except RevisionConflict:
                continue
            await self._bucket.erase(dead_key(record))
            return record


def _keys(queue: str) -> str:
    return f"{names.encode_token(queue)}.*" if queue else ">"


def error_type(record: _core.Record) -> str:
    """The type of a job's last error; "Unknown" when it told none."""
    if not record.errors:
        return UNKNOWN
    last = record.errors[-1]
    members = _core.scan_json_object(last)  # not decoded: the details may hold numbers that no double can
    told = (orjson.loads(last[slice(*members[name])]) for name in ("type", "code") if name in members)
    return str(next(filter(None, told), UNKNOWN))


def _encode_cursor(revision: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % revision).decode().rstrip("=")


def _decode_cursor(text: str) -> int:
    if not text:
        return 0
    try:
        revision = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if not (revision.isdigit() and len(revision) < 19):
            raise ValueError(text)  # noqa: TRY301 - joins the decoder's own errors
        return int(revision)
    except (ValueError, binascii.Error):
        raise InvalidRequest(
            f"Parameter 'cursor' is '{text[:60]}'; expected the 'next_cursor' of an earlier answer.",
            details={"field": "cursor", "received": text[:60]},
        ) from None
