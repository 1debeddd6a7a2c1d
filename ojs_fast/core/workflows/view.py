"""Workflows as clients see them: the answers of `/workflows` (ojs-workflows sections 3.3, 9.6 and 11)."""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.workflows.members import Members
from ojs_fast.core.workflows.model import (
    CANCELLED,
    CHAIN,
    COMPLETED,
    FAILED,
    GRAPH,
    OPEN,
    OUTCOMES,
    STATES,
    Header,
    Member,
    nested_id,
)
from ojs_fast.core.workflows.store import Run, WorkflowStore

FAILURES_SHOWN = 100
ERRORS_SHOWN = 25
RESULT_SHOWN_BYTES = 4096

# Outcomes of one workflow's own jobs, by letter.
Counts = dict[str, int]


def time_of(epoch_ms: int) -> str:
    """RFC 3339 of a time."""
    return _core.format_rfc3339_ms(epoch_ms)


def step_state(header: Header, outcome: str, record: _core.Record | None) -> str:
    """What a step is said to be. A graph's steps show their job's state, others the words of section 4.4."""
    if outcome == OPEN and record is not None:
        outcome = OUTCOMES.get(record.state, OPEN)
    if outcome != OPEN:
        return STATES[outcome]
    if record is None:
        if header.state != "running":
            return "cancelled"
        return "pending" if header.type == GRAPH else "waiting"
    return record.state if record.state == "active" or header.type == GRAPH else "pending"


class View:
    """Reads what an answer needs."""

    def __init__(self, store: WorkflowStore, members: Members) -> None:
        self._store = store
        self._members = members

    async def summaries(self, runs: list[Run]) -> list[dict[str, Any]]:
        """Workflows without their steps, as `GET /workflows` lists them. Raises NotFound, Unavailable."""
        found = []
        for run in runs:
            await self._store.read_segments(run)
            found.append(_head(run, await self._counts(run)))
        return found

    async def whole(self, run: Run, offset: int, limit: int) -> tuple[bytes, bytes]:
        """`(head, workflow)` as JSON objects: without steps, and with a page of them. Raises NotFound, Unavailable."""
        header = run.header
        await self._store.read_segments(run, range(header.segments + 1))
        head = _head(run, await self._counts(run))
        head |= await self._failures(run)
        indexes = range(min(offset, header.count), min(offset + limit, header.count))
        started_ms, steps = await self._steps(run, list(indexes))
        if started_ms:
            head["started_at"] = head["metadata"]["started_at"] = time_of(started_ms)
        name = "steps" if header.has_edges else "jobs"
        parts = [b'"steps":[' + b",".join(steps) + b"]"]
        if name == "jobs":
            parts.append(b'"jobs":[' + b",".join(steps) + b"]")
        page: dict[str, Any] = {"steps_pagination": {"offset": offset, "limit": limit, "total": header.count}}
        if indexes.stop < header.count:
            page["steps_pagination"]["next_offset"] = indexes.stop
        if header.callbacks:
            page["callbacks"] = await self._callbacks(run)
        top = orjson.dumps(head)
        return top, top[:-1] + b"," + b",".join(parts) + b"," + orjson.dumps(page)[1:]

    async def _steps(self, run: Run, indexes: list[int]) -> tuple[int, list[bytes]]:
        """When the first of these began (epoch ms, 0 = not yet), and their JSON."""
        members = await self._store.members(run.header, indexes)
        records = await self._members.records(run, [index for index, member in members if not member.nested])
        inner = await self._store.find_many(nested_id(run.header.id, i) for i, member in members if member.nested)
        names: dict[int, str] = {index: member.id for index, member in members}
        missing = {one for _, member in members for one in member.depends_on} - set(names)
        names |= {index: member.id for index, member in await self._store.members(run.header, sorted(missing))}
        steps = []
        for index, member in members:
            nested = inner.get(nested_id(run.header.id, index))
            entry = _step(run, index, member, records.get(index), nested)
            entry["depends_on"] = [names[one] for one in member.depends_on]
            if run.header.type == CHAIN and index - 1 in names:
                entry["depends_on"] = [names[index - 1]]
            steps.append(_with_result(entry, records.get(index)))
        started = [record.started_ms for record in records.values() if record.started_ms]
        return min(started, default=0), steps

    async def _callbacks(self, run: Run) -> dict[str, Any]:
        header = run.header
        indexes = range(header.count, header.count + len(header.callbacks))
        records = await self._members.records(run, list(indexes))
        found = {}
        for name, (index, member) in zip(header.callbacks, await self._store.members(header, indexes), strict=True):
            entry = _step(run, index, member, records.get(index), None)
            if header.fired is not None and name not in header.fired:
                entry["state"] = "skipped"
            found[name] = entry
        return found

    async def _counts(self, run: Run) -> Counts:
        """How many jobs ended how, those of nested workflows included."""
        outcomes = run.outcomes
        counts = {letter: outcomes.count(letter) for letter in (COMPLETED, FAILED, CANCELLED)}
        if not run.header.nested:
            return counts
        members = await self._store.members(run.header, range(run.header.count))
        ids = {nested_id(run.header.id, index): index for index, member in members if member.nested}
        for index in ids.values():
            if outcomes[index] != OPEN:
                counts[outcomes[index]] -= 1
        for inner in (await self._store.find_many(ids)).values():
            await self._store.read_segments(inner)
            for letter, number in (await self._counts(inner)).items():
                counts[letter] += number
        return counts

    async def _failures(self, run: Run) -> dict[str, Any]:
        """Which jobs failed and why (section 9.6); the first ones when they are many."""
        header = run.header
        total = header.count + len(header.callbacks)
        failed = [index for index in range(total) if run.outcome(index) == FAILED]
        if not failed:
            return {}
        found: dict[str, Any] = {"failed_step_index": failed[0]} if header.type == CHAIN else {}
        shown = failed[:FAILURES_SHOWN]
        records = await self._members.records(run, shown)
        found["failed_job_ids"] = [record.id for record in records.values()]
        inner = [nested_id(header.id, index) for index in shown if index < header.count and index not in records]
        if header.nested and inner:
            found["failed_workflow_ids"] = inner
        found["errors"] = [_error(header, index, records[index]) for index in shown if index in records][:ERRORS_SHOWN]
        return found


