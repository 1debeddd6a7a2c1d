"""Records in `ojs-jobs`, the only truth about a job: create, replace at a revision, read.

Every write is a compare-and-set and its outcome is always resolved: when a PubAck is lost, the record
is read back and compared with what was written. Knows bytes and revisions, no job rule.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import orjson

from ojs_fast.storage import names
from ojs_fast.storage.connection import READ_AT_ONCE, Connection, PubAck
from ojs_fast.storage.errors import BatchRefused, KeyTaken, RevisionConflict, Unavailable
from ojs_fast.storage.headers import headers, headers_of

WRONG_LAST_SEQUENCE = 10071
# The same from a cluster, when the write that is in the way has not been replicated yet.
WRITE_UNDER_WAY = 10164
CONFLICTS = (WRONG_LAST_SEQUENCE, WRITE_UNDER_WAY)
# Stands for an error code when no answer came.
UNANSWERED = -1
# What lies there tells the outcome, now or later.
OPEN = (UNANSWERED, WRITE_UNDER_WAY)
# How often a write is tried again, and how often and long it waits for one that is not replicated yet.
TRIES, WAITS, WAIT_S = 3, 50, 0.02
ATOMIC_BATCH_DEFAULT = 1000  # what nats-server allows when its batch limits are not raised

_PREFIX = names.bucket_subject(names.JOBS, "")
_STREAM = names.bucket_stream(names.JOBS)
_CREATE = headers(Nats_Expected_Last_Subject_Sequence=0)
# In front of the pieces of the note that a batch carries, see `torn`: `torn.<job id>.<number>.<pieces>`.
NOTE_KEY = "torn."
NOTE_PIECE_BYTES = 8 * 1024 * 1024

# Job id, record, the revision it must be at (0: it must not exist), TTL in seconds (0: none).
Member = tuple[str, bytes, int, int]
# Longer than a stopped process may sleep before it writes the record after all.
FENCE_TTL_S = 24 * 3600
MARKER_TTL_S = 60
NOTE_OVER = headers(KV_Operation="DEL", Nats_TTL=f"{MARKER_TTL_S}s")


def replace_headers(revision: int, ttl_s: int = 0) -> bytes:
    """Headers of a compare-and-set; `ttl_s` > 0 lets the record leave the store by itself."""
    if ttl_s:
        return b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\nNats-TTL: %ds\r\n\r\n" % (revision, ttl_s)
    return b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n\r\n" % revision


class Records:
    """Compare-and-set access to the records of all jobs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Writes of this node that may still land, whenever that is: job id → the revision they expect.
        self._unknown: dict[str, int] = {}
        #: told of each of them
        self.on_unknown: Callable[[str], None] = lambda _: None

    def start_replace(self, job_id: str, stored: bytes, revision: int, ttl_s: int = 0) -> "asyncio.Future[PubAck]":
        """Send a compare-and-set now; hand the future to `finish_replace`."""
        return self._connection.write(_PREFIX + job_id, stored, replace_headers(revision, ttl_s))

    async def finish_replace(
        self, job_id: str, stored: bytes, revision: int, ttl_s: int, pending: "asyncio.Future[PubAck]"
    ) -> int:
        """The new revision. Raises RevisionConflict, or Unavailable when the outcome stays unknown."""
        sequence, code, description = await _outcome(pending, partial(self.lost, job_id, revision))
        if code in OPEN:
            return await self._resolve(job_id, stored, revision, replace_headers(revision, ttl_s))
        return self._accepted(job_id, sequence, code, description)

    def _accepted(self, job_id: str, sequence: int, code: int, description: str) -> int:
        if code == 0:
            return sequence
        if code in CONFLICTS:
            raise RevisionConflict(job_id)
        raise Unavailable(f"JetStream refused the record: {description} (error {code})")

    async def replace(self, job_id: str, stored: bytes, revision: int, ttl_s: int = 0) -> int:
        """Write the record if it still is at `revision`; the new revision.

        Raises RevisionConflict when it is not, Unavailable when the outcome stays unknown.
        """
        if not self._connection.is_up:
            await self._connection.ready()
        header = replace_headers(revision, ttl_s)
        pending = self._connection.write(_PREFIX + job_id, stored, header)
        sequence, code, description = await _outcome(pending, partial(self.lost, job_id, revision))
        if code in OPEN:
            return await self._resolve(job_id, stored, revision, header)
        return self._accepted(job_id, sequence, code, description)

    async def create(self, job_id: str, stored: bytes) -> int:
        """Write a record that must not exist yet; its revision. Raises KeyTaken or Unavailable."""
        if not self._connection.is_up:
            await self._connection.ready()
        pending = self._connection.write(_PREFIX + job_id, stored, _CREATE)
        sequence, code, description = await _outcome(pending, partial(self.lost, job_id, 0))
        try:
            if code in OPEN:
                return await self._resolve(job_id, stored, 0, _CREATE)
            return self._accepted(job_id, sequence, code, description)
        except RevisionConflict:
            raise KeyTaken(job_id) from None

    async def fence(self, job_id: str) -> None:
        """Make sure that a record that was never written never will be, for FENCE_TTL_S.

        Raises KeyTaken when it was written before, Unavailable.
        """
        try:
            await self._mark_deleted(job_id, 0, FENCE_TTL_S)
        except RevisionConflict:
            raise KeyTaken(job_id) from None

    async def replace_all(self, writes: list[Member]) -> list[int]:
        """Write several records, all or none; their new revisions.

        Raises RevisionConflict when one is elsewhere, Unavailable when the outcome stays unknown.
        """
        await self._connection.ready()
        batch = [
            (_PREFIX + job_id, stored, replace_headers(revision, ttl_s)) for job_id, stored, revision, ttl_s in writes
        ]
        notes = notes_of(writes) if self._connection.stages_in_memory else {}
        around = [(_PREFIX + key, piece) for key, piece in notes.items()]
        batch = [*((key, piece, b"") for key, piece in around), *batch, *((key, b"", NOTE_OVER) for key, _ in around)]
        sequence, code, description = await _outcome(
            self._connection.write_batch(batch), partial(self._all_lost, writes)
        )
        if code in OPEN:
            sequence = await self._resolve_batch(writes)
            code = 0
        else:
            sequence -= len(notes)  # their markers come last
        if code in CONFLICTS:
            raise RevisionConflict(writes[-1][0])
        if code:
            raise Unavailable(f"JetStream refused the batch: {description} (error {code})")
        return list(range(sequence - len(writes) + 1, sequence + 1))

    async def create_all(self, records: list[tuple[str, bytes]]) -> int:
        """Write new records, all or none, as one atomic batch (NATS ADR-50).

        Returns the revision of the last; the others' are contiguous below it. Raises KeyTaken when
        one exists, BatchRefused when NATS does not take so many, Unavailable when the outcome stays
        unknown.
        """
        await self._connection.ready()
        batch = [(_PREFIX + job_id, stored, _CREATE) for job_id, stored in records]

        def members() -> list[Member]:
            return [(job_id, stored, 0, 0) for job_id, stored in records]

        sequence, code, description = await _outcome(
            self._connection.write_batch(batch), lambda: self._all_lost(members())
        )
        if code in OPEN:
            return await self._resolve_batch(members())
        if code == 0:
            return int(sequence)
        if code in CONFLICTS:
            raise KeyTaken(await self._first_taken(records))
        if len(records) > ATOMIC_BATCH_DEFAULT:
            raise BatchRefused(f"NATS refused a batch of {len(records)}: {description} (error {code})")
        raise Unavailable(f"JetStream refused the batch: {description} (error {code})")

    async def _resolve(self, job_id: str, stored: bytes, revision: int, header: bytes) -> int:
        # The PubAck was lost: what lies there now tells whether the write was applied.
        lost, waited = 0, 0
        try:
            while lost < TRIES and waited < WAITS:
                await self._connection.ready()
                found = await self.get(job_id)
                if found is not None and found[0] == stored:
                    return found[1]
                if (found[1] if found else 0) != revision:
                    raise RevisionConflict(job_id)
                pending = self._connection.write(_PREFIX + job_id, stored, header)
                sequence, code, _ = await _outcome(pending, lambda: None)  # whatever ends this is told below
                if code == 0:
                    return sequence
                if code == WRITE_UNDER_WAY:
                    waited += 1
                    await asyncio.sleep(WAIT_S)
                else:
                    lost += 1
        except (Unavailable, asyncio.CancelledError):
            self.lost(job_id, revision)
            raise
        self.lost(job_id, revision)
        raise Unavailable("the NATS connection is lost again and again")

    async def _resolve_batch(self, members: list[Member]) -> int:
        job_id, stored, _, _ = members[-1]
        try:
            await self._connection.ready()
            found = await self.get(job_id)
            if found is not None and found[0] == stored:
                return found[1]
            raise Unavailable("the batch was not committed before the NATS connection was lost")  # noqa: TRY301 - as below
        except (Unavailable, asyncio.CancelledError):
            self._all_lost(members)
            raise

    def _all_lost(self, members: list[Member]) -> None:
        for job_id, _, revision, _ in members:
            self.lost(job_id, revision)

    def lost(self, job_id: str, revision: int) -> None:
        """Nobody waits for the outcome of a write any more: it has landed, may land at any time, or never will."""
        self._unknown[job_id] = revision
        self.on_unknown(job_id)

    def may_land(self, job_id: str) -> bool:
        """True when a write of this node has an unknown outcome, and may be applied at any time."""
        return job_id in self._unknown

    def give_up(self, job_id: str) -> None:
        """Take a write of unknown outcome for refused."""
        self._unknown.pop(job_id, None)

    async def certain(self, job_id: str) -> tuple[bytes, int] | None:
        """`get`, and what it tells stays true: a write of this node that has not landed yet is refused from here on.

        Only a creation may land later (`may_land`). Raises Unavailable.
        """
        while True:
            expected = self._unknown.get(job_id)
            found = await self.get(job_id)
            if expected is None or found is None:
                return found
            stored, revision = found
            if revision == expected:
                try:
                    revision = await self.replace(job_id, stored, revision, await self._ttl_s(job_id))
                except RevisionConflict:
                    continue
            self.give_up(job_id)
            return stored, revision

    async def _ttl_s(self, job_id: str) -> int:
        """The time to live that a record was written with, 0 = for ever. Raises Unavailable."""
        then = headers_of(await self._connection.stored(_STREAM, last_by_subj=_PREFIX + job_id))
        found = re.fullmatch(r"(\d+)s", then.get("Nats-TTL", ""))
        return int(found[1]) if found else 0

    async def _first_taken(self, records: list[tuple[str, bytes]]) -> str:
        found = await self.get_many([job_id for job_id, _ in records])
        return next((job_id for job_id, _ in records if job_id in found), records[0][0])

    # -- reads -----------------------------------------------------------------------------------

    async def get(self, job_id: str) -> tuple[bytes, int] | None:
        """`(record bytes, revision)`, or None. Raises Unavailable."""
        stored, revision = await self._connection.last(_STREAM, _PREFIX + job_id)
        return (stored, revision) if stored else None

    async def marker(self, job_id: str) -> int:
        """The revision of the deletion marker at a record's place, 0 when there is none. Raises Unavailable."""
        stored, revision = await self._connection.last(_STREAM, _PREFIX + job_id)
        return 0 if stored else revision

    async def get_many(self, job_ids: Iterable[str]) -> dict[str, tuple[bytes, int]]:
        """`{job id: (record bytes, revision)}` of those that exist. Raises Unavailable."""
        found = await self._connection.last_of_each(_STREAM, [_PREFIX + job_id for job_id in job_ids])
        return {subject[len(_PREFIX) :]: one for subject, one in found.items()}

    async def written_since(self, start_time: str, after: int) -> list[tuple[str, bytes, int]]:
        """Up to 500 records last written at or after `start_time` (RFC 3339) and behind revision `after`.

        `[(job id, record bytes, revision)]` in order of revision. Raises Unavailable.
        """
        place: dict[str, Any] = {"seq": after + 1} if after else {"start_time": start_time}
        while True:
            batch = await self._connection.get_batch(
                _STREAM, {"next_by_subj": _PREFIX + "*", "batch": READ_AT_ONCE, **place}
            )
            found = [
                (message.stored_subject[len(_PREFIX) :], message.data, message.sequence)
                for message in batch
                if message.is_live
            ]
            if found:
                return found
            if batch:
                place = {"seq": batch[-1].sequence + 1}  # nothing but markers
            elif not self._connection.is_replicated:
                return []
            else:
                # The replica that answered may lag behind: its end is the end only if the leader says so.
                following = await self._connection.stored(_STREAM, next_by_subj=_PREFIX + "*", **place)
                if not following:
                    return []
                await asyncio.sleep(WAIT_S)

    async def delete(self, job_id: str, revision: int) -> None:
        """Delete the record at `revision`; the marker goes by itself. Raises RevisionConflict, Unavailable."""
        await self._mark_deleted(job_id, revision, MARKER_TTL_S)

    async def _mark_deleted(self, job_id: str, revision: int, ttl_s: int) -> None:
        marker = headers(Nats_Expected_Last_Subject_Sequence=revision, KV_Operation="DEL", Nats_TTL=f"{ttl_s}s")
        await self._connection.ready()
        self._accepted(job_id, *await self._connection.write(_PREFIX + job_id, b"", marker))


