"""Several keys of one bucket written together or not at all (NATS ADR-50), each by compare-and-set."""

from typing import Any

import orjson

from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.records import CONFLICTS, replace_headers

# A value to write, and the revision that the key must be at (0 = it must not exist).
Put = tuple[str, Any, int]


class Committer:
    """Atomic writes to one bucket that allows them."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self._bucket = bucket

    async def commit(self, puts: list[Put]) -> list[int]:
        """Write all and return their revisions.

        Raises RevisionConflict when a key is elsewhere, Unavailable when the outcome is unknown.
        """
        await self._connection.ready()
        last, code, description = await self._connection.write_batch(
            [
                (names.bucket_subject(self._bucket, key), orjson.dumps(value), replace_headers(revision))
                for key, value, revision in puts
            ]
        )
        if code in CONFLICTS:
            raise RevisionConflict(self._bucket)
        if code:
            raise Unavailable(f"JetStream refused a batch for {self._bucket}: {description} (error {code})")
        return [int(last) - len(puts) + number for number in range(1, len(puts) + 1)]
