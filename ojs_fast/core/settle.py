"""Settle: ack, nack, and the deadlines that settle a job in a worker's stead."""

import asyncio
import logging
from collections.abc import Callable

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.core import job_log, retry
from ojs_fast.core.checkpoint import drop_checkpoint
from ojs_fast.core.claims import Claim, Claims, reserved_until_ms
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import ATTEMPTS, Jobs
from ojs_fast.core.limits import Limits
from ojs_fast.core.peers import Peers
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.queues import Queues
from ojs_fast.core.retention import Retention
from ojs_fast.core.retry import Failure
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Tallies
from ojs_fast.core.tracing import Tracing, about
from ojs_fast.errors import BackendUnavailable, Conflict, PayloadTooLarge, illegal_transition
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

RECHECKED_AT_ONCE = 500

Change = Callable[[_core.Record, int], None]
# The record and its bytes as written.
Settled = tuple[_core.Record, bytes]
# State, attempt and node: what tells one claim of a job from another.
_Identity = tuple[str, int, str]


class Settler:
    """Ends claims: by the worker's word, by a deadline, or because the worker died."""

    def __init__(
        self,
        stores: Stores,
        settings: Settings,
        claims: Claims,
        jobs: Jobs,
        events: Events,
        propagator: Propagator,
        limits: Limits,
        tallies: Tallies,
        queues: Queues,
        peers: Peers,
        tracing: Tracing,
        node_id: str,
        clock: NowMs,
    ) -> None:
        self._tracing = tracing
        self._stores = stores
        self._tallies = tallies
        self._retention = Retention(settings, queues)
        self._claims = claims
        self._jobs = jobs
        self._events = events
        self._propagator = propagator
        self._peers = peers
        self._limits = limits
        self._node_id = node_id
        self._clock = clock
        self._active = Bucket(stores.connection, names.ACTIVE, {"visible_ms": int})

    async def ack(self, job_id: str, worker_id: str, result: bytes) -> Settled:
        """`active` → completed, one round trip on the claiming node. Raises OJSError, Unavailable."""

        def apply(record: _core.Record, now_ms: int) -> None:
            # A workflow hands results on, so its jobs keep theirs until it has ended.
            keeps_no_result = record.extra is not None and record.extra.get("ttl") == 0 and "wf" not in record.extra
            record.complete(now_ms, b"" if keeps_no_result else result)
            drop_checkpoint(record)

        record, stored = await self._settle(job_id, worker_id, "ack", apply)
        duration_ms = record.ended_ms - record.started_ms
        self._events.job("job.completed", record, f',"duration_ms":{duration_ms}')
        return record, stored

    async def nack(self, job_id: str, worker_id: str, failure: Failure, *, requeue: bool) -> Settled:
        """`active` → retryable, discarded, or available with `requeue`. Raises OJSError, Unavailable."""

        def apply(record: _core.Record, now_ms: int) -> None:
            if requeue:
                record.requeue(now_ms, counts=True)
            else:
                self._fail(record, failure, now_ms)

        record, stored = await self._settle(job_id, worker_id, "nack", apply)
        if not requeue:
            self._announce_failure(record, failure)
        if failure.limited_until_ms:
            await self._limits.pause(record, failure.limited_until_ms)
        return record, stored

    def _fail(self, record: _core.Record, failure: Failure, now_ms: int) -> None:
        if record.state != "active":
            raise _core.IllegalTransition("nack", record.state, ("active",))
        decision = retry.decide(record, failure)
        record.fail(failure.as_json(record.attempt, _core.format_rfc3339_ms(now_ms)))
        if decision.action == "retry":
            record.schedule_retry(now_ms, decision.delay_ms)
        else:
            record.discard(now_ms, decision.dead_letter)
            if not decision.dead_letter:
                drop_checkpoint(record)

    def _announce_failure(self, record: _core.Record, failure: Failure) -> None:
        job_log.failed(record, failure)
        self._events.job("job.failed", record)
        if record.state == "retryable":
            self._events.job("job.retrying", record)
        elif record.state == "discarded":
            self._events.job("job.discarded", record)

    async def _settle(self, job_id: str, worker_id: str, operation: str, apply: Change) -> Settled:
        """One compare-and-set from the state this node remembers, or from the store if it does not."""
        self._claims.begin(job_id)
        try:
            return await self._write_settled(job_id, worker_id, operation, apply)
        finally:
            self._claims.end(job_id)

    async def _write_settled(self, job_id: str, worker_id: str, operation: str, apply: Change) -> Settled:
        claim = self._claims.take(job_id)
        ours = _identity(claim.record) if claim is not None else None
        for _ in range(ATTEMPTS):
            record, revision = (claim.record, claim.revision) if claim else await self._load(job_id, ours)
            before, ack_subject, holder, at = record.state, record.ack_subject, record.node_id, revision
            if holder == self._node_id:
                ours = _identity(record)
            try:
                check_holder(record, worker_id, operation)
                apply(record, self._clock())
            except (_core.IllegalTransition, Conflict) as error:
                if claim is not None:
                    self._claims.hold(claim)
                if isinstance(error, Conflict):
                    raise
                raise illegal_transition(job_id, operation, before, ("active",)) from None
            record.node_id = self._node_id
            period = self._tallies.stamp(record, before)
            try:
                stored = self._jobs.fit(record)
            except PayloadTooLarge:
                self._tallies.drop(period)
                self._resume(job_id, ours)
                raise
            try:
                revision = await self._stores.records.replace(job_id, stored, revision, self._retention.ttl_s(record))
            except RevisionConflict:
                self._tallies.doubt(period, job_id)
                claim = None
                continue
            except (Unavailable, asyncio.CancelledError):
                self._tallies.doubt(period, job_id)
                self._resume(job_id, ours)
                raise
            if period is not None:
                period.count(record)
            self._let_go(job_id, claim, ack_subject, holder, at)
            published = self._propagator.follow(record, stored, revision)
            if published is not None:
                await self._propagator.published(job_id, published)
            return record, stored
        self._resume(job_id, ours)
        raise BackendUnavailable(f"Job '{job_id}' is being changed by too many clients at once.")

    async def _load(self, job_id: str, ours: _Identity | None) -> tuple[_core.Record, int]:
        try:
            record, _, revision = await self._jobs.load(job_id)
        except (Unavailable, asyncio.CancelledError):
            self._resume(job_id, ours)
            raise
        return record, revision

    def _let_go(self, job_id: str, claim: Claim | None, ack_subject: str, holder: str, revision: int) -> None:
        self._claims.settled(job_id, claim)
        if ack_subject:
            self._stores.work.ack(ack_subject)
        self._peers.settled(holder, job_id, revision)

    def _resume(self, job_id: str, ours: _Identity | None) -> None:
        # Nothing was written, or nobody knows. If nothing was, the worker still has the job: adopt it again, if it was
        # this node that held it. Until then nobody may take it for a claim that got lost.
        if ours is None:
            return
        self._claims.begin(job_id)

        async def adopt() -> None:
            await self._adopt(job_id, ours)
            self._claims.end(job_id)

        self._propagator.call_later(adopt)

    async def _adopt(self, job_id: str, ours: _Identity) -> None:
        found = await self._stores.records.certain(job_id)
        if found is None:
            return
        record = _core.Record.parse(found[0])
        if _identity(record) == ours:
            await self.adopt_record(record, found[1])

    async def adopt_lost(self, job_id: str) -> None:
        """Hold a claim of this node that it lost sight of, whatever went wrong. Raises Unavailable."""
        found = await self._stores.records.get(job_id)
        if found is None or self._claims.has(job_id):
            return
        record = _core.Record.parse(found[0])
        if record.state == "active" and record.node_id == self._node_id:
            log.warning("a claim that nobody held is held again", extra={"ojs.job_id": job_id})
            await self.adopt_record(record, found[1])

    async def adopt_record(self, record: _core.Record, revision: int) -> None:
        """Hold the claim of this record if it is active, with a deadline that heartbeats extended.

        Raises Unavailable.
        """
        if record.state != "active" or self._claims.get(record.id):
            return
        if self._stores.connection.is_replicated and record.node_id != self._node_id:
            # What the dead node wrote last may lie in the buffers of a server that stands still: it is refused now.
            try:
                revision = await self._stores.records.replace(record.id, record.serialize(), revision)
            except RevisionConflict:
                found = await self._stores.records.get(record.id)
                if found is None:
                    return
                now = _core.Record.parse(found[0])
                if not _is_same_claim(record, now):
                    self._propagator.doubt(record.id)
                    return
                record, revision = now, found[1]  # somebody else wrote it over just as well
        entry = await self._active.get(names.attempt_key(record.id, record.attempt))
        # Whoever claimed it may have had a clock that was far ahead.
        visible_ms = min(record.started_ms, self._clock()) + record.reservation_ms
        if entry is not None:
            visible_ms = max(visible_ms, reserved_until_ms(entry[0], self._clock()))
        heeded = entry[1] if entry is not None else 0
        self._claims.hold(Claim(record, revision, visible_ms, entered=entry is not None, heeded=heeded))

    async def recheck(self, live: set[str]) -> None:
        """Let go of claims whose jobs others have settled, or hold: adopted ones of a node that lives after all.

        `live` are the nodes that live. Raises Unavailable.
        """
        held = self._claims.held()
        for start in range(0, len(held), RECHECKED_AT_ONCE):
            claims = held[start : start + RECHECKED_AT_ONCE]
            found = await self._stores.records.get_many(claim.record.id for claim in claims)
            for claim in claims:
                job_id = claim.record.id
                if self._claims.get(job_id) is not claim:
                    continue
                if claim.record.node_id != self._node_id and claim.record.node_id in live:
                    self._claims.take(job_id)
                elif job_id in found and found[job_id][1] > claim.revision:  # a replica may lag behind our own write
                    self._renew_or_let_go(claim, *found[job_id])

    def _renew_or_let_go(self, claim: Claim, stored: bytes, revision: int) -> bool:
        """The record of a claim was written since: by whom it was settled, or only written over as it was (True)."""
        record = _core.Record.parse(stored)
        if _is_same_claim(claim.record, record):
            # Not only the revision: its worker may have saved a checkpoint by way of another node.
            claim.record, claim.revision = record, revision
            return True
        self._claims.settled(claim.record.id, self._claims.take(claim.record.id))
        return False

    # -- deadlines -------------------------------------------------------------------------------

    async def expire(self, claim: Claim) -> None:
        """A claim of this node is due: recheck what other nodes may have written, then act."""
        with self._tracing.act("ojs.visibility.check", about(claim.record)):
            await self._expire(claim)

    async def _expire(self, claim: Claim) -> None:
        job_id = claim.record.id
        entry = await self._active.get(names.attempt_key(job_id, claim.record.attempt))
        # The claim is due by a clock that does not jump, so the wall clock has no say in which deadline it was.
        is_timeout = claim.is_timed_out
        if entry is not None and entry[1] > claim.heeded:
            claim.heeded = entry[1]
            extended_ms = reserved_until_ms(entry[0], self._clock())
            if extended_ms > self._clock() and not is_timeout:
                self._claims.extend(job_id, extended_ms)
                return
        found = await self._stores.records.get(job_id)
        if found is None:
            self._claims.settled(job_id, self._claims.take(job_id))
            return
        if found[1] < claim.revision:
            raise Unavailable(f"a read lags behind the claim of job {job_id}")  # a NATS server that begins to lead
        if found[1] != claim.revision and not self._renew_or_let_go(claim, *found):
            record = _core.Record.parse(found[0])
            if record.state == "active" and record.node_id == self._node_id:
                await self.adopt_record(record, found[1])
            return
        if is_timeout:
            await self._end(job_id, _timed_out(claim.record, self._claims.late_ms(claim)), self._fail)
        else:
            await self.take_back(
                job_id,
                Failure("visibility_timeout", "visibility_timeout", "The worker's reservation of the job ran out."),
            )

    async def take_back(self, job_id: str, failure: Failure) -> None:
        """Requeue a job whose worker is silent: available at once if runs are left, else exhausted."""

        def apply(record: _core.Record, failure: Failure, now_ms: int) -> None:
            if record.attempt >= record.max_attempts:
                self._fail(record, failure, now_ms)
                return
            record.fail(failure.as_json(record.attempt, _core.format_rfc3339_ms(now_ms)))
            record.requeue(now_ms, counts=True)

        await self._end(job_id, failure, apply)

    async def _end(self, job_id: str, failure: Failure, apply: Callable[[_core.Record, Failure, int], None]) -> None:
        try:
            record, _ = await self._settle(job_id, "", "requeue", lambda r, now: apply(r, failure, now))
        except Conflict:
            return
        self._announce_failure(record, failure)


