"""Looking at limits and overriding them (ojs-rate-limiting section 10), the same on every node."""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.limit_state import Limit, LimitState
from ojs_fast.core.limits import QUEUE_KEY, Limits
from ojs_fast.core.peers import Peers
from ojs_fast.core.queues import Queue, Queues
from ojs_fast.core.stores import Stores
from ojs_fast.errors import NotFound
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import NodeMessage
from ojs_fast.storage.server_clock import ServerClock

WAITING = b"waiting "  # asks another node how many jobs wait there, by key
PARKED = b"parked"  # asks another node which work messages it has parked


class LimitAdmin:
    """Inspect, list, override."""

    def __init__(self, stores: Stores, limits: Limits, queues: Queues, peers: Peers, server_clock: ServerClock) -> None:
        self._stores = stores
        self._limits = limits
        self._queues = queues
        self._peers = peers
        self._server_clock = server_clock
        self._bucket = Bucket(stores.connection, names.LIMITS)

    async def get(self, name: str) -> dict[str, Any]:
        """The present state of a key. Raises NotFound, Unavailable."""
        state = await self._limits.keys.refresh(name)
        if state is None:
            raise NotFound(
                f"Rate limit '{name}' not found.",
                details={"resource_type": "rate_limit", "resource_id": name},
                hint="A key exists while jobs use it, and for a day after.",
            )
        return self._shown(name, state, (await self._waiting([name]))[name])

    async def page(self, page: int, per_page: int) -> tuple[list[dict[str, Any]], int]:
        """`(keys of this page by name, number of all)`. Raises Unavailable."""
        tokens = sorted(await self._bucket.keys())
        found = await self._bucket.get_many(tokens[(page - 1) * per_page : page * per_page])
        read = [(token, LimitState.read(token, value)) for token, (value, _) in sorted(found.items())]
        states = {names.decode_token(token): state for token, state in read if state is not None}
        waiting = await self._waiting(list(states))
        return [self._shown(name, state, waiting[name]) for name, state in states.items()], len(tokens)

    async def override(self, name: str, override: dict[str, Any] | None) -> dict[str, Any]:
        """Replace what the jobs of a key declare, or stop replacing it (None).

        Either ends a pause that a handler asked for. Raises NotFound, Unavailable.
        """
        if override is None:
            await self.get(name)

        await self._override(name, override)
        return await self.get(name)

    async def _override(self, name: str, override: dict[str, Any] | None) -> None:
        def change(state: LimitState, _now_ms: float) -> bool:
            if state.override == override and not state.until_ms:
                return False
            state.override, state.until_ms = override, 0
            return True

        await self._limits.keys.edit(name, change)

    async def limit_queue(self, name: str, override: dict[str, Any] | None) -> dict[str, Any]:
        """Limit the start of all jobs of a queue (section 7.2), or no longer (None). Raises Unavailable."""
        key = QUEUE_KEY + name
        if override is None:
            # First the jobs stop asking: those that wait ask no more when they come again.
            await self._queues.update(name, limited=False)
            await self._override(key, None)
            return {"queue": name, "key": key, "rate_limit": None}
        await self._override(key, override)
        await self._queues.update(name, limited=True)
        return {"queue": name, **await self.get(key)}

    async def concurrency(self, queue: Queue) -> int | None:
        """How many jobs of a queue may be active at once, over all nodes; None = as many as there are.

        Raises Unavailable.
        """
        found = await self._bucket.get(names.encode_token(QUEUE_KEY + queue.name)) if queue.limited else None
        state = LimitState.read(queue.name, found[0]) if found is not None else None
        if state is None:
            return None
        most: int | None = state.in_force(state.now_ms(self._server_clock.now_ms())).get("concurrency")
        return most

    async def set_concurrency(self, name: str, most: int | None) -> None:
        """Let so many jobs of a queue be active at once, None = as many as there are. Raises Unavailable.

        A rate and throttle that the queue's limit has stay, unless they were to end by themselves.
        """
        queue = await self._queues.refresh(name)
        is_limited = queue is not None and queue.limited
        left = False

        def change(state: LimitState, now_ms: float) -> bool:
            nonlocal left
            left = is_limited
            # What lies there while the queue is not limited means nothing.
            present = state.in_force(now_ms) if is_limited else {}
            if present.get("concurrency") == most:
                return False
            if most is not None:
                present = {"expires_ms": 0} if present.get("expires_ms") else present
                state.override = {"expires_ms": 0, **present, "concurrency": most}
            else:
                rest = {member: value for member, value in present.items() if member != "concurrency"}
                state.override = rest if len(rest) > 1 else None
            left = state.override is not None
            return True

        if most is None and not is_limited:
            return
        await self._limits.keys.edit(QUEUE_KEY + name, change)
        if most is not None or not left:
            await self._queues.update(name, limited=left)

    # -- how it is shown -------------------------------------------------------------------------

    def _shown(self, name: str, state: LimitState, waiting: int) -> dict[str, Any]:
        now_ms = state.now_ms(self._server_clock.now_ms())
        limit = state.effective(state.limit, now_ms)
        shown: dict[str, Any] = {"key": name, **_strategies(state, limit, now_ms), "waiting_count": waiting}
        if state.until_ms > now_ms:
            shown["paused_until"] = _time(state.until_ms)
        if override := state.in_force(now_ms):
            shown["override"] = _shown_override(override)
        return shown

    async def _waiting(self, wanted: list[str]) -> dict[str, int]:
        """How many jobs wait for these keys, over all nodes; a node that does not answer counts as none."""
        total = self._limits.waiting(wanted)
        for answer in await self._peers.ask_others(WAITING + orjson.dumps(wanted)):
            for name, count in orjson.loads(answer).items():
                total[name] += count
        return total

    async def parked(self) -> set[int]:
        """The sequences of all work messages that live nodes have parked, this one included."""
        found = set(self._limits.parking.sequences())
        for answer in await self._peers.ask_others(PARKED):
            found.update(orjson.loads(answer))
        return found

    async def answer(self, msg: NodeMessage) -> bool:
        """Tell another node what waits here; False when it asks something else."""
        if msg.data == PARKED:
            answer: Any = self._limits.parking.sequences()
        elif msg.data.startswith(WAITING):
            answer = self._limits.waiting(orjson.loads(msg.data[len(WAITING) :]))
        else:
            return False
        await self._stores.connection.reply(msg, orjson.dumps(answer))
        return True


