"""A backup of what nothing else tells: each stream is read as the log that it is, up to the same moment.

A stream with one message per subject is read by sequence. Whatever is written meanwhile comes behind, so whoever has
caught up has the last message of every subject. All streams are read once, then in rounds, until two rounds found
nothing new: then the whole is of one instant. Under load rounds always find something; after ROUNDS of them what the
streams are apart is a few milliseconds, as after a crash, and a subject could be missing only if it had been written
again in every one of them. JetStream's own snapshots lose subjects that are written meanwhile (docs/design.md).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ojs_fast import _core
from ojs_fast.storage import names, topology
from ojs_fast.storage.archive import ArchiveWriter, Entry
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import TopologyError
from ojs_fast.storage.headers import headers_of

READ_AT_ONCE = 5000
READ_BYTES = 8 * 1024 * 1024
FROM_LEADER_AT_ONCE = 100
ROUNDS = 50
QUIET_ROUNDS = 2

# What a crash may leave behind is the order here: a workflow and the counts as they were before the job, its queue,
# lock and key as they are behind it. Cron is read on both sides, because it must not have moved in between.
BEFORE = (names.NODES, names.TALLIES, names.WORKFLOWS, names.CRON)
REBUILT = (names.SCHEDULED, names.RETRY, names.EXPIRY, names.DEAD)
OF_THE_MOMENT = (names.WORKERS,)
_REST = (bucket for bucket in names.BUCKETS if bucket not in (*BEFORE, names.JOBS, *REBUILT, *OF_THE_MOMENT))
BEHIND = (names.CRON, *_REST)
BUCKETS = tuple(dict.fromkeys((*BEFORE, names.JOBS, *BEHIND)))


@dataclass(slots=True)
class _Log:
    """How far one stream was read. `began_at`: its last sequence when the backup began."""

    stream: str
    began_at: int
    position: int = 0
    messages: int = 0


class Snapshot:
    """Reads the streams into an archive."""

    def __init__(self, connection: Connection, archive: ArchiveWriter) -> None:
        self._connection = connection
        self._archive = archive
        self._progress: Callable[[int], None] = lambda _: None
        self._logs: dict[str, _Log] = {}
        self._last: dict[str, int] = {}

    async def begin(self) -> int:
        """Look at all streams; how many messages there are to read. Raises TopologyError, Unavailable."""
        if await topology.unfinished_restore(self._connection):
            raise TopologyError("a restore into this NATS has not finished: run `ojs-fast restore` again first")
        total = 0
        for stream in (names.WORK_STREAM, names.EVENT_STREAM, *map(names.bucket_stream, names.BUCKETS)):
            info = await topology.find(self._connection, stream)
            if info is None:
                if stream != names.bucket_stream(names.JOBS):
                    continue  # the servers are of an earlier version
                raise TopologyError(
                    f"this NATS has no stream {stream}, so no ojs-fast server has run on it; check NATS_URL or "
                    "OJS_DATA_DIR"
                )
            self._connection.is_replicated |= info["config"].get("num_replicas", 1) > 1
            self._last[stream] = info["state"]["last_seq"]
            if stream in {names.bucket_stream(bucket) for bucket in BUCKETS}:
                self._logs[stream] = _Log(stream, info["state"]["last_seq"])
                total += info["state"]["messages"]
        return total

    async def run(self, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Read everything; what the manifest tells about it. `progress` gets numbers of messages.

        Raises Unavailable, OSError.
        """
        self._progress = progress
        for bucket in BUCKETS:
            while await self._read(bucket):
                pass
        instant, is_exact = await self._rounds()
        for log in self._logs.values():
            self._last[log.stream] = max(self._last[log.stream], log.position)
        return {
            "instant": instant,
            "is_one_instant": is_exact,
            "last_sequences": self._last,
            "messages": {log.stream: log.messages for log in self._logs.values()},
        }

    async def _rounds(self) -> tuple[str, bool]:
        quiet = rounds = 0
        while True:
            instant = str((await self._connection.stream_info(names.bucket_stream(names.JOBS)))["ts"])
            found = [await self._read(bucket) for bucket in BEFORE]
            found.append(await self._read(names.JOBS))
            found += [await self._read(bucket) for bucket in BEHIND]
            has_cron_moved = found[len(BEFORE) + 1] > 0
            # Leases are renewed all the time and say nothing that must agree with the rest.
            quiet = 0 if any(found[1:]) else quiet + 1
            rounds += 1
            if quiet == QUIET_ROUNDS:
                return instant, True
            if rounds >= ROUNDS and (not has_cron_moved or rounds >= 2 * ROUNDS):
                return instant, False

    async def _read(self, bucket: str) -> int:
        """Read on in one stream; how many messages there were. Raises Unavailable, OSError."""
        log = self._logs.get(names.bucket_stream(bucket))
        if log is None:
            return 0
        entries = await self._page(log)
        for entry in entries:
            self._archive.add(log.stream, entry, is_late=entry.sequence > log.began_at)
            log.position = entry.sequence
        log.messages += len(entries)
        self._progress(len(entries))
        return len(entries)

    async def _page(self, log: _Log) -> list[Entry]:
        query = {"next_by_subj": ">", "seq": log.position + 1, "batch": READ_AT_ONCE, "max_bytes": READ_BYTES}
        found = [_entry(message) for message in await self._connection.get_batch(log.stream, query)]
        if found or not self._connection.is_replicated:
            return found
        # The replica that answered may lag behind: what comes now only the leader knows.
        return await self._page_of_leader(log)

    async def _page_of_leader(self, log: _Log) -> list[Entry]:
        found: list[Entry] = []
        after = log.position
        while len(found) < FROM_LEADER_AT_ONCE:
            message = await self._connection.stored(log.stream, seq=after + 1, next_by_subj=">")
            if not message:
                break
            found.append(_entry_of_leader(message))
            after = found[-1].sequence
        return found


def _entry(message: _core.WireMessage) -> Entry:
    return Entry(
        message.sequence,
        _core.parse_rfc3339_ms(message.header("Nats-Time-Stamp")),
        message.header("Nats-TTL"),
        message.stored_subject,
        message.data,
        not message.is_live,
    )


def _entry_of_leader(message: dict[str, Any]) -> Entry:
    fields = headers_of(message)
    return Entry(
        int(message["seq"]),
        _core.parse_rfc3339_ms(message["time"]),
        fields.get("Nats-TTL", ""),
        message["subject"],
        base64.b64decode(message.get("data", "")),
        "KV-Operation" in fields or "Nats-Marker-Reason" in fields,
    )
