"""Reconcile: repair what a dead node left half done. Costs in-flight plus recent writes, not backlog.

Three sources: records written since the node's last lease renewal (work message, index entry or dead
letter may be missing, a claim may have nobody who watches its deadline), `ojs-active` (the same for
older claims), and delivered but unacknowledged work messages (the pull may not have become a claim, an
acknowledgement may have been lost).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import now_ms
from ojs_fast.core.inheritance import Inheritance
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.settle import Settler
from ojs_fast.core.stale import StaleMessages
from ojs_fast.core.stores import Stores
from ojs_fast.core.tracing import Tracing
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import NodeMessage
from ojs_fast.storage.errors import RevisionConflict
from ojs_fast.storage.leases import Leases

log = logging.getLogger(__name__)

# A write may have been on its way when the lease was last renewed, and clocks differ.
MARGIN_MS = 15_000
READ_AT_ONCE = 500
# Twice, because NATS may still handle what a broken connection had left in its buffers.
WALKS_AFTER_A_CUT = 2
CUT_MARGIN_MS = 2000
AUDIT_AFTER_S = 2.0
# A claim that nobody holds, for whatever reason, is found within this time.
SWEEP_S = 60.0
# With several NATS servers, what was sent to one that stood still may land long after its sender was reconciled, and a
# new leader of a consumer may not know at first what the old one had delivered.
LATE_S = (10, 30, 60)


class Reconciler:
    """Repairs after nodes whose lease ended."""

    def __init__(
        self,
        stores: Stores,
        leases: Leases,
        propagator: Propagator,
        settler: Settler,
        inheritance: Inheritance,
        stale: StaleMessages,
        tracing: Tracing,
    ) -> None:
        self._tracing = tracing
        self._stores = stores
        self._leases = leases
        self._propagator = propagator
        self._settler = settler
        self._inheritance = inheritance
        self._stale = stale
        self._active = Bucket(stores.connection, names.ACTIVE, {"visible_ms": int})
        self._walks_due = 0
        # Sequences of messages that live nodes keep on purpose.
        self.parked: Callable[[], Awaitable[set[int]]] = _none
        # What else is to be repaired after dead nodes, given their ids; may raise Unavailable.
        self.on_dead: list[Callable[[set[str]], Awaitable[None]]] = []
        self._cut_ms = 0
        self._rechecked: set[str] = set()
        # From when on (epoch ms), and at which monotonic time, to look for what a repair did twice.
        self._audit_due: tuple[int, float] | None = None
        # The last revision that a replay saw, and when to look behind it.
        self._seen = 0
        self._late: list[float] = []
        self._sweep_due = time.monotonic() + SWEEP_S
        stores.connection.on_disconnect(self._cut_off)

    def elected(self) -> None:
        """This node leads: what came late for those who led before it is looked for as well."""
        self._look_later()

    def _look_later(self, seen: int = 0) -> None:
        if self._stores.connection.is_replicated:
            self._seen = seen
            self._late = [time.monotonic() + after_s for after_s in LATE_S]

    async def leader_changed(self, _: NodeMessage) -> None:
        """A stream or consumer has another leader: what was on its way to the old one may be lost, as after a cut."""
        self._cut_off()

    def _cut_off(self) -> None:
        if not self._walks_due:
            self._cut_ms = now_ms()
        self._walks_due = WALKS_AFTER_A_CUT
        self._look_later()

    async def after_cut(self) -> None:
        """After a lost connection, on any node: find the messages that NATS handed over and nobody got.

        Consumers give them out again only after AckWait, a day. Raises Unavailable.
        """
        if self._walks_due:
            await self._walk_in_flight()
            await self._audit_work()
            await self._settler.recheck(self._leases.live_nodes())
            self._walks_due -= 1

    async def after_deaths(self) -> None:
        """On any node: what a dying node settled, and nobody was told of, is no claim of this one any more.

        Raises Unavailable.
        """
        dead = set(self._leases.dead_nodes())
        if dead - self._rechecked:
            await self._settler.recheck(self._leases.live_nodes())
        self._rechecked = dead
        if self._audit_due is not None and time.monotonic() > self._audit_due[1]:
            since = _core.format_rfc3339_ms(max(0, self._audit_due[0]))
            await self._stale.audit({"start_time": since}, "ojs.queue.>", whole=True)
            await self._settler.recheck(self._leases.live_nodes())
            self._audit_due = None

    async def sweep(self) -> None:
        """On any node, every SWEEP_S: look for claims that nobody holds, its own and, on the leader, of dead nodes.

        Raises Unavailable.
        """
        if time.monotonic() < self._sweep_due:
            return
        async for page in self._in_flight():  # parked ones too: they are not active, and if one is, nobody parks it
            await self._adopt_unheld([job_id for _, _, job_id in page if not self._propagator.is_held(job_id)])
        self._sweep_due = time.monotonic() + SWEEP_S

    async def _audit_work(self) -> None:
        # Publishes that were repeated, and acknowledgements that a killed NATS has forgotten.
        since = _core.format_rfc3339_ms(max(0, self._cut_ms - CUT_MARGIN_MS))
        await self._stale.audit({"start_time": since}, "ojs.queue.>", whole=True)
        for info in await self._stores.work.consumers():
            await self._stale.audit({"seq": 1}, info["config"]["filter_subject"], whole=False)

    async def run(self) -> int:
        """Repair after every dead node, then bury it; returns how many there were. Raises Unavailable."""
        dead = self._leases.dead_nodes()
        if not dead:
            await self._replay_late()
            return 0
        with self._tracing.act("ojs.reaper.check", {"ojs.nodes.dead": len(dead)}):
            await self._repair(dead)
        return len(dead)

    async def _repair(self, ended: dict[str, int]) -> None:
        dead = set(ended)
        since_ms = min([await self._leases.last_renewal_ms(node_id) for node_id in dead]) - MARGIN_MS
        log.info("reconciling after %d dead nodes", len(dead))
        # First, so that the replay finds what this writes, and before any other node runs half a batch.
        await self._stores.intents.finish_dead(self._leases.live_nodes())
        await self._inheritance.begin(dead)
        repaired, seen = await self._replay(since_ms)
        await self._inheritance.take_over()
        await self._adopt_entered()
        await self._walk_in_flight()
        for repair in self.on_dead:
            await repair(dead)
        for node_id, revision in ended.items():
            await self._leases.bury(node_id, revision)
        # Live nodes claimed, settled and cancelled meanwhile: some of what was published again is stale by now.
        self._audit_due = (min(since_ms, (self._audit_due or (since_ms, 0.0))[0]), time.monotonic() + AUDIT_AFTER_S)
        self._look_later(seen)
        log.info("reconciled: %d recent records were set right", repaired)

    async def _replay_late(self) -> None:
        """What `run` does, for what came to light only after it."""
        if not self._late or time.monotonic() < self._late[0]:
            return
        info = await self._stores.connection.stream_info(names.bucket_stream(names.JOBS))
        since_ms = _core.parse_rfc3339_ms(info["ts"]) - MARGIN_MS - LATE_S[-1] * 1000
        await self._inheritance.begin(set())
        repaired, seen = await self._replay(since_ms, self._seen)
        await self._inheritance.take_over()
        self._seen = max(self._seen, seen)
        await self._adopt_entered()
        await self._walk_in_flight()
        await self._stores.work.recount()
        self._late.pop(0)
        if repaired:
            log.warning("%d records of dead nodes came late", repaired)

    async def _replay(self, since_ms: int, after: int = 0) -> tuple[int, int]:
        """Let everything follow the records written since then, or behind a revision, by nodes that are dead.

        Those of live nodes have at least their work message then: whoever wrote one over as it was may have died since.
        Returns how many were set right, and the last revision that was seen.
        """
        start_time = _core.format_rfc3339_ms(max(0, since_ms))
        published, query = await self._published({"start_time": start_time})
        silent: dict[str, int] = {}
        live = self._leases.live_nodes()
        repaired = 0
        while page := await self._stores.records.written_since(start_time, after):
            for job_id, stored, revision in page:
                after = revision
                record = _parse(stored, job_id)
                if record is not None:
                    self._inheritance.see(record)
                if record is None:
                    continue
                if record.node_id in live:
                    if record.state == "available" and (job_id, revision) not in published:
                        silent[job_id] = revision
                    continue
                if record.state == "active":
                    # Too young for `ojs-active`, and its work message may be gone: a consumer's state is not
                    # durable, so after a crash of NATS the message comes again and is dropped as stale.
                    await self._settler.adopt_record(record, revision)
                    continue
                if record.state == "available" and (job_id, revision) in published:
                    self._stale.left_by(record, revision)  # one whose priority was changed
                    continue
                self._propagator.follow_again(record, stored, revision)
                self._propagator.forsake(record)
                self._stale.left_by(record, revision)
                repaired += 1
        return repaired + await self._publish_missing(silent, query), after

    async def _publish_missing(self, silent: dict[str, int], query: dict[str, Any]) -> int:
        """Publish the work messages of those jobs, at these revisions, that have none behind `query` either; how many.

        Raises Unavailable.
        """
        if not silent:
            return 0
        published, _ = await self._published(query)  # most were on their way
        silent = {job_id: revision for job_id, revision in silent.items() if (job_id, revision) not in published}
        missing = [
            (job_id, stored, revision)
            for job_id, (stored, revision) in (await self._stores.records.get_many(silent)).items()
            if silent[job_id] == revision
        ]
        for job_id, stored, revision in missing:
            log.warning("an available job had no work message", extra={"ojs.job_id": job_id})
            self._propagator.follow_again(_core.Record.parse(stored), stored, revision)
        return len(missing)

    async def _published(self, query: dict[str, Any]) -> tuple[set[tuple[str, int]], dict[str, Any]]:
        """Job id and revision of each work message from a place on, and the place behind the last of them."""
        published: set[tuple[str, int]] = set()
        while page := await self._stores.work.messages(query):
            for sequence, _, payload in page:
                query = {"seq": sequence + 1}
                try:
                    revision, stored = _core.split_work_message(payload)
                    published.add((_core.Record.parse(stored).id, revision))
                except ValueError as error:
                    log.error("a foreign message in stream OJS is left alone: %s", error)
        return published, query

    async def _adopt_entered(self) -> None:
        """Adopt the claims that dead nodes held for longer than a moment."""
        live = self._leases.live_nodes()
        after = 0
        while page := await self._active.page(after, READ_AT_ONCE):
            after = page[-1][2]
            entered = {key: key.partition(".")[0] for key, _, _ in page}
            found = await self._stores.records.get_many(entered.values())
            for key, job_id in entered.items():
                stored, revision = found.get(job_id, (b"", 0))
                record = _parse(stored, job_id) if stored else None
                if record is None or record.state != "active" or key != names.attempt_key(job_id, record.attempt):
                    self._stores.outbox.delete(names.ACTIVE, key)
                elif record.node_id not in live:
                    await self._settler.adopt_record(record, revision)

    async def _walk_in_flight(self) -> None:
        """Look at every message that was delivered, not acknowledged, and not parked by a live node."""
        parked = await self.parked()
        async for page in self._in_flight():
            works = [one for one in page if one[0] not in parked]
            found = await self._stores.records.get_many(job_id for _, _, job_id in works)
            live = self._leases.live_nodes()
            for sequence, revision, job_id in works:
                await self._inspect_one(sequence, revision, found.get(job_id), live)

    async def _in_flight(self) -> AsyncIterator[list[tuple[int, int, str]]]:
        """Pages of `(sequence, revision, job id)` of messages that were delivered and not acknowledged."""
        for info in await self._stores.work.consumers():
            delivered = info["delivered"]["stream_seq"]
            if not info["num_ack_pending"]:
                continue
            after = info["ack_floor"]["stream_seq"]
            subject = info["config"]["filter_subject"]
            while after < delivered:
                page = await self._stores.work.messages({"seq": after + 1}, subject)
                if not page:
                    break
                after = page[-1][0]
                yield list(_works([one for one in page if one[0] <= delivered]))

    async def _adopt_unheld(self, job_ids: list[str]) -> None:
        found = await self._stores.records.get_many(job_ids)
        live = self._leases.live_nodes()
        for job_id, (stored, revision) in found.items():
            record = _parse(stored, job_id)
            if record is None or record.state != "active" or self._propagator.is_held(job_id):
                continue
            if record.node_id == self._leases.node_id:
                await self._settler.adopt_lost(job_id)
            elif record.node_id not in live and self._leases.is_leader:
                log.warning("a dead node's claim had no holder", extra={"ojs.job_id": job_id})
                await self._settler.adopt_record(record, revision)

    async def _inspect_one(self, sequence: int, revision: int, found: tuple[bytes, int] | None, live: set[str]) -> None:
        record = _parse(found[0], "") if found else None
        if found is None or record is None:
            await self._stores.work.delete(sequence)
        elif record.state == "available" and found[1] == revision:
            if self._stores.connection.is_replicated:
                # A claim of the dead node may lie in the buffers of a server that stands still: it is refused now.
                try:
                    revision = await self._stores.records.replace(record.id, found[0], revision)
                except RevisionConflict:
                    self._propagator.doubt(record.id)
                    return
            # Pulled by a node that died, or by a live one about to claim: then this copy is stale.
            published = self._propagator.follow_again(record, found[0], revision)
            if published is not None:
                await asyncio.shield(published)  # before its predecessor goes: a job without any message would be lost
            await self._stores.work.delete(sequence)
        elif record.state == "active":
            # Two adopters would count it twice, so only the leader does.
            if record.node_id not in live and self._leases.is_leader:
                await self._settler.adopt_record(record, found[1])
        else:
            await self._stores.work.delete(sequence)


def _works(messages: list[tuple[int, str, bytes]]) -> Iterator[tuple[int, int, str]]:
    for sequence, _, payload in messages:
        try:
            revision, stored = _core.split_work_message(payload)
            yield sequence, revision, _core.Record.parse(stored).id
        except ValueError as error:
            log.error("a foreign message in stream OJS is left alone: %s", error)


async def _none() -> set[int]:
    return set()


def _parse(stored: bytes, job_id: str) -> _core.Record | None:
    try:
        return _core.Record.parse(stored)
    except ValueError as error:
        log.error("a foreign record in ojs-jobs is left alone: %s", error, extra={"ojs.job_id": job_id})
        return None
