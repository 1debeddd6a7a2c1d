"""Save, read and delete the checkpoints of jobs that run (ojs-durable-execution section 4)."""

from ojs_fast import _core
from ojs_fast.core.checkpoint import Checkpoint, checkpoint_of, drop_checkpoint, put_checkpoint
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.running import RunningJobs
from ojs_fast.errors import NotFound, PayloadTooLarge

MAX_BYTES = 1_048_576


class Checkpoints:
    """Save, read, delete."""

    def __init__(self, running: RunningJobs, jobs: Jobs, events: Events, clock: NowMs) -> None:
        self._running = running
        self._jobs = jobs
        self._events = events
        self._clock = clock

    async def save(self, job_id: str, worker_id: str, members: bytes) -> Checkpoint:
        """Put a checkpoint in the place of the one before; durable when this returns.

        Raises NotFound, Conflict unless the job is active and this worker's, PayloadTooLarge, Unavailable.
        """
        if len(members) > MAX_BYTES:
            raise PayloadTooLarge(
                f"The checkpoint has {len(members)} bytes; expected at most {MAX_BYTES}.",
                details={"field": "state", "max_bytes": MAX_BYTES},
                hint="Store large states elsewhere and keep a reference in the checkpoint.",
            )
        saved: Checkpoint | None = None

        def apply(record: _core.Record) -> None:
            nonlocal saved
            saved = put_checkpoint(record, self._clock(), members)

        record = await self._running.note(job_id, worker_id, "save a checkpoint of", apply)
        assert saved is not None
        self._events.job("job.checkpointed", record, f',"sequence":{saved.sequence}')
        return saved

    async def get(self, job_id: str) -> Checkpoint | None:
        """The latest one, None when there is none. Raises NotFound for an unknown job, Unavailable."""
        record, _, _ = await self._jobs.load(job_id)
        return checkpoint_of(record)

    async def find(self, job_id: str) -> Checkpoint:
        """The latest one. Raises NotFound, Unavailable."""
        found = await self.get(job_id)
        if found is None:
            raise NotFound(
                f"Job '{job_id}' has no checkpoint.",
                details={"resource_type": "checkpoint", "resource_id": job_id},
                hint="A worker saves one with POST /ojs/v1/jobs/{id}/checkpoint; it leaves when the job has ended.",
            )
        return found

    async def delete(self, job_id: str, worker_id: str) -> None:
        """Forget it; nothing happens when there is none. Raises NotFound, Conflict, PayloadTooLarge, Unavailable."""
        if await self.get(job_id) is not None:
            await self._running.note(job_id, worker_id, "delete the checkpoint of", drop_checkpoint)
