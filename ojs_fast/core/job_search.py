"""Listing jobs for operators (ojs-admin-api section 7.1).

Waiting and active jobs are found from what NATS lists of them: work messages and index entries. Finished ones lie in
`ojs-jobs` alone, which is walked from its newest write on, so far and no further. Ordered by when they were enqueued,
scheduled or last changed; `sort` orders within what was found.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from ojs_fast import _core
from ojs_fast.core.stats import LIVE_STATES
from ojs_fast.core.stores import Stores
from ojs_fast.storage import names, walks

# How many messages one request looks at.
WALK_LIMIT = 20_000
LISTED = {"scheduled": names.SCHEDULED, "retryable": names.RETRY}


@dataclass(slots=True, frozen=True)
class JobFilter:
    """What a job must be like; empty members ask for nothing. `type_` may end in `*`; times are epoch ms."""

    queue: str = ""
    state: str = ""
    type_: str = ""
    since_ms: int = 0
    until_ms: int = 0

    def takes(self, record: _core.Record) -> bool:
        """True when the job is one of those asked for."""
        if self.queue and record.queue != self.queue:
            return False
        if self.state and record.state != self.state:
            return False
        if self.type_.endswith("*"):
            if not record.type.startswith(self.type_[:-1]):
                return False
        elif self.type_ and record.type != self.type_:
            return False
        return self.since_ms <= record.created_ms and not (self.until_ms and record.created_ms >= self.until_ms)

    @property
    def is_counted(self) -> bool:
        """True when queue statistics tell how many there are."""
        return self.state in LIVE_STATES and not (self.type_ or self.since_ms or self.until_ms)


@dataclass(slots=True, frozen=True)
class Found:
    """One page: the jobs' records, how many match, and whether all was looked at (else there may be more)."""

    jobs: list[bytes]
    total: int
    is_complete: bool


class JobSearch:
    """Finds jobs by what they are like."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def page(
        self, wanted: JobFilter, offset: int, limit: int, *, newest_first: bool = True, counts: bool = True
    ) -> Found:
        """The matching jobs from `offset` on; without `counts` no further than needed. Raises Unavailable."""
        jobs: list[bytes] = []
        total = looked_at = 0
        seen: set[str] = set()
        async for records in self._candidates(wanted, newest_first=newest_first):
            looked_at += max(1, len(records))
            for record, stored in records:
                if record.id in seen or not wanted.takes(record):
                    continue
                seen.add(record.id)
                total += 1
                if offset < total <= offset + limit:
                    jobs.append(stored)
            if looked_at >= WALK_LIMIT or (not counts and total >= offset + limit):
                return Found(jobs, total, is_complete=False)
        return Found(jobs, total, is_complete=True)

    async def ids(self, wanted: JobFilter) -> AsyncIterator[list[str]]:
        """The ids of all matching jobs, oldest first, in pages; without a limit. Raises Unavailable."""
        async for records in self._candidates(wanted, newest_first=False):
            yield [record.id for record, _ in records if wanted.takes(record)]

    async def _candidates(
        self, wanted: JobFilter, *, newest_first: bool
    ) -> AsyncIterator[list[tuple[_core.Record, bytes]]]:
        walk = walks.newest_first if newest_first else walks.oldest_first
        stream, subject = _source(wanted)
        async for page in walk(self._stores.connection, stream, subject):
            if stream == names.bucket_stream(names.JOBS):
                yield [(record, m.data) for m in page if (record := _parse(m.data)) is not None]
                continue
            job_ids = [job_id for m in page if (job_id := _job_id(stream, m))]
            found = await self._stores.records.get_many(job_ids)
            stored = [found[job_id][0] for job_id in job_ids if job_id in found]
            yield [(record, one) for one in stored if (record := _parse(one)) is not None]


def _source(wanted: JobFilter) -> tuple[str, str]:
    queue = names.encode_token(wanted.queue) if wanted.queue else "*"
    if wanted.state in ("available", "active"):
        return names.WORK_STREAM, f"ojs.queue.{queue}.>"
    if wanted.state in LISTED:
        bucket = LISTED[wanted.state]
        return names.bucket_stream(bucket), names.bucket_subject(bucket, f"{queue}.>")
    return names.bucket_stream(names.JOBS), names.bucket_subject(names.JOBS, "*")


def _job_id(stream: str, message: _core.WireMessage) -> str:
    if stream != names.WORK_STREAM:
        return names.indexed_job(message.stored_subject.split(".", 2)[2])
    try:
        record = _parse(_core.split_work_message(message.data)[1])
    except ValueError:  # not one of ours
        return ""
    return record.id if record is not None else ""


def _parse(stored: bytes) -> _core.Record | None:
    try:
        return _core.Record.parse(stored)
    except ValueError:  # not one of ours; reconcile reports it
        return None
