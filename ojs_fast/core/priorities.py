"""Another priority for a job that waits: the record by compare-and-set, then a work message at the new level."""

from ojs_fast import _core
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import WAITING_STATES, Jobs
from ojs_fast.core.queues import Queues
from ojs_fast.core.stale import MOVED, published_ms

OPERATION = "change the priority of"


class Priorities:
    """Changes priorities after the enqueue."""

    def __init__(self, jobs: Jobs, queues: Queues, events: Events) -> None:
        self._jobs = jobs
        self._queues = queues
        self._events = events

    async def change(self, job_id: str, priority: int) -> tuple[bytes, int]:
        """Give a waiting job another priority: `(record bytes, the priority before)`.

        An available job goes behind those that wait at its new level. Raises OJSError, Unavailable.
        """
        record, stored, _ = await self._jobs.load(job_id)
        if self._jobs.is_past(record):
            await self._jobs.get(job_id)  # discards it
        elif record.state in WAITING_STATES:
            if record.priority == priority:
                return stored, priority
            await self._queues.ensure(record.queue, priority)
        previous = priority

        def apply(record: _core.Record, now_ms: int) -> None:
            nonlocal previous
            # Where it still has an effect on the order; ojs-priority section 8.1 names the first two.
            if record.state not in WAITING_STATES:
                raise _core.IllegalTransition(OPERATION, record.state, WAITING_STATES)
            previous = record.priority
            if record.state == "available":
                # What finds the old message, also after the node that was to delete it died.
                record.extra = {**(record.extra or {}), MOVED: [now_ms, previous, published_ms(record)]}
            record.priority = priority

        record, stored = await self._jobs.change(job_id, OPERATION, apply)
        if previous != priority:
            facts = {"job_id": job_id, "queue": record.queue, "previous_priority": previous, "new_priority": priority}
            self._events.announce("priority.changed", job_id, facts)
        return stored, previous
