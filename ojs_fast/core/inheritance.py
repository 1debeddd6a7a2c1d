"""What becomes of a dead node's counts: the leader adds what the node had not written yet, and merges.

Closing the node's entry and adding to it is one atomic batch on the entry's revision, so it happens once, and a
node that was only silent notices (core/tallies.py). After that its numbers are moved to the owner `base`. What comes to
light later is counted there (core/closed_counts.py).
"""

from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.closed_counts import BASE, ClosedCounts, Marked, is_closed, key_of, lists_of
from ojs_fast.core.counts import Counts
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import QUEUES_PER_COMMIT, parse_marks
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.commits import Committer, Put
from ojs_fast.storage.errors import RevisionConflict, Unavailable

FORGOTTEN_MS = 3_600_000  # by then a node that was taken for dead has long noticed
MOVED_AT_ONCE = 400


class Inheritance:
    """Takes over the counts of dead nodes."""

    def __init__(self, stores: Stores, clock: NowMs) -> None:
        self._clock = clock
        self._bucket = Bucket(stores.connection, names.TALLIES)
        self._committer = Committer(stores.connection, names.TALLIES)
        self._closed_counts = ClosedCounts(stores, clock)
        self._dead: set[str] = set()
        # Closed owner → the last period that it wrote behind itself.
        self._closed: dict[str, int] = {}
        # Owner → the mark's key → what was met last: a record that is written again during the replay is met twice.
        self._found: dict[str, dict[str, Marked]] = {}

    async def begin(self, node_ids: set[str]) -> None:
        """A replay starts: the counts of these nodes are to be taken over. Raises Unavailable."""
        self._dead = node_ids
        self._found = {}
        entries = await self._bucket.page(0, 1 << 30, "n.*")
        self._closed = {key.partition(".")[2]: value.get("through", 0) for key, value, _ in entries if is_closed(value)}

    def see(self, record: _core.Record) -> None:
        """The replay meets a record."""
        if record.extra is None:
            return
        for owner, number, state in parse_marks(record):
            through = self._closed.get(owner)
            if owner.partition("-")[0] in self._dead if through is None else number > through:
                self._found.setdefault(owner, {})[key_of(record, number, state)] = (record, number, state)

    async def take_over(self) -> None:
        """The replay is over. Raises Unavailable."""
        try:
            await self._take_over()
        except RevisionConflict as error:
            raise Unavailable(f"a dead node's counts changed meanwhile: {error}") from None

    async def _take_over(self) -> None:
        owners: dict[str, tuple[Any, int]] = {owner: ({}, 0) for owner in self._found if owner not in self._closed}
        for key, value, revision in await self._bucket.page(0, 1 << 30, "n.*"):
            owner = key.partition(".")[2]
            if owner.partition("-")[0] in self._dead:
                owners[owner] = (value, revision)
            elif value.get("closed_ms", self._clock()) < self._clock() - FORGOTTEN_MS:
                await self._closed_counts.forget(owner)
        for owner, (entry, revision) in owners.items():
            if not is_closed(entry):
                await self._close(owner, entry.get("through", 0), revision)
            await self._move(owner)
        for owner in self._found.keys() & self._closed.keys():
            await self._closed_counts.add(owner, list(self._found[owner].values()))
        self._dead, self._found = set(), {}

    async def _close(self, owner: str, through: int, revision: int) -> None:
        found = {key: one for key, one in self._found.get(owner, {}).items() if one[1] > through}
        puts = await self._closed_counts.added_to(owner, [(record, state) for record, _, state in found.values()])
        while len(puts) > QUEUES_PER_COMMIT:
            await self._committer.commit(puts[:QUEUES_PER_COMMIT])
            del puts[:QUEUES_PER_COMMIT]
        closed = {"through": through, "closed_ms": self._clock()}
        lists = lists_of(owner, list(found))  # they are there if the entry is closed, and only then
        await self._committer.commit([*puts, *lists, (names.tally_owner_key(owner), closed, revision)])

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
