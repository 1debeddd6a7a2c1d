"""Requests with an Idempotency-Key: a client's retry creates nothing twice (ojs-bulk-operations section 10).

The key's entry is written before anything else and tells since when; the ids of the jobs are derived from it. So
whoever repeats the request, on whatever node, after whatever crash, creates the same jobs: those that exist are found
by their ids, those that are missing are made. The answer is added to the entry and repeated for 24 hours, whatever
became of the jobs; one that is too long for an entry lies in pieces beside it.
"""

import asyncio
import contextlib
import hashlib
import itertools
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ojs_fast import _core
from ojs_fast.core.admission import Ticket
from ojs_fast.core.clock import NowMs
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.stores import Stores
from ojs_fast.errors import BackendUnavailable, Conflict, Duplicate, InvalidRequest, OJSError
from ojs_fast.storage import names
from ojs_fast.storage.blobs import Blobs
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import RevisionConflict, Unavailable

KEPT_S = 24 * 3600
MAX_KEY = 256
# A longer answer is compressed and kept in pieces, which no entry may outlive.
ANSWER_BYTES = 64 * 1024
PIECES_KEPT_S = KEPT_S + 600
ATTEMPTS = 10
FIRST_ERROR = 400
# Marks the entry of a request that created nothing.
REFUSED = "refused"


@dataclass(slots=True, frozen=True)
class Answer:
    """What the client is told. `is_replay`: it was told so before."""

    status: int
    body: bytes
    is_replay: bool = False


class DerivedIds:
    """The ids of a request's jobs, always the same for the same key, body and moment."""

    def __init__(self, seed: str, at_ms: int, *, is_retry: bool) -> None:
        """`is_retry`: the request came before, so its jobs may exist."""
        self.is_retry = is_retry
        self._seed = seed
        self._at_ms = at_ms
        self._numbers = itertools.count()
        self.made: set[str] = set()

    def again(self) -> "DerivedIds":
        """The same ids from the first one on."""
        return DerivedIds(self._seed, self._at_ms, is_retry=self.is_retry)

    def next(self, _now_ms: int) -> str:
        """The next one, as `parse_enqueue` asks for it."""
        return self.at(next(self._numbers))

    def at(self, number: int) -> str:
        """The id of the job at that place."""
        digest = hashlib.sha256(f"{self._seed}.{number}".encode()).digest()
        job_id = _core.uuid7(self._at_ms, digest[:10])
        self.made.add(job_id)
        return job_id


class IdempotentRequests:
    """Runs each request once per key."""

    def __init__(self, stores: Stores, clock: NowMs) -> None:
        self._connection = stores.connection
        self._bucket = Bucket(stores.connection, names.UNIQUE, {"digest": str, "at_ms": int})
        self._pieces = Blobs(stores.connection, names.UNIQUE)
        self._clock = clock

    async def run(
        self, operation: str, key: str, body: bytes, act: Callable[[DerivedIds], Awaitable[Answer]]
    ) -> Answer:
        """The answer to a request, made now or kept; `act` must find what it has created before.

        Raises InvalidRequest for a key that is too long, Conflict for one that came with another body, and what
        `act` raises; after a refusal, raised or answered, the key is free again.
        """
        if not 1 <= len(key) <= MAX_KEY:
            raise InvalidRequest(
                f"Field 'Idempotency-Key' has {len(key)} characters; expected 1 to {MAX_KEY}.",
                details={
                    "field": "Idempotency-Key",
                    "received": f"{len(key)} characters",
                    "expected": f"1 to {MAX_KEY}",
                },
            )
        digest = hashlib.sha256(body).hexdigest()
        name = f"idempotency.{operation}.{hashlib.sha256(key.encode()).hexdigest()}"
        entry, revision, is_mine = await self._entry(name, digest)
        if "status" in entry:
            return Answer(entry["status"], await self._kept_body(entry), is_replay=True)
        is_retry = not is_mine and REFUSED not in entry
        try:
            answer = await act(DerivedIds(f"{name}.{digest}", entry["at_ms"], is_retry=is_retry))
        except BackendUnavailable:
            raise
        except OJSError:
            if is_mine:  # else another request with this key may succeed yet
                await self._free(name, entry, revision)
            raise
        if answer.status < FIRST_ERROR:
            entry.pop(REFUSED, None)
            await self._keep(name, {**entry, "status": answer.status, **await self._body(name, answer.body)}, revision)
        elif is_mine:
            await self._free(name, entry, revision)
        return answer

    async def _entry(self, name: str, digest: str) -> tuple[dict[str, Any], int, bool]:
        """`(entry, revision, whether this request has just written it)`."""
        for _ in range(ATTEMPTS):
            entry, revision = await self._bucket.last(name)
            if entry is not None and entry["digest"] == digest:
                return entry, revision, False
            if entry is not None and REFUSED not in entry:
                raise Conflict(
                    "This Idempotency-Key came with another body before.",
                    details={"field": "Idempotency-Key", "expected": "a key of its own for each request"},
                    hint=f"Keys are kept for {KEPT_S // 3600} hours.",
                )
            entry = {"digest": digest, "at_ms": self._clock()}
            try:
                return entry, await self._bucket.put(name, entry, revision, KEPT_S), True
            except RevisionConflict:
                continue
        raise BackendUnavailable("Too many clients use the same Idempotency-Key at once.")

    async def _free(self, name: str, entry: dict[str, Any], revision: int) -> None:
        # The entry stays: the same request, should it come again, must ask for the same jobs, because a rival of
        # this one may be about to create them.
        with contextlib.suppress(RevisionConflict):
            await self._bucket.put(name, {**entry, REFUSED: True}, revision, KEPT_S)

    async def _keep(self, name: str, entry: dict[str, Any], revision: int) -> None:
        for _ in range(ATTEMPTS):
            try:
                await self._bucket.put(name, entry, revision, KEPT_S)
            except RevisionConflict:
                there, revision = await self._bucket.last(name)
                if there is not None and ("status" in there or there["digest"] != entry["digest"]):
                    return  # a rival was answered first, or refused and the key used again
            else:
                return
        raise BackendUnavailable("Too many clients use the same Idempotency-Key at once.")

    # -- long answers ----------------------------------------------------------------------------

    async def _body(self, name: str, body: bytes) -> dict[str, Any]:
        """What an entry says about the body of its answer."""
        if len(body) <= ANSWER_BYTES:
            return {"body": body.decode()}
        packed = await asyncio.to_thread(zlib.compress, body, 1)
        # Two nodes may answer at once, and not the same: each has pieces of its own.
        prefix = f"{name}.{hashlib.sha256(packed).hexdigest()[:32]}"
        size = self._connection.max_record_bytes
        pieces = {
            f"{prefix}.{number}": packed[start : start + size]
            for number, start in enumerate(range(0, len(packed), size))
        }
        await asyncio.gather(*(self._pieces.put(*piece, ttl_s=PIECES_KEPT_S) for piece in pieces.items()))
        return {"pieces": list(pieces)}

    async def _kept_body(self, entry: dict[str, Any]) -> bytes:
        if "body" in entry:
            return str(entry["body"]).encode()
        found = await self._pieces.get_all(entry["pieces"])
        if len(found) < len(entry["pieces"]):
            raise Unavailable("a kept answer is not complete")
        return await asyncio.to_thread(zlib.decompress, b"".join(found[key][0] for key in entry["pieces"]))


