"""A KV bucket of bytes. Knows keys, bytes and revisions only."""

from collections.abc import Iterable

from ojs_fast.storage import names
from ojs_fast.storage.connection import READ_AT_ONCE, Connection
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.headers import headers
from ojs_fast.storage.records import CONFLICTS

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
        """The value, or None. Raises Unavailable."""
        found = await self._connection.last(self._stream, names.bucket_subject(self._bucket, key))
        return found if found[0] else None

    async def get_all(self, keys: Iterable[str]) -> dict[str, Found]:
        """Those of the keys that exist. Raises Unavailable."""
        wanted = [names.bucket_subject(self._bucket, key) for key in keys]
        found = await self._connection.last_of_each(self._stream, wanted)
        return {subject[self._prefix :]: one for subject, one in found.items()}

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
        if code in CONFLICTS:
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
