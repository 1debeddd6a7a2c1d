"""Requests with an Idempotency-Key: a client's retry creates nothing twice (ojs-bulk-operations section 10).

The key's entry is written before anything else and tells since when; the ids of the jobs are derived from it. So
whoever repeats the request, on whatever node, after whatever crash, creates the same jobs: those that exist are found
by their ids, those that are missing are made. The answer is added to the entry, and repeated for 24 hours.
"""

import hashlib
import itertools
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
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import RevisionConflict

KEPT_S = 24 * 3600
MAX_KEY = 256
# A longer answer is not kept but made anew from the jobs.
ANSWER_BYTES = 256 * 1024
ATTEMPTS = 10


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
        self._bucket = Bucket(stores.connection, names.UNIQUE)
        self._clock = clock

    async def run(
        self, operation: str, key: str, body: bytes, act: Callable[[DerivedIds], Awaitable[Answer]]
    ) -> Answer:
        """The answer to a request, made now or kept; `act` must find what it has created before.

        Raises InvalidRequest for a key that is too long, Conflict for one that came with another body, and what
        `act` raises; after a refusal the key is free again.
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
            return Answer(entry["status"], entry["body"].encode(), is_replay=True)
        try:
            answer = await act(DerivedIds(f"{name}.{digest}", entry["at_ms"], is_retry=not is_mine))
        except BackendUnavailable:
            raise
        except OJSError:
            if is_mine:  # else another request with this key may succeed yet
                await self._bucket.remove(name, revision)
            raise
        if len(answer.body) <= ANSWER_BYTES:
            kept = {**entry, "status": answer.status, "body": answer.body.decode()}
            await self._keep(name, kept, revision)
        return answer

    async def _entry(self, name: str, digest: str) -> tuple[dict[str, Any], int, bool]:
        for _ in range(ATTEMPTS):
            entry, revision = await self._bucket.last(name)
            if entry is None:
                entry = {"digest": digest, "at_ms": self._clock()}
                try:
                    return entry, await self._bucket.put(name, entry, revision, KEPT_S), True
                except RevisionConflict:
                    continue
            if entry["digest"] != digest:
                raise Conflict(
                    "This Idempotency-Key came with another body before.",
                    details={"field": "Idempotency-Key", "expected": "a key of its own for each request"},
                    hint=f"Keys are kept for {KEPT_S // 3600} hours.",
                )
            return entry, revision, False
        raise BackendUnavailable("Too many clients use the same Idempotency-Key at once.")

    async def _keep(self, name: str, entry: dict[str, Any], revision: int) -> None:
        try:
            await self._bucket.put(name, entry, revision, KEPT_S)
        except RevisionConflict:  # the same request, answered by another node at the same time
            return


# -- enqueueing under a key ----------------------------------------------------------------------


async def enqueue_once(jobs: Jobs, body: bytes, ticket: Ticket | None, ids: DerivedIds) -> tuple[str, bytes, bool]:
    """`Jobs.enqueue`, or what an earlier run of the same request made of it. Raises OJSError."""
    if ids.is_retry and (found := await jobs.existing([ids.at(0)])):
        return ids.at(0), found[0], True
    try:
        return await jobs.enqueue(body, ticket, ids.next)
    except Duplicate as duplicate:
        if not is_own(duplicate, ids):
            raise
        job_id = (duplicate.details or {})["existing_job_id"]
        return job_id, (await jobs.load(job_id))[1], True


async def enqueue_batch_once(jobs: Jobs, body: bytes, ticket: Ticket | None, ids: DerivedIds | None) -> list[bytes]:
    """`Jobs.enqueue_batch`, or what an earlier run of the same request made of it. Raises OJSError."""
    if ids is None:
        return await jobs.enqueue_batch(body, ticket)
    if ids.is_retry and (found := await jobs.existing(jobs.ids_of_batch(body, ids.again().next))):
        return found
    try:
        return await jobs.enqueue_batch(body, ticket, ids.next)
    except Duplicate as duplicate:
        if not is_own(duplicate, ids):
            raise
        return await jobs.existing(jobs.ids_of_batch(body, ids.again().next))


def is_own(duplicate: Duplicate, ids: DerivedIds) -> bool:
    """True when the job in the way is this request's own: made by another node just now, or by an earlier run."""
    details = duplicate.details or {}
    return details.get("existing_job_id") in ids.made or (ids.is_retry and details.get("field") == "id")
