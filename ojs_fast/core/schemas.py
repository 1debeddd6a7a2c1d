"""JSON Schemas that producers and workers share (ojs-http-binding section 15): kept, not enforced.

One entry each in `ojs-schemas`, written once: what a URI means does not change while jobs refer to it.
"""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.stores import Stores
from ojs_fast.errors import Duplicate, NotFound
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import RevisionConflict

Schema = dict[str, Any]
MAX_URI = 255


class Schemas:
    """Register, list, get, delete."""

    def __init__(self, stores: Stores, clock: NowMs) -> None:
        self._bucket = Bucket(stores.connection, names.SCHEMAS, {"uri": str, "body": str, "created_at": str})
        self._clock = clock

    async def register(self, uri: str, about: dict[str, Any], body: bytes) -> tuple[Schema, bool]:
        """Keep a schema, `body` as it was sent: `(schema, is new)`. The same one again changes nothing.

        Raises Duplicate when the URI stands for another one, Unavailable.
        """
        created_at = _core.format_rfc3339_ms(self._clock())
        entry = {"uri": uri, **about, "created_at": created_at, "body": body.decode()}
        key = names.encode_token(uri)
        while True:
            found = await self._bucket.get(key)
            if found is not None:
                break
            try:
                await self._bucket.put(key, entry, await self._free(key))
            except RevisionConflict:
                continue
            return _shown(entry), True
        if {**found[0], "created_at": created_at} != entry:
            raise Duplicate(
                f"A schema with the URI '{uri}' exists already, and it is another one.",
                details={"resource_type": "schema", "resource_id": uri},
                hint="Register a changed schema under a URI of its own, with the next version.",
            )
        return _shown(found[0]), False

    async def _free(self, key: str) -> int:
        _, revision = await self._bucket.last(key)  # of the marker that a deletion left
        return revision

    async def versions(self, job_type: str) -> list[Schema]:
        """The numbered versions of a job type's schema, the oldest first. Raises NotFound, Unavailable."""
        found = await self._bucket.get_many(await self._bucket.keys())
        entries = [
            entry
            for entry, _ in found.values()
            if type(entry.get("version")) is int and entry["uri"] == numbered_uri(job_type, entry["version"])
        ]
        if not entries:
            raise _not_found(numbered_uri(job_type, "*"))
        return [_shown(entry) for entry in sorted(entries, key=lambda entry: entry["version"])]

    async def page(self, offset: int, limit: int) -> tuple[list[Schema], int]:
        """Schemas without their bodies, by URI, and how many there are. Raises Unavailable."""
        keys = await self._bucket.keys()
        found = await self._bucket.get_many(keys)
        entries = sorted((entry for entry, _ in found.values()), key=lambda entry: str(entry["uri"]))
        shown = [{name: value for name, value in entry.items() if name != "body"} for entry in entries]
        return shown[offset : offset + limit], len(entries)

    async def get(self, uri: str) -> Schema:
        """One with its body. Raises NotFound, Unavailable."""
        # A key that is empty, or too long for a subject, is none that NATS can be asked for.
        found = await self._bucket.get(names.encode_token(uri)) if 1 <= len(uri) <= MAX_URI else None
        if found is None:
            raise _not_found(uri[:MAX_URI])
        return _shown(found[0])

    async def delete(self, uri: str) -> None:
        """Forget one; jobs that refer to it stay as they are. Raises NotFound, Unavailable."""
        await self.get(uri)
        await self._bucket.delete(names.encode_token(uri))


def numbered_uri(job_type: str, version: object) -> str:
    """The URI of a numbered version of a job type's schema."""
    return f"urn:ojs:schema:{job_type}:v{version}"


def _shown(entry: dict[str, Any]) -> Schema:
    shown = {name: value for name, value in entry.items() if name not in ("body", "created_at")}
    return {**shown, "schema": orjson.Fragment(entry["body"]), "created_at": entry["created_at"]}


def _not_found(uri: str) -> NotFound:
    return NotFound(
        f"Schema '{uri}' not found.",
        details={"resource_type": "schema", "resource_id": uri},
        hint="The URI is percent-encoded in the path; GET /ojs/v1/schemas lists all.",
    )
