"""Handlers of `/workers`: fetch, ack, nack, heartbeat."""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.fetch import Fetcher
from ojs_fast.core.refusals import decode_field, refused
from ojs_fast.core.retry import Failure, parse_failure
from ojs_fast.core.settle import Settler
from ojs_fast.core.workers import Workers
from ojs_fast.errors import invalid_field

MAX_COUNT = 1000
MAX_QUEUES = 256
MAX_WORKER_ID = 255
MAX_TIMEOUT_MS = 31_536_000_000
MAX_BEAT_JOBS = 10_000
MAX_ABOUT_BYTES = 16_384
_WHO = ("job_id", "worker_id")
_ABOUT: dict[str, tuple[tuple[type, ...], str]] = {
    "hostname": ((str,), "a string"),
    "pid": ((int,), "an integer"),
    "queues": ((list,), "an array of queue names"),
    "concurrency": ((int,), "an integer"),
    "labels": ((list, dict), "an array or object"),
    "state": ((str,), "a string"),
}


def _integer(body: dict[str, Any], field: str, default: int, low: int, high: int) -> int:
    value = body.get(field)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise invalid_field(field, value, f"an integer from {low} to {high}")
    return value


def worker_id_of(value: object, *, required: bool = False) -> str:
    """The `worker_id` of a body, "" when it is missing. Raises InvalidRequest."""
    if value is None and not required:
        return ""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_WORKER_ID:
        raise invalid_field("worker_id", value, f"a string of 1 to {MAX_WORKER_ID} characters")
    return value


def _ids(values: object, field: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values) or len(values) > MAX_BEAT_JOBS:
        raise invalid_field(field, values, f"an array of at most {MAX_BEAT_JOBS} job ids")
    return values


def _beating(body: dict[str, Any]) -> list[str]:
    """The jobs that a heartbeat is for. Raises InvalidRequest."""
    # The JavaScript SDK sends a count in `active_jobs` and the ids apart; openapi.yaml has `job_id` for a single one.
    active, listed, job_id = body.get("active_jobs"), body.get("active_job_ids"), body.get("job_id")
    if job_id is not None and (not isinstance(job_id, str) or not job_id):
        raise invalid_field("job_id", job_id, "the id of a job")
    job_ids = _ids([] if active is None or type(active) is int else active, "active_jobs")
    job_ids = job_ids + _ids([] if listed is None else listed, "active_job_ids") + ([job_id] if job_id else [])
    return list(dict.fromkeys(job_ids))


def _about(body: dict[str, Any]) -> dict[str, Any]:
    # What a worker tells about itself, all optional; kept in memory as long as it beats, so it is bounded.
    about = {name: body[name] for name in _ABOUT if body.get(name) is not None}
    for name, value in about.items():
        kinds, expected = _ABOUT[name]
        if type(value) not in kinds or len(orjson.dumps(value)) > MAX_ABOUT_BYTES:
            raise invalid_field(name, value, f"{expected}, at most {MAX_ABOUT_BYTES} bytes")
    return about


