"""Queues as every node knows them: priority levels in use, paused or not, since when."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

import orjson

from ojs_fast import _core
from ojs_fast.core import queue_config
from ojs_fast.core.clock import NowMs
from ojs_fast.core.queue_config import QueueRules
from ojs_fast.errors import BackendUnavailable
from ojs_fast.storage import names
from ojs_fast.storage.blobs import Blobs
from ojs_fast.storage.buckets import Bucket, Watch
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import RevisionConflict

log = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Queue:
    """One queue. `levels` are the priorities ever used, highest first; `config` as it was set.

    A level in `opening` is drained like any other, but no job may enter it yet: not every node knows it for certain.
    """

    name: str
    created_ms: int
    paused: bool = False
    levels: tuple[int, ...] = (0,)
    opening: tuple[int, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    updated_ms: int = 0

    # All its jobs start under the limit of the queue's own key too (ojs-rate-limiting section 7.2).
    limited: bool = False

    def entry(self) -> dict[str, Any]:
        """The value in `ojs-queues`."""
        return {
            "name": self.name,
            "created_ms": self.created_ms,
            "paused": self.paused,
            "levels": self.levels,
            "opening": self.opening,
            "config": self.config,
            "updated_ms": self.updated_ms,
            "limited": self.limited,
        }

    def as_json(self) -> dict[str, Any]:
        """The item of `GET /queues` (ojs-http-binding section 11.1; the JavaScript SDK reads `paused`)."""
        return {
            "name": self.name,
            "status": self.status,
            "state": self.status,
            "paused": self.paused,
            "created_at": _core.format_rfc3339_ms(self.created_ms),
        }

    @property
    def status(self) -> str:
        """`active` or `paused`."""
        return "paused" if self.paused else "active"

    @property
    def rules(self) -> QueueRules:
        """What the configuration means."""
        return queue_config.rules(self.config)


def parse_entry(value: dict[str, Any]) -> Queue:
    """Read a value in `ojs-queues`."""
    levels = tuple(sorted(value.get("levels", [0]), reverse=True))
    return Queue(
        value["name"],
        value["created_ms"],
        value.get("paused", False),
        levels,
        tuple(value.get("opening", ())),
        value.get("config", {}),
        value.get("updated_ms", 0),
        value.get("limited", False),
    )


async def _to_nobody(_name: str, _revision: int) -> None:
    """A node without others."""


class Queues:
    """The registry of queues in `ojs-queues`; every node watches it."""

    def __init__(self, connection: Connection, clock: NowMs) -> None:
        self._bucket = Bucket(connection, names.QUEUES, {"name": str, "created_ms": int})
        self._store = Blobs(connection, names.QUEUES)
        self._watch = Watch(connection, names.QUEUES, self._changed)
        self._clock = clock
        self._known: dict[str, tuple[Queue, int]] = {}
        #: What is configured, by queue; queues without a configuration are not in it.
        self.rules: dict[str, QueueRules] = {}
        self._on_removed: Callable[[str], None] = lambda _: None
        #: Tells whether what this node has not heard of does not exist; `announce(queue, revision)` makes all nodes
        #: know a revision. Both are set by the node.
        self.is_current: Callable[[], bool] = lambda: True
        self.announce: Callable[[str, int], Awaitable[None]] = _to_nobody
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        """Load and follow the registry."""
        await self._watch.open()
        await self._watch.synced.wait()

    async def close(self) -> None:
        """Stop following."""
        await self._watch.close()

    def forget(self) -> None:
        """Drop what is known (after a reset)."""
        self._known.clear()
        self.rules.clear()

    def on_removed(self, hook: Callable[[str], None]) -> None:
        """Call `hook(name)` when somebody removed a queue that this node knew."""
        self._on_removed = hook

    def _learn(self, queue: Queue, revision: int) -> None:
        self._known[queue.name] = (queue, revision)
        if queue.config:
            self.rules[queue.name] = queue.rules
        else:
            self.rules.pop(queue.name, None)

    def _unlearn(self, name: str) -> None:
        self.rules.pop(name, None)
        if self._known.pop(name, None) is not None:
            self._on_removed(name)

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        name = names.decode_token(key)
        known = self._known.get(name)
        if value is None:
            if known and known[1] < revision:
                self._unlearn(name)
        elif known is None or known[1] < revision:
            self._learn(parse_entry(orjson.loads(value)), revision)

    def knows(self, name: str, priority: int) -> bool:
        """True when workers everywhere look at this level of this queue."""
        known = self._known.get(name)
        return known is not None and priority in known[0].levels and priority not in known[0].opening

    async def ensure(self, name: str, priority: int) -> None:
        """Register a queue and level before the first job enters it. Raises Unavailable.

        A level counts as open once every node drains it: a fetch anywhere must not pass over its first job.
        """
        # One at a time: the many first jobs of a new queue would only be in each other's way.
        async with self._opening.setdefault(name, asyncio.Lock()):
            while not self.knows(name, priority):
                queue = await self.update(name, add_level=priority)
                known = self._known.get(name)
                if known is not None and priority in queue.opening:
                    await self.announce(name, known[1])
                    await self.update(name, opened=queue.opening)

    async def create(self, name: str, config: dict[str, Any]) -> Queue | None:
        """Make a queue; None when it exists. Raises Unavailable."""
        queue = Queue(name, self._clock(), config=config)
        key = names.encode_token(name)
        value, revision = await self._bucket.last(key)
        if value is not None:
            return None
        try:
            revision = await self._bucket.put(key, queue.entry(), revision)
        except RevisionConflict:
            return None
        self._learn(queue, revision)
        return queue

    async def remove(self, name: str) -> None:
        """Remove a queue's entry. Raises Unavailable."""
        await self._bucket.delete(names.encode_token(name))
        self._unlearn(name)

    async def update(
        self,
        name: str,
        *,
        add_level: int | None = None,
        paused: bool | None = None,
        limited: bool | None = None,
        opened: tuple[int, ...] = (),
        configure: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> Queue:
        """Compare-and-set one queue's entry, creating it when it is new.

        `configure(present configuration)` gives the new one. Raises Unavailable, and what `configure` raises.
        """
        key = names.encode_token(name)
        for _ in range(20):
            value, revision = await self._bucket.last(key)
            queue = parse_entry(value) if value else Queue(name, self._clock())
            if add_level is not None and add_level not in queue.levels:
                levels = tuple(sorted({*queue.levels, add_level}, reverse=True))
                # Nobody can have an outdated view of a queue that never was: who does not know it asks NATS.
                opening = (*queue.opening, add_level) if revision else ()
                queue = replace(queue, levels=levels, opening=opening)
            if opened:
                queue = replace(queue, opening=tuple(level for level in queue.opening if level not in opened))
            if paused is not None:
                queue = replace(queue, paused=paused, updated_ms=self._clock())
            if configure is not None:
                queue = replace(queue, config=configure(queue.config), updated_ms=self._clock())
            if limited is not None:
                queue = replace(queue, limited=limited)
            try:
                revision = await self._bucket.put(key, queue.entry(), revision)
            except RevisionConflict:
                continue
            self._learn(queue, revision)
            return queue
        raise BackendUnavailable(f"Queue '{name}' is being changed by too many clients at once.")

    def check_type(self, record: _core.Record, at: str) -> None:
        """Refuse a job that its queue does not take; `at` is where it stands in a request. Raises JobTypeNotAllowed."""
        if (rules := self.rules.get(record.queue)) is not None:
            rules.check_type(record, at)

    def known(self, name: str) -> Queue | None:
        """The queue as this node knows it, without asking NATS."""
        known = self._known.get(name)
        return known[0] if known else None

    def has_one_level(self, name: str) -> bool:
        """Whether all jobs of a queue have the same priority."""
        queue = self.known(name)
        return queue is not None and len(queue.levels) == 1

    async def find(self, name: str) -> Queue | None:
        """The queue, or None when no job ever entered it. Asks NATS for one this node does not know for certain.

        Raises Unavailable.
        """
        known = self._known.get(name)
        if known is not None and self.is_current():
            return known[0]
        return await self.refresh(name)

    async def refresh(self, name: str) -> Queue | None:
        """The queue as the stream's leader has it now. Raises Unavailable."""
        key = names.encode_token(name)
        found = await self._store.get(key)
        if found is None:
            return None
        self._changed(key, *found)
        return self.known(name)

    async def has_learnt(self, name: str, revision: int) -> bool:
        """Look at the queue again unless this revision is known; whether it is now. Raises Unavailable."""
        if self._known.get(name, (None, 0))[1] < revision and await self.refresh(name) is None:
            return True  # it was removed in the meantime
        return self._known.get(name, (None, 0))[1] >= revision

    def all(self) -> list[Queue]:
        """Every known queue by name."""
        return [self._known[name][0] for name in sorted(self._known)]
