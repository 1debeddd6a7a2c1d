"""One node: builds every service on one NATS connection, opens and closes them in order.

The only place, with app.py, that sees storage and core at once.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from functools import partial

import orjson
from nats.aio.msg import Msg

from ojs_fast.config import Settings
from ojs_fast.core.admission import ADMIT, ARRIVED, Admission
from ojs_fast.core.bulk import Bulk
from ojs_fast.core.checkpoints import Checkpoints
from ojs_fast.core.claims import Claims
from ojs_fast.core.clock import NowMs, now_ms, steady_ms
from ojs_fast.core.cron import Cron
from ojs_fast.core.dead_letters import DeadLetters
from ojs_fast.core.events import Events
from ojs_fast.core.fetch import Fetcher
from ojs_fast.core.idempotency import IdempotentRequests
from ojs_fast.core.inheritance import Inheritance
from ojs_fast.core.janitor import Janitor
from ojs_fast.core.job_log import LoggedEvents
from ojs_fast.core.job_search import JobSearch
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.levels import LEARN, Levels
from ojs_fast.core.limit_admin import LimitAdmin
from ojs_fast.core.limit_refusals import RefusedJobs
from ojs_fast.core.limit_upkeep import LimitUpkeep
from ojs_fast.core.limits import Limits
from ojs_fast.core.live import LiveEvents
from ojs_fast.core.metrics import Metrics
from ojs_fast.core.peers import Peers
from ojs_fast.core.priorities import Priorities
from ojs_fast.core.progress import ProgressReports
from ojs_fast.core.promoter import Promoter
from ojs_fast.core.propagate import Propagator
from ojs_fast.core.queue_admin import QueueAdmin
from ojs_fast.core.queues import Queues
from ojs_fast.core.reconciler import Reconciler
from ojs_fast.core.reset import RESET, Resetter
from ojs_fast.core.retention import Retention
from ojs_fast.core.running import RunningJobs
from ojs_fast.core.schemas import Schemas
from ojs_fast.core.settle import Settler
from ojs_fast.core.stale import StaleMessages
from ojs_fast.core.stats import ASK, ASK_METRICS, Stats
from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Tallies
from ojs_fast.core.tracing import Tracing
from ojs_fast.core.webhooks.attempts import Attempts
from ojs_fast.core.webhooks.deliveries import DeliveryLog
from ojs_fast.core.webhooks.dispatcher import Dispatcher
from ojs_fast.core.webhooks.service import Webhooks
from ojs_fast.core.webhooks.subscriptions import Subscriptions
from ojs_fast.core.workers import Workers
from ojs_fast.core.workflows.audit import Auditor
from ojs_fast.core.workflows.creator import Creator
from ojs_fast.core.workflows.driver import Driver
from ojs_fast.core.workflows.keeper import Keeper
from ojs_fast.core.workflows.members import Members
from ojs_fast.core.workflows.outcomes import Outcomes
from ojs_fast.core.workflows.service import Workflows
from ojs_fast.core.workflows.store import WorkflowStore
from ojs_fast.core.workflows.view import View
from ojs_fast.outbound import Poster
from ojs_fast.storage import names, topology
from ojs_fast.storage.access import NatsAccess
from ojs_fast.storage.batches import BatchWriter
from ojs_fast.storage.buckets import Outbox
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.event_feed import EventFeed
from ojs_fast.storage.event_log import EventLog
from ojs_fast.storage.intents import IntentLog
from ojs_fast.storage.leases import Leases
from ojs_fast.storage.queue_counts import QueueCounts
from ojs_fast.storage.records import Records
from ojs_fast.storage.recounts import Recounts
from ojs_fast.storage.server_clock import ServerClock
from ojs_fast.storage.work import WorkQueue

log = logging.getLogger(__name__)

RECONCILE_EVERY_S = 1.0


class Node:
    """All services of one server process."""

    def __init__(
        self,
        settings: Settings,
        *,
        node_id: str = "",
        boot_id: str = "",
        clock: NowMs = now_ms,
        tracing: Tracing | None = None,
    ) -> None:
        """`boot_id` names the main process that owns the embedded NATS; "" with an external NATS."""
        self.settings = settings
        self.node_id = node_id or secrets.token_hex(6)
        self.tracing = tracing or Tracing()
        self.clock = clock
        self.started = time.monotonic()
        self.connection = Connection(settings.backend_wait_ms)
        outbox = Outbox(self.connection)
        self.recounts = Recounts(self.connection)
        self.work = WorkQueue(self.connection, self.recounts, settings.nats_replicas)
        records = Records(self.connection)
        intents = IntentLog(self.connection, records, self.node_id)
        batches = BatchWriter(records, intents, write_ahead=settings.is_embedded and settings.durability == "interval")
        self.stores = Stores(self.connection, records, batches, intents, self.work, outbox, EventLog(self.connection))
        self.leases = Leases(self.connection, self.node_id, boot_id, clock)
        self.metrics = Metrics(self.node_id)
        self.events = (LoggedEvents if settings.log_level == "debug" else Events)(
            self.stores.event_log, self.metrics, self.node_id, clock
        )
        self.queues = Queues(self.connection, clock)
        self.queues.is_current = self.leases.is_current
        self.claims = Claims(clock, steady_ms, outbox, self.node_id)
        self.propagator = Propagator(self.stores, self.node_id, clock, settings.retention_dead_letter_s)
        self.propagator.is_held = self.claims.has
        self.tallies = Tallies(self.stores, self.propagator, self.node_id, clock)
        self.stale = StaleMessages(self.stores)
        counts = QueueCounts(self.connection, self.recounts, settings.nats_replicas)
        self.peers = Peers(self.stores, self.leases)
        self.stats = Stats(
            self.stores, self.queues, self.claims, self.tallies, self.stale, self.peers, counts, self.metrics, clock
        )
        self.admission = Admission(self.stores, self.queues, self.leases, self.events, counts.depth, self.stats.depth)
        self.jobs = Jobs(
            self.stores,
            settings,
            self.queues,
            self.claims,
            self.events,
            self.propagator,
            self.tallies,
            self.stale,
            self.admission,
            self.peers,
            self.tracing,
            self.node_id,
            clock,
        )
        retention = Retention(settings, self.queues)
        self._make_limits(retention)
        self.fetcher = Fetcher(
            self.stores,
            settings,
            self.queues,
            self.claims,
            self.jobs,
            self.events,
            self.propagator,
            self.limits,
            self.stale,
            self.node_id,
            clock,
        )
        self.settler = Settler(
            self.stores,
            settings,
            self.claims,
            self.jobs,
            self.events,
            self.propagator,
            self.limits,
            self.tallies,
            self.queues,
            self.peers,
            self.tracing,
            self.node_id,
            clock,
        )
        self.workers = Workers(
            self.stores,
            self.claims,
            self.jobs,
            self.settler,
            self.events,
            self.tracing,
            self.node_id,
            clock,
            steady_ms,
        )
        self.dead_letters = DeadLetters(self.stores, self.jobs, self.events)
        self.promoter = Promoter(
            self.stores,
            retention,
            self.events,
            self.propagator,
            self.tallies,
            self.stale,
            self.tracing,
            self.node_id,
            clock,
        )
        self._make_workflows(settings)
        self._make_priorities()
        self.search = JobSearch(self.stores)
        self.queue_admin = QueueAdmin(
            self.stores,
            self.queues,
            self.jobs,
            self.search,
            self.stats,
            counts,
            self.tallies,
            self.limit_admin,
            self.events,
            clock,
        )
        self.admission.drop = self.queue_admin.drop_oldest
        self._make_views()
        self._make_notes()
        self._make_webhooks()
        self.janitor = Janitor(
            self.queues, counts, self.tallies, self.leases, self.dead_letters, settings.dead_letter_max_count
        )
        self._make_reconciler()
        self.cron = Cron(self.stores, self.queues, self.jobs, self.events, self.propagator, self.tracing, clock)
        self._task: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()

    def _make_limits(self, retention: Retention) -> None:
        server_clock = ServerClock(self.connection, names.LIMITS)
        refused = RefusedJobs(
            self.stores, retention, server_clock, self.events, self.propagator, self.tallies, self.node_id, self.clock
        )
        self.limits = Limits(self.stores, refused, server_clock, self.events, self.propagator, self.node_id, self.clock)
        self.limit_upkeep = LimitUpkeep(
            self.stores, self.limits, self.leases, self.propagator, server_clock, self.node_id
        )
        self.limit_admin = LimitAdmin(self.stores, self.limits, self.queues, self.peers, server_clock)

    def _make_reconciler(self) -> None:
        self.reconciler = Reconciler(
            self.stores,
            self.leases,
            self.propagator,
            self.settler,
            Inheritance(self.stores, self.clock),
            self.stale,
            self.tracing,
        )
        self.reconciler.parked = self.limit_admin.parked
        self.reconciler.on_dead.append(self.limit_upkeep.reconcile)

    def _make_priorities(self) -> None:
        self.priorities = Priorities(self.jobs, self.queues, self.events)
        self.levels = Levels(self.queues, self.leases, self.peers)
        self.queues.announce = self.levels.announce

    def _make_views(self) -> None:
        self.idempotent = IdempotentRequests(self.stores, self.clock)
        self.bulk = Bulk(self.jobs, self.dead_letters, self.search, self.events)
        self.live = LiveEvents(self.stores.event_log, partial(EventFeed, self.connection), self.clock)
        self.metrics.gauges["claims"] = lambda: len(self.claims)
        self.metrics.gauges["leader"] = lambda: int(self.leases.is_leader)
        self.metrics.gauges["live_listeners"] = lambda: self.live.count
        self.metrics.gauges["parked_jobs"] = lambda: self.limits.parking.total
        self.metrics.gauges["uptime_seconds"] = lambda: self.uptime_s

    def _make_notes(self) -> None:
        running = RunningJobs(self.stores, self.claims, self.jobs)
        self.checkpoints = Checkpoints(running, self.jobs, self.events, self.clock)
        self.progress = ProgressReports(running, self.jobs, self.workers, self.events, self.clock)
        self.schemas = Schemas(self.stores, self.clock)

    def _make_webhooks(self) -> None:
        settings = self.settings
        self.poster = Poster(
            timeout_s=settings.webhooks_timeout_ms / 1000, allow_private=settings.webhooks_allow_private
        )
        self.subscriptions = Subscriptions(self.connection)
        deliveries = DeliveryLog(self.connection)
        attempts = Attempts(
            self.subscriptions,
            self.events,
            self.poster.post,
            self.clock,
            settings.webhooks_retry_delays_s,
            settings.webhooks_pause_after,
            settings.webhooks_max_per_second,
        )
        self.metrics.gauges["webhook_subscriptions"] = lambda: self.subscriptions.count
        for outcome in attempts.counts:
            self.metrics.gauges[f"webhook_{outcome}"] = partial(attempts.counts.__getitem__, outcome)
        self.dispatcher = Dispatcher(
            self.connection, self.subscriptions, attempts, deliveries, self.clock, settings.events_max_age_s
        )
        self.webhooks = Webhooks(
            self.connection, self.subscriptions, attempts, deliveries, self.events, self.poster.check, self.clock
        )
        self.resetter = Resetter(self.stores, self.leases, self.tallies, self.webhooks, self._forget)

    def _make_workflows(self, settings: Settings) -> None:
        self.workflow_store = store = WorkflowStore(self.stores)
        members = Members(
            self.stores,
            settings,
            self.queues,
            self.events,
            self.propagator,
            store,
            self.tracing,
            self.node_id,
            self.clock,
        )
        creator = Creator(self.stores, settings, self.queues, store, self.tracing, self.clock)
        self.driver = Driver(
            self.stores,
            self.jobs,
            self.events,
            self.propagator,
            store,
            members,
            Outcomes(store, members, self.events),
            Keeper(store, members, settings.retention_workflows_s),
            creator,
            self.tracing,
            self.clock,
        )
        self.auditor = Auditor(store, self.driver, self.clock)
        self.workflows = Workflows(store, creator, self.driver, View(store, members), self.clock)

    async def open(self, servers: list[str]) -> None:
        """Connect, create or adopt the streams, start every loop. Raises Unavailable, TopologyError."""
        settings = self.settings
        access = None if settings.is_embedded else NatsAccess.from_settings(settings)
        await self.connection.open(servers, name=f"ojs-fast {self.node_id}", access=access)
        wanted = topology.streams(settings.nats_replicas, settings.events_max_age_s, settings.events_max_bytes)
        try:
            atomic = await topology.ensure(self.connection, wanted)
        except BaseException:
            await self.connection.close()
            raise
        if settings.is_embedded and settings.durability == "always":
            self.connection.commit_in_groups(atomic)
            self.connection.stages_in_memory = True
        self.work.open()
        await self.recounts.open()
        await self.stores.outbox.open()
        await self.propagator.open()
        await self.stale.open()
        await self.tallies.open()
        # Before the registry is loaded: of a level that opens later this node is told.
        await self.leases.announce()
        await self.queues.open()
        await self.janitor.open()
        await self.claims.open(self.settler.expire)
        await self.workers.open()
        await self.cron.open()
        await self.limits.open()
        await self.limit_upkeep.open()
        await self.subscriptions.open()
        await self.connection.subscribe(names.node_subject(self.node_id), self._told)
        await self.connection.subscribe(names.ALL_NODES, self._told_of_settled)
        if self.connection.is_replicated:
            for subject in names.LEADER_ADVISORIES:
                await self.connection.subscribe(subject, self.reconciler.leader_changed)
        await self.leases.open(self._elected, self._deposed)
        self._task = asyncio.create_task(self._reconcile_loop())
        log.info("node is up", extra={"node_id": self.node_id})

    async def close(self) -> None:
        """Stop every loop and hand over: the next leader adopts this node's claims."""
        await self.live.close()
        await self.subscriptions.close()
        await self.dispatcher.close()
        await self.poster.close()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.leases.withdraw()  # another one that leaves at the same time may hand over to this one
        await self._deposed()
        await self.cron.close()
        await self.driver.close()
        await self.workers.close()
        await self.limit_upkeep.close()
        await self.limits.close()
        await self.claims.close()
        await self.janitor.close()
        await self.queues.close()
        await self.work.arrived()
        await self.propagator.close()
        await self.stale.close()
        await self.recounts.close()
        await self.stores.outbox.close()
        await self.tallies.close()
        await self.leases.close()
        self.stores.event_log.flush()
        with contextlib.suppress(Unavailable):  # without NATS the next leader tidies up
            await self.stores.intents.close()
        await self.connection.close()
        log.info("node is down", extra={"node_id": self.node_id})
        await self.tracing.close()

    async def _elected(self) -> None:
        self.reconciler.elected()
        await self.promoter.start()
        await self.cron.start()
        await self.auditor.start()

    async def _deposed(self) -> None:
        await self.auditor.stop()
        await self.cron.stop()
        await self.promoter.stop()

    async def _reconcile_loop(self) -> None:
        while True:
            try:
                for job_id in await self.stores.intents.settle():
                    self.propagator.doubt(job_id)
                await self.reconciler.after_cut()
                await self.reconciler.after_deaths()
                await self.reconciler.sweep()
                if self.leases.is_leader and await self.reconciler.run():
                    self.auditor.node_died()
            except Unavailable as error:
                log.info("reconcile is tried again: %s", error)
            except Exception:
                log.exception("reconcile failed; it is tried again")
            await asyncio.sleep(RECONCILE_EVERY_S)

    async def _told(self, msg: Msg) -> None:
        """Another node settled a job that this one claimed, asks something, or resets everything."""
        if msg.data == RESET:
            await self.resetter.answer(msg)
            return
        if await self.limit_admin.answer(msg):
            return
        if msg.data.startswith((ASK, ASK_METRICS, ADMIT, ARRIVED, LEARN)):
            # Beside this one: what comes behind must not wait for it.
            task = asyncio.create_task(self._answer(msg))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
            return
        await self._told_of_settled(msg)

    async def _told_of_settled(self, msg: Msg) -> None:
        job_id, _, revision = msg.data.decode("ascii", "replace").partition(" ")
        claim = self.claims.get(job_id)
        # A later claim of the same job by this node must survive a late message.
        if claim is not None and revision.isdigit() and claim.revision <= int(revision):
            self.claims.settled(job_id, self.claims.take(job_id))

    async def _answer(self, msg: Msg) -> None:
        try:
            if msg.data.startswith(ASK):
                answer: bytes | None = orjson.dumps(await self.stats.report(orjson.loads(msg.data[len(ASK) :])))
            elif msg.data == ASK_METRICS:
                answer = orjson.dumps(self.metrics.report())
            elif msg.data.startswith(LEARN):
                answer = await self.levels.answer(msg)
            else:
                answer = await self.admission.answer(msg.data)
        except Unavailable as error:
            log.info("another node gets no answer: %s", error)
            return
        if answer is not None and msg.reply:
            await self.connection.reply(msg, answer)

    def _forget(self) -> None:
        self.stores.intents.forget()
        self.admission.forget()
        self.queues.forget()
        self.claims.clear()
        self.tallies.forget()
        self.stale.forget()
        self.workers.forget()
        self.promoter.forget()
        self.cron.forget()
        self.driver.forget()
        self.auditor.forget()
        self.workflow_store.forget()
        self.work.forget()
        self.limits.forget()
        self.subscriptions.forget()

    @property
    def uptime_s(self) -> int:
        """Seconds since this process started."""
        return int(time.monotonic() - self.started)
