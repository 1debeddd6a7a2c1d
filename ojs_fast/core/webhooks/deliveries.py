"""Deliveries: one event for one subscription, and what became of it (bucket `ojs-deliveries`).

A delivery lies under `open.` while it is to be tried again, under `done.` or `dead.` once it has ended. Of what has
ended each subscription keeps the latest ones, for a week at most. Its id follows from event and subscription, so
whoever sends the same event again, after a crash, sends it under the same id.
"""

import hashlib
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.outbound import Answer
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import RevisionConflict

OPEN, DONE, DEAD = "open", "done", "dead"
KINDS = (OPEN, DONE, DEAD)
STATUS = {OPEN: "pending", DONE: "delivered", DEAD: "dead"}
KEPT = {DONE: 500, DEAD: 1000}
#: So many may end between two prunings by one node.
PRUNE_EVERY = 200
ENDED_TTL_S = 7 * 86_400
#: Longer than every retry together, and than any pause after which old news is welcome.
OPEN_TTL_S = 14 * 86_400
TRIES_KEPT = 10
# 4xx but these mean that the receiver will never take it (section 7.1).
TRY_AGAIN = frozenset({408, 425, 429})


@dataclass(slots=True)
class Delivery:
    """One event on its way. `tries`: the last attempts, `{at, status_code, error, duration_ms}`."""

    id: str
    subscription_id: str
    event_id: str
    event_type: str
    created_ms: int
    kind: str = OPEN
    attempts: int = 0
    next_ms: int = 0
    tries: list[dict[str, Any]] = field(default_factory=list)
    #: the envelope (JSON) that is sent, as long as it may be sent again
    event: bytes = b""

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Delivery":
        """Read an entry. Raises TypeError for one that is none of ours."""
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        return cls(**{**known, "event": orjson.dumps(event) if (event := value.get("event")) else b""})

    def entry(self) -> dict[str, Any]:
        """What is stored."""
        entry = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**entry, "event": orjson.Fragment(self.event) if self.event else None}

    @property
    def key(self) -> str:
        """Where it lies now."""
        return f"{self.kind}.{self.subscription_id}.{self.id}"

    def note(self, answer: Answer, now_ms: int, delays_s: tuple[int, ...]) -> None:
        """Take down an attempt: delivered, dead, or when it is to be tried again (section 7.2)."""
        self.attempts += 1
        tried: dict[str, Any] = {"at": _core.format_rfc3339_ms(now_ms), "duration_ms": answer.duration_ms}
        if answer.status:
            tried["status_code"] = answer.status
        if answer.error:
            tried["error"] = answer.error
        self.tries = [*self.tries, tried][-TRIES_KEPT:]
        is_final = 400 <= answer.status < 500 and answer.status not in TRY_AGAIN
        if answer.is_success:
            self.kind, self.event = DONE, b""
        elif is_final or self.attempts > len(delays_s):
            self.kind = DEAD
        else:
            delay_s = delays_s[self.attempts - 1] if answer.retry_after_s is None else answer.retry_after_s
            self.next_ms = now_ms + int(delay_s * 1000)

    def shown(self) -> dict[str, Any]:
        """What clients see."""
        shown: dict[str, Any] = {
            "id": self.id,
            "subscription_id": self.subscription_id,
            "event_id": self.event_id,
            "event_type": self.event_type,
            "status": STATUS[self.kind],
            "attempts": self.attempts,
            "tries": self.tries,
            "created_at": _core.format_rfc3339_ms(self.created_ms),
        }
        if self.kind == OPEN:
            shown["next_attempt_at"] = _core.format_rfc3339_ms(self.next_ms)
        if self.event:
            shown["event"] = orjson.Fragment(self.event)
        return shown


def delivery_id(subscription_id: str, event_id: str) -> str:
    """The same for the same event and subscription; sorts by the time of the event."""
    digest = hashlib.sha256(f"{subscription_id} {event_id}".encode()).hexdigest()
    moment = event_id.removeprefix("evt_")[:13] if _core.is_uuid7(event_id.removeprefix("evt_")) else "00000000-0000"
    return f"del_{moment}-7{digest[:3]}-8{digest[3:6]}-{digest[6:18]}"


