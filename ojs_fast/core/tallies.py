"""How many jobs of each queue ended how: counted exactly once, over all nodes, whoever dies when.

Every node counts what it wrote itself. It stamps each final record with the *period* it is written in; the
periods whose outcomes are all known are written behind to `ojs-stats`, together with the number of the
last of them, in one atomic batch. When a node is dead, whoever leads adds the records that carry a later
period from the replay of `ojs-jobs`, and notes which. So a job is counted by its node's entry or by the replay,
never by both, and the hot path pays for a stamp and a list entry.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.closed_counts import ClosedCounts, Marked, is_closed
from ojs_fast.core.counts import Counts
from ojs_fast.core.own import own_record
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.stores import Stores
from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.commits import Committer, Put
from ojs_fast.storage.connection import READ_AT_ONCE
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

FLUSH_S = 0.5
QUEUES_PER_COMMIT = 900  # an external NATS takes 1000 messages in an atomic batch by default
# In `Record.extra`: `owner period state` of each time the job reached a final state, or left it (`-state`).
MARKS = "tally"
MARKS_KEPT = 32


class Period:
    """What a node ended between two flushes. `under_way`: writes whose outcome is not known yet."""

    __slots__ = ("ended", "first_marks", "jobs", "number", "owner", "under_way")

    def __init__(self, owner: str, number: int) -> None:
        self.owner = owner
        self.number = number
        self.under_way = 0
        # Those that have a mark of this period: each one at most, so that a record tells whether it was written.
        self.jobs: set[str] = set()
        self.ended: list[Marked] = []
        # What most jobs get as their `extra`, made once.
        self.first_marks = {state: {MARKS: [self.mark(state)]} for state in _core.TERMINAL_STATES}

    def mark(self, state: str) -> str:
        """What a record tells about its counting."""
        return f"{self.owner} {self.number} {state}"

    def count(self, record: _core.Record) -> None:
        """The stamped record was written."""
        self.under_way -= 1
        state = record.state
        if state not in _core.TERMINAL_STATES:
            state = parse_marks(record)[-1][2]
        self.ended.append((record, self.number, state))


def parse_marks(record: _core.Record) -> list[tuple[str, int, str]]:
    """`[(owner, period, state)]`, oldest first."""
    found: list[tuple[str, int, str]] = []
    for mark in (record.extra or {}).get(MARKS, ()):
        owner, number, state = mark.split(" ")
        found.append((owner, int(number), state))
    return found


class Tallies:
    """This node's counts, and what dead nodes left."""

    def __init__(self, stores: Stores, propagator: Propagator, node_id: str, clock: NowMs) -> None:
        self._stores = stores
        self._propagator = propagator
        self._node_id = node_id
        self._clock = clock
        self._bucket = Bucket(stores.connection, names.TALLIES)
        self._committer = Committer(stores.connection, names.TALLIES)
        self._closed = ClosedCounts(stores, clock)
        self._flushing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.forget()

    def forget(self) -> None:
        """Start from nothing under a new name (after a reset, or when others took this node for dead)."""
        self.owner = f"{self._node_id}-{secrets.token_hex(3)}"
        self._counts: dict[str, Counts] = {}
        self._revisions: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._through = 0
        self._uncommitted: list[Marked] = []
        # What this node ended under names that others have closed.
        self._late: dict[str, list[Marked]] = {}
        self._current = Period(self.owner, 1)
        self._open: deque[Period] = deque([self._current])

    async def open(self) -> None:
        """Start to write behind."""
        self._task = asyncio.create_task(forever(self._flush_loop))

    async def close(self) -> None:
        """Write what is counted, then stop."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(2):
                await self.flush()
        except (Unavailable, RevisionConflict, TimeoutError) as error:
            log.info("the last counts are left to the reconcile: %r", error)

    # -- counting --------------------------------------------------------------------------------

    def stamp(self, record: _core.Record, before: str) -> Period | None:
        """Mark a record that is about to be written; None when neither state counts.

        The caller must end with `Period.count`, with `drop` when the record was never sent, or with `doubt`.
        """
        if record.state in _core.TERMINAL_STATES:
            state = record.state
        elif before in _core.TERMINAL_STATES and record.extra and MARKS in record.extra:
            state = "-" + before
        else:
            return None
        period = self._current
        if record.id in period.jobs:
            period = self._next_period()
        period.jobs.add(record.id)
        period.under_way += 1
        if record.extra is None:
            record.extra = dict(period.first_marks[state])
        else:
            marks = [*record.extra.get(MARKS, ()), period.mark(state)]
            record.extra = {**record.extra, MARKS: marks[-MARKS_KEPT:]}
        return period

    def drop(self, period: Period | None) -> None:
        """The record was not sent."""
        if period is not None:
            period.under_way -= 1

    def doubt(self, period: Period | None, job_id: str) -> None:
        """Whether the record was written is not known, or a conflict says no: look, an answer may have been lost."""
        if period is None:
            return
        self._propagator.call_later(lambda: self._resolve(period, job_id))

    async def _resolve(self, period: Period, job_id: str) -> None:
        found = await self._stores.records.certain(job_id)
        record = own_record(found[0]) if found else None
        self.drop(period)
        if record is None:
            return
        for owner, number, state in parse_marks(record):
            if (owner, number) == (period.owner, period.number):
                period.ended.append((record, number, state))

    # -- writing behind --------------------------------------------------------------------------

    async def _flush_loop(self) -> None:
        while True:
            try:
                await self.flush()
            except (Unavailable, RevisionConflict) as error:
                log.info("counts are written later: %r", error)
            await asyncio.sleep(FLUSH_S)

    def _next_period(self) -> Period:
        self._current = Period(self.owner, self._current.number + 1)
        self._open.append(self._current)
        return self._current

    def _fold(self) -> None:
        if self._current.jobs:
            self._next_period()
        while len(self._open) > 1 and not self._open[0].under_way:
            period = self._open.popleft()
            if period.owner != self.owner:
                self._late.setdefault(period.owner, []).extend(period.ended)
                continue
            for ended in period.ended:
                self._add(ended)
            self._through = period.number

    def _add(self, ended: Marked) -> None:
        record, _, state = ended
        self._uncommitted.append(ended)
        counts = self._counts.get(record.queue)
        if counts is None:
            counts = self._counts[record.queue] = Counts()
        counts.add(record, state)
        self._dirty.add(record.queue)

    async def flush(self) -> None:
        """Write what is counted. Raises Unavailable, RevisionConflict."""
        async with self._flushing:
            self._fold()
            await self._flush_late()
            # First of all the owner's own entry: without it nobody could tell what of its last writes is counted.
            while self._dirty or names.tally_owner_key(self.owner) not in self._revisions:
                owner = self.owner
                queues = sorted(self._dirty)[:QUEUES_PER_COMMIT]
                puts: list[Put] = [self._put(names.tally_key(queue, owner), self._value(queue)) for queue in queues]
                committed = 0
                if len(queues) == len(self._dirty):
                    committed = len(self._uncommitted)
                    puts.append(self._put(names.tally_owner_key(owner), {"through": self._through}))
                self._dirty.difference_update(queues)
                try:
                    revisions = await self._committer.commit(puts)
                except RevisionConflict:
                    await self._recover(owner)
                    continue
                except BaseException:
                    self._dirty.update(queues)
                    raise
                if owner == self.owner:
                    del self._uncommitted[:committed]
                    self._revisions.update(zip((key for key, _, _ in puts), revisions, strict=True))

    async def _flush_late(self) -> None:
        while self._late:
            owner, marked = self._late.popitem()
            try:
                await self._closed.add(owner, marked)
            except BaseException:
                self._late[owner] = marked + self._late.get(owner, [])
                raise

    def _put(self, key: str, value: Any) -> Put:
        return key, value, self._revisions.get(key, 0)

    def _value(self, queue: str) -> dict[str, Any]:
        return self._counts[queue].as_json(self._clock())

    async def _recover(self, owner: str) -> None:
        # Our own commit was applied though its answer was lost, or others took this node for dead.
        own_key = names.tally_owner_key(owner)
        found = await self._bucket.get(own_key)
        if owner != self.owner:
            return
        if found and is_closed(found[0]):
            log.warning("this node was taken for dead; it counts on under another name")
            self._rename()
            return
        entries = await self._bucket.page(0, 1 << 30, f"q.*.{owner}")
        self._revisions = {key: revision for key, _, revision in entries}
        if found:
            self._revisions[own_key] = found[1]
        self._dirty.update(self._counts)

    def _rename(self) -> None:
        # Whoever closed our entry counted what it saw in `ojs-jobs`, and noted what that was.
        late = {**self._late, self.owner: self._uncommitted}
        periods = list(self._open)
        self.forget()
        self._late = late
        self._open.extendleft(reversed(periods))

    async def quiet(self) -> None:
        """Wait for a write that is under way."""
        async with self._flushing:
            pass

    async def verify(self) -> None:
        """Notice that others took this node for dead, before it tells what it counted. Raises Unavailable."""
        async with self._flushing:
            found = await self._bucket.get(names.tally_owner_key(self.owner))
            if found and is_closed(found[0]):
                await self._recover(self.owner)
            self._fold()
            await self._flush_late()

    # -- what nodes tell one another -------------------------------------------------------------

    def report(self, queues: Iterable[str]) -> dict[str, Any]:
        """All that this node counted of these queues, written behind or not."""
        self._fold()
        found = {queue: Counts() for queue in queues}
        for queue, counts in found.items():
            if queue in self._counts:
                counts.merge(self._counts[queue])
        for record, state in self._not_folded():
            if record.queue in found:
                found[record.queue].add(record, state)
        return {queue: counts.as_json(self._clock()) for queue, counts in found.items()}

    def report_of_all(self) -> dict[str, Any]:
        """`report` for all queues together, as one."""
        self._fold()
        total = Counts()
        for counts in self._counts.values():
            total.merge(counts)
        for record, state in self._not_folded():
            total.add(record, state)
        return total.as_json(self._clock())

    def _not_folded(self) -> Iterator[tuple[_core.Record, str]]:
        for period in self._open:
            if period.owner == self.owner:
                for record, _, state in period.ended:
                    yield record, state

    async def stored_of_all(self, without: set[str]) -> Counts:
        """`stored` for all queues together. Raises Unavailable."""
        total, after = Counts(), 0
        while page := await self._bucket.page(after, READ_AT_ONCE, names.tally_keys()):
            after = page[-1][2]
            for key, value, _ in page:
                if key.rpartition(".")[2] not in without:
                    total.merge(Counts.parse(value))
        return total

    async def stored(self, queue: str, without: set[str]) -> Counts:
        """The sum of what is in `ojs-stats` for a queue, without the owners named. Raises Unavailable."""
        total = Counts()
        for key, value, _ in await self._bucket.matching(names.tally_key(queue, "*")):
            if key.rpartition(".")[2] not in without:
                total.merge(Counts.parse(value))
        return total

    def forget_queue(self, queue: str) -> None:
        """Drop what this node counted of a queue: it is gone."""
        self._fold()
        self._counts.pop(queue, None)
        self._dirty.discard(queue)
        self._revisions.pop(names.tally_key(queue, self.owner), None)

    async def erase(self, queue: str) -> None:
        """Remove the stored totals of a queue that every node forgets. Raises Unavailable."""
        async with self._flushing:
            await self._bucket.erase(names.tally_key(queue, "*"))
