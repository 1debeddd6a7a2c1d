"""Handlers of what workers tell about a job while they run it: progress and checkpoints.

Each has the form of its specification and the one that the official SDKs send (docs/design.md).
"""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.api.workers import worker_id_of
from ojs_fast.core.checkpoint import Checkpoint
from ojs_fast.core.checkpoints import Checkpoints
from ojs_fast.core.progress import Progress, ProgressReports
from ojs_fast.core.refusals import decode_field
from ojs_fast.errors import invalid_field

MAX_MESSAGE = 1024
MAX_DATA_BYTES = 16_384
# Members of a checkpoint that only the server sets.
_OURS = ("job_id", "sequence", "created_at", "worker_id")


class RunningHandlers:
    """Progress and checkpoints."""

    def __init__(self, progress: ProgressReports, checkpoints: Checkpoints) -> None:
        self._progress = progress
        self._checkpoints = checkpoints

    async def report(self, request: Request) -> Reply:
        """PUT /jobs/{id}/progress (ojs-progress section 6), `progress` from 0.0 to 1.0."""
        body = request.json()
        return await self._report(request.params["id"], body, _share(body, "progress", 1))

    async def report_percentage(self, request: Request) -> Reply:
        """POST /workers/progress, as the SDKs have it: `job_id`, `percentage` from 0 to 100."""
        body = request.json()
        job_id = body.get("job_id")
        if not isinstance(job_id, str) or not job_id:
            raise invalid_field("job_id", job_id, "the id of the job (required)")
        return await self._report(job_id, body, _share(body, "percentage", 100))

    async def _report(self, job_id: str, body: dict[str, Any], share: float | None) -> Reply:
        message, data = body.get("message"), body.get("data")
        if message is not None and not (isinstance(message, str) and len(message) <= MAX_MESSAGE):
            raise invalid_field("message", message, f"a string of at most {MAX_MESSAGE} characters")
        if data is not None and not (isinstance(data, dict) and len(orjson.dumps(data)) <= MAX_DATA_BYTES):
            raise invalid_field("data", data, f"an object of at most {MAX_DATA_BYTES} bytes")
        if share is None and data is None and message is None:
            raise invalid_field("progress", None, "a number, or 'data' or 'message' instead (one is required)")
        return _progress(await self._progress.report(job_id, worker_id_of(body.get("worker_id")), share, message, data))

    async def progress(self, request: Request) -> Reply:
        """GET /jobs/{id}/progress (ojs-progress section 7.1)."""
        return _progress(await self._progress.get(request.params["id"]))

    async def save(self, request: Request) -> Reply:
        """PUT and POST /jobs/{id}/checkpoint (ojs-durable-execution section 4.1): `state` is any JSON."""
        members = request.members()
        if "state" not in members:
            raise invalid_field("state", None, "any JSON value (required)")
        return await self._save(request, members)

    async def save_any(self, request: Request) -> Reply:
        """POST /checkpoints/{id}, as the SDKs have it: an object of any members."""
        return await self._save(request, request.members())

    async def _save(self, request: Request, members: dict[str, tuple[int, int]]) -> Reply:
        span = members.get("worker_id")
        worker_id = worker_id_of(decode_field(request.body[span[0] : span[1]], "worker_id") if span else None)
        kept = b"".join(
            b",%s:%s" % (orjson.dumps(name), request.body[start:end])
            for name, (start, end) in members.items()
            if name not in _OURS
        )
        saved = await self._checkpoints.save(request.params["id"], worker_id, kept)
        return Reply(200, b'{%s,"checkpoint":{%s}}' % (saved.head(), saved.head()))

    async def checkpoint(self, request: Request) -> Reply:
        """GET /jobs/{id}/checkpoint (section 4.3)."""
        whole = _whole(await self._checkpoints.find(request.params["id"]))
        return Reply(200, b'{%s,"checkpoint":{%s}}' % (whole, whole))

    async def resume(self, request: Request) -> Reply:
        """GET /checkpoints/{id}/resume, as the SDKs have it: whether there is one, and that one."""
        job_id = request.params["id"]
        found = await self._checkpoints.get(job_id)
        head = b'"job_id":"%s"' % job_id.encode()
        if found is None:
            return Reply(200, b'{%s,"has_checkpoint":false,"checkpoint":null}' % head)
        return Reply(200, b'{%s,"has_checkpoint":true,"checkpoint":{%s}}' % (head, _whole(found)))

    async def forget(self, request: Request) -> Reply:
        """DELETE /jobs/{id}/checkpoint (section 4.4) and /checkpoints/{id}."""
        await self._checkpoints.delete(request.params["id"], "")
        return json_reply({"deleted": True, "job_id": request.params["id"]})


def _whole(checkpoint: Checkpoint) -> bytes:
    return checkpoint.head() + checkpoint.members


def _share(body: dict[str, Any], field: str, whole: int) -> float | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_field(field, value, f"a number from 0 to {whole}")
    return min(1.0, max(0.0, value / whole))  # section 5.1: out of range is clamped


def _progress(progress: Progress) -> Reply:
    body: dict[str, Any] = {
        "job_id": progress.job_id,
        "state": progress.state,
        "progress": progress.share,
        "percentage": None if progress.share is None else progress.share * 100,
        "message": progress.message,
        "data": progress.data,
        "updated_at": _core.format_rfc3339_ms(progress.updated_ms) if progress.updated_ms else None,
    }
    headers = [(b"cache-control", b"no-cache")]
    if progress.share is not None:
        headers.append((b"x-ojs-progress", b"%g" % progress.share))
    return Reply(200, orjson.dumps(body), headers)
