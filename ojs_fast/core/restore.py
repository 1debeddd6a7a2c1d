"""Jobs out of a backup: the truth is written back, everything else follows from it as after a crash.

Written back are the records, in the order of their last change, and what no record tells: workflows, cron entries,
queues, limits, kept answers, totals. The leases of the nodes of then come first, as those of dead nodes. So the first
leader's reconcile looks at every record, and publishes work messages and index entries by the same code as ever.

What the milliseconds between two streams of a busy backup tore apart is put right here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.closed_counts import BASE, is_closed
from ojs_fast.core.counts import Counts
from ojs_fast.core.limits import PERMIT
from ojs_fast.core.own import own_record
from ojs_fast.core.queues import Queue, parse_entry
from ojs_fast.core.tallies import MARKS, parse_marks
from ojs_fast.core.unique import DEFAULT_STATES
from ojs_fast.core.unique import FEATURE as UNIQUE
from ojs_fast.core.workflows.model import FEATURE as WORKFLOW
from ojs_fast.storage import names
from ojs_fast.storage.archive import Archive, Entry
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.leases import NODE_PREFIX, RENEW_S
from ojs_fast.storage.records import NOTE_KEY
from ojs_fast.storage.refill import Refill
from ojs_fast.storage.snapshot import BUCKETS
from ojs_fast.storage.work import WorkQueue

AT_ONCE = 500
AT_ONCE_BYTES = 8 * 1024 * 1024
TREATED = (names.NODES, names.WORKFLOWS, names.UNIQUE, names.LIMITS, names.TALLIES, names.JOBS)
COPIED = tuple(bucket for bucket in BUCKETS if bucket not in TREATED)
# What restored records tell about their counting: none of the nodes that live or die later has this name.
COUNTED_BY = "restored"
# NATS tells its consumers of a message beside acknowledging it.
TRIES, PAUSE_S = 100, 0.02


class Restore:
    """Fills empty streams from an archive."""

    def __init__(
        self,
        connection: Connection,
        work: WorkQueue,
        refill: Refill,
        archive: Archive,
        clock: NowMs,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`progress` gets numbers of messages."""
        self._connection = connection
        self._work = work
        self._refill = refill
        self._archive = archive
        self._clock = clock
        self._progress = progress
        self._instant_ms = _core.parse_rfc3339_ms(archive.manifest["instant"])
        self._workflows: set[str] = set()
        self._nodes: set[str] = set()
        # Owner → the last period that its totals hold; None for one that was closed and counted to its end.
        self._counted: dict[str, int | None] = {}
        self._totals: defaultdict[str, Counts] = defaultdict(Counts)
        # Queue → priorities of its jobs that have not ended.
        self._levels: defaultdict[str, set[int]] = defaultdict(set)
        # Limit key → job id → permit, of active jobs.
        self._permits: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._began_s = time.monotonic()
        self.jobs = 0

    async def run(self) -> None:
        """Write everything. Raises Unavailable, OSError."""
        await self._restore_leases()
        for entry in self._entries(names.WORKFLOWS):
            if "." not in (key := _key(names.WORKFLOWS, entry)):
                self._workflows.add(key)
        for bucket in (names.WORKFLOWS, *COPIED):
            await self._copy(self._entries(bucket))
        await self._copy(map(self._without_late_answer, self._entries(names.UNIQUE)))
        self._read_tallies()
        for entries in _groups(self._entries(names.JOBS)):
            await self._restore_jobs(entries)
        await self._copy(map(self._with_permits, self._entries(names.LIMITS)))
        await self._restore_totals()
        await self._restore_levels()

    def _entries(self, bucket: str) -> Iterator[Entry]:
        return self._archive.entries(names.bucket_stream(bucket))

    async def _copy(self, entries: Iterable[Entry]) -> None:
        for group in _groups(entries):
            await self._refill.write(group)
            self._progress(len(group))

    # -- what is no job --------------------------------------------------------------------------

    async def _restore_leases(self) -> None:
        """First of all, because reconcile looks back to when a dead node's lease was written."""
        restorer = f"restore{secrets.token_hex(3)}"
        self._nodes = {
            key.removeprefix(NODE_PREFIX)
            for entry in self._entries(names.NODES)
            if (key := _key(names.NODES, entry)).startswith(NODE_PREFIX)
        }
        now_ms = self._clock()
        for node_id in (restorer, *sorted(self._nodes)):
            lease = {"node_id": node_id, "boot_id": "", "started_ms": now_ms, "renewed_ms": now_ms, "closed": True}
            await self._put(names.NODES, NODE_PREFIX + node_id, lease)

    async def check_alone(self) -> None:
        """Find a server that was on this NATS all the time: it renews its lease, and has written what it still knew.

        Raises Unavailable.
        """
        await asyncio.sleep(max(0.0, self._began_s + 2 * RENEW_S - time.monotonic()))
        for key, value, _ in await Bucket(self._connection, names.NODES).page(0, 1 << 30, f"{NODE_PREFIX}*"):
            if not value.get("closed"):
                raise Unavailable(f"a server ({key}) is still running on this NATS; stop all servers")

    def _without_late_answer(self, entry: Entry) -> Entry:
        """A kept answer whose jobs may be missing goes: the client's repeat then finds them, or makes them."""
        key = _key(names.UNIQUE, entry)
        if key.count(".") != 2 or entry.time_ms < self._instant_ms:
            return entry
        value = _decoded(entry.data)
        kept = {name: value[name] for name in ("digest", "at_ms") if name in value}
        return entry._replace(data=orjson.dumps(kept)) if len(kept) == 2 else entry

    def _with_permits(self, entry: Entry) -> Entry:
        """A permit that came back behind the job's record as it is in the backup: the job has it again."""
        held = self._permits.get(names.decode_token(_key(names.LIMITS, entry)))
        value = _decoded(entry.data)
        if held is None or not isinstance(value.get("holders"), dict):
            return entry
        lent = {job_id: [permit, self._instant_ms] for job_id, permit in held.items()}
        return entry._replace(data=orjson.dumps({**value, "holders": {**lent, **value["holders"]}}))

    def _read_tallies(self) -> None:
        for entry in self._entries(names.TALLIES):
            kind, _, rest = _key(names.TALLIES, entry).partition(".")
            value = _decoded(entry.data)
            if kind == "n":
                self._counted[rest] = None if is_closed(value) else int(value.get("through", 0))
            elif kind == "q":
                self._totals[names.decode_token(rest.partition(".")[0])].merge(Counts.parse(value))

    async def _restore_totals(self) -> None:
        for queue, counts in self._totals.items():
            await self._put(names.TALLIES, names.tally_key(queue, BASE), counts.as_json(self._clock()))

    async def _restore_levels(self) -> None:
        """Whatever was removed while the backup was made: workers must look where jobs wait."""
        known = {}
        for entry in self._entries(names.QUEUES):
            value = _decoded(entry.data)
            if "name" in value and "created_ms" in value:
                known[value["name"]] = parse_entry(value)
        for name, levels in self._levels.items():
            queue = known.get(name)
            if queue is None or not levels <= set(queue.levels):
                queue = queue or Queue(name, self._clock(), levels=())
                wanted = {**queue.entry(), "levels": sorted(levels | set(queue.levels) | {0}, reverse=True)}
                await self._put(names.QUEUES, names.encode_token(name), wanted)

    async def _put(self, bucket: str, key: str, value: Any) -> int:
        entry = Entry(0, 0, "", names.bucket_subject(bucket, key), orjson.dumps(value))
        return (await self._refill.write([entry]))[0]

    # -- jobs ------------------------------------------------------------------------------------

    async def _restore_jobs(self, entries: list[Entry]) -> None:
        found: dict[str, tuple[_core.Record, Entry]] = {}
        written: list[Entry] = []
        for entry in entries:
            if _key(names.JOBS, entry).startswith(NOTE_KEY):
                continue  # of a batch that was written at the end of the backup
            # Intents of batches and what is none of ours stay as they are.
            record = None if "." in _key(names.JOBS, entry) else own_record(entry.data)
            if record is not None and self._is_orphan(record):
                continue
            if record is not None:
                found[record.id] = (record, entry)
                self._count(record)
                if not _core.is_terminal(record.state):
                    self._levels[record.queue].add(record.priority)
            written.append(entry)
        await self._restore_locks([record for record, _ in found.values() if _holds_lock(record)])
        for record, _ in found.values():
            if record.state == "active":
                permit, *keys = (record.extra or {}).get(PERMIT, ("",))
                for key in keys:
                    self._permits[key][record.id] = permit
        await self._deliver([one for one in found.values() if one[0].state == "active"])
        stored = {entry.subject: record.serialize() for record, entry in found.values()}
        await self._refill.write([entry._replace(data=stored.get(entry.subject, entry.data)) for entry in written])
        self.jobs += len(found)
        self._progress(len(entries))

    def _is_orphan(self, record: _core.Record) -> bool:
        """A step of a workflow that was created behind the backup."""
        place = (record.extra or {}).get(WORKFLOW)
        return place is not None and place[0] not in self._workflows and not _core.is_terminal(record.state)

    def _count(self, record: _core.Record) -> None:
        """Count what the totals lack, so that no node's counts are left to be taken over."""
        if record.extra is None or MARKS not in record.extra:
            return
        marks = parse_marks(record)
        for owner, number, state in marks:
            through = self._counted.get(owner, 0 if owner.partition("-")[0] in self._nodes else None)
            if through is not None and number > through:
                self._totals[record.queue].add(record, state)
        record.extra = {**record.extra, MARKS: [f"{COUNTED_BY} 0 {marks[-1][2]}"] if marks else []}

    async def _restore_locks(self, records: list[_core.Record]) -> None:
        """Each job that its lock protects has it, and knows its present revision."""
        if not records:
            return
        stream = names.bucket_stream(names.UNIQUE)
        subjects = {record.id: names.bucket_subject(names.UNIQUE, _lock_of(record)[0]) for record in records}
        locks = await self._connection.last_of_each(stream, list(subjects.values()))
        for record in records:
            value, revision = locks.get(subjects[record.id], (b"", 0))
            if _decoded(value).get("job_id") != record.id:
                lock = {"job_id": record.id, "at_ms": self._clock()}
                revision = await self._put(names.UNIQUE, _lock_of(record)[0], lock)
            fingerprint, _, *states = _lock_of(record)
            record.extra = {**(record.extra or {}), UNIQUE: [fingerprint, revision, *states]}

    async def _deliver(self, active: list[tuple[_core.Record, Entry]]) -> None:
        """Have each active job's work message published and pulled: it counts as active, and its end removes it."""
        queues: defaultdict[str, dict[str, _core.Record]] = defaultdict(dict)
        published = []
        for record, entry in active:
            queues[record.queue][record.id] = record
            # The revision of then is below all of now, so a claim of this message fails.
            message = _core.work_message(entry.sequence, entry.data)
            published.append(self._work.publish(record.queue, record.priority, message))
        for one in published:
            await asyncio.shield(one)
        for queue, records in queues.items():
            levels = tuple(sorted({record.priority for record in records.values()}, reverse=True))
            waiting = dict(records)
            for _ in range(TRIES):
                for work in await self._work.take(queue, levels, len(waiting), looks=False):
                    job = _core.Record.parse(_core.split_work_message(work.payload)[1])
                    waiting.pop(job.id).ack_subject = work.ack_subject
                if not waiting:
                    break
                await asyncio.sleep(PAUSE_S)
            else:
                raise Unavailable(f"NATS does not deliver the messages of {len(waiting)} active jobs of {queue}")


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    size = 0
    for entry in entries:
        group.append(entry)
        size += len(entry.data)
        if len(group) == AT_ONCE or size > AT_ONCE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _key(bucket: str, entry: Entry) -> str:
    return entry.subject.removeprefix(names.bucket_subject(bucket, ""))


def _decoded(data: bytes) -> dict[str, Any]:
    """A value in JSON; nothing for what is none of ours."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _lock_of(record: _core.Record) -> list[Any]:
    lock: list[Any] = (record.extra or {})[UNIQUE]
    return lock


def _holds_lock(record: _core.Record) -> bool:
    if record.extra is None or UNIQUE not in record.extra:
        return False
    _, _, *states = _lock_of(record)
    return record.state in (states[0] if states else DEFAULT_STATES)
