"""What a worker notes in the record of a job that it runs, while it goes on: checkpoints and progress.

The job stays where it is, so nothing has to follow; whoever settles it at the same time finds the note in the record.
"""

from collections.abc import Callable

from ojs_fast import _core
from ojs_fast.core.claims import Claims
from ojs_fast.core.jobs import ATTEMPTS, GROWTH_BYTES, Jobs
from ojs_fast.core.settle import check_holder
from ojs_fast.core.stores import Stores
from ojs_fast.errors import BackendUnavailable, illegal_transition
from ojs_fast.storage.errors import RevisionConflict


class RunningJobs:
    """Compare-and-set on the records of active jobs, whichever node holds them."""

    def __init__(self, stores: Stores, claims: Claims, jobs: Jobs) -> None:
        self._stores = stores
        self._claims = claims
        self._jobs = jobs

    async def note(
        self, job_id: str, worker_id: str, operation: str, apply: Callable[[_core.Record], None]
    ) -> _core.Record:
        """Change an active job's record; `operation` names it in a 409. The record as written.

        Raises NotFound, Conflict when it is not active or another worker's, PayloadTooLarge, Unavailable.
        """
        for _ in range(ATTEMPTS):
            record, _, revision = await self._jobs.load(job_id)
            if record.state != "active":
                raise illegal_transition(job_id, operation, record.state, ("active",))
            check_holder(record, worker_id, operation)
            apply(record)
            stored = self._jobs.fit(record, GROWTH_BYTES)  # what ends the attempt must fit as well
            try:
                revision = await self._stores.records.replace(job_id, stored, revision)
            except RevisionConflict:
                continue
            self._claims.renew(record, revision)
            return record
        raise BackendUnavailable(f"Job '{job_id}' is being changed by too many clients at once.")
