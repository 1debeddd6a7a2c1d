"""Handlers of `/jobs`: parse, one core call, reply."""

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request
from ojs_fast.api.rate_limits import quota_headers
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.limits import Limits


class JobHandlers:
    """Enqueue, batch, get, cancel, activate."""

    def __init__(self, jobs: Jobs, limits: Limits) -> None:
        self._jobs = jobs
        self._limits = limits

    async def enqueue(self, request: Request) -> Reply:
        """POST /jobs (ojs-http-binding section 9.1)."""
        job_id, stored = await self._jobs.enqueue(request.body)
        headers = [(b"location", b"/ojs/v1/jobs/" + job_id.encode())]
        quota = self._limits.quota(stored)
        if quota is not None:
            headers += quota_headers(*quota)
        return Reply(201, b'{"job":' + _core.public_job(stored) + b"}", headers)

    async def enqueue_batch(self, request: Request) -> Reply:
        """POST /jobs/batch (section 9.2): all or nothing."""
        stored = await self._jobs.enqueue_batch(request.body)
        return Reply(201, _core.jobs_reply(stored)[:-1] + b',"count":%d}' % len(stored))

    async def get(self, request: Request) -> Reply:
        """GET /jobs/{id} (section 9.3)."""
        return Reply(200, b'{"job":' + await self._jobs.get(request.params["id"]) + b"}")

    async def cancel(self, request: Request) -> Reply:
        """DELETE /jobs/{id} (section 9.4) and POST /jobs/{id}/cancel."""
        _, stored, previous = await self._jobs.cancel(request.params["id"])
        job = _core.public_job(stored)[:-1] + b',"previous_state":"%s"}' % previous.encode()
        return Reply(200, b'{"job":' + job + b"}")

    async def activate(self, request: Request) -> Reply:
        """POST /jobs/{id}/activate (section 9.5)."""
        _, stored = await self._jobs.activate(request.params["id"])
        return Reply(200, b'{"job":' + _core.public_job(stored)[:-1] + b',"previous_state":"pending"}}')
