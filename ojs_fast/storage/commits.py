"""Several keys of one bucket written together or not at all (NATS ADR-50), each by compare-and-set."""

import itertools
import secrets
from typing import Any

import orjson

from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection, headers
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.records import WRONG_LAST_SEQUENCE

# A value to write, and the revision that the key must be at (0 = it must not exist).
Put = tuple[str, Any, int]


class Committer:
    """Atomic writes to one bucket that allows them."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self._bucket = bucket
        self._prefix = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    async def commit(self, puts: list[Put]) -> list[int]:
        """Write all and return their revisions.

        Raises RevisionConflict when a key is elsewhere, Unavailable when the outcome is unknown.
        """
        await self._connection.ready()
        batch_id = f"{self._prefix}-{next(self._numbers)}"
        token, future = self._connection.expect()
        for number, (key, value, revision) in enumerate(puts, 1):
            fields: dict[str, str | int] = {
                "Nats_Batch_Id": batch_id,
                "Nats_Batch_Sequence": number,
                "Nats_Expected_Last_Subject_Sequence": revision,
            }
            is_last = number == len(puts)
            if is_last:
                fields["Nats_Batch_Commit"] = 1
            subject = names.bucket_subject(self._bucket, key)
            self._connection.send(subject, orjson.dumps(value), token if is_last else "", headers(**fields))
        last, code, description = await future
        if code == WRONG_LAST_SEQUENCE:
            raise RevisionConflict(self._bucket)
        if code:
            raise Unavailable(f"JetStream refused a batch for {self._bucket}: {description} (error {code})")
        return [int(last) - len(puts) + number for number in range(1, len(puts) + 1)]
