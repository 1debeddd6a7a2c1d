"""Workers: heartbeats, directives, and the death of a worker that beat and then fell silent."""

import logging
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.claims import Claim, Claims, active_entry
from ojs_fast.core.clock import Deadlines, NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.retry import Failure
from ojs_fast.core.settle import Settler
from ojs_fast.core.stores import Stores
from ojs_fast.core.tracing import Facts, Tracing
from ojs_fast.errors import Conflict, NotFound, OJSError
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket, Watch
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

DEAD_AFTER_MS = 30_000
STALE_AFTER_MS = 15_000
BEAT = "beat."
DIRECTIVE = "directive."
DIRECTIVES = ("running", "quiet", "terminate")
# What a worker that shuts down tells of itself (ojs-graceful-shutdown section 5.1); the suites say "drain".
LEAVING = frozenset({"quiet", "terminate", "drain", "draining", "shutting_down"})


class Workers:
    """Every node hears every beat and looks after the claims it holds itself."""

    def __init__(
        self,
        stores: Stores,
        claims: Claims,
        jobs: Jobs,
        settler: Settler,
        events: Events,
        tracing: Tracing,
        node_id: str,
        clock: NowMs,
        steady: NowMs,
    ) -> None:
        self._events = events
        self._tracing = tracing
        self._stores = stores
        self._claims = claims
        self._jobs = jobs
        self._settler = settler
        self._node_id = node_id
        self._clock = clock
        self._steady = steady
        self._bucket = Bucket(stores.connection, names.WORKERS)
        self._watch = Watch(stores.connection, names.WORKERS, self._changed)
        self._silence = Deadlines(steady, self._died)
        self._beats: dict[str, dict[str, Any]] = {}
        self._directives: dict[str, str] = {}

    async def open(self) -> None:
        """Follow beats and directives."""
        await self._silence.open()
        await self._watch.open()
        await self._watch.synced.wait()

    async def close(self) -> None:
        """Stop following."""
        await self._watch.close()
        await self._silence.close()

    def forget(self) -> None:
        """Drop all workers (after a reset)."""
        self._silence.clear()
        self._beats.clear()
        self._directives.clear()

    def _changed(self, key: str, value: bytes | None, _revision: int) -> None:
        if key.startswith(DIRECTIVE):
            worker_id = names.decode_token(key[len(DIRECTIVE) :])
            if value is None:
                self._directives.pop(worker_id, None)
            else:
                self._directives[worker_id] = orjson.loads(value)["state"]
        elif key.startswith(BEAT):
            if value is not None:
                self._heard(orjson.loads(value))
            else:  # an operator removed it
                self._silence.set(names.decode_token(key[len(BEAT) :]), self._steady())

    def _heard(self, beat: dict[str, Any]) -> None:
        self._beats[beat["worker_id"]] = beat
        # Judged by when the beat was heard here, not by the sender's clock.
        self._silence.set(beat["worker_id"], self._steady() + DEAD_AFTER_MS)

    async def _died(self, worker_ids: list[str]) -> None:
        if not self._stores.connection.is_up:
            # Nobody can be heard now; whoever lives gets its full time once NATS is back.
            for worker_id in worker_ids:
                self._silence.set(worker_id, self._steady() + DEAD_AFTER_MS)
            return
        for worker_id in worker_ids:
            self._beats.pop(worker_id, None)
            claims = self._claims.of_worker(worker_id)
            if not claims:
                continue
            log.warning(
                "worker %s fell silent; its %d jobs are requeued",
                worker_id,
                len(claims),
                extra={"category": "worker", "ojs.worker_id": worker_id},
            )
            facts: Facts = {"ojs.worker.id": worker_id, "messaging.batch.message_count": len(claims)}
            with self._tracing.act("ojs.reaper.check", facts):
                await self._take_back(worker_id, claims)

    async def _take_back(self, worker_id: str, claims: list[Claim]) -> None:
        failure = Failure(
            "worker_death", "worker_death", f"Worker '{worker_id}' sent no heartbeat for {DEAD_AFTER_MS} ms."
        )
        for claim in claims:
            try:
                await self._settler.take_back(claim.record.id, failure)
            except (OJSError, Unavailable) as error:
                log.info("requeue is tried again: %s", error, extra={"ojs.job_id": claim.record.id})
                self._silence.set(worker_id, self._steady() + 1000)

    def directive(self, worker_id: str) -> str:
        """What the operator wants of this worker: running, quiet or terminate."""
        return self._directives.get(worker_id, "running")

    def may_fetch(self, worker_id: str) -> bool:
        """False for a worker that the operator, or its own last heartbeat, has taken out of work."""
        if self.directive(worker_id) != "running":
            return False
        beat = self._beats.get(worker_id)
        return beat is None or beat.get("state") not in LEAVING

    def all(self) -> list[dict[str, Any]]:
        """Every worker that beat lately, as it told, with `directive` and `is_stale`."""
        return [self.find(worker_id) for worker_id in sorted(self._beats)]

    def find(self, worker_id: str) -> dict[str, Any]:
        """One of them. Raises NotFound."""
        beat = self._beats.get(worker_id)
        if beat is None:
            raise NotFound(
                f"Worker '{worker_id}' not found.",
                details={"resource_type": "worker", "resource_id": worker_id},
                hint="Only workers that sent a heartbeat lately are known.",
            )
        is_stale = self._clock() - beat["beat_ms"] > STALE_AFTER_MS
        return {**beat, "directive": self.directive(worker_id), "is_stale": is_stale}

    async def deregister(self, worker_id: str) -> None:
        """Give up a worker that fell silent: its jobs are requeued now. Raises NotFound, Conflict, Unavailable."""
        if not self.find(worker_id)["is_stale"]:
            raise Conflict(
                f"Worker '{worker_id}' beat within the last {STALE_AFTER_MS} ms; only stale workers can be removed.",
                details={"resource_type": "worker", "resource_id": worker_id},
                hint=f"POST /ojs/v1/admin/workers/{worker_id}/terminate asks it to stop.",
            )
        # Every node watches the bucket, and each takes back the jobs that it holds.
        await self._bucket.delete(BEAT + names.encode_token(worker_id))

    async def direct(self, worker_id: str, state: str) -> None:
        """Set the directive that the next heartbeat answers. Raises NotFound, Unavailable."""
        self.find(worker_id)
        await self._bucket.put(DIRECTIVE + names.encode_token(worker_id), {"state": state})
        self._directives[worker_id] = state

    async def heartbeat(
        self, worker_id: str, job_ids: list[str], visibility_ms: int, info: dict[str, Any]
    ) -> tuple[str, list[str]]:
        """`(state, extended job ids)`; `visibility_ms` 0 = each job's own length. Raises Unavailable.

        The directive of the operator wins, then a listed job's `meta.test_directive`.
        """
        now_ms = self._clock()
        known = self._beats.get(worker_id)
        beat = {
            **info,
            "worker_id": worker_id,
            "beat_ms": now_ms,
            "first_beat_ms": known["first_beat_ms"] if known else now_ms,
            "active_jobs": len(job_ids),
            "active_job_ids": job_ids,
        }
        self._heard(beat)
        self._stores.outbox.put(names.WORKERS, BEAT + names.encode_token(worker_id), beat)
        extended: list[str] = []
        state = self.directive(worker_id)
        for job_id in job_ids:
            record = await self._extend(job_id, worker_id, visibility_ms, now_ms)
            if record is None:
                continue
            extended.append(job_id)
            self._tell(record, worker_id, now_ms + (visibility_ms or int(record.reservation_ms)))
            if state == "running" and record.test_directive in DIRECTIVES:
                state = record.test_directive
        return state, extended

    def _tell(self, record: _core.Record, worker_id: str, visible_ms: int) -> None:
        who, until = _core.quote_json(worker_id), _core.format_rfc3339_ms(visible_ms)
        self._events.job("job.heartbeat", record, f',"worker_id":{who},"visible_until":"{until}"')

    async def heard_of(self, record: _core.Record) -> None:
        """A job's worker gave a sign of life: it counts as a heartbeat for this job (ojs-progress section 6.3).

        Raises Unavailable.
        """
        now_ms = self._clock()
        await self._extend(record.id, record.worker_id, 0, now_ms)
        known = self._beats.get(record.worker_id)
        if known is not None:
            beat = {**known, "beat_ms": now_ms}
            self._heard(beat)
            self._stores.outbox.put(names.WORKERS, BEAT + names.encode_token(record.worker_id), beat)

    async def _extend(self, job_id: str, worker_id: str, visibility_ms: int, now_ms: int) -> _core.Record | None:
        claim = self._claims.get(job_id)
        record = claim.record if claim else await self._active_elsewhere(job_id)
        if record is None or (record.worker_id and record.worker_id != worker_id):
            return None
        visible_ms = now_ms + (visibility_ms or int(record.reservation_ms))
        if claim:
            self._claims.extend(job_id, visible_ms)
        else:
            # The holder rechecks `ojs-active` before it acts, so this is enough for it to wait.
            self._stores.outbox.put(
                names.ACTIVE,
                names.attempt_key(job_id, record.attempt),
                active_entry(worker_id, record.node_id, visible_ms, now_ms),
            )
        return record

    async def _active_elsewhere(self, job_id: str) -> _core.Record | None:
        try:
            record, _, _ = await self._jobs.load(job_id)
        except NotFound:
            return None
        return record if record.state == "active" else None

    def now_ms(self) -> int:
        """The server's clock (epoch ms)."""
        return self._clock()
