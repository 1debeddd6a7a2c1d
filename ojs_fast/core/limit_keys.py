"""Every change of a key's entry in `ojs-limits`: one task per key and node, many asks per compare-and-set.

Owns what this node knows of each key and how far it may trust it; every write is told to the other nodes
on a plain NATS subject. Must not know what becomes of jobs that are refused.
"""

import asyncio
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from ojs_fast.core.limit_state import UNBOUNDED, Limit, LimitState, Refusal
from ojs_fast.core.stores import Stores
from ojs_fast.errors import BackendUnavailable
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import NodeMessage
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.server_clock import ServerClock

log = logging.getLogger(__name__)

# Nodes that change one key at once are in each other's way; one of them always gets through.
ATTEMPTS = 200
MAX_IDLE_KEYS = 20_000
# An entry that nobody changes goes after a day (IDLE_S); jobs that use its key bring it back.
DECLARE_EVERY_S = 3600
RETRY_S = 0.1
LATER_S = 5.0

# Changes a state; True when there is something to write.
Change = Callable[[LimitState, float], bool]


@dataclass(slots=True)
class Verdict:
    """What became of an ask. `holds`: the permit stands in the entry and must come back.

    `occupied`: the job has a permit already, of another delivery of its work message. `changes`: those of the
    key that this verdict knows of.
    """

    started_ms: float = 0
    holds: bool = False
    refusal: Refusal | None = None
    occupied: bool = False
    changes: int = 0

    @property
    def granted(self) -> bool:
        """True when the job may start."""
        return self.refusal is None and not self.occupied


@dataclass(slots=True)
class _Ask:
    job_id: str
    permit: str
    limit: Limit
    future: "asyncio.Future[Verdict]"


@dataclass(slots=True)
class _Return:
    job_id: str
    permit: str
    started_ms: float


@dataclass(slots=True, frozen=True)
class _Look:
    pass


@dataclass(slots=True)
class _Edit:
    change: Change
    future: "asyncio.Future[None]"


_Operation = _Ask | _Return | _Look | _Edit


@dataclass(slots=True)
class LimitKey:
    """What this node knows of one key."""

    name: str
    state: LimitState | None = None
    revision: int = 0
    # The view is that of the last write that anybody announced.
    trusted: bool = False
    # Writes that others announced, and all changes, ours included.
    heard: int = 0
    changes: int = 0
    # Parked messages given back since the view changed: they will ask for the room that there is.
    out: int = 0
    # What the latest refused job declared; None while none was refused since the last grant.
    waiting: Limit | None = None
    swept_s: float = 0
    declared_s: float = 0
    # Where the next rescheduled job goes.
    slot_ms: float = 0
    operations: list[_Operation] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None

    def refusal(self, limit: Limit, clock_ms: float) -> Refusal | None:
        """Why a job may not start, as far as this node knows for certain; None otherwise."""
        if not self.trusted or self.state is None or self.operations:
            return None
        now_ms = self.state.now_ms(clock_ms)
        return self.state.refusal(self.state.effective(limit, now_ms), now_ms)


