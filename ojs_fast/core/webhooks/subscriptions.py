"""The registry of webhook subscriptions: bucket `ojs-webhooks`, watched by every node, changed by compare-and-set."""

import asyncio
import logging
import re
from collections.abc import Callable

import orjson

from ojs_fast.core.webhooks.model import Subscription
from ojs_fast.errors import NotFound
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket, Watch
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import RevisionConflict

log = logging.getLogger(__name__)

_ID = re.compile(r"sub_[0-9a-f-]{36}")

Edit = Callable[[Subscription], Subscription]


class Subscriptions:
    """All subscriptions, as this node knows them; `changed(id)` is called when one comes, changes or goes."""

    def __init__(self, connection: Connection) -> None:
        texts, numbers = ("id", "url", "secret"), ("created_ms", "updated_ms", "from_sequence")
        members = dict.fromkeys(texts, str) | dict.fromkeys(numbers, int) | {"events": list}
        self._bucket = Bucket(connection, names.WEBHOOKS, members)
        self._watch = Watch(connection, names.WEBHOOKS, self._changed)
        self._known: dict[str, tuple[Subscription, int]] = {}
        self.changed: Callable[[str], None] = lambda _: None

    async def open(self) -> None:
        """Load and follow them."""
        await self._watch.open()
        await self._watch.synced.wait()

    async def close(self) -> None:
        """Stop following."""
        await self._watch.close()

    def forget(self) -> None:
        """Drop all that is known (after a reset)."""
        gone, self._known = list(self._known), {}
        for subscription_id in gone:
            self.changed(subscription_id)

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        known = self._known.get(key)
        if known is not None and known[1] >= revision:
            return
        if value is None:
            self._known.pop(key, None)
        else:
            self._known[key] = (Subscription.read(orjson.loads(value)), revision)
        self.changed(key)

    def get(self, subscription_id: str) -> Subscription | None:
        """One of them, as far as this node knows."""
        known = self._known.get(subscription_id)
        return known[0] if known else None

    @property
    def count(self) -> int:
        """How many there are, as far as this node knows."""
        return len(self._known)

    async def load(self, subscription_id: str) -> tuple[Subscription, int]:
        """One of them with its revision, from NATS. Raises NotFound, Unavailable."""
        # A key is part of a subject: what could be a wildcard must not become one.
        found = await self._bucket.get(subscription_id) if _ID.fullmatch(subscription_id) else None
        if found is None:
            raise NotFound(
                f"Webhook subscription '{subscription_id[:60]}' not found.",
                details={"resource_type": "webhook_subscription", "resource_id": subscription_id[:60]},
            )
        return Subscription.read(found[0]), found[1]

    async def all(self) -> list[Subscription]:
        """Every one of them, oldest first, from NATS. Raises Unavailable."""
        keys = await self._bucket.keys()
        found = [Subscription.read(value) for value, _ in (await self._bucket.get_many(keys)).values()]
        return sorted(found, key=lambda one: (one.created_ms, one.id))

    async def add(self, subscription: Subscription) -> None:
        """Store a new one. Raises Unavailable."""
        revision = await self._bucket.put(subscription.id, subscription.entry(), 0)
        self._changed(subscription.id, orjson.dumps(subscription.entry()), revision)

    async def edit(self, subscription_id: str, change: Edit) -> Subscription:
        """Change one, by compare-and-set, and return it. Raises NotFound, Unavailable."""
        while True:
            before, revision = await self.load(subscription_id)
            after = change(before)
            if after == before:
                return before
            try:
                revision = await self._bucket.put(subscription_id, after.entry(), revision)
            except RevisionConflict:
                await asyncio.sleep(0)
                continue
            self._changed(subscription_id, orjson.dumps(after.entry()), revision)
            return after

    async def remove(self, subscription_id: str) -> Subscription:
        """Remove one and return it. Raises NotFound, Unavailable."""
        subscription, _ = await self.load(subscription_id)
        await self._bucket.delete(subscription_id)
        if self._known.pop(subscription_id, None):
            self.changed(subscription_id)
        return subscription