class WorkerHandlers:
    """The worker's calls."""

    def __init__(self, fetcher: Fetcher, settler: Settler, workers: Workers) -> None:
        self._fetcher = fetcher
        self._settler = settler
        self._workers = workers

    async def fetch(self, request: Request) -> Reply:
        """POST /workers/fetch (ojs-http-binding section 10.1)."""
        await request.watch_client()
        body = request.json()
        queues = body.get("queues")
        if not isinstance(queues, list) or not 1 <= len(queues) <= MAX_QUEUES:
            raise invalid_field("queues", queues, f"an array of 1 to {MAX_QUEUES} queue names (required)")
        for number, name in enumerate(queues):
            if not isinstance(name, str):
                raise invalid_field(f"queues[{number}]", name, "a queue name")
            try:
                _core.check_queue_name(name, f"queues[{number}]")
            except ValueError as error:
                raise refused(error) from None
        count = _integer(body, "count", 1, 1, MAX_COUNT)
        worker_id = worker_id_of(body.get("worker_id"))
        visibility_ms = _integer(body, "visibility_timeout_ms", 0, 1, MAX_TIMEOUT_MS)
        if worker_id and not self._workers.may_fetch(worker_id):
            return Reply(200, b'{"jobs":[]}')
        stored = await self._fetcher.fetch(
            list(dict.fromkeys(queues)), count, worker_id, visibility_ms, request.client_gone
        )
        return Reply(200, _core.jobs_reply(stored))

    async def ack(self, request: Request) -> Reply:
        """POST /workers/ack (section 10.2) and /jobs/{id}/ack."""
        members = self._members(request)
        job_id, worker_id = self._who(request, members)
        span = members.get("result")
        result = request.body[span[0] : span[1]] if span else b""
        record, stored = await self._settler.ack(job_id, worker_id, b"" if result == b"null" else result)
        job = _core.public_job(stored)
        completed_at = _core.format_rfc3339_ms(record.ended_ms).encode()
        return Reply(
            200,
            b'{"acknowledged":true,"id":"%s","job_id":"%s","state":"completed","completed_at":"%s","job":%s}'
            % (job_id.encode(), job_id.encode(), completed_at, job),
        )

    async def nack(self, request: Request) -> Reply:
        """POST /workers/nack (section 10.3) and /jobs/{id}/nack."""
        members = self._members(request)
        job_id, worker_id = self._who(request, members)
        requeue = self._value(request, members, "requeue")
        if requeue is not None and type(requeue) is not bool:
            raise invalid_field("requeue", requeue, "true or false")
        span = members.get("error")
        if requeue and span is None:
            failure = Failure("requeued", "requeued", "The worker gave the job back.")
        else:
            failure = parse_failure(request.body, span)
        record, stored = await self._settler.nack(job_id, worker_id, failure, requeue=bool(requeue))
        answer: dict[str, Any] = {
            "id": job_id,
            "job_id": job_id,
            "state": record.state,
            "attempt": record.attempt,
            "max_attempts": record.max_attempts,
        }
        if record.state == "retryable":
            answer["next_attempt_at"] = _core.format_rfc3339_ms(record.next_attempt_ms)
            answer["retry_delay_ms"] = record.retry_delay_ms
        elif record.state == "discarded":
            answer["discarded_at"] = answer["completed_at"] = _core.format_rfc3339_ms(record.ended_ms)
        answer["job"] = orjson.Fragment(_core.public_job(stored))
        return json_reply(answer)

    async def heartbeat(self, request: Request) -> Reply:
        """POST /workers/heartbeat (section 10.4) and /workers/beat."""
        body = request.json()
        worker_id = worker_id_of(body.get("worker_id"), required=True)
        job_ids = _beating(body)
        visibility_ms = _integer(body, "visibility_timeout_ms", 0, 1, MAX_TIMEOUT_MS)
        state, extended = await self._workers.heartbeat(worker_id, job_ids, visibility_ms, _about(body))
        return json_reply(
            {
                "acknowledged": True,
                "state": state,
                "directive": state,
                "jobs_extended": extended,
                "server_time": _core.format_rfc3339_ms(self._workers.now_ms()),
            }
        )

    async def health(self, request: Request) -> Reply:
        """GET /workers/{id}/health: what the worker told last (ojs-graceful-shutdown), 503 when it is silent."""
        worker = self._workers.find(request.params["id"])
        state = worker.get("state") or worker["directive"]
        last = _core.format_rfc3339_ms(worker["beat_ms"])
        body = {
            "worker_id": worker["worker_id"],
            "state": state,
            "active_jobs": worker["active_jobs"],
            "last_heartbeat_at": last,
        }
        return json_reply(body, 503 if worker["is_stale"] else 200)

    def _members(self, request: Request) -> dict[str, tuple[int, int]]:
        # The JavaScript SDK's serverless adapter acknowledges /jobs/{id}/ack without a body.
        if not request.body and "id" in request.params:
            return {}
        return request.members()

    def _value(self, request: Request, members: dict[str, tuple[int, int]], name: str) -> Any:
        span = members.get(name)
        return decode_field(request.body[span[0] : span[1]], name) if span else None

    def _who(self, request: Request, members: dict[str, tuple[int, int]]) -> tuple[str, str]:
        plain = _core.plain_texts(request.body, members, _WHO)
        if plain is not None and plain[0] and len(plain[1]) <= MAX_WORKER_ID and not request.params:
            return plain[0], plain[1]
        worker_id = worker_id_of(self._value(request, members, "worker_id"))
        job_id = request.params.get("id") or self._value(request, members, "job_id")
        if not isinstance(job_id, str) or not job_id:
            raise invalid_field("job_id", job_id, "the id of the job (required)")
        return job_id, worker_id
