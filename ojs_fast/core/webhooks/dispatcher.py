"""Webhook delivery on one node: a follower for each active subscription, and the retries of all.

Without subscriptions nothing runs, and neither HTTP client nor consumers exist.
"""

import asyncio

from ojs_fast.core.clock import NowMs
from ojs_fast.core.webhooks.attempts import Attempts, Lane
from ojs_fast.core.webhooks.deliveries import DeliveryLog
from ojs_fast.core.webhooks.follower import Follower, event_consumer
from ojs_fast.core.webhooks.model import Subscription
from ojs_fast.core.webhooks.retries import Retries, retry_consumer
from ojs_fast.core.webhooks.subscriptions import Subscriptions
from ojs_fast.storage.connection import Connection

#: What is under way may end by itself at shutdown.
CLOSE_S = 2.0
RETRIES = "retries"

Run = tuple[Follower | Retries, "asyncio.Task[None]"]


class Dispatcher:
    """Starts and stops what delivers, as subscriptions come, change and go."""

    def __init__(
        self,
        connection: Connection,
        subscriptions: Subscriptions,
        attempts: Attempts,
        delivery_log: DeliveryLog,
        clock: NowMs,
        events_kept_s: int,
    ) -> None:
        self._connection = connection
        self._subscriptions = subscriptions
        self._attempts = attempts
        self._log = delivery_log
        self._clock = clock
        self._events_kept_s = events_kept_s
        self._lanes: dict[str, Lane] = {}
        self._runs: dict[str, Run] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._is_closed = False
        subscriptions.changed = self._changed

    async def close(self) -> None:
        """Stop; what does not end soon goes to other nodes."""
        self._is_closed = True
        for name, (runner, _) in list(self._runs.items()):
            runner.grace_s = CLOSE_S
            self._end(name)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def lane(self, subscription_id: str) -> Lane | None:
        """What this node keeps about an active subscription."""
        return self._lanes.get(subscription_id)

    def _changed(self, subscription_id: str) -> None:
        if self._is_closed:
            return
        now = self._subscriptions.get(subscription_id)
        lane = self._lanes.get(subscription_id)
        if lane is not None and now is not None and now.active and _same_place(lane.subscription, now):
            if lane.subscription.url != now.url:
                lane.health.succeeded()
            lane.subscription = now
        else:
            self._stop(subscription_id)
            if now is not None and now.active:
                self._start(now)
        if self._subscriptions.count and RETRIES not in self._runs:
            retries = Retries(
                retry_consumer(self._connection),
                self.lane,
                self._subscriptions,
                self._attempts,
                self._log,
                self._clock,
            )
            self._runs[RETRIES] = retries, asyncio.create_task(retries.run())
        elif not self._subscriptions.count:
            self._end(RETRIES)

    def _start(self, subscription: Subscription) -> None:
        lane = self._lanes[subscription.id] = Lane(subscription)
        pull = event_consumer(self._connection, subscription, self._events_kept_s)
        follower = Follower(pull, lane, self._attempts, self._log, self._clock)
        self._runs[subscription.id] = follower, asyncio.create_task(follower.run())

    def _stop(self, subscription_id: str) -> None:
        self._lanes.pop(subscription_id, None)
        self._end(subscription_id)

    def _end(self, name: str) -> None:
        if name in self._runs:
            _, task = self._runs.pop(name)
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def _same_place(before: Subscription, now: Subscription) -> bool:
    return before.subjects() == now.subjects() and before.from_sequence == now.from_sequence
