"""One attempt of a delivery: the signed request, and what its answer means for the endpoint (ojs-webhooks 5.3, 8.1)."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.events import Events
from ojs_fast.core.webhooks.deliveries import DEAD, DONE, TRY_AGAIN, Delivery
from ojs_fast.core.webhooks.health import Health
from ojs_fast.core.webhooks.model import Subscription
from ojs_fast.core.webhooks.subscriptions import Subscriptions
from ojs_fast.errors import NotFound
from ojs_fast.outbound import Answer

log = logging.getLogger(__name__)

USER_AGENT = "OJS-Webhook/1.0"
#: Requests under way to one endpoint, from one node.
AT_ONCE = 8
#: Requests under way in all, from one node.
AT_ONCE_IN_ALL = 256
#: After a quiet time so many seconds' worth of attempts may go at once.
BURST_S = 1.0

Post = Callable[[str, dict[str | bytes, str | bytes], bytes], Awaitable[Answer]]


class Lane:
    """What a node keeps about one subscription: its present form, its health, its share of the requests."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.health = Health()
        self.slots = asyncio.Semaphore(AT_ONCE)


class Attempts:
    """Sends, takes down what came of it, and pauses a subscription whose endpoint keeps failing."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        events: Events,
        post: Post,
        clock: NowMs,
        delays_s: tuple[int, ...],
        pause_after: int,
        most_per_s: int,
    ) -> None:
        """`delays_s`: before each retry; `pause_after`: failures in a row, 0 = never; `most_per_s`: attempts."""
        self._subscriptions = subscriptions
        self._events = events
        self._post = post
        self._clock = clock
        self._delays_s = delays_s
        self._pause_after = pause_after
        self._slots = asyncio.Semaphore(AT_ONCE_IN_ALL)
        self._pause_s = 1 / most_per_s
        self._next_s = 0.0
        #: how often what came of an attempt, for the metrics
        self.counts = {"delivered": 0, "failed": 0, "dead": 0}

    async def make(self, lane: Lane, delivery: Delivery) -> None:
        """Make one attempt; the delivery says afterwards what comes next. Raises nothing but Unavailable."""
        await self._turn()
        async with self._slots:
            answer = await self.send(lane.subscription, delivery.id, delivery.event_type, delivery.event)
        delivery.note(answer, self._clock(), self._delays_s)
        self._tell(delivery, answer)
        if answer.is_success:
            lane.health.succeeded()
            return
        lane.health.failed(is_down=not 400 <= answer.status < 500 or answer.status in TRY_AGAIN)

    async def _turn(self) -> None:
        # Each attempt costs more than a job does: requests of clients must not wait for them.
        now_s = time.monotonic()
        self._next_s = max(self._next_s, now_s - BURST_S) + self._pause_s
        if self._next_s > now_s:
            await asyncio.sleep(self._next_s - now_s)

    async def pause_if_failing(self, lane: Lane) -> None:
        """Pause the subscription after many failures in a row, when they are written down. Raises Unavailable."""
        if self._pause_after and lane.health.failures >= self._pause_after:
            await self._pause(lane)

    async def send(self, subscription: Subscription, delivery_id: str, event_type: str, body: bytes) -> Answer:
        """The request itself."""
        timestamp_s = self._clock() // 1000
        headers: dict[str | bytes, str | bytes] = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "Accept": "*/*",
            "X-OJS-Event-Type": event_type,
            "X-OJS-Delivery-ID": delivery_id,
            "X-OJS-Subscription-ID": subscription.id,
            "X-OJS-Signature": subscription.signature(timestamp_s, body),
            "X-OJS-Timestamp": str(timestamp_s),
        }
        return await self._post(subscription.url, headers, body)

    def _tell(self, delivery: Delivery, answer: Answer) -> None:
        outcome = {DONE: "delivered", DEAD: "dead"}.get(delivery.kind, "failed")
        self.counts[outcome] += 1
        data: dict[str, Any] = {
            "subscription_id": delivery.subscription_id,
            "delivery_id": delivery.id,
            "event_id": delivery.event_id,
            "event_type": delivery.event_type,
            "attempt": delivery.attempts,
            "status_code": answer.status or None,
            "duration_ms": answer.duration_ms,
        }
        if outcome == "failed":
            data["next_attempt_at"] = _core.format_rfc3339_ms(delivery.next_ms)
        self._events.announce(f"webhook.{outcome}", delivery.id, data)
        if outcome != "delivered":
            # Not the URL: path and query of many endpoints are their key.
            log.info(
                "webhook delivery %s: %s",
                outcome,
                answer.error or f"status {answer.status}",
                extra={"subscription_id": delivery.subscription_id, "delivery_id": delivery.id},
            )

    async def _pause(self, lane: Lane) -> None:
        reason = f"{lane.health.failures} attempts in a row failed."
        seen, was_us = lane.subscription, False

        def pause(now: Subscription) -> Subscription:
            nonlocal was_us
            # Whoever changed it meanwhile may have put right what was wrong.
            was_us = now.updated_ms == seen.updated_ms and now.active
            if not was_us:
                return now
            return replace(now, active=False, paused_reason=reason, updated_ms=self._clock())

        try:
            await self._subscriptions.edit(seen.id, pause)
        except NotFound:
            return
        if was_us:
            log.warning("webhook subscription %s is paused: %s", seen.id, reason)
            self._events.announce(
                "webhook.subscription.paused", seen.id, {"subscription_id": seen.id, "reason": reason}
            )
