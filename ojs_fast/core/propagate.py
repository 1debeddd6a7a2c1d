"""Makes everything that can be rebuilt follow a record: work message, index entries, dead letters.

This is what every change ends with, and what repairs a change whose node died half way: both call the
same function with the record as it lies in `ojs-jobs`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.stores import Stores
from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.connection import PubAck
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

AT_ONCE = 200
# Larger records are not in their work messages: a fetch reads them, and each byte is written once instead of twice.
LARGEST_TOLD = 8 * 1024
AGAIN_S = 0.1
# A write of unknown outcome that cannot be refused is looked for at intervals that double, from the first to the last.
FIRST_LOOK_S, LAST_LOOK_S = 1.0, 256.0
# The states in which `expires_at` ends a job.
WAITING = ("available", "scheduled", "retryable")
# The states whose jobs an index lists by queue.
LISTED = {"scheduled": names.SCHEDULED, "retryable": names.RETRY}


def dead_key(record: _core.Record) -> str:
    """The key of a dead letter: by queue, so that one queue's can be listed and counted."""
    return f"{names.encode_token(record.queue)}.{record.id}"


RESCHEDULES = "reschedules"  # Record.extra: how often a limit put the job off


def scheduled_key(record: _core.Record) -> str:
    """The key of a scheduled job in its index: another one each time that it is scheduled.

    A late delete of an earlier entry never hits the present one.
    """
    again = record.extra.get(RESCHEDULES, 0) if record.extra is not None else 0
    return names.scheduled_key(record.queue, record.id, again)


def expiry_key(record: _core.Record) -> str:
    """The key of a job in the index of what expires."""
    return names.expiry_key(record.queue, record.id)


def entry_of(record: _core.Record) -> tuple[str, str] | None:
    """Bucket and key of the entry that lists a job, in the state that it is in."""
    if record.state == "scheduled":
        return names.SCHEDULED, scheduled_key(record)
    if record.state == "retryable":
        return names.RETRY, names.retry_key(record.queue, record.id, record.attempt)
    if record.state == "discarded" and record.dead_letter:
        return names.DEAD, dead_key(record)
    return None


