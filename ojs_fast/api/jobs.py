"""Handlers of `/jobs`: parse, one core call, reply."""

from collections.abc import Awaitable, Callable
from functools import partial

from ojs_fast import _core
from ojs_fast.api.http import RawHeaders, Reply, Request, depth_headers, idempotency_key
from ojs_fast.api.rate_limits import quota_headers
from ojs_fast.core.admission import Ticket
from ojs_fast.core.idempotency import Answer, DerivedIds, IdempotentRequests, enqueue_batch_once, enqueue_once
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.limits import Limits
from ojs_fast.core.priorities import Priorities
from ojs_fast.core.queues import Queues
from ojs_fast.errors import InvalidRequest

MAX_BLOCK_S = 300
BLOCK_DIGITS = 8  # a longer wait is refused, one beyond MAX_BLOCK_S cut
PRIORITIES = range(-100, 101)

Enqueue = Callable[[bytes, Ticket | None, DerivedIds], Awaitable[Answer]]


class JobHandlers:
    """Enqueue, batch, get, change, cancel, activate."""

    def __init__(
        self, jobs: Jobs, priorities: Priorities, queues: Queues, limits: Limits, idempotent: IdempotentRequests
    ) -> None:
        self._idempotent = idempotent
        self._priorities = priorities
        self._jobs = jobs
        self._queues = queues
        self._limits = limits

    def _ticket(self, request: Request) -> Ticket | None:
        # Only a bounded queue asks how long its producer waits.
        raw = request.headers.get(b"ojs-block-timeout")
        if raw is None:
            return Ticket() if self._queues.rules else None
        if not (raw.isdigit() and len(raw) <= BLOCK_DIGITS):
            shown = raw[:40].decode("latin-1")
            raise InvalidRequest(
                f"Field 'OJS-Block-Timeout' is '{shown}'; expected whole seconds from 0 to {MAX_BLOCK_S}.",
                details={"field": "OJS-Block-Timeout", "received": shown, "expected": f"0 to {MAX_BLOCK_S}"},
            )
        return Ticket(min(int(raw), MAX_BLOCK_S))

    async def enqueue(self, request: Request) -> Reply:
        """POST /jobs (ojs-http-binding section 9.1)."""
        ticket = self._ticket(request)
        if b"idempotency-key" in request.headers:
            return await self._once("jobs", request, ticket, self._enqueue_once)
        job_id, stored, is_new = await self._jobs.enqueue(request.body, ticket)
        if not is_new:
            return Reply(200, _deduplicated(stored))
        headers = [(b"location", b"/ojs/v1/jobs/" + job_id.encode())]
        if ticket is not None:
            headers += _pressure(ticket)
        quota = self._limits.quota(stored)
        if quota is not None:
            headers += quota_headers(*quota)
        return Reply(201, _core.job_reply(stored), headers)

    async def enqueue_batch(self, request: Request) -> Reply:
        """POST /jobs/batch (section 9.2): all or nothing."""
        ticket = self._ticket(request)
        if b"idempotency-key" in request.headers:
            return await self._once("batch", request, ticket, self._enqueue_batch_once)
        stored = await self._jobs.enqueue_batch(request.body, ticket)
        return Reply(201, _batch(stored), _pressure(ticket))

    async def _once(self, operation: str, request: Request, ticket: Ticket | None, enqueue: Enqueue) -> Reply:
        """Either of them under an Idempotency-Key (ojs-bulk-operations section 10)."""
        key = idempotency_key(request) or ""
        answer = await self._idempotent.run(operation, key, request.body, partial(enqueue, request.body, ticket))
        headers = _pressure(ticket)
        if answer.is_replay:
            headers.append((b"idempotency-replayed", b"true"))
        return Reply(answer.status, answer.body, headers)

    async def _enqueue_once(self, body: bytes, ticket: Ticket | None, ids: DerivedIds) -> Answer:
        _, stored, is_new = await enqueue_once(self._jobs, body, ticket, ids)
        return Answer(201, _core.job_reply(stored)) if is_new else Answer(200, _deduplicated(stored))

    async def _enqueue_batch_once(self, body: bytes, ticket: Ticket | None, ids: DerivedIds) -> Answer:
        return Answer(201, _batch(await enqueue_batch_once(self._jobs, body, ticket, ids)))

    async def get(self, request: Request) -> Reply:
        """GET /jobs/{id} (section 9.3)."""
        return Reply(200, b'{"job":' + await self._jobs.get(request.params["id"]) + b"}")

    async def patch(self, request: Request) -> Reply:
        """PATCH /jobs/{id} (ojs-priority section 10.2): another priority."""
        body = request.json()
        for field in body:
            if field != "priority":
                shown = field[:40]
                raise InvalidRequest(
                    f"Field '{shown}' cannot be changed; expected only 'priority'.",
                    details={"field": shown, "expected": "priority"},
                )
        priority = body.get("priority")
        if type(priority) is not int or priority not in PRIORITIES:
            received = "missing" if priority is None else repr(priority)[:80]
            expected = f"an integer from {PRIORITIES[0]} to {PRIORITIES[-1]}"
            raise InvalidRequest(
                f"Field 'priority' is {received}; expected {expected}.",
                details={"field": "priority", "received": received, "expected": expected},
            )
        job_id = request.params["id"]
        stored, previous = await self._priorities.change(job_id, priority)
        head = b'{"id":"%s","priority":%d,"previous_priority":%d,"job":' % (job_id.encode(), priority, previous)
        return Reply(200, head + _core.public_job(stored) + b"}")

    async def cancel(self, request: Request) -> Reply:
        """DELETE /jobs/{id} (section 9.4) and POST /jobs/{id}/cancel."""
        _, stored, previous = await self._jobs.cancel(request.params["id"])
        job = _core.public_job(stored)[:-1] + b',"previous_state":"%s"}' % previous.encode()
        return Reply(200, b'{"job":' + job + b"}")

    async def activate(self, request: Request) -> Reply:
        """POST /jobs/{id}/activate (section 9.5)."""
        _, stored = await self._jobs.activate(request.params["id"])
        return Reply(200, b'{"job":' + _core.public_job(stored)[:-1] + b',"previous_state":"pending"}}')


def _deduplicated(stored: bytes) -> bytes:
    return _core.job_reply(stored, b',"deduplicated":true')


def _batch(stored: list[bytes]) -> bytes:
    return _core.jobs_reply(stored)[:-1] + b',"count":%d}' % len(stored)


def _pressure(ticket: Ticket | None) -> RawHeaders:
    """The warning of ojs-backpressure section 7.3."""
    if ticket is None or not ticket.warns:
        return []
    pressure = (b"x-ojs-queue-pressure", b"%.2f" % (ticket.depth / ticket.bound))
    return [*depth_headers(ticket.depth, ticket.bound), pressure]
