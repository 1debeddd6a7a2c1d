"""What becomes of a dead node's counts: the leader adds what the node had not written yet, and merges.

Closing the node's entry and adding to it is one atomic batch on the entry's revision, so it happens once, and a
node that was only silent notices (core/tallies.py). After that its numbers are moved to the owner `base`.
"""

from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.counts import Counts
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import BASE, QUEUES_PER_COMMIT, parse_marks
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.commits import Committer, Put
from ojs_fast.storage.errors import RevisionConflict, Unavailable

FORGOTTEN_MS = 3_600_000  # by then a node that was taken for dead has long noticed
MOVED_AT_ONCE = 400

# owner, number of the period, the state that the record reached or left
_Mark = tuple[str, int, str]


class Inheritance:
    """Takes over the counts of dead nodes."""

    def __init__(self, stores: Stores, clock: NowMs) -> None:
        self._clock = clock
        self._bucket = Bucket(stores.connection, names.TALLIES)
        self._committer = Committer(stores.connection, names.TALLIES)
        self._dead: set[str] = set()
        # Job id → the record as it was met last, with the marks of dead nodes: one that is written again during the
        # replay is met twice.
        self._found: dict[str, tuple[_core.Record, list[_Mark]]] = {}

    def begin(self, node_ids: set[str]) -> None:
        """A replay starts: the counts of these nodes are to be taken over."""
        self._dead = node_ids
        self._found = {}

    def see(self, record: _core.Record) -> None:
        """The replay meets a record."""
        if record.extra is None:
            return
        marks = [mark for mark in parse_marks(record) if mark[0].partition("-")[0] in self._dead]
        if marks:
            self._found[record.id] = (record, marks)

    async def take_over(self, closed_at: int) -> None:
        """The replay is over; it saw everything up to revision `closed_at`. Raises Unavailable."""
        try:
            await self._take_over(closed_at)
        except RevisionConflict as error:
            raise Unavailable(f"a dead node's counts changed meanwhile: {error}") from None

    async def _take_over(self, closed_at: int) -> None:
        owners: dict[str, tuple[Any, int]] = {mark[0]: ({}, 0) for _, marks in self._found.values() for mark in marks}
        for key, value, revision in await self._bucket.page(0, 1 << 30, "n.*"):
            owner = key.partition(".")[2]
            if owner.partition("-")[0] in self._dead:
                owners[owner] = (value, revision)
            elif value.get("closed_ms", self._clock()) < self._clock() - FORGOTTEN_MS:
                await self._bucket.erase(key)
        for owner, (entry, revision) in owners.items():
            if "closed_at" not in entry:
                await self._close(owner, entry.get("through", 0), revision, closed_at)
            await self._move(owner)
        self.begin(set())

    async def _close(self, owner: str, through: int, revision: int, closed_at: int) -> None:
        added: dict[str, Counts] = {}
        for record, marks in self._found.values():
            for by, number, state in marks:
                if by == owner and number > through:
                    added.setdefault(record.queue, Counts()).add(record, state)
        puts: list[Put] = []
        for queue, counts in added.items():
            key = names.tally_key(queue, owner)
            found = await self._bucket.get(key)
            if found:
                counts.merge(Counts.parse(found[0]))
            puts.append((key, counts.as_json(self._clock()), found[1] if found else 0))
        closed = {"through": through, "closed_at": closed_at, "closed_ms": self._clock()}
        puts.append((names.tally_owner_key(owner), closed, revision))
        for start in range(0, len(puts), QUEUES_PER_COMMIT):
            await self._committer.commit(puts[start : start + QUEUES_PER_COMMIT])

    async def _move(self, owner: str) -> None:
        entries = [entry for entry in await self._bucket.page(0, 1 << 30, f"q.*.{owner}") if entry[1]]
        for start in range(0, len(entries), MOVED_AT_ONCE):
            puts: list[Put] = []
            for key, value, revision in entries[start : start + MOVED_AT_ONCE]:
                base_key = key.removesuffix(owner) + BASE
                found = await self._bucket.get(base_key)
                base = Counts.parse(found[0] if found else {}).merge(Counts.parse(value))
                puts.append((base_key, base.as_json(self._clock()), found[1] if found else 0))
                puts.append((key, {}, revision))
            await self._committer.commit(puts)
        await self._bucket.erase(f"q.*.{owner}")
