"""A KV bucket of bytes for readers that must see the last write: they ask the stream's leader.

Knows keys, bytes and revisions only.
"""

import asyncio
import base64
from collections.abc import Iterable
from typing import Any

from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection, headers
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.records import NO_MESSAGE_FOUND, WRONG_LAST_SEQUENCE

READ_AT_ONCE = 500

# Bytes and revision.
Found = tuple[bytes, int]


class Blobs:
    """Compare-and-set access to one bucket."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self._bucket = bucket
        self._stream = names.bucket_stream(bucket)
        self._prefix = len(names.bucket_subject(bucket, ""))

    async def get(self, key: str) -> Found | None:
        """The value as the stream's leader has it, or None. Raises Unavailable."""
        query = {"last_by_subj": names.bucket_subject(self._bucket, key)}
        answer = await self._connection.api(f"STREAM.MSG.GET.{self._stream}", query)
        if "error" in answer:
            if answer["error"].get("err_code") == NO_MESSAGE_FOUND:
                return None
            raise Unavailable(f"reading {self._bucket}/{key} failed: {answer['error'].get('description')}")
        data = base64.b64decode(answer["message"].get("data", ""))
        return (data, int(answer["message"]["seq"])) if data else None

    async def get_all(self, keys: Iterable[str]) -> dict[str, Found]:
        """Those of the keys that exist, each as the stream's leader has it. Raises Unavailable."""
        wanted = list(keys)
        found = await asyncio.gather(*(self.get(key) for key in wanted))
        return {key: one for key, one in zip(wanted, found, strict=True) if one is not None}

    async def look_up(self, keys: Iterable[str]) -> dict[str, Found]:
        """As `get_all`, cheaper for many keys, but a replica may lag behind. Raises Unavailable."""
        wanted = [names.bucket_subject(self._bucket, key) for key in keys]
        found: dict[str, Found] = {}
        for start in range(0, len(wanted), READ_AT_ONCE):
            subjects = wanted[start : start + READ_AT_ONCE]
            query: dict[str, Any] = {"multi_last": subjects, "batch": len(subjects)}
            for message in await self._connection.get_batch(self._stream, query):
                if message.is_live:
                    found[message.stored_subject[self._prefix :]] = (message.data, message.sequence)
        return found

    async def page(self, keys: str, after: int, limit: int) -> tuple[list[tuple[str, bytes, int]], int]:
        """Live values of the keys that match a pattern, by revision: `([(key, bytes, revision)], cursor)`.

        The cursor is what to pass as `after` next; 0 at the end. Raises Unavailable.
        """
        found: list[tuple[str, bytes, int]] = []
        while len(found) < limit:
            wanted = min(limit - len(found), READ_AT_ONCE)
            query = {"next_by_subj": names.bucket_subject(self._bucket, keys), "seq": after + 1, "batch": wanted}
            batch = await self._connection.get_batch(self._stream, query)
            for message in batch:
                after = message.sequence
                if message.is_live:
                    found.append((message.stored_subject[self._prefix :], message.data, after))
            if len(batch) < wanted:
                return found, 0
        return found, after

    async def put(self, key: str, data: bytes, revision: int | None = None, ttl_s: int = 0) -> int:
        """Write and return the revision; with `revision` only over that one (0 = new key).

        Raises RevisionConflict, or Unavailable when the outcome is unknown.
        """
        fields: dict[str, str | int] = {}
        if revision is not None:
            fields["Nats-Expected-Last-Subject-Sequence"] = revision
        if ttl_s:
            fields["Nats-TTL"] = f"{ttl_s}s"
        await self._connection.ready()
        header = headers(**fields) if fields else b""
        subject = names.bucket_subject(self._bucket, key)
        sequence, code, description = await self._connection.write(subject, data, header)
        if code == WRONG_LAST_SEQUENCE:
            raise RevisionConflict(key)
        if code:
            raise Unavailable(f"JetStream refused {self._bucket}/{key}: {description} (error {code})")
        return sequence

    async def count(self) -> int:
        """How many messages the bucket has, by key pattern `*`: keys of one token. Raises Unavailable."""
        query = {"subjects_filter": names.bucket_subject(self._bucket, "*")}
        info = await self._connection.stream_info(self._stream, query)
        return len(info["state"].get("subjects") or {})

    async def erase(self, keys: str) -> None:
        """Remove every key that matches a pattern, without markers. Raises Unavailable."""
        await self._connection.purge(self._stream, names.bucket_subject(self._bucket, keys))
