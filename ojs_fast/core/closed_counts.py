"""Counts of owners that are closed: each mark that comes to light later is counted once, by whoever finds it.

A dead node's last writes may land after its counts were taken over: they lay in the buffers of a NATS server that
stood still. And a node that was only silent finds out what it ended meanwhile. Both count straight into `base`, in one
atomic batch with a note of the marks counted, so each mark counts once, whoever dies when.
"""

from collections.abc import Iterable
from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.counts import Counts
from ojs_fast.core.stores import Stores
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.commits import Committer, Put
from ojs_fast.storage.errors import RevisionConflict, Unavailable

BASE = "base"
TRIES = 5
MARKS_AT_ONCE = 500  # so a commit touches no more queues than an atomic batch has room for
MARKS_PER_LIST = 10_000  # about 0.5 MB

#: A record, the period in which its owner ended it, the state that it reached (or left, `-state`).
Marked = tuple[_core.Record, int, str]


def key_of(record: _core.Record, number: int, state: str) -> str:
    """What tells the marks of one owner apart."""
    return f"{record.id} {number} {state}"


def lists_of(owner: str, keys: list[str]) -> list[Put]:
    """What notes the marks that are counted when an owner is closed."""
    parts = [keys[start : start + MARKS_PER_LIST] for start in range(0, len(keys), MARKS_PER_LIST)]
    return [(names.tally_list_key(owner, number), part, 0) for number, part in enumerate(parts)]


def is_closed(entry: dict[str, Any]) -> bool:
    """Whether others took over what this owner counted."""
    return "closed_ms" in entry


class ClosedCounts:
    """Adds to the counts of closed owners."""

    def __init__(self, stores: Stores, clock: NowMs) -> None:
        self._bucket = Bucket(stores.connection, names.TALLIES)
        self._committer = Committer(stores.connection, names.TALLIES)
        self._clock = clock

    async def add(self, owner: str, marked: list[Marked]) -> None:
        """Count those that are not counted yet. Raises Unavailable."""
        for start in range(0, len(marked), MARKS_AT_ONCE):
            await self._add(owner, marked[start : start + MARKS_AT_ONCE])

    async def _add(self, owner: str, marked: list[Marked]) -> None:
        for _ in range(TRIES):
            found = await self._bucket.get(names.tally_owner_key(owner))
            if found is None:
                return  # forgotten: nobody knows any more which of its marks are counted
            entry, revision = found
            counted = await self._counted(owner, entry)
            new = {
                key: (record, state)
                for record, number, state in marked
                if number > entry.get("through", 0) and (key := key_of(record, number, state)) not in counted
            }
            if not new:
                return
            puts = await self.added_to(BASE, new.values())
            late = [*entry.get("late", ()), *new]
            try:
                await self._committer.commit([*puts, (names.tally_owner_key(owner), {**entry, "late": late}, revision)])
            except RevisionConflict:
                continue
            return
        raise Unavailable(f"the counts of {owner} are being changed by too many at once")

    async def _counted(self, owner: str, entry: dict[str, Any]) -> set[str]:
        counted = set(entry.get("late", ()))
        for _, keys, _ in await self._bucket.page(0, 1 << 30, names.tally_list_key(owner, "*")):
            counted.update(keys)
        return counted

    async def added_to(self, owner: str, ended: Iterable[tuple[_core.Record, str]]) -> list[Put]:
        """What writes these behind what an owner has counted of their queues. Raises Unavailable."""
        added: dict[str, Counts] = {}
        for record, state in ended:
            added.setdefault(record.queue, Counts()).add(record, state)
        puts: list[Put] = []
        for queue, counts in added.items():
            key = names.tally_key(queue, owner)
            value, revision = await self._bucket.last(key)
            puts.append((key, counts.merge(Counts.parse(value or {})).as_json(self._clock()), revision))
        return puts

    async def forget(self, owner: str) -> None:
        """Drop the notes of an owner that is long gone. Raises Unavailable."""
        await self._bucket.erase(names.tally_owner_key(owner))
        await self._bucket.erase(names.tally_list_key(owner, "*"))
