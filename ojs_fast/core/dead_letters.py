"""Dead letters: jobs that ran out of runs with `on_exhaustion: dead_letter` (ojs-dead-letter)."""

import base64
import binascii
from dataclasses import dataclass

from ojs_fast import _core
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.propagate import dead_key
from ojs_fast.core.stores import Stores
from ojs_fast.errors import InvalidRequest, NotFound
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import RevisionConflict

PAGE = 200


@dataclass(slots=True, frozen=True)
class Page:
    """One page of a listing. `jobs` are records' bytes; `next_cursor` is "" on the last page."""

    jobs: list[bytes]
    total: int
    next_cursor: str


class DeadLetters:
    """List, retry, delete."""

    def __init__(self, stores: Stores, jobs: Jobs, events: Events) -> None:
        self._stores = stores
        self._jobs = jobs
        self._events = events
        self._bucket = Bucket(stores.connection, names.DEAD)

    async def page(self, queue: str, limit: int, cursor: str, offset: int) -> Page:
        """Dead letters, oldest first; of one queue unless `queue` is "". Raises InvalidRequest, Unavailable."""
        keys = f"{names.encode_token(queue)}.*" if queue else ">"
        after = _decode_cursor(cursor)
        total = await self._bucket.count(keys)
        while offset > 0:
            skipped = await self._bucket.page(after, min(offset, PAGE), keys)
            if not skipped:
                return Page([], total, "")
            after = skipped[-1][2]
            offset -= len(skipped)
        entries = await self._bucket.page(after, limit + 1, keys)
        found = await self._stores.records.get_many(value["job_id"] for _, value, _ in entries[:limit])
        jobs = [found[value["job_id"]][0] for _, value, _ in entries[:limit] if value["job_id"] in found]
        more = len(entries) > limit
        return Page(jobs, total, _encode_cursor(entries[limit - 1][2]) if more else "")

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
        key = dead_key(record)
        record, stored = await self._jobs.change(job_id, "retry", lambda r, now: r.revive(now))
        await self._bucket.erase(key)
        self._events.job("job.enqueued", record)
        return record, stored

    async def delete(self, job_id: str) -> None:
        """Remove a dead letter and its job for good. Raises NotFound, Unavailable."""
        while True:
            record, _, revision = await self._find(job_id)
            try:
                await self._stores.records.delete(job_id, revision)
            except RevisionConflict:
                continue
            await self._bucket.erase(dead_key(record))
            return


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
