"""Handlers of `/jobs/bulk…` and `/admin/jobs/bulk/…` (ojs-bulk-operations, ojs-admin-api section 8)."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.api.admin import STATES
from ojs_fast.api.http import Reply, Request, idempotency_key, moment_ms
from ojs_fast.core.admission import Ticket
from ojs_fast.core.bulk import RETRIABLE, Bulk, Item, Outcome, reason
from ojs_fast.core.idempotency import Answer, DerivedIds, IdempotentRequests, enqueue_batch_once
from ojs_fast.core.job_search import JobFilter
from ojs_fast.core.jobs import MAX_BATCH, WAITING_STATES, Jobs
from ojs_fast.core.refusals import decode_field
from ojs_fast.errors import BackendUnavailable, BatchTooLarge, OJSError, Unsupported, invalid_field

DONE = {"cancel": "cancelled", "retry": "retried", "delete": "deleted", "get": "found"}
CANCELLED_BY_DEFAULT = ("available", "scheduled")
ADMIN_STATES = {"cancel": WAITING_STATES, "retry": RETRIABLE, "delete": ("completed", "discarded", "cancelled")}
ITEMS_OF_A_FILTER = 1000
ERRORS_TOLD = 100
ATOMICITIES = ("partial", "atomic")
_FILTER = (
    "type",
    "queue",
    "state",
    "states",
    "since",
    "until",
    "enqueued_before",
    "enqueued_after",
    "priority",
    "meta",
)


class BulkHandlers:
    """Many jobs in one request."""

    def __init__(self, bulk: Bulk, jobs: Jobs, idempotent: IdempotentRequests) -> None:
        self._bulk = bulk
        self._jobs = jobs
        self._idempotent = idempotent

    # -- enqueue ---------------------------------------------------------------------------------

    async def enqueue(self, request: Request) -> Reply:
        """POST /jobs/bulk (section 5)."""
        atomicity, key, bodies = _bulk_request(request)
        if len(bodies) > MAX_BATCH:
            raise _too_many(len(bodies))

        async def act(ids: DerivedIds | None) -> Answer:
            if atomicity == "atomic":
                return await self._enqueue_all(request.body, bodies, ids)
            return _partial(await self._bulk.enqueue(bodies, Ticket(), ids))

        answer = await act(None) if key is None else await self._idempotent.run("bulk", key, request.body, act)
        return _reply(answer, len(bodies))

    async def _enqueue_all(self, body: bytes, bodies: list[bytes], ids: DerivedIds | None) -> Answer:
        try:
            stored = await enqueue_batch_once(self._jobs, body, Ticket(), ids)
        except BackendUnavailable:
            raise
        except OJSError as error:
            # Nothing was created: the item at fault is named, the others are told that they are not to blame.
            at_fault = _index_in((error.details or {}).get("field", ""))
            rolled_back = OJSError("Nothing of the batch was created, because another job of it was refused.")
            rolled_back.code = "rolled_back"
            outcome = Outcome()
            for index in range(len(bodies)):
                blame = error if at_fault in (index, None) else rolled_back
                outcome.add(Item(index, "", "failed", error=blame))
            return Answer(422, _enqueued(outcome))
        outcome = Outcome()
        for index, one in enumerate(stored):
            outcome.add(Item(index, "", "done", one))
        return Answer(201, _enqueued(outcome))

    # -- jobs that exist -------------------------------------------------------------------------

    def on(self, action: str) -> Callable[[Request], Awaitable[Reply]]:
        """POST /jobs/bulk/cancel, /retry, /delete, /get (sections 6 to 8)."""

        async def handler(request: Request) -> Reply:
            body = request.json()
            if body.get("atomicity") not in (None, "partial"):
                raise Unsupported(
                    "Field 'atomicity' is not 'partial'; only enqueues can be atomic.",
                    details={"field": "atomicity", "supported": ["partial"]},
                )
            job_ids, wanted = body.get("job_ids"), body.get("filter")
            if (job_ids is None) == (wanted is None):
                raise invalid_field("job_ids", None if job_ids is None else "given", "either 'job_ids' or 'filter'")
            if job_ids is not None:
                if not isinstance(job_ids, list) or not all(isinstance(one, str) for one in job_ids):
                    raise invalid_field("job_ids", job_ids, "an array of job ids")
                if len(job_ids) > MAX_BATCH:
                    raise _too_many(len(job_ids))
            key = _key(request, body.get("idempotency_key")) if action != "get" else None
            act = partial(self._act, action, job_ids, wanted)
            answer = await act() if key is None else await self._idempotent.run(action, key, request.body, act)
            total = answer.body[slice(*_core.scan_json_object(answer.body)["total"])]
            return _reply(answer, int(total))

        return handler

    async def _act(self, action: str, job_ids: list[str] | None, wanted: Any, _: DerivedIds | None = None) -> Answer:
        if job_ids is not None:
            return _acted(action, await self._bulk.act(action, job_ids))
        default = CANCELLED_BY_DEFAULT if action == "cancel" else ADMIN_STATES.get(action, ())
        return _acted(action, await self._bulk.act_on_matching(action, _filter(wanted, default), ITEMS_OF_A_FILTER))

    def admin(self, action: str) -> Callable[[Request], Awaitable[Reply]]:
        """POST /admin/jobs/bulk/retry, /cancel, /delete (ojs-admin-api section 8): a filter and `confirm: true`."""

        async def handler(request: Request) -> Reply:
            body = request.json()
            if body.get("confirm") is not True:
                raise invalid_field("confirm", body.get("confirm"), "true: it concerns every job that matches")
            given = body.get("filter")
            if given is None:
                given = {name: value for name, value in body.items() if name not in ("confirm", "filter")}
            outcome = await self._bulk.act_on_matching(action, _filter(given, ADMIN_STATES[action]), MAX_BATCH)
            errors = [
                {"job_id": item.job_id, "error": item.error.message} for item in outcome.items if item.error is not None
            ]
            summary = {"matched": outcome.total, "succeeded": outcome.done, "failed": outcome.failed}
            done = {DONE[action]: outcome.done}
            return Reply(200, orjson.dumps({"action": action, **summary, **done, "errors": errors[:ERRORS_TOLD]}))

        return handler


def _bulk_request(request: Request) -> tuple[str, str | None, list[bytes]]:
    """`(atomicity, idempotency key or None, the jobs' bytes)`. Raises OJSError."""
    members = request.members()
    values = {
        name: decode_field(request.body[start:end], name)
        for name, (start, end) in members.items()
        if name in ("atomicity", "idempotency_key")
    }
    atomicity = values.get("atomicity") or "partial"
    if atomicity not in ATOMICITIES:
        raise invalid_field("atomicity", atomicity, " or ".join(ATOMICITIES))
    key = _key(request, values.get("idempotency_key"))
    span = members.get("jobs")
    if span is None or request.body[span[0] : span[0] + 1] != b"[":
        raise invalid_field("jobs", None if span is None else "no array", "an array of jobs (required)")
    bodies = [request.body[start:end] for start, end in _core.scan_json_array(request.body, span[0])]
    if not bodies:
        raise invalid_field("jobs", [], f"from 1 to {MAX_BATCH} jobs")
    return atomicity, key, bodies


def _key(request: Request, in_body: Any) -> str | None:
    """The idempotency key, None without one; the header goes before the body (section 11.3). Raises InvalidRequest."""
    key = idempotency_key(request)
    if key is None:
        key = in_body
    if key is not None and not isinstance(key, str):
        raise invalid_field("idempotency_key", key, "a string of 1 to 256 characters")
    return key


def _reply(answer: Answer, count: int) -> Reply:
    headers = [(b"x-ojs-batch-size", b"%d" % count)]
    if answer.is_replay:
        headers.append((b"idempotency-replayed", b"true"))
    return Reply(answer.status, answer.body, headers)


def _partial(outcome: Outcome) -> Answer:
    status = 201 if not outcome.failed else 207 if outcome.done else 422
    return Answer(status, _enqueued(outcome))


def _enqueued(outcome: Outcome) -> bytes:
    items = []
    for item in outcome.items:
        told: dict[str, Any] = {"index": item.index, "status": "created" if item.status == "done" else item.status}
        if item.stored:
            told["job"] = orjson.Fragment(_core.public_job(item.stored))
        if item.error is not None:
            told["error"] = reason(item.error)
        items.append(told)
    return orjson.dumps({"total": outcome.total, "succeeded": outcome.done, "failed": outcome.failed, "items": items})


def _acted(action: str, outcome: Outcome) -> Answer:
    items = []
    for item in outcome.items:
        told: dict[str, Any] = {"index": item.index, "job_id": item.job_id}
        if item.error is None:
            told["status"] = DONE[action]
            if action != "delete":
                told["job"] = orjson.Fragment(_core.public_job(item.stored))
        else:
            told |= {"status": "skipped", "reason": item.error.message, "error": reason(item.error)}
        items.append(told)
    body = {
        "total_matched": outcome.total,
        "total": outcome.total,
        DONE[action]: outcome.done,
        "succeeded": outcome.done,
        "skipped": outcome.failed,
        "failed": outcome.failed,
        "items": items,
    }
    status = 200 if not outcome.failed else 207 if outcome.done else 422
    return Answer(status, orjson.dumps(body))


def _too_many(count: int) -> BatchTooLarge:
    return BatchTooLarge(f"Batch size {count} exceeds maximum of {MAX_BATCH}.", details={"max_batch_size": MAX_BATCH})


def _index_in(field: str) -> int | None:
    """The place of a job in the path of a field (`jobs[3].type`)."""
    number = field.partition("[")[2].partition("]")[0]
    return int(number) if field.startswith("jobs[") and number.isdigit() else None


# -- filters -------------------------------------------------------------------------------------


def _filter(given: Any, default_states: tuple[str, ...]) -> JobFilter:
    """The filter of section 6.1 and of ojs-admin-api section 8.1. Raises InvalidRequest."""
    if not isinstance(given, dict):
        raise invalid_field("filter", given, "an object")
    for name in given:
        if name not in _FILTER:
            raise invalid_field(f"filter.{name}", given[name], f"only {', '.join(_FILTER)}")
    for name in ("type", "queue"):
        if given.get(name) is not None and not isinstance(given[name], str):
            raise invalid_field(f"filter.{name}", given[name], "a string")
    priority = given.get("priority")
    if priority is not None and (type(priority) is not int or not -100 <= priority <= 100):
        raise invalid_field("filter.priority", priority, "an integer from -100 to 100")
    meta = {} if given.get("meta") is None else given["meta"]
    if not isinstance(meta, dict):
        raise invalid_field("filter.meta", meta, "an object")
    return JobFilter(
        given.get("queue") or "",
        _states(given, default_states),
        given.get("type") or "",
        _moment(given, "since"),
        _moment(given, "until"),
        _moment(given, "enqueued_after"),
        _moment(given, "enqueued_before"),
        priority,
        tuple(meta.items()),
    )


def _states(given: dict[str, Any], default: tuple[str, ...]) -> tuple[str, ...]:
    name = "state" if given.get("state") is not None else "states"
    value = given.get(name)
    if value is None:
        return default
    states = [value] if isinstance(value, str) else value
    if not isinstance(states, list) or not states or not all(one in STATES for one in states):
        raise invalid_field(f"filter.{name}", value, f"one or more of {', '.join(STATES)}")
    return tuple(states)


def _moment(given: dict[str, Any], name: str) -> int:
    return moment_ms(f"filter.{name}", given[name]) if given.get(name) is not None else 0
