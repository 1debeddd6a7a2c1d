"""How far a running job is: reported by its worker, asked for by anybody (ojs-progress).

The last report lies in the job's record beside the attempt that it is about: it survives what the job survives, and is
gone when the next attempt starts.
"""

from typing import Any, NamedTuple

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.running import RunningJobs
from ojs_fast.core.workers import Workers
from ojs_fast.errors import Conflict

FEATURE = "progress"  # Record.extra: [start of its attempt, updated, last told, share, message, data]
TELL_EVERY_MS = 1000


class Progress(NamedTuple):
    """The last report; `share` from 0.0 to 1.0, None what was never told."""

    job_id: str
    state: str
    share: float | None = None
    message: str | None = None
    data: dict[str, Any] | None = None
    updated_ms: int = 0


def progress_of(record: _core.Record) -> Progress:
    """What is known of the attempt that runs, or of the last one."""
    if record.extra is None or FEATURE not in record.extra or record.extra[FEATURE][0] != record.started_ms:
        return Progress(record.id, record.state)
    _, updated_ms, _, share, message, data = record.extra[FEATURE]
    return Progress(record.id, record.state, 1.0 if record.state == "completed" else share, message, data, updated_ms)


class ProgressReports:
    """Report and read."""

    def __init__(self, running: RunningJobs, jobs: Jobs, workers: Workers, events: Events, clock: NowMs) -> None:
        self._running = running
        self._jobs = jobs
        self._workers = workers
        self._events = events
        self._clock = clock

    async def get(self, job_id: str) -> Progress:
        """The last report. Raises NotFound, Unavailable."""
        record, _, _ = await self._jobs.load(job_id)
        return progress_of(record)

    async def report(
        self, job_id: str, worker_id: str, share: float | None, message: str | None, data: dict[str, Any] | None
    ) -> Progress:
        """Take a report, which is a heartbeat as well; one for a job that does not run is ignored.

        `share` never falls; what is None stays as it was. Raises NotFound, PayloadTooLarge, Unavailable.
        """
        is_told = False

        def apply(record: _core.Record) -> None:
            nonlocal is_told
            now_ms = self._clock()
            before = progress_of(record)
            told_ms = record.extra[FEATURE][2] if record.extra and before.updated_ms else 0
            is_told = now_ms - told_ms >= TELL_EVERY_MS
            shares = [one for one in (before.share, share) if one is not None]
            record.extra = {
                **(record.extra or {}),
                FEATURE: [
                    record.started_ms,
                    now_ms,
                    now_ms if is_told else told_ms,
                    max(shares, default=None),
                    before.message if message is None else message,
                    before.data if data is None else data,
                ],
            }

        try:
            record = await self._running.note(job_id, worker_id, "report the progress of", apply)
        except Conflict:
            return await self.get(job_id)
        await self._workers.heard_of(record)
        now = progress_of(record)
        if is_told:
            self._tell(record, now)
        return now

    def _tell(self, record: _core.Record, now: Progress) -> None:
        # ojs-events and ojs-realtime name the same things differently.
        percent = round((now.share or 0) * 100)
        facts = f',"worker_id":{_core.quote_json(record.worker_id)},"progress_percent":{percent},"progress":{percent}'
        if now.message is not None:
            told = _core.quote_json(now.message)
            facts += f',"progress_message":{told},"message":{told}'
        self._events.job("job.progress", record, facts)
