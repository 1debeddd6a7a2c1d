"""Log lines about jobs (ojs-logging section 6): failures always, every other change with OJS_LOG_LEVEL=debug.

Arguments and results never stand in them (section 9).
"""

import logging
from typing import Any

from ojs_fast import _core
from ojs_fast.core.event_data import LONGEST_MESSAGE
from ojs_fast.core.events import Events
from ojs_fast.core.retry import Failure
from ojs_fast.core.workflows.model import FEATURE as WORKFLOW

log = logging.getLogger(__name__)

# Event → severity and message of the line; what failed has a line of its own.
CHANGES = {
    "job.enqueued": (logging.INFO, "Job enqueued"),
    "job.scheduled": (logging.INFO, "Job scheduled"),
    "job.started": (logging.DEBUG, "Job fetched by worker"),
    "job.completed": (logging.INFO, "Job completed successfully"),
    "job.cancelled": (logging.INFO, "Job cancelled"),
    "job.expired": (logging.INFO, "Job expired"),
}
# Code of the server's own failures → the beginning of the line.
FAILURES = {
    "timeout": "Job execution timed out",
    "visibility_timeout": "Job stalled, its reservation ran out",
    "worker_death": "Job stalled, its worker fell silent",
}


class LoggedEvents(Events):
    """Events that leave a line as well, for whoever looks for what happened to a job."""

    def job(self, event_type: str, record: _core.Record, extra: str = "", before: str = "") -> None:
        """Announce a change of one job, and log it."""
        super().job(event_type, record, extra, before)
        if event_type in CHANGES:
            level, message = CHANGES[event_type]
            log.log(level, message, extra=_about(record) | (_times(record) if event_type == "job.completed" else {}))


def failed(record: _core.Record, failure: Failure) -> None:
    """An attempt failed, for which reason, and what becomes of the job."""
    told = FAILURES.get(failure.code, "Job failed")
    facts = _about(record) | {"error.type": failure.type, "error.message": failure.message[:LONGEST_MESSAGE]}
    if record.state == "discarded":
        log.error("%s, discarded after %d attempts", told, record.attempt, extra=facts)
        return
    level = logging.ERROR if failure.code in FAILURES else logging.WARNING
    log.log(level, "%s, will retry", told, extra=facts | {"retry_delay_ms": record.retry_delay_ms})


def _about(record: _core.Record) -> dict[str, Any]:
    """The fields of section 5.3."""
    facts: dict[str, Any] = {
        "category": "lifecycle",
        "ojs.job_id": record.id,
        "ojs.job_type": record.type,
        "ojs.queue": record.queue,
        "ojs.attempt": record.attempt,
        "ojs.state": record.state,
    }
    if record.worker_id:
        facts["ojs.worker_id"] = record.worker_id
    if record.extra is not None and WORKFLOW in record.extra:
        facts["ojs.workflow_id"] = record.extra[WORKFLOW][0]
    return facts


def _times(record: _core.Record) -> dict[str, int]:
    """How long it ran and waited (section 6.4)."""
    return {
        "duration_ms": record.ended_ms - record.started_ms,
        "queue_wait_ms": record.started_ms - record.enqueued_ms,
        "total_elapsed_ms": record.ended_ms - record.created_ms,
    }