class Propagator:
    """Turns a durable record into what workers and timers look at."""

    def __init__(self, stores: Stores, node_id: str, clock: NowMs, dead_letter_ttl_s: int) -> None:
        self._stores = stores
        self._node_id = node_id
        self._clock = clock
        self._dead_letter_ttl_s = dead_letter_ttl_s
        self._doubtful: dict[str, None] = {}
        self.is_held: Callable[[str], bool] = lambda _: False
        # Records that were followed again, at their revisions, and may have been changed meanwhile.
        self._followed_again: dict[str, tuple[_core.Record, int]] = {}
        self._followers: dict[str, Callable[[_core.Record, int], None]] = {}
        self._actions: deque[Callable[[], Awaitable[None]]] = deque()
        self._wake = asyncio.Event()
        # Jobs of which a write may still land: the next look, and how long to wait before it.
        self._looks: dict[str, tuple[asyncio.TimerHandle, float]] = {}
        self._task: asyncio.Task[None] | None = None
        stores.records.on_unknown = self.doubt

    async def open(self) -> None:
        """Start to repair what `doubt` names."""
        self._task = asyncio.create_task(forever(self._repair_loop))

    async def close(self) -> None:
        """Stop repairing; what is left is found by reconcile."""
        for timer, _ in self._looks.values():
            timer.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_extra(self, feature: str, follower: Callable[[_core.Record, int], None]) -> None:
        """Call `follower(record, revision)` after each change of a record whose `extra` has this feature.

        It must return at once, be idempotent, and hand what needs NATS to `call_later` or an outbox:
        it is called again for the same record by repair and reconcile.
        """
        self._followers[feature] = follower

    def follow(self, record: _core.Record, stored: bytes, revision: int) -> "asyncio.Future[PubAck] | None":
        """Send what must follow this record; the future is the work message's, None when there is none."""
        if record.extra is not None:
            for feature in record.extra:
                follower = self._followers.get(feature)
                if follower is not None:
                    follower(record, revision)
        if record.expires_ms:
            self._follow_expiry(record)
        if record.state == "available":
            told = stored if len(stored) <= LARGEST_TOLD else record.brief()
            return self._stores.work.publish(record.queue, record.priority, _core.work_message(revision, told))
        entry = entry_of(record)
        if entry is None:
            return None
        if record.state == "scheduled":
            self._stores.outbox.put(*entry, {"due_ms": record.scheduled_ms})
        elif record.state == "retryable":
            self._stores.outbox.put(*entry, {"due_ms": record.next_attempt_ms})
        else:
            about = {"job_id": record.id, "queue": record.queue, "type": record.type, "dead_at_ms": record.ended_ms}
            self._stores.outbox.put(*entry, about, self._dead_letter_ttl_s)
        return None

    def _follow_expiry(self, record: _core.Record) -> None:
        if record.state in WAITING:
            self._stores.outbox.put(names.EXPIRY, expiry_key(record), {"due_ms": record.expires_ms})
        elif _core.is_terminal(record.state):
            self._stores.outbox.erase(names.EXPIRY, expiry_key(record))

    def forsake(self, record: _core.Record) -> None:
        """Remove the index entry that a cancelled or expired job left when its node died in between."""
        if record.state not in ("cancelled", "discarded"):
            return
        if record.scheduled_ms > self._clock():
            self._stores.outbox.erase(names.SCHEDULED, scheduled_key(record))
        elif record.errors:
            self._stores.outbox.erase(names.RETRY, names.retry_key(record.queue, record.id, record.attempt))

    def follow_again(self, record: _core.Record, stored: bytes, revision: int) -> "asyncio.Future[PubAck] | None":
        """`follow_or_doubt` of a record that another node wrote: it may be changed before this has arrived.

        Whoever changes it removes its index entry, and perhaps before it is made here.
        """
        if entry_of(record):
            if not self._followed_again:
                self.call_later(self._look_back)
            self._followed_again[record.id] = record, revision
        return self.follow_or_doubt(record, stored, revision)

    async def _look_back(self) -> None:
        followed, self._followed_again = self._followed_again, {}
        try:
            async with asyncio.timeout(AGAIN_S):  # the next repairs wait for this one
                await self._stores.outbox.flushed()
            found = await self._stores.records.get_many(followed)
            for job_id, (record, revision) in followed.items():
                if found.get(job_id, (b"", 0))[1] != revision:
                    await self._drop_entry(record, revision)
        except (Unavailable, TimeoutError) as error:
            self._followed_again = followed | self._followed_again
            raise Unavailable(f"index entries that were made again are looked at later: {error!r}") from None

    async def _drop_entry(self, record: _core.Record, revision: int) -> None:
        """Remove the entry of a record as it was, unless it has the same one now."""
        found = await self._stores.records.certain(record.id)
        at = found[1] if found else await self._stores.records.marker(record.id)
        entry = entry_of(record)
        if at < revision:  # a NATS server that begins to lead, or a reset
            log.info("an index entry may be stale", extra={"ojs.job_id": record.id})
        elif entry and (found is None or entry != entry_of(_core.Record.parse(found[0]))):
            self._stores.outbox.erase(*entry)

    async def followed(self, record: _core.Record, stored: bytes, revision: int) -> None:
        """`follow`, and wait until the work message is acknowledged; a lost one is repaired later."""
        published = self.follow(record, stored, revision)
        if published is not None:
            await self.published(record.id, published)

    async def published(self, job_id: str, work_message: "asyncio.Future[PubAck]") -> None:
        """Wait for the work message that `follow` sent; a lost one is repaired later."""
        try:
            await asyncio.shield(work_message)
        except Unavailable as error:
            # The record is durable and says "available": from here on the job cannot be lost.
            log.info("work message is late", extra={"ojs.job_id": job_id, "reason": str(error)})
            self.doubt(job_id)

    async def follow_early(self, record: _core.Record, stored: bytes, revision: int) -> None:
        """`follow`, waiting only when NATS does not keep up: whoever asks this node for the job waits instead."""
        published = self.follow_or_doubt(record, stored, revision)
        if published is not None and not self._stores.work.promise(record.queue, published):
            await asyncio.wait([published])

    def follow_or_doubt(self, record: _core.Record, stored: bytes, revision: int) -> "asyncio.Future[PubAck] | None":
        """`follow` without waiting; a work message that gets lost is repaired later."""
        published = self.follow(record, stored, revision)
        if published is None:
            return None
        job_id = record.id

        def check(answer: "asyncio.Future[PubAck]") -> None:
            if answer.cancelled() or answer.exception() is not None:
                self.doubt(job_id)

        published.add_done_callback(check)
        return published

    def doubt(self, job_id: str) -> None:
        """Something about this job may be half done: look at its record and set it right."""
        self._doubtful[job_id] = None
        self._wake.set()

    def call_later(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run an action that needs NATS as soon as it is connected; again if it is Unavailable."""
        self._actions.append(action)
        self._wake.set()

    async def _repair_loop(self) -> None:
        while True:
            await self._wake.wait()
            await self._stores.connection.wait_up()
            self._wake.clear()
            actions = [self._actions.popleft() for _ in range(min(AT_ONCE, len(self._actions)))]
            job_ids = list(self._doubtful)[:AT_ONCE]
            for job_id in job_ids:
                del self._doubtful[job_id]
            # Each by itself: one that cannot be done yet must not hold up the others.
            done = await asyncio.gather(
                *(self._attempt(action, partial(self.call_later, action)) for action in actions),
                *(self._attempt(partial(self._repair, job_id), partial(self.doubt, job_id)) for job_id in job_ids),
            )
            if not all(done):
                await asyncio.sleep(AGAIN_S)
            if self._actions or self._doubtful:
                self._wake.set()

    async def _attempt(self, action: Callable[[], Awaitable[None]], again: Callable[[], None]) -> bool:
        """Whether it is done; if not, it is asked for again."""
        try:
            await action()
        except (Unavailable, RevisionConflict) as error:
            log.info("repair is tried again: %s", error)
            again()
            return False
        except Exception:
            log.exception("something could not be repaired")
        return True

    async def _repair(self, job_id: str) -> None:
        found = await self._stores.records.certain(job_id)
        if found is not None:
            await self.repair(*found)
        self._look_later(job_id)

    def _look_later(self, job_id: str) -> None:
        """Look again, as long as a write of unknown outcome may lie in the buffers of a server that stands still."""
        timer, waited_s = self._looks.pop(job_id, (None, FIRST_LOOK_S / 2))
        if timer is not None:
            timer.cancel()
        if not self._stores.records.may_land(job_id):
            return
        if waited_s >= LAST_LOOK_S:
            self._stores.records.give_up(job_id)
            return
        timer = asyncio.get_running_loop().call_later(waited_s * 2, self.doubt, job_id)
        self._looks[job_id] = (timer, waited_s * 2)

    async def repair(self, stored: bytes, revision: int) -> None:
        """Make the rest follow one record. Raises Unavailable, RevisionConflict."""
        try:
            record = _core.Record.parse(stored)
        except ValueError as error:
            log.error("a foreign record in ojs-jobs is left alone: %s", error)
            return
        if record.state == "active" and record.node_id == self._node_id and not self.is_held(record.id):
            await self.release(record, revision)
            return
        published = self.follow_again(record, stored, revision)
        if published is not None:
            await asyncio.shield(published)

    async def release(self, record: _core.Record, revision: int) -> None:
        """Undo a claim whose answer never left this node: no worker has the job, no attempt counts.

        Raises Unavailable, RevisionConflict.
        """
        ack_subject = record.ack_subject
        record.requeue(self._clock(), counts=False)
        stored = record.serialize()
        revision = await self._stores.records.replace(record.id, stored, revision)
        if ack_subject:
            self._stores.work.ack(ack_subject)
        published = self.follow(record, stored, revision)
        if published is not None:
            await asyncio.shield(published)
