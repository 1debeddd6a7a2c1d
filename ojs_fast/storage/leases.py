"""Node leases and the scheduler's leader in `ojs-nodes`.

A lease entry has no TTL: it stays until a dead node was reconciled, because its last renewal tells how
far back to look. Death is judged by the observer's own clock (no change seen for a while), never by
comparing clocks of two machines.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket, Watch
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

RENEW_S = 1.0
DEAD_AFTER_S = 4.0
# Less than others wait before they take this node for dead, by more than their clocks differ in that time.
CURRENT_S = 3.0
# Two renewals, and less than DEAD_AFTER_S by more than what two nodes may see at different times.
HEARD_S = 2.0
REMEMBERED_S = 5.0
LEADER_KEY = "leader"
NODE_PREFIX = "node."


class Leases:
    """This node's lease, the view of all others, and the election of one leader."""

    def __init__(self, connection: Connection, node_id: str, boot_id: str, now_ms: Callable[[], int]) -> None:
        """`boot_id`: nodes of another boot on our embedded NATS are dead for certain ("" = not embedded)."""
        self.node_id = node_id
        self.is_leader = False
        self._boot_id = boot_id
        self._now_ms = now_ms
        self._bucket = Bucket(connection, names.NODES, {"node_id": str})
        self._watch = Watch(connection, names.NODES, self._changed)
        # key → (value, revision, monotonic time when it last changed)
        self._seen: dict[str, tuple[dict[str, Any], int, float]] = {}
        # Monotonic time: what was seen before lay there already, and may be of nodes that are gone.
        self._watching_since = float("inf")
        self._leader_revision = 0
        self._renewed = float("-inf")
        self._vacated = asyncio.Event()
        self._stands = True
        self._electing = asyncio.Lock()
        self._started_ms = now_ms()
        # A jump of the clock must not hide what was written before it: the earliest of the last renewals counts.
        self._renewals: deque[int] = deque([self._started_ms], maxlen=round(REMEMBERED_S / RENEW_S))
        self._task: asyncio.Task[None] | None = None
        self._elected: Callable[[], Awaitable[None]] | None = None
        self._deposed: Callable[[], Awaitable[None]] | None = None

    async def open(self, elected: Callable[[], Awaitable[None]], deposed: Callable[[], Awaitable[None]]) -> None:
        """Take a lease, watch the others, stand for election."""
        self._elected, self._deposed = elected, deposed
        await self._renew()
        await self._watch.open()
        await self._watch.synced.wait()
        self._watching_since = time.monotonic()
        self._task = asyncio.create_task(forever(self._loop))

    async def withdraw(self) -> None:
        """Begin to lead no more; call before what a leader does is stopped. A leader stays one until `close`."""
        self._stands = False
        async with self._electing:
            pass

    async def close(self) -> None:
        """Give up leadership and lease at once, so that others need not wait for their end."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._watch.close()
        with contextlib.suppress(Unavailable, RevisionConflict):
            if self.is_leader:
                await self._bucket.put(LEADER_KEY, {"node_id": ""}, self._leader_revision)
            # Kept, but closed: whoever leads next adopts this node's claims at once.
            await self._renew(closed=True)
        self.is_leader = False

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        if value is None:
            self._seen.pop(key, None)
            return
        known = self._seen.get(key)
        if known is None or known[1] != revision:
            try:
                entry = _lease(key, value)
            except (ValueError, KeyError, TypeError):
                if key != LEADER_KEY:
                    raise
                entry = {"node_id": ""}  # whatever it is, it leads nothing and may be written over
            self._seen[key] = (entry, revision, time.monotonic())
            if key == LEADER_KEY and not entry["node_id"]:
                self._vacated.set()

    @property
    def leader_id(self) -> str:
        """The node that leads, as far as this node knows; "" when none does."""
        if self.is_leader:
            return self.node_id
        entry = self._seen.get(LEADER_KEY)
        holder = str(entry[0]["node_id"]) if entry else ""
        return holder if holder in self.live_nodes() else ""

    def live_nodes(self) -> set[str]:
        """Ids of the nodes whose lease was renewed lately, this one included."""
        return {
            v["node_id"]
            for k, (v, _, seen) in self._seen.items()
            if k.startswith(NODE_PREFIX) and not self._is_dead(v, seen)
        } | {self.node_id}

    def renews(self, node_id: str) -> bool:
        """Whether a node renewed its lease just now, for this one to see: nobody can have taken it for dead since."""
        found = self._seen.get(NODE_PREFIX + node_id)
        if found is None or self._is_dead(found[0], found[2]):
            return False
        return found[2] > max(self._watching_since, time.monotonic() - HEARD_S)

    def dead_nodes(self) -> dict[str, int]:
        """Those whose lease ended and is not reconciled yet: `{node id: the lease's last revision}`."""
        return {
            v["node_id"]: revision
            for k, (v, revision, seen) in self._seen.items()
            if k.startswith(NODE_PREFIX) and self._is_dead(v, seen)
        }

    async def last_renewal_ms(self, node_id: str) -> int:
        """When a node last renewed its lease (epoch ms), by its own clock or by NATS', whichever is earlier.

        What it wrote carries NATS' time, and its own clock may have been far ahead. Raises Unavailable.
        """
        key = NODE_PREFIX + node_id
        told = self._seen[key][0]["renewed_ms"] if key in self._seen else self._now_ms()
        written_ms = await self._bucket.written_ms(key)
        return min(int(told), written_ms or int(told))

    def _is_dead(self, value: dict[str, Any], seen: float) -> bool:
        if value["node_id"] == self.node_id:
            return False
        if value.get("closed"):
            return True
        if self._boot_id and value.get("boot_id") and value["boot_id"] != self._boot_id:
            return True
        return time.monotonic() - seen > DEAD_AFTER_S

    async def bury(self, node_id: str, revision: int) -> None:
        """Remove the lease of a node that was reconciled, but not one that it took later: it may have died once more.

        Raises Unavailable.
        """
        key = NODE_PREFIX + node_id
        await self._bucket.erase(key, revision)
        if key in self._seen and self._seen[key][1] <= revision:
            del self._seen[key]

    async def announce(self) -> None:
        """Take the lease before this node is ready: from here on others wait for it. Raises Unavailable."""
        await self._renew()

    def is_current(self) -> bool:
        """True while no other node can take this one for dead."""
        return time.monotonic() - self._renewed < CURRENT_S

    async def listed_nodes(self) -> set[str]:
        """The live nodes, those included that took their lease just before this call. Raises Unavailable."""
        keys = await self._bucket.keys()
        unseen = {
            key.removeprefix(NODE_PREFIX) for key in keys if key.startswith(NODE_PREFIX) and key not in self._seen
        }
        return self.live_nodes() | unseen

    async def _renew(self, *, closed: bool = False) -> None:
        began = time.monotonic()
        self._renewals.append(self._now_ms())
        await self._bucket.put(
            NODE_PREFIX + self.node_id,
            {
                "node_id": self.node_id,
                "boot_id": self._boot_id,
                "started_ms": self._started_ms,
                "renewed_ms": min(self._renewals),
                "closed": closed,
            },
        )
        self._renewed = began

    async def _loop(self) -> None:
        while True:
            try:
                await self._renew()
                await self._stand()
            except Unavailable as error:
                log.debug("lease not renewed: %s", error)
            # A leader that leaves says so; nobody waits for the next renewal.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._nap_s()):
                    await self._vacated.wait()
            self._vacated.clear()

    def _nap_s(self) -> float:
        # Whoever waits for a dead leader's lease to end is there when it does: takeover within 4 s, not 5.
        entry = self._seen.get(LEADER_KEY)
        if self.is_leader or entry is None:
            return RENEW_S
        return min(RENEW_S, max(0.05, entry[2] + DEAD_AFTER_S - time.monotonic() + 0.001))

    async def _stand(self) -> None:
        if not (self._stands or self.is_leader):
            return
        entry = self._seen.get(LEADER_KEY)
        revision = self._leader_revision if self.is_leader else (entry[1] if entry else 0)
        if not self.is_leader and entry:
            holder = entry[0]
            vacant = not holder["node_id"] or self._is_dead(holder, entry[2])
            if not vacant and holder["node_id"] != self.node_id:
                return
        try:
            self._leader_revision = await self._bucket.put(
                LEADER_KEY, {"node_id": self.node_id, "boot_id": self._boot_id}, revision
            )
        except RevisionConflict:
            await self._lose()
            return
        if not self.is_leader:
            self.is_leader = True
            log.info("this node is the scheduler leader")
            if self._stands:
                assert self._elected
                async with self._electing:
                    await self._elected()

    async def _lose(self) -> None:
        found = await self._bucket.get(LEADER_KEY)
        if found and found[0].get("node_id") == self.node_id:
            # Our own renewal was applied though its PubAck was lost.
            self._leader_revision = found[1]
            return
        if found:
            self._changed(LEADER_KEY, orjson.dumps(found[0]), found[1])
        if self.is_leader:
            self.is_leader = False
            log.warning("another node took over as scheduler leader")
            assert self._deposed
            await self._deposed()


def _lease(key: str, value: bytes) -> dict[str, Any]:
    """A lease or the leader's entry. Raises ValueError, KeyError, TypeError for a foreign one."""
    entry: dict[str, Any] = orjson.loads(value)
    renewed_ms = entry["renewed_ms"] if key.startswith(NODE_PREFIX) else 0
    if type(entry["node_id"]) is not str or type(renewed_ms) is not int:
        raise ValueError(f"no lease: {value[:200]!r}")
    return entry
