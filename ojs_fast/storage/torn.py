"""After a power cut: an atomic batch of which the disk got only the first part is completed, or taken back.

nats-server completes such a batch from its staged copy, but that was in memory (`staging`). What the disk has is the
end of the stream: nothing is written between the members of a batch, and nothing came after it. So, before anybody
else writes:

- a batch that only creates records is taken back;
- one that replaces records carries a note of all its members in front, by which it is completed; the markers that end
  the note come last, so behind the first of them nothing is missing;
- a group commit is no whole: each of its members stands for itself.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import NamedTuple

from ojs_fast.storage import names, topology
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.group_commit import GROUP_MARK
from ojs_fast.storage.headers import headers_of
from ojs_fast.storage.records import NOTE_KEY, NOTE_OVER, Member, Records, parse_note

log = logging.getLogger(__name__)

_STREAM = names.bucket_stream(names.JOBS)
_PREFIX = names.bucket_subject(names.JOBS, "")


class _Stored(NamedTuple):
    """A message as it lies in the stream; `batch` is "" unless it is a member of one."""

    sequence: int
    batch: str
    is_last: bool
    is_marker: bool


async def mend(url: str) -> int:
    """Make the last atomic batch whole again, or nothing of it; how many messages were written or deleted.

    Nobody else may write to `ojs-jobs` meanwhile. Raises Unavailable.
    """
    connection = Connection()
    await connection.open([url], name="ojs-fast mends")
    try:
        return await _Mender(connection).run()
    finally:
        await connection.close()


class _Mender:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._records = Records(connection)
        self._bucket = Bucket(connection, names.JOBS)

    async def run(self) -> int:
        if await topology.find(self._connection, _STREAM) is None:
            return 0
        last = await self._message(last_by_subj=_PREFIX + ">")
        if last is None:
            return 0
        is_torn = last.batch != "" and not last.is_last and not last.batch.startswith(GROUP_MARK)
        whole, rest = await self._notes()
        changed = 0
        for keys, members in whole:
            changed += await self._complete(keys, members)
        if is_torn and not whole and not last.is_marker:
            return await self._take_back(last)
        await self._end(rest)  # behind the markers of its note a batch lacks nothing
        return changed

    async def _notes(self) -> tuple[list[tuple[list[str], list[Member]]], list[str]]:
        """The notes that are there as a whole: their keys, and the members that they name; the keys of other pieces."""
        pieces: defaultdict[tuple[str, int], dict[int, tuple[str, bytes]]] = defaultdict(dict)
        for key in await self._bucket.keys(NOTE_KEY + ">"):
            piece, _ = await self._connection.last(_STREAM, _PREFIX + key)
            if piece:
                job_id, number, in_all = key.removeprefix(NOTE_KEY).rsplit(".", 2)
                pieces[job_id, int(in_all)][int(number)] = (key, piece)
        whole: list[tuple[list[str], list[Member]]] = []
        rest: list[str] = []
        for (_, count), found in pieces.items():
            in_order = [found[number] for number in sorted(found)]
            keys = [key for key, _ in in_order]
            if len(found) == count:
                whole.append((keys, parse_note(b"".join(piece for _, piece in in_order))))
            else:
                rest += keys
        return whole, rest

    async def _complete(self, keys: list[str], members: list[Member]) -> int:
        found = await self._records.get_many(member[0] for member in members)
        missing = [member for member in members if found.get(member[0], (b"", 0))[0] != member[1]]
        for job_id, stored, revision, ttl_s in missing:
            await self._records.replace(job_id, stored, revision, ttl_s)
        await self._end(keys)
        log.warning("a batch that was cut off is complete now", extra={"jobs": len(members), "missing": len(missing)})
        return len(missing)

    async def _end(self, keys: list[str]) -> None:
        # Written, not purged: from now on the batch is not the end of the stream any more.
        for key in keys:
            _, code, description = await self._connection.write(_PREFIX + key, b"", NOTE_OVER)
            if code:
                raise Unavailable(f"the note of a batch cannot be removed: {description} (error {code})")

    async def _take_back(self, last: _Stored) -> int:
        # From the end, so that what is left is the end of the stream again, should this be cut off too.
        taken = 0
        message: _Stored | None = last
        while message is not None and message.batch == last.batch:
            answer = await self._connection.api(f"STREAM.MSG.DELETE.{_STREAM}", {"seq": message.sequence})
            if "error" in answer:
                raise Unavailable(f"a batch that was cut off cannot be taken back: {answer['error']['description']}")
            taken += 1
            before = message.sequence - 1
            message = await self._message(seq=before) if before else None
        log.warning("a batch that was cut off was taken back; nobody was told of it", extra={"jobs": taken})
        return taken

    async def _message(self, **query: str | int) -> _Stored | None:
        message = await self._connection.stored(_STREAM, **query)
        if not message:
            return None
        fields = headers_of(message)
        return _Stored(
            message["seq"], fields.get("Nats-Batch-Id", ""), "Nats-Batch-Commit" in fields, "KV-Operation" in fields
        )
