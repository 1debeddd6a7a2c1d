"""Listing jobs for operators (ojs-admin-api section 7.1).

Waiting and active jobs are found from what NATS lists of them: work messages and index entries. Finished ones lie in
`ojs-jobs` alone, which is walked from its newest write on, so far and no further. Ordered by when they were enqueued,
scheduled or last changed; `sort` orders within what was found.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.own import own_record
from ojs_fast.core.propagate import LISTED
from ojs_fast.core.stats import LIVE_STATES
from ojs_fast.core.stores import Stores
from ojs_fast.storage import names, walks

# How many messages one request looks at.
WALK_LIMIT = 20_000


def takes_type(wanted: str, type_: str) -> bool:
    """True when a job's type is the one asked for: "" takes every one, `email.*` all that start so."""
    return type_.startswith(wanted[:-1]) if wanted.endswith("*") else wanted in ("", type_)


@dataclass(slots=True, frozen=True)
class JobFilter:
    """What a job must be like; empty members ask for nothing. `type_` may end in `*`; times are epoch ms.

    `since_ms` and `until_ms` are about the creation, the others about the last time that the job became available.
    """

    queue: str = ""
    states: tuple[str, ...] = ()
    type_: str = ""
    since_ms: int = 0
    until_ms: int = 0
    enqueued_after_ms: int = 0
    enqueued_before_ms: int = 0
    priority: int | None = None
    meta: tuple[tuple[str, Any], ...] = ()

    def takes(self, record: _core.Record) -> bool:
        """True when the job is one of those asked for."""
        if self.queue and record.queue != self.queue:
            return False
        if self.states and record.state not in self.states:
            return False
        if not takes_type(self.type_, record.type):
            return False
        if self.priority is not None and record.priority != self.priority:
            return False
        return self._takes_times(record) and (not self.meta or self._takes_meta(record))

    def _takes_times(self, record: _core.Record) -> bool:
        if record.created_ms < self.since_ms or (self.until_ms and record.created_ms >= self.until_ms):
            return False
        if not (self.enqueued_after_ms or self.enqueued_before_ms):
            return True
        enqueued_ms = record.enqueued_ms or record.created_ms
        if enqueued_ms <= self.enqueued_after_ms:
            return False
        return not self.enqueued_before_ms or enqueued_ms < self.enqueued_before_ms

    def _takes_meta(self, record: _core.Record) -> bool:
        job = _core.public_job(record.serialize())
        span = _core.scan_json_object(job).get("meta")
        meta = job[slice(*span)] if span else b"{}"
        members = _core.scan_json_object(meta)
        return all(name in members and _holds(meta[slice(*members[name])], value) for name, value in self.meta)

    @property
    def counted_state(self) -> str:
        """The one state whose jobs queue statistics count, when nothing else is asked for."""
        plain = JobFilter(self.queue, self.states) == self
        return self.states[0] if plain and len(self.states) == 1 and self.states[0] in LIVE_STATES else ""


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
        await self._stores.work.arrived()
        walk = walks.newest_first if newest_first else walks.oldest_first
        for stream, subject in _sources(wanted):
            async for page in walk(self._stores.connection, stream, subject):
                if stream == names.bucket_stream(names.JOBS):
                    yield [(record, m.data) for m in page if (record := own_record(m.data)) is not None]
                    continue
                job_ids = [job_id for m in page if (job_id := _job_id(stream, m))]
                found = await self._stores.records.get_many(job_ids)
                stored = [found[job_id][0] for job_id in job_ids if job_id in found]
                yield [(record, one) for one in stored if (record := own_record(one)) is not None]


def _holds(raw: bytes, wanted: Any) -> bool:
    try:
        return _is_same(orjson.loads(raw), wanted)
    except orjson.JSONDecodeError:  # a number that no double can hold, so it is none that can be asked for
        return False


def _is_same(one: Any, other: Any) -> bool:
    """JSON's equality: `true` is not 1, as it is in Python."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _sources(wanted: JobFilter) -> list[tuple[str, str]]:
    """Streams and subjects where such jobs are found, without walking over others as far as possible."""
    if not wanted.states or not set(wanted.states) <= set(LIVE_STATES):
        return [(names.bucket_stream(names.JOBS), names.bucket_subject(names.JOBS, "*"))]
    queue = names.encode_token(wanted.queue) if wanted.queue else "*"
    sources: list[tuple[str, str]] = []
    if {"available", "active"} & set(wanted.states):
        sources.append((names.WORK_STREAM, f"ojs.queue.{queue}.>"))
    for state, bucket in LISTED.items():
        if state in wanted.states:
            sources.append((names.bucket_stream(bucket), names.bucket_subject(bucket, f"{queue}.>")))
    return sources


def _job_id(stream: str, message: _core.WireMessage) -> str:
    if stream != names.WORK_STREAM:
        return names.indexed_job(message.stored_subject.split(".", 2)[2])
    try:
        record = own_record(_core.split_work_message(message.data)[1])
    except ValueError:  # not one of ours
        return ""
    return record.id if record is not None else ""
