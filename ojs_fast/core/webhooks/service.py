"""What clients do with webhooks: subscriptions, test, rotation, the delivery log (ojs-webhooks 6, 8.3, 10)."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.webhooks import model
from ojs_fast.core.webhooks.attempts import Attempts
from ojs_fast.core.webhooks.deliveries import DONE, Delivery, DeliveryLog
from ojs_fast.core.webhooks.model import Subscription
from ojs_fast.core.webhooks.subscriptions import Subscriptions
from ojs_fast.errors import Conflict, NotFound, invalid_field
from ojs_fast.outbound import BadTarget
from ojs_fast.storage import consumers, names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import RevisionConflict

_DELIVERY_ID = re.compile(r"del_[0-9a-f-]{36}")


class Webhooks:
    """The operations behind `/webhooks`."""

    def __init__(
        self,
        connection: Connection,
        subscriptions: Subscriptions,
        attempts: Attempts,
        delivery_log: DeliveryLog,
        events: Events,
        check_url: Callable[[str], Awaitable[None]],
        clock: NowMs,
    ) -> None:
        """`check_url` raises BadTarget."""
        self._connection = connection
        self._subscriptions = subscriptions
        self._attempts = attempts
        self._log = delivery_log
        self._events = events
        self._check_url = check_url
        self._clock = clock
        self._ids = _core.UuidV7Generator()

    # -- subscriptions ---------------------------------------------------------------------------

    async def create(self, body: dict[str, Any]) -> Subscription:
        """Subscribe to what happens from now on. Raises InvalidRequest, Conflict, Unavailable."""
        if self._subscriptions.count >= model.SUBSCRIPTIONS_MAX:
            raise Conflict(
                f"There are {model.SUBSCRIPTIONS_MAX} webhook subscriptions; no more are possible.",
                details={"limit": model.SUBSCRIPTIONS_MAX},
                hint="One subscription can name many event types; delete one that is not needed.",
            )
        last = int((await self._connection.stream_info(names.EVENT_STREAM))["state"]["last_seq"])
        now_ms = self._clock()
        subscription = model.create(body, f"sub_{self._ids.next(now_ms)}", now_ms, last)
        await self._check(subscription.url)
        await self._subscriptions.add(subscription)
        self._announce("created", subscription)
        return subscription

    async def all(self) -> list[Subscription]:
        """Every subscription, oldest first. Raises Unavailable."""
        return await self._subscriptions.all()

    async def get(self, subscription_id: str) -> Subscription:
        """One of them. Raises NotFound, Unavailable."""
        return (await self._subscriptions.load(subscription_id))[0]

    async def update(self, subscription_id: str, body: dict[str, Any]) -> Subscription:
        """Change what the body names; `active: true` resumes a paused one. Raises OJSError, Unavailable."""
        changed = (await self.get(subscription_id)).changed(body, self._clock())
        if body.get("url") is not None:
            await self._check(changed.url)
        return await self._subscriptions.edit(subscription_id, lambda one: one.changed(body, self._clock()))

    async def delete(self, subscription_id: str) -> Subscription:
        """Remove it with all its deliveries. Raises NotFound, Unavailable."""
        removed = await self._subscriptions.remove(subscription_id)
        await consumers.delete(self._connection, names.EVENT_STREAM, names.webhook_consumer(removed.id))
        await self._log.forget_subscription(removed.id)
        self._announce("deleted", removed)
        return removed

    async def rotate(self, subscription_id: str) -> Subscription:
        """Give it a new secret; for a day the present one signs too. Raises NotFound, Unavailable."""
        return await self._subscriptions.edit(subscription_id, lambda one: one.rotated(self._clock()))

    async def test(self, subscription_id: str) -> dict[str, Any]:
        """Send a `webhook.test` event at once and tell how it went (section 6.6). Raises NotFound, Unavailable."""
        subscription = await self.get(subscription_id)
        now_ms = self._clock()
        event = self._events.envelope("webhook.test", subscription.id, {"subscription_id": subscription.id})
        delivery_id = f"del_{self._ids.next(now_ms)}"
        answer = await self._attempts.send(subscription, delivery_id, "webhook.test", orjson.dumps(event))
        told: dict[str, Any] = {
            "success": answer.is_success,
            "status_code": answer.status or None,
            "response_time_ms": answer.duration_ms,
            "response_body": answer.body.decode("utf-8", "replace"),
            "delivery_id": delivery_id,
        }
        return told | ({"error": answer.error} if answer.error else {})

    async def _check(self, url: str) -> None:
        try:
            await self._check_url(url)
        except BadTarget as error:
            # Whoever got it wrong may have put a password into it.
            raise invalid_field("url", "<hidden>" if "@" in url else url, str(error)) from None

    def _announce(self, what: str, subscription: Subscription) -> None:
        data = {"subscription_id": subscription.id, "events": subscription.events}
        self._events.announce(f"webhook.subscription.{what}", subscription.id, data)

    # -- deliveries ------------------------------------------------------------------------------

    async def deliveries(self, subscription_id: str, kind: str, after: str, limit: int) -> list[Delivery]:
        """Recent deliveries, the latest event first. Raises NotFound for an unknown subscription, Unavailable."""
        if subscription_id:
            subscription_id = (await self.get(subscription_id)).id
        return await self._log.page(subscription_id, kind, after, limit)

    async def delivery(self, delivery_id: str) -> tuple[Delivery, int]:
        """One of them with its revision. Raises NotFound, Unavailable."""
        found = await self._log.find(delivery_id) if _DELIVERY_ID.fullmatch(delivery_id) else None
        if found is None:
            raise NotFound(
                f"Webhook delivery '{delivery_id[:60]}' not found.",
                details={"resource_type": "webhook_delivery", "resource_id": delivery_id[:60]},
                hint="Deliveries that ended are kept for a week, of each subscription the latest ones.",
            )
        return found

    async def retry(self, delivery_id: str) -> Delivery:
        """Try a dead or waiting delivery now. Raises NotFound, Conflict, Unavailable."""
        delivery, revision = await self.delivery(delivery_id)
        if delivery.kind == DONE:
            raise Conflict(
                f"Webhook delivery '{delivery_id}' arrived; only deliveries that did not can be retried.",
                details={"delivery_id": delivery_id, "current_state": "delivered", "expected_state": "pending|dead"},
            )
        try:
            await self._log.again(delivery, revision, self._clock())
        except RevisionConflict:
            raise Conflict(f"Webhook delivery '{delivery_id}' is under way now.") from None
        return delivery

    # -- reset -----------------------------------------------------------------------------------

    async def wipe(self) -> None:
        """Remove the places in the event stream; the buckets are purged with all others. Raises Unavailable."""
        for info in await consumers.listed(self._connection, names.EVENT_STREAM):
            if info["name"].startswith(names.WEBHOOK_CONSUMERS):
                await consumers.delete(self._connection, names.EVENT_STREAM, info["name"])