class LimitKeys:
    """All keys, seen from one node."""

    def __init__(self, stores: Stores, clock: ServerClock, node_id: str, changed: Callable[[LimitKey], None]) -> None:
        """`changed(key)` is called after each change that this node makes or hears of, and after each look."""
        self._stores = stores
        self._clock = clock
        self._node_id = node_id
        self._changed = changed
        self._bucket = Bucket(stores.connection, names.LIMITS)
        self._keys: OrderedDict[str, LimitKey] = OrderedDict()
        self._writes = itertools.count(1)

    async def open(self) -> None:
        """Listen to what other nodes change. Raises Unavailable."""
        await self._stores.connection.subscribe(names.LIMITS_SUBJECT, self._heard)
        self._stores.connection.on_disconnect(self._distrust)

    async def close(self) -> None:
        """Wait briefly until what is under way is written."""
        tasks = [key.task for key in self._keys.values() if key.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=1)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def forget(self) -> None:
        """Drop what is known (after a reset)."""
        for name, key in list(self._keys.items()):
            if key.task is None:
                del self._keys[name]
            else:
                key.state, key.revision, key.trusted, key.waiting = None, 0, False, None

    def get(self, name: str) -> LimitKey:
        """The key, known or not."""
        key = self._keys.get(name)
        if key is None:
            self._evict()
            key = self._keys[name] = LimitKey(name)
        self._keys.move_to_end(name)
        return key

    def known(self, name: str) -> LimitKey | None:
        """The key if this node knows something of it."""
        return self._keys.get(name)

    def _evict(self) -> None:
        while len(self._keys) >= MAX_IDLE_KEYS:
            idle = next((n for n, k in itertools.islice(self._keys.items(), 100) if not k.task and not k.waiting), None)
            if idle is None:
                return
            del self._keys[idle]

    # -- what happens to keys --------------------------------------------------------------------

    def ask(self, limit: Limit, job_id: str, permit: str) -> "asyncio.Future[Verdict]":
        """May this job start? The future raises Unavailable; then the permit was given back."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._add(self.get(limit.key), _Ask(job_id, permit, limit, future))
        return future

    def give_back(self, name: str, job_id: str, permit: str, started_ms: float = 0) -> None:
        """End a permit, as soon as NATS is there; `started_ms` > 0: its job did not start after all."""
        self._add(self.get(name), _Return(job_id, permit, started_ms))

    def look(self, name: str) -> None:
        """Bring the view of a key up to date; `changed` is called then."""
        self._add(self.get(name), _Look())

    async def edit(self, name: str, change: Change) -> None:
        """Change an entry. Raises Unavailable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(self.get(name), _Edit(change, future))
        await future

    async def refresh(self, name: str) -> LimitState | None:
        """The present entry; None when there is none. Raises Unavailable."""
        self.get(name).trusted = False
        await self.edit(name, lambda _state, _now_ms: False)
        return self.get(name).state

    def declare(self, limit: Limit) -> None:
        """Make an entry for a key that jobs use, if there is none; nobody waits for it."""
        key, now_s = self.get(limit.key), time.monotonic()
        if key.state is not None and now_s - key.declared_s < DECLARE_EVERY_S:
            return
        state = LimitState(limit)
        key.state, key.declared_s = key.state or state, now_s
        ttl_s = state.ttl_s(self._clock.now_ms())
        self._stores.outbox.put(names.LIMITS, names.encode_token(limit.key), state.as_json(), ttl_s, only_new=True)

    def _add(self, key: LimitKey, operation: _Operation) -> None:
        key.operations.append(operation)
        if key.task is None:
            key.task = asyncio.get_running_loop().create_task(self._run(key))

    # -- the task of a key -----------------------------------------------------------------------

    async def _run(self, key: LimitKey) -> None:
        try:
            while key.operations:
                operations, key.operations = key.operations, []
                try:
                    await self._apply(key, operations)
                except (Unavailable, BackendUnavailable) as error:
                    key.trusted = False
                    self._fail(key, operations, error)
                    await asyncio.sleep(RETRY_S)
                    await self._stores.connection.wait_up()
                except Exception as error:
                    # A foreign entry, or a mistake of ours: those who wait must hear of it.
                    log.exception("the limit '%s' could not be changed", key.name)
                    self._fail(key, operations, error)
                    await asyncio.sleep(LATER_S)
        finally:
            key.task = None

    def _fail(self, key: LimitKey, operations: list[_Operation], error: Exception) -> None:
        # Nobody knows whether the write was applied, so what was asked for is given back.
        again: list[_Operation] = []
        for operation in operations:
            if isinstance(operation, _Return):
                again.append(operation)
            if isinstance(operation, _Return | _Look):
                continue
            if isinstance(operation, _Ask):
                again.append(_Return(operation.job_id, operation.permit, 0))
            if not operation.future.done():
                operation.future.set_exception(Unavailable(str(error)))
        key.operations[:0] = again

    async def _apply(self, key: LimitKey, operations: list[_Operation]) -> None:
        for _ in range(ATTEMPTS):
            changes = key.changes
            if not key.trusted:
                await self._read(key)
            state, now_ms, verdicts, is_new = self._decide(key, operations)
            if is_new:
                heard = key.heard
                state.writer = f"{self._node_id}.{next(self._writes)}"
                try:
                    key.revision = await self._bucket.put(
                        names.encode_token(key.name), state.as_json(), key.revision, state.ttl_s(now_ms)
                    )
                except RevisionConflict:
                    key.trusted = False
                    continue
                key.state, key.out, key.trusted = state, 0, key.heard == heard
                key.changes += 1
                changes += 1
                self._stores.connection.send(names.LIMITS_SUBJECT, f"{self._node_id} {key.name}".encode())
            self._resolve(key, operations, verdicts, changes)
            self._changed(key)
            return
        raise BackendUnavailable(f"The limit '{key.name}' is being changed by too many nodes at once.")

    async def _read(self, key: LimitKey) -> None:
        heard = key.heard
        found = await self._bucket.get(names.encode_token(key.name))
        revision = found[1] if found else 0
        if revision != key.revision:
            key.out = 0
        if found is not None or key.revision:
            key.state = LimitState.read(key.name, found[0]) if found else None
        key.revision = revision
        key.trusted = key.heard == heard

    def _decide(
        self, key: LimitKey, operations: list[_Operation]
    ) -> tuple[LimitState, float, dict[int, Verdict], bool]:
        """`(new state, now, verdicts by number of the operation, anything to write?)`."""
        first = next((op.limit for op in operations if isinstance(op, _Ask)), Limit(key.name))
        state = key.state.copy() if key.state is not None else LimitState(first)
        now_ms = state.now_ms(self._clock.now_ms())
        verdicts: dict[int, Verdict] = {}
        is_new = False
        for number, operation in enumerate(operations):
            if isinstance(operation, _Ask):
                verdicts[number] = _judge(state, operation, now_ms)
                is_new |= verdicts[number].started_ms > 0
            elif isinstance(operation, _Return):
                is_new |= state.give_back(operation.job_id, operation.permit, operation.started_ms)
            elif isinstance(operation, _Edit):
                is_new |= operation.change(state, now_ms)
        return state, now_ms, verdicts, is_new

    def _resolve(self, key: LimitKey, operations: list[_Operation], verdicts: dict[int, Verdict], changes: int) -> None:
        for number, operation in enumerate(operations):
            if isinstance(operation, _Ask):
                verdict = verdicts[number]
                verdict.changes = changes
                if verdict.granted:
                    key.waiting = None
                if not operation.future.done():
                    operation.future.set_result(verdict)
                elif verdict.granted:
                    # Whoever asked is gone.
                    key.operations.append(_Return(operation.job_id, operation.permit, verdict.started_ms))
            elif isinstance(operation, _Edit) and not operation.future.done():
                operation.future.set_result(None)

    # -- other nodes -----------------------------------------------------------------------------

    async def _heard(self, msg: NodeMessage) -> None:
        node_id, _, name = msg.data.decode("ascii", "replace").partition(" ")
        key = self._keys.get(name)
        if node_id != self._node_id and key is not None:
            self._outdate(key)
            self._changed(key)

    def _distrust(self) -> None:
        # What others announce while the connection is lost is never heard.
        for key in self._keys.values():
            self._outdate(key)

    def _outdate(self, key: LimitKey) -> None:
        key.heard += 1
        key.changes += 1
        key.trusted = False


def _judge(state: LimitState, ask: _Ask, now_ms: float) -> Verdict:
    if state.holders.get(ask.job_id, (ask.permit,))[0] != ask.permit:
        return Verdict(occupied=True)
    limit = state.effective(ask.limit, now_ms)
    refusal = state.refusal(limit, now_ms)
    if refusal is not None:
        return Verdict(refusal=refusal)
    if state.room(limit, now_ms) == UNBOUNDED:
        return Verdict()
    state.limit = ask.limit
    return Verdict(state.start(ask.job_id, ask.permit, limit, now_ms), holds=bool(limit.concurrency))