class DeliveryLog:
    """All deliveries, for every node."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        texts = ("id", "subscription_id", "event_id", "event_type", "kind")
        self._bucket = Bucket(connection, names.DELIVERIES, dict.fromkeys(texts, str) | {"created_ms": int})
        self._ended: dict[tuple[str, str], int] = {}

    async def known(self, subscription_id: str, ids: list[str]) -> set[str]:
        """Those of a subscription's deliveries that somebody has tried before. Raises Unavailable."""
        keys = [f"{kind}.{subscription_id}.{one}" for one in ids for kind in KINDS]
        return {value["id"] for value, _ in (await self._bucket.get_many(keys)).values()}

    async def enter(self, delivery: Delivery) -> None:
        """Write down what became of the first attempt. Raises Unavailable."""
        if delivery.kind != OPEN:
            await self._end(delivery)
            return
        try:
            await self._bucket.put(delivery.key, delivery.entry(), 0, OPEN_TTL_S)
        except RevisionConflict:
            return  # another node was given the same event, and keeps it in its care

    async def update(self, delivery: Delivery, revision: int) -> None:
        """Write down what became of another attempt of the entry under `open.` at this revision.

        Raises RevisionConflict when somebody else did, Unavailable.
        """
        if delivery.kind == OPEN:
            await self._bucket.put(delivery.key, delivery.entry(), revision, OPEN_TTL_S)
            return
        await self._end(delivery)
        await self.drop(delivery, revision)

    async def _end(self, delivery: Delivery) -> None:
        await self._bucket.put(delivery.key, delivery.entry(), ttl_s=ENDED_TTL_S)
        kept = (delivery.kind, delivery.subscription_id)
        self._ended[kept] = self._ended.get(kept, 0) + 1
        if self._ended[kept] >= PRUNE_EVERY:
            self._ended[kept] = 0
            await self._bucket.keep_latest(f"{delivery.kind}.{delivery.subscription_id}.*", KEPT[delivery.kind])

    async def drop(self, delivery: Delivery, revision: int) -> None:
        """Remove the entry under `open.` that is at this revision. Raises Unavailable."""
        await self._bucket.erase(f"{OPEN}.{delivery.subscription_id}.{delivery.id}", revision)

    async def is_delivered(self, delivery: Delivery) -> bool:
        """True when it arrived though its entry still is open: the node died in between. Raises Unavailable."""
        return await self._bucket.get(f"{DONE}.{delivery.subscription_id}.{delivery.id}") is not None

    async def find(self, wanted: str) -> tuple[Delivery, int] | None:
        """A delivery by its id, with its revision; the open entry if there are two. Raises Unavailable."""
        found = sorted(await self._bucket.matching(f"*.*.{wanted}"), key=lambda one: KINDS.index(one[0].split(".")[0]))
        return (Delivery.read(found[0][1]), found[0][2]) if found else None

    async def again(self, delivery: Delivery, revision: int, now_ms: int) -> None:
        """Try a dead or waiting delivery now; a dead one has all its attempts again.

        Raises RevisionConflict when it changed meanwhile, Unavailable.
        """
        was, delivery.kind, delivery.next_ms = delivery.kind, OPEN, now_ms
        if was == OPEN:
            await self._bucket.put(delivery.key, delivery.entry(), revision, OPEN_TTL_S)
            return
        delivery.attempts = 0
        await self._bucket.put(delivery.key, delivery.entry(), 0, OPEN_TTL_S)
        await self._bucket.erase(f"{DEAD}.{delivery.subscription_id}.{delivery.id}", revision)

    async def page(self, subscription_id: str, kind: str, after: str, limit: int) -> list[Delivery]:
        """Deliveries by the time of their events, the latest first, behind the id `after`; "" = any.

        Raises Unavailable.
        """
        keys = await self._bucket.keys(f"{kind or '*'}.{subscription_id or '*'}.*")
        keys.sort(key=lambda key: key.rpartition(".")[2], reverse=True)
        wanted = [key for key in keys if not after or key.rpartition(".")[2] < after][:limit]
        found = await self._bucket.get_many(wanted)
        return [Delivery.read(found[key][0]) for key in wanted if key in found]

    async def forget_subscription(self, subscription_id: str) -> None:
        """Remove all that belongs to a subscription. Raises Unavailable."""
        for kind in KINDS:
            await self._bucket.erase(f"{kind}.{subscription_id}.*")
            self._ended.pop((kind, subscription_id), None)
