"""Limits on the start of jobs: the gate between pull and claim (ojs-rate-limiting).

A job with limits gets a permit for each of its keys before its claim is written. Who gets none waits: its
work message is parked on this node, unacknowledged, and given back when its key makes room, so fetches pass
over any number of waiting jobs at no cost. A permit comes back when the job leaves `active`, on whichever
node that happens; one that nobody gives back is found by `LimitUpkeep`.
"""

import asyncio
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from ojs_fast import _core
from ojs_fast.core.clock import Deadlines, NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.limit_keys import LimitKey, LimitKeys, Verdict
from ojs_fast.core.limit_refusals import Refused, RefusedJobs
from ojs_fast.core.limit_state import Limit, LimitState, Refusal
from ojs_fast.core.parking import Parking
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.stores import Stores
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.server_clock import ServerClock
from ojs_fast.storage.work import WorkMessage

log = logging.getLogger(__name__)

LIMITS = "limits"  # Record.extra: the limits of a job
PERMIT = "permit"  # Record.extra: [permit, keys in whose entry it stands]
# The key of the limit of a queue, an override that all its jobs ask for; `queue:` is what jobs use themselves.
QUEUE_KEY = "queue-limit:"
# A job that holds a permit by another delivery, or beyond what may be parked, is looked at again after:
AGAIN_MS = 1000
OVERFULL_MS = 60_000


@dataclass(slots=True)
class Work:
    """A job on its way from its work message to its claim. `limits` is None for jobs without any."""

    record: _core.Record
    revision: int
    message: WorkMessage
    limits: list[Limit] | None = None
    permit: str = ""
    # The keys that granted the permit, the instant of the start that each counts, and where it stands.
    starts: list[tuple[str, float, bool]] | None = None


def limits_of(record: _core.Record) -> list[Limit] | None:
    """The limits of a job, None when it has none."""
    if record.extra is None or LIMITS not in record.extra:
        return None
    return [Limit(*stored) for stored in record.extra[LIMITS]]