def _timed_out(record: _core.Record, late_ms: int) -> Failure:
    """The failure of ojs-timeouts section 8."""
    limit_s, elapsed_s = record.timeout_ms / 1000, (record.timeout_ms + late_ms) / 1000
    members = b',"timeout_kind":"execution","limit_seconds":%.12g,"elapsed_seconds":%.12g' % (limit_s, elapsed_s)
    message = f"The job ran longer than its execution timeout of {record.timeout_ms} ms."
    return Failure("timeout", "timeout", message, extra=members)


def _identity(record: _core.Record) -> _Identity:
    return record.state, record.attempt, record.node_id


def _is_same_claim(record: _core.Record, now: _core.Record) -> bool:
    """Whether a job is held as it was."""
    return _identity(now) == ("active", record.attempt, record.node_id)


def check_holder(record: _core.Record, worker_id: str, operation: str) -> None:
    """Refuse another worker than the one that has the job. Raises Conflict."""
    # Compared only when both sides name a worker: suites and SDKs often omit it (CONTRACT section 3).
    if worker_id and record.worker_id and record.state == "active" and worker_id != record.worker_id:
        raise Conflict(
            f"Cannot {operation} job '{record.id}': it is held by another worker than '{worker_id}'.",
            details={
                "job_id": record.id,
                "current_state": record.state,
                "expected_state": "active",
                "worker_id": worker_id,
                "holder": record.worker_id,
            },
        )
