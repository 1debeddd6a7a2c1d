"""Cron: jobs that are enqueued by a schedule (ojs-cron). Registration on any node, ticks on the leader.

A tick is one compare-and-set on the entry in `ojs-cron`: it moves the entry on to the next occurrence and,
if it fires, allots the job's id. So an occurrence fires at most once whatever leaders there are; what is
allotted and not created yet is completed by whoever leads next.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import Deadlines, NowMs, steady_ms
from ojs_fast.core.cron_entry import Entry, Form
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.queues import Queues
from ojs_fast.core.stores import Stores
from ojs_fast.core.tracing import Tracing
from ojs_fast.errors import BackendUnavailable, Conflict, Duplicate, NotFound, OJSError
from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket, Watch
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

ATTEMPTS = 20
TRY_AGAIN_MS = 500
TICKS_AT_ONCE = 200
# What an entry remembers of runs that have not ended; only `allow` can have so many.
MAX_INSTANCES = 100
MANY_WAITING = 2
LOOK_AT_CLOCK_S = 1.0
PUT_BACK_MS = 1000
# A clock put back by more was wrong: nobody wants to wait until it is there again.
CORRECTION_MS = 3 * 3_600_000
# Occurrences that policy `enqueue` keeps back; beyond, the oldest are skipped.
MAX_WAITING = 1000

Known = tuple[Entry, int]


class Cron:
    """The registry of cron jobs, and their ticks while this node leads."""

    def __init__(
        self,
        stores: Stores,
        queues: Queues,
        jobs: Jobs,
        events: Events,
        propagator: Propagator,
        tracing: Tracing,
        clock: NowMs,
    ) -> None:
        self._tracing = tracing
        self._stores = stores
        self._queues = queues
        self._jobs = jobs
        self._events = events
        self._propagator = propagator
        self._clock = clock
        self._ids = _core.UuidV7Generator()
        self._bucket = Bucket(stores.connection, names.CRON)
        self._watch = Watch(stores.connection, names.CRON, self._changed)
        self._due = Deadlines(clock, self._tick_all)
        self._known: dict[str, Known] = {}
        self._leads = False
        self._task: asyncio.Task[None] | None = None
        propagator.on_extra("cron", self._ended)

    async def open(self) -> None:
        """Load and follow the registry."""
        await self._watch.open()
        await self._watch.synced.wait()

    async def close(self) -> None:
        """Stop following."""
        await self._watch.close()

    async def start(self) -> None:
        """Fire what is due from now on: this node became the leader."""
        self._leads = True
        self._task = asyncio.create_task(forever(self._watch_clock))
        await self._due.open()
        for name, (entry, _) in self._known.items():
            self._arm(name, entry)

    async def stop(self) -> None:
        """Stop firing: this node no longer leads."""
        self._leads = False
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._due.close()
        self._due.clear()

    def forget(self) -> None:
        """Drop what is known (after a reset)."""
        self._known.clear()
        self._due.clear()

    # -- the registry ----------------------------------------------------------------------------

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        name = names.decode_token(key)
        known = self._known.get(name)
        if known is not None and known[1] >= revision:
            return
        if value is None:
            self._known.pop(name, None)
            self._due.drop(name)
            return
        try:
            self._learn(Entry.read(orjson.loads(value)), revision)
        except ValueError as error:
            log.error("a foreign entry in ojs-cron is left alone: %s", error)

    def _learn(self, entry: Entry, revision: int) -> None:
        known = self._known.get(entry.name)
        if known is None or known[1] < revision:
            self._known[entry.name] = (entry, revision)
            self._arm(entry.name, entry)

    def _arm(self, name: str, entry: Entry) -> None:
        if not self._leads:
            return
        if entry.pending:
            self._due.set(name, 0)
        elif entry.next_ms:
            self._due.set(name, entry.next_ms)
        else:
            self._due.drop(name)

    async def _read(self, name: str) -> Known | None:
        found = await self._bucket.get(names.encode_token(name))
        if found is None:
            self._known.pop(name, None)
            return None
        entry = _parse(name, found[0])
        self._learn(entry, found[1])
        return entry, found[1]

    async def _write(self, entry: Entry, revision: int) -> int:
        revision = await self._bucket.put(names.encode_token(entry.name), entry.value(), revision)
        self._learn(entry, revision)
        return revision

    async def register(self, body: bytes) -> tuple[Entry, bool]:
        """Create or update a cron job: `(entry, whether it is new)` (ojs-cron section 8.1).

        Raises OJSError, Unavailable.
        """
        form = Form(body, self._queues.check_type)
        name = form.name()
        return await self._change(name, form.change, or_create=True)

    async def patch(self, name: str, body: bytes) -> Entry:
        """Change fields of a cron job (ojs-cron section 8.5). Raises OJSError, Unavailable."""
        return (await self._change(name, Form(body, self._queues.check_type).change))[0]

    async def _change(
        self, name: str, change: Callable[[Entry], Entry], *, or_create: bool = False
    ) -> tuple[Entry, bool]:
        for _ in range(ATTEMPTS):
            # A deleted name may come back while its marker still lies there.
            value, revision = await self._bucket.last(names.encode_token(name))
            now_ms = self._clock()
            if value is None and not or_create:
                raise _not_found(name)
            before = Entry(name, "", now_ms, anchor_ms=now_ms) if value is None else _parse(name, value)
            entry = replace(change(before), updated_ms=now_ms)
            # An application that registers the same again at each start must not put an interval off.
            if (entry.expression, entry.timezone) != (before.expression, before.timezone):
                entry = replace(entry, anchor_ms=now_ms).planned(now_ms)
            elif entry.enabled != before.enabled:
                entry = entry.planned(now_ms)
            try:
                await self._write(entry, revision)
            except RevisionConflict:
                continue
            return entry, value is None
        raise BackendUnavailable(f"Cron job '{name}' is being changed by too many clients at once.")

    async def get(self, name: str) -> Entry:
        """One cron job. Raises NotFound, Unavailable."""
        found = await self._read(name)
        if found is None:
            raise _not_found(name)
        return found[0]

    def all(self) -> list[Entry]:
        """Every cron job by name."""
        return [self._known[name][0] for name in sorted(self._known)]

    async def delete(self, name: str) -> Entry:
        """Unregister; jobs it enqueued are not touched (ojs-cron section 8.4). Raises NotFound, Unavailable."""
        entry = await self.get(name)
        await self._bucket.delete(names.encode_token(name))
        self._known.pop(name, None)
        self._due.drop(name)
        return entry

    # -- ticks -----------------------------------------------------------------------------------

    async def _tick_all(self, due: list[str]) -> None:
        for start in range(0, len(due), TICKS_AT_ONCE):
            await asyncio.gather(*(self._tick(name) for name in due[start : start + TICKS_AT_ONCE]))

    async def _tick(self, name: str) -> None:
        try:
            known = self._known.get(name)
            while known is not None and self._leads:
                try:
                    await self._tick_once(*known)
                    return
                except RevisionConflict:
                    known = await self._read(name)
        except (Unavailable, BackendUnavailable) as error:
            log.info("cron job %s is tried again: %s", name, error)
            self._due.set(name, self._clock() + TRY_AGAIN_MS)

    async def _tick_once(self, entry: Entry, revision: int) -> None:
        """Bring one entry to the present. Raises RevisionConflict, Unavailable."""
        if entry.pending:
            entry, revision = await self._complete(entry, revision)
        now_ms = self._clock()
        if not 0 < entry.next_ms <= now_ms:
            self._arm(entry.name, entry)
            return
        scheduled_ms = entry.next_ms
        live = await self._live(entry)
        # Whatever was missed meanwhile (a paused leader, a jump of the clock) fires this once.
        following = entry.next_after(now_ms)
        moved = replace(entry, next_ms=following.at_ms, instances=live)
        if live and entry.policy == "skip":
            await self._write(moved, revision)
            self._skipped(entry, "overlap_skip", scheduled_ms, live[-1])
        elif entry.policy == "enqueue" and (live or entry.waiting):
            waiting = (*entry.waiting, scheduled_ms)
            await self._write(replace(moved, waiting=waiting[-MAX_WAITING:]), revision)
            # The run before may have ended while this was written.
            self._propagator.call_later(self._release(entry.name))
            if len(waiting) > MAX_WAITING:
                self._skipped(entry, "overlap_skip", waiting[0], live[-1] if live else "")
            if len(waiting) > MANY_WAITING:
                log.warning("cron job %s has %d occurrences waiting", entry.name, len(waiting))
        else:
            if entry.policy == "cancel_previous":
                await self._cancel(live)
            await self._fire(moved, revision, scheduled_ms)
        if following.gap_ms:
            self._skipped(entry, "dst_skip", following.gap_ms, "")

    async def _live(self, entry: Entry) -> tuple[str, ...]:
        """The instances that have not ended: whatever is not terminal counts as running (L2-CRON-005)."""
        found = await self._stores.records.get_many(entry.instances)
        return tuple(job_id for job_id in entry.instances if job_id in found and _is_live(found[job_id][0]))

    async def _cancel(self, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            try:
                await self._jobs.cancel(job_id)
            except (NotFound, Conflict) as error:
                log.info("the previous run ended by itself: %s", error, extra={"ojs.job_id": job_id})

    async def _fire(self, entry: Entry, revision: int, scheduled_ms: int) -> None:
        """Allot a job to an occurrence by compare-and-set, then create it. Raises RevisionConflict, Unavailable."""
        now_ms = self._clock()
        job_id = self._ids.next(now_ms)
        entry = replace(
            entry,
            last_ms=now_ms,
            run_count=entry.run_count + 1,
            pending=job_id,
            fired_ms=scheduled_ms,
            last_job_id=job_id,
            instances=(*entry.instances, job_id)[-MAX_INSTANCES:],
        )
        revision = await self._write(entry, revision)
        await self._complete(entry, revision)

    async def _complete(self, entry: Entry, revision: int) -> Known:
        """Make sure that the allotted job exists. Raises RevisionConflict, Unavailable."""
        with self._tracing.act("ojs.cron.trigger", {"ojs.cron.name": entry.name, "ojs.job.id": entry.pending}):
            await self._create(entry)
            entry = replace(entry, pending="")
            return entry, await self._write(entry, revision)

    async def _create(self, entry: Entry) -> None:
        remember = {"cron": entry.name} if entry.policy == "enqueue" else None
        try:
            record = await self._jobs.create_allotted(entry.job_request(entry.fired_ms), entry.pending, remember)
        except Duplicate as duplicate:
            record = None
            self._skipped(entry, "duplicate", entry.fired_ms, (duplicate.details or {})["existing_job_id"])
        except BackendUnavailable:
            raise
        except OJSError as error:
            # What was fine when it was registered: its queue may take other types by now.
            record = None
            log.warning("cron job %s: a run is refused: %s", entry.name, error)
            self._skipped(entry, error.code, entry.fired_ms, "")
        if record is not None:
            self._events.announce(
                "cron.triggered",
                entry.name,
                {
                    **_about(entry, entry.fired_ms),
                    "job_id": entry.pending,
                    "job_type": record.type,
                    "queue": record.queue,
                    "run_count": entry.run_count,
                    "actual_time": _core.format_rfc3339_ms(entry.last_ms),
                },
            )

    def _skipped(self, entry: Entry, reason: str, scheduled_ms: int, job_id: str) -> None:
        about = _about(entry, scheduled_ms) | {"reason": reason}
        self._events.announce("cron.skipped", entry.name, about | ({"active_job_id": job_id} if job_id else {}))

    # -- a clock that is put back ----------------------------------------------------------------

    async def _watch_clock(self) -> None:
        """When the clock is put back, intervals start anew; after a large correction everything does."""
        ahead_ms = self._clock() - steady_ms()
        while True:
            await asyncio.sleep(LOOK_AT_CLOCK_S)
            before_ms, ahead_ms = ahead_ms, self._clock() - steady_ms()
            back_ms = before_ms - ahead_ms
            if back_ms > PUT_BACK_MS:
                log.warning("the wall clock was put back by %d ms", back_ms)
                await asyncio.gather(*(self._start_anew(name, back_ms) for name in list(self._known)))

    async def _start_anew(self, name: str, back_ms: int) -> None:
        entry, revision = self._known[name]
        if not entry.next_ms or not (entry.is_interval or back_ms > CORRECTION_MS):
            return
        now_ms = self._clock()
        try:
            await self._write(replace(entry, anchor_ms=now_ms).planned(now_ms), revision)
        except (RevisionConflict, Unavailable) as error:
            log.info("cron job %s keeps its next run: %r", name, error)

    # -- policy `enqueue` ------------------------------------------------------------------------

    def _ended(self, record: _core.Record, _revision: int) -> None:
        """A run of a cron job with policy `enqueue` changed: when it ended, the next one may start."""
        if _core.is_terminal(record.state) and record.extra is not None:
            self._propagator.call_later(self._release(str(record.extra["cron"])))

    def _release(self, name: str) -> Callable[[], Awaitable[None]]:
        async def release() -> None:
            for _ in range(ATTEMPTS):
                known = await self._read(name)
                if known is None or not known[0].waiting:
                    return
                entry, revision = known
                try:
                    if entry.pending:
                        entry, revision = await self._complete(entry, revision)
                    live = await self._live(entry)
                    if live:
                        return
                    waiting = replace(entry, instances=live, waiting=entry.waiting[1:])
                    await self._fire(waiting, revision, entry.waiting[0])
                    return
                except RevisionConflict:
                    continue

        return release


def _parse(name: str, value: dict[str, Any]) -> Entry:
    try:
        return Entry.read(value)
    except ValueError as error:
        log.error("a foreign entry in ojs-cron is left alone: %s", error)
        raise Conflict(
            f"The name '{name}' is taken by something that is no cron job.", details={"field": "name", "received": name}
        ) from None


def _is_live(stored: bytes) -> bool:
    try:
        return not _core.is_terminal(_core.Record.parse(stored).state)
    except ValueError:
        return False


def _about(entry: Entry, scheduled_ms: int) -> dict[str, object]:
    return {
        "cron_name": entry.name,
        "cron_expression": entry.expression,
        "timezone": entry.timezone,
        "scheduled_time": _core.format_rfc3339_ms(scheduled_ms),
    }


def _not_found(name: str) -> NotFound:
    return NotFound(
        f"Cron job '{name}' not found.",
        details={"resource_type": "cron", "resource_id": name},
        hint="GET /ojs/v1/cron lists what is registered.",
    )