async def _outcome(pending: "asyncio.Future[PubAck]", cancelled: Callable[[], None]) -> PubAck:
    """What became of a write; UNANSWERED when nobody tells. `cancelled` is called when nobody waits any more."""
    try:
        return await pending
    except Unavailable as error:
        return 0, UNANSWERED, str(error)
    except asyncio.CancelledError:
        cancelled()
        raise


def notes_of(members: list[Member]) -> dict[str, bytes]:
    """What a batch says of itself, for whoever finds only a part of it: pieces that fit into a message, by key."""
    head = orjson.dumps([(job_id, len(stored), revision, ttl_s) for job_id, stored, revision, ttl_s in members])
    note = b"".join([head, b"\n", *[stored for _, stored, _, _ in members]])
    starts = range(0, len(note), NOTE_PIECE_BYTES)
    return {
        f"{NOTE_KEY}{members[-1][0]}.{number}.{len(starts)}": note[at : at + NOTE_PIECE_BYTES]
        for number, at in enumerate(starts)
    }


def parse_note(note: bytes) -> list[Member]:
    """The members of a batch by its note, put together."""
    head, _, rest = note.partition(b"\n")
    members: list[Member] = []
    at = 0
    for job_id, size, revision, ttl_s in orjson.loads(head):
        members.append((job_id, rest[at : at + size], revision, ttl_s))
        at += size
    return members