def _head(run: Run, counts: Counts) -> dict[str, Any]:
    header, outcomes = run.header, run.outcomes
    metadata: dict[str, Any] = {
        "created_at": time_of(header.created_ms),
        "job_count": header.jobs,
        "completed_count": counts[COMPLETED],
        "failed_count": counts[FAILED],
        "cancelled_count": counts[CANCELLED],
    }
    if header.ended_ms:
        metadata["cancelled_at" if header.state == "cancelled" else "completed_at"] = time_of(header.ended_ms)
    kind = "steps" if header.has_edges else "jobs"
    head: dict[str, Any] = {
        "id": header.id,
        "type": header.type,
        "name": header.name,
        "state": header.state,
        f"{kind}_total": header.count,
        f"{kind}_completed": outcomes.count(COMPLETED),
        f"{kind}_failed": outcomes.count(FAILED),
        f"{kind}_cancelled": outcomes.count(CANCELLED),
        **metadata,
        "metadata": dict(metadata),
    }
    if header.state == "cancelled":
        # As ojs-http-binding section 14.3 names them.
        head["steps_cancelled"] = outcomes.count(CANCELLED)
        head["steps_already_completed"] = outcomes.count(COMPLETED)
    if header.parent is not None:
        head["parent_id"] = header.parent[0]
    if header.generation:
        head["retries"] = header.generation
    return head


def _step(run: Run, index: int, member: Member, record: _core.Record | None, nested: Run | None) -> dict[str, Any]:
    outcome = run.outcome(index)
    entry: dict[str, Any] = {"id": member.id, "index": index, "type": member.type}
    if member.nested:
        entry["state"] = nested.header.state if nested and outcome == OPEN else step_state(run.header, outcome, None)
        entry["job_id"] = None
        entry["workflow_id"] = nested_id(run.header.id, index)
        if nested:
            entry["started_at"] = time_of(nested.header.created_ms)
            if nested.header.ended_ms:
                entry["completed_at"] = time_of(nested.header.ended_ms)
        return entry
    entry["state"] = step_state(run.header, outcome, record)
    entry["job_id"] = record.id if record is not None else None
    if record is not None:
        entry["attempt"] = record.attempt
        if record.started_ms:
            entry["started_at"] = time_of(record.started_ms)
        if record.ended_ms:
            entry["completed_at"] = time_of(record.ended_ms)
    return entry


def _with_result(entry: dict[str, Any], record: _core.Record | None) -> bytes:
    if record is None or not record.result:
        return orjson.dumps(entry)
    entry["result_ref"] = f"/ojs/v1/jobs/{record.id}"
    data = orjson.dumps(entry)
    if len(record.result) > RESULT_SHOWN_BYTES:
        return data
    return data[:-1] + b',"result":' + record.result + b"}"


def _error(header: Header, index: int, record: _core.Record) -> Any:
    told: dict[str, Any] = {"job_id": record.id, "index": index}
    if index >= header.count:
        told["callback"] = header.callbacks[index - header.count]
    if not record.errors:
        code = "expired" if record.expired else "discarded"
        return told | {"code": code, "message": f"The job was {code}.", "attempt": record.attempt}
    return orjson.Fragment(orjson.dumps(told)[:-1] + b"," + record.errors[-1][1:])