class Limits:
    """Says which of the pulled jobs may start, and remembers those that may not."""

    def __init__(
        self,
        stores: Stores,
        refused: RefusedJobs,
        server_clock: ServerClock,
        events: Events,
        propagator: Propagator,
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._stores = stores
        self._refused = refused
        self._server_clock = server_clock
        self._events = events
        self._propagator = propagator
        self._node_id = node_id
        self._clock = clock
        self.keys = LimitKeys(stores, server_clock, node_id, self._changed)
        self.parking = Parking()
        # Permits whose claim is on its way: nobody may take them for lost.
        self.under_way: set[str] = set()
        # Keys with a permit of this node of which nobody knows whether it is in use.
        self.suspects: set[str] = set()
        # Refused jobs that no fetch will meet again soon: each is passed over once.
        self.put_aside = 0
        self._permits = itertools.count(1)
        self._rooms = Deadlines(clock, self._room)
        propagator.on_extra(LIMITS, self._declared)
        propagator.on_extra(PERMIT, self._settled)

    async def open(self) -> None:
        """Start to watch the clock and other nodes. Raises Unavailable."""
        await self._server_clock.open()
        await self.keys.open()
        await self._rooms.open()

    async def close(self) -> None:
        """Let other nodes have the jobs that wait here."""
        await self._rooms.close()
        for ack_subject in self.parking.take_all():
            self._stores.work.give_back_to(ack_subject)
        await self.keys.close()
        await self._server_clock.close()

    def forget(self) -> None:
        """Drop everything (after a reset)."""
        self.parking.clear()
        self.suspects.clear()
        self._rooms.clear()
        self.keys.forget()

    # -- the gate --------------------------------------------------------------------------------

    async def admit(self, works: list[Work], wanted: int) -> list[Work]:
        """Those of the pulled jobs that may be claimed now, at most `wanted`, in order.

        The others are parked, rescheduled, dropped or given back. Each that is returned with limits must be
        handed to `landed`, `undo` or `lost`. Raises Unavailable; then all are given back.
        """
        chosen: list[Work] = []
        refused: list[Refused] = []
        for work in works:
            found = self._known_refusal(work) if work.limits else None
            if found is not None:
                refused.append(Refused(work.record, work.revision, work.message, *found))
            elif len(chosen) < wanted:
                chosen.append(work)
            else:
                self._stores.work.give_back(work.message)
        asked = [work for work in chosen if work.limits]
        if asked:
            try:
                outcomes = await self._ask(asked)
            except BaseException:
                for work in chosen:
                    self._stores.work.give_back(work.message)
                raise
            for work, outcome in zip(asked, outcomes, strict=True):
                self._heed(work, outcome, refused)
        await self._refuse(refused)
        return [work for work in chosen if not work.limits or work.starts is not None]

    def _known_refusal(self, work: Work) -> tuple[Limit, Refusal, int] | None:
        assert work.limits is not None
        now_ms = self._server_clock.now_ms()
        for limit in work.limits:
            key = self.keys.known(limit.key)
            refusal = key.refusal(limit, now_ms) if key is not None else None
            if key is not None and refusal is not None:
                return limit, refusal, key.changes
        return None

    async def _ask(self, works: list[Work]) -> list[tuple[Limit, Verdict]]:
        """The last verdict on each job: that of the limit which refused it, or a grant."""
        outcomes: list[tuple[Limit, Verdict]] = []
        firsts: list[asyncio.Future[Verdict]] = []
        for work in works:
            work.permit = f"{self._node_id}.{next(self._permits)}"
            self.under_way.add(work.permit)
            assert work.limits
            # Jobs with one limit, nearly all, are decided on by one compare-and-set per key.
            firsts.append(self.keys.ask(work.limits[0], work.record.id, work.permit))
        try:
            for work, first in zip(works, firsts, strict=True):
                outcomes.append(await self._ask_all(work, first))
        except BaseException:
            for first in firsts:
                if not first.cancel() and not first.cancelled():
                    first.exception()
            for work in works:
                self.undo(work)
            raise
        return outcomes

    async def _ask_all(self, work: Work, first: "asyncio.Future[Verdict]") -> tuple[Limit, Verdict]:
        limits = work.limits or []
        starts: list[tuple[str, float, bool]] = []
        work.starts = starts
        verdict = await first
        for number, limit in enumerate(limits):
            if number:
                verdict = await self.keys.ask(limit, work.record.id, work.permit)
            if not verdict.granted:
                return limit, verdict
            starts.append((limit.key, verdict.started_ms, verdict.holds))
        return limits[-1], verdict

    def _heed(self, work: Work, outcome: tuple[Limit, Verdict], refused: list[Refused]) -> None:
        limit, verdict = outcome
        if verdict.granted:
            if _core.parse_ack_subject(work.message.ack_subject)[2] > 1:
                self._events.announce(
                    "rate_limit.released",
                    work.record.id,
                    {"key": limit.key, "strategy": _strategy(limit), "job_id": work.record.id},
                )
            return
        self.undo(work)
        work.starts = None
        if verdict.refusal is None:
            self._stores.work.give_back_to(work.message.ack_subject, AGAIN_MS)
        else:
            refused.append(Refused(work.record, work.revision, work.message, limit, verdict.refusal, verdict.changes))

    def started_ms(self, work: Work) -> int:
        """When the job starts, on this node's clock: the instant that its limits count."""
        now_ms = self._clock()
        counted = max((at_ms for _, at_ms, _ in work.starts or ()), default=0.0)
        return min(now_ms, int(now_ms - (self._server_clock.now_ms() - counted))) if counted else now_ms

    def mark(self, work: Work) -> None:
        """Let the record that is about to be claimed remember its permit."""
        extra = {name: value for name, value in (work.record.extra or {}).items() if name != PERMIT}
        held_by = [key for key, _, holds in work.starts or () if holds]
        work.record.extra = {**extra, PERMIT: [work.permit, *held_by]} if held_by else extra or None

    def landed(self, work: Work) -> None:
        """The claim is written: from here on the record speaks for the permit."""
        self.under_way.discard(work.permit)

    def undo(self, work: Work) -> None:
        """There is no claim: give back what the job got."""
        self.under_way.discard(work.permit)
        for limit in work.limits or ():
            started_ms = next((at_ms for key, at_ms, _ in work.starts or () if key == limit.key), 0.0)
            self.keys.give_back(limit.key, work.record.id, work.permit, started_ms)

    def lost(self, work: Work) -> None:
        """Nobody knows whether the claim was written: the permit stays until upkeep has looked."""
        self.under_way.discard(work.permit)
        self.suspects.update(key for key, _, holds in work.starts or () if holds)

    # -- the refused -----------------------------------------------------------------------------

    async def _refuse(self, refused: list[Refused]) -> None:
        others: list[Refused] = []
        for one in refused:
            key = self.keys.get(one.limit.key)
            if key.waiting is None:
                self._exceeded(one)
            key.waiting = one.limit
            self.put_aside += 1
            if one.limit.on_limit != "wait":
                others.append(one)
            elif key.changes != one.changes:
                # Room may have come in the meantime, and nothing would wake the job any more.
                self._stores.work.give_back(one.message)
                self.put_aside -= 1
            elif self.parking.is_full:
                self._stores.work.give_back_to(one.message.ack_subject, OVERFULL_MS)
            else:
                record = one.record
                self.parking.put(key.name, record.id, record.queue, record.priority, one.message.ack_subject)
        for key in {one.limit.key: self.keys.get(one.limit.key) for one in refused}.values():
            self._changed(key)
        if others:
            await self._refused.handle(others, self.keys)

    def _exceeded(self, one: Refused) -> None:
        refusal = one.refusal
        data = {
            "key": one.limit.key,
            "strategy": refusal.strategy,
            "limit": refusal.limit,
            "current": refusal.current,
            "job_id": one.record.id,
        }
        self._events.announce("rate_limit.exceeded", one.limit.key, data)

    def _changed(self, key: LimitKey) -> None:
        """Give back as many waiting jobs as there is room for, and wake up when time makes more."""
        if key.name not in self.parking:
            return
        if not key.trusted or key.state is None:
            self.keys.look(key.name)
            return
        now_ms = key.state.now_ms(self._server_clock.now_ms())
        limit = key.state.effective(key.waiting or key.state.limit, now_ms)
        room = key.state.room(limit, now_ms) - key.out
        if room > 0:
            ready = self.parking.take(key.name, room)
            key.out += len(ready)
            for ack_subject in ready:
                self._stores.work.give_back_to(ack_subject)
        next_ms = key.state.next_room_ms(limit, now_ms)
        if next_ms and key.name in self.parking:
            self._rooms.set(key.name, self._clock() + int(max(0.0, next_ms - now_ms)) + 1)

    async def _room(self, names: list[str]) -> None:
        for name in names:
            if name in self.parking:
                self._changed(self.keys.get(name))

    # -- what records tell -----------------------------------------------------------------------

    def _declared(self, record: _core.Record, _revision: int) -> None:
        if not _core.is_terminal(record.state):
            for limit in limits_of(record) or ():
                self.keys.declare(limit)

    def _settled(self, record: _core.Record, _revision: int) -> None:
        if record.state != "active":
            permit, *names = record.extra[PERMIT] if record.extra else ("",)
            for name in names:
                self.keys.give_back(name, record.id, permit)

    async def pause(self, record: _core.Record, until_ms: int) -> None:
        """A handler was told by what it called to come back later (section 9.1): the job's keys wait."""
        for limit in limits_of(record) or ():
            edit = partial(self.keys.edit, limit.key, partial(_pause, float(until_ms)))
            try:
                await edit()
            except Unavailable:
                # The failure is durable already: this must not make an error of it.
                self._propagator.call_later(edit)
            until = _core.format_rfc3339_ms(until_ms)
            data = {"key": limit.key, "until": until, "reason": "handler_feedback", "job_id": record.id}
            self._events.announce("rate_limit.dynamic_adjusted", limit.key, data)

    def quota(self, stored: bytes) -> tuple[int, int, int] | None:
        """`(limit, starts left, epoch s when there is one more)` of a record with a rate, else None.

        As far as this node knows, which costs no round trip.
        """
        if stored.find(b'"limits":', 0, int(stored[10:16], 16)) < 0:
            return None
        limit = next((one for one in limits_of(_core.Record.parse(stored)) or () if one.rate), None)
        if limit is None:
            return None
        key, now_ms = self.keys.known(limit.key), self._server_clock.now_ms()
        state = key.state if key is not None and key.state is not None else LimitState(limit)
        limit = state.effective(limit, now_ms)
        refusal = state.refusal(limit, now_ms)
        until_ms = refusal.until_ms if refusal is not None else now_ms
        return limit.rate, min(limit.rate, state.room(limit, now_ms)), int(until_ms / 1000) + 1

    def waiting(self, names: Iterable[str]) -> dict[str, int]:
        """How many jobs wait here for each of these keys."""
        return {name: self.parking.count(name) for name in names}


def _pause(until_ms: float, state: LimitState, _now_ms: float) -> bool:
    if state.until_ms >= until_ms:
        return False
    state.until_ms = until_ms
    return True


def _strategy(limit: Limit) -> str:
    return "concurrency" if limit.concurrency else "rate" if limit.rate else "throttle"