def _strategies(state: LimitState, limit: Limit, now_ms: float) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if limit.concurrency:
        most, active = max(0, limit.concurrency), len(state.holders)
        shown["concurrency"] = {"limit": most, "active": active, "available": max(0, most - active)}
    if limit.rate:
        window_ms = limit.period_ms
        since_ms = now_ms - window_ms
        resets_ms = next((last_ms + window_ms for _, last_ms, _ in state.starts if last_ms > since_ms), now_ms)
        shown["rate"] = {
            "limit": limit.rate,
            "period": _core.format_duration_ms(window_ms),
            "current_count": state.started_since(since_ms),
            "window_resets_at": _time(resets_ms),
        }
    if limit.throttle_ms:
        shown["throttle"] = {
            "limit": limit.throttle,
            "period": _core.format_duration_ms(round(limit.throttle_ms * limit.throttle)),
            "next_allowed_at": _time(max(now_ms, state.spaced_ms)),
        }
    return shown


def _shown_override(override: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if "concurrency" in override:
        shown["concurrency"] = override["concurrency"]
    if "rate" in override:
        rate, period_ms = override["rate"]
        shown["rate"] = {"limit": rate, "period": _core.format_duration_ms(period_ms)}
    if "throttle" in override:
        throttle_ms, throttle = override["throttle"]
        shown["throttle"] = {"limit": throttle, "period": _core.format_duration_ms(round(throttle_ms * throttle))}
    if override["expires_ms"]:
        shown["expires_at"] = _time(override["expires_ms"])
    return shown


def _time(epoch_ms: float) -> str:
    return _core.format_rfc3339_ms(int(epoch_ms))