# -- enqueueing under a key ----------------------------------------------------------------------


async def enqueue_once(jobs: Jobs, body: bytes, ticket: Ticket | None, ids: DerivedIds) -> tuple[str, bytes, bool]:
    """`Jobs.enqueue`, or what an earlier run of the same request made of it. Raises OJSError."""
    if ids.is_retry and (found := await jobs.existing([ids.at(0)])):
        return ids.at(0), found[ids.at(0)], True
    try:
        job_id, stored, is_new = await jobs.enqueue(body, ticket, ids.next)
    except Duplicate as duplicate:
        if not is_own(duplicate, ids):
            raise
        return *await made_before(jobs, body, duplicate), True
    return job_id, stored, is_new or job_id in ids.made


async def enqueue_batch_once(jobs: Jobs, body: bytes, ticket: Ticket | None, ids: DerivedIds | None) -> list[bytes]:
    """`Jobs.enqueue_batch`, or what an earlier run of the same request made of it. Raises OJSError."""
    if ids is None:
        return await jobs.enqueue_batch(body, ticket)
    if ids.is_retry and (found := await _batch_made_before(jobs, body, ids.again())):
        return found
    try:
        return await jobs.enqueue_batch(body, ticket, ids.next)
    except Duplicate as duplicate:
        if not is_own(duplicate, ids):
            raise
        return await _batch_made_before(jobs, body, ids.again(), is_certain=True)


async def made_before(jobs: Jobs, body: bytes, duplicate: Duplicate) -> tuple[str, bytes]:
    """The request's own job, which is in its way: as it is, or as it was when it came if it is gone already."""
    job_id = (duplicate.details or {})["existing_job_id"]
    found = await jobs.existing([job_id])
    return job_id, found.get(job_id) or jobs.parsed(body, lambda _: job_id).serialize()


async def _batch_made_before(jobs: Jobs, body: bytes, ids: DerivedIds, *, is_certain: bool = False) -> list[bytes]:
    """A batch that an earlier run created, [] if none did; the records' bytes in the order given. Raises OJSError.

    A batch is there as a whole or not at all, so one job shows that it was made (`is_certain`: so does something else).
    A job that is missing gave way to another one (`ignore`), which is told, or it has ended and is gone: then it is
    told as it was when it came.
    """
    records = jobs.parsed_batch(body, ids.next)
    found = await jobs.existing(record.id for record in records)
    if not found and not is_certain:
        return []
    return [found.get(record.id) or await jobs.preferred_to(record) or record.serialize() for record in records]


def is_own(duplicate: Duplicate, ids: DerivedIds) -> bool:
    """True when the job in the way is this request's own: made by another node just now, or by an earlier run."""
    details = duplicate.details or {}
    return details.get("existing_job_id") in ids.made or (ids.is_retry and details.get("field") == "id")
