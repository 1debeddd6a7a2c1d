"""Deliveries that are tried again: every node takes from one consumer of the entries under `open.`.

NATS hands each entry to one node, which gives it back until it is due. An attempt replaces the entry by
compare-and-set; what replaces it comes by itself, and so does what a dead node had in hand.
"""

import asyncio
import logging
from collections.abc import Callable

import orjson

from ojs_fast.core.clock import NowMs
from ojs_fast.core.webhooks.attempts import Attempts, Lane
from ojs_fast.core.webhooks.deliveries import OPEN, Delivery, DeliveryLog
from ojs_fast.core.webhooks.follower import end_all
from ojs_fast.core.webhooks.subscriptions import Subscriptions
from ojs_fast.errors import NotFound
from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.durable_pull import DurablePull, Pulled
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

PULL_S = 30.0
TROUBLE_S = 1.0
BUSY_S = 1.0
#: How often the entry of a paused subscription is looked at.
PAUSED_S = 5.0
#: A consumer forgets nothing for so long, but a clock that jumps must not hide an entry for a day.
LONGEST_WAIT_S = 3600.0


def retry_consumer(connection: Connection) -> DurablePull:
    """The consumer of all entries that wait for another attempt."""
    config = {
        "deliver_policy": "all",
        "filter_subject": names.bucket_subject(names.DELIVERIES, f"{OPEN}.>"),
        "max_ack_pending": -1,  # whatever waits for its time is pending
    }
    return DurablePull(connection, names.bucket_stream(names.DELIVERIES), names.RETRIES_CONSUMER, config)


class Retries:
    """Runs while there is any subscription."""

    def __init__(
        self,
        pull: DurablePull,
        lanes: Callable[[str], Lane | None],
        subscriptions: Subscriptions,
        attempts: Attempts,
        delivery_log: DeliveryLog,
        clock: NowMs,
    ) -> None:
        """`lanes(subscription id)`: None for one that is not active."""
        self._pull = pull
        self._lanes = lanes
        self._subscriptions = subscriptions
        self._attempts = attempts
        self._log = delivery_log
        self._clock = clock
        #: how long what is in hand may go on when `run` is cancelled
        self.grace_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take and send until cancelled; what is in hand then goes back."""
        try:
            while True:
                try:
                    await self._pull.open()
                    while True:
                        message = await self._pull.next(PULL_S)
                        if message is not None:
                            await self._sort(message)
                except Unavailable as error:
                    log.info("webhook retries go on later: %s", error)
                except Exception:
                    log.exception("webhook retries go on later")
                await asyncio.sleep(TROUBLE_S)
        finally:
            await end_all(self._tasks, self.grace_s)
            await self._pull.close()

    async def _sort(self, message: Pulled) -> None:
        """Leave an entry for later, or start its attempt; never waits for one."""
        try:
            delivery = Delivery.read(orjson.loads(message.data)) if message.data and not message.is_marker else None
        except (orjson.JSONDecodeError, TypeError):  # none of ours
            delivery = None
        if delivery is None:
            message.done()
            return
        lane = self._lanes(delivery.subscription_id)
        wait_s = (delivery.next_ms - self._clock()) / 1000
        if lane is None:
            await self._without_lane(message, delivery)
        elif wait_s > 0:
            message.later(min(wait_s, LONGEST_WAIT_S))
        elif lane.health.break_s:
            message.later(lane.health.break_s)
        elif lane.slots.locked():
            message.later(BUSY_S)
        else:
            await lane.slots.acquire()
            task = asyncio.create_task(self._try(message, delivery, lane))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def _without_lane(self, message: Pulled, delivery: Delivery) -> None:
        try:
            await self._subscriptions.load(delivery.subscription_id)
        except NotFound:
            await self._log.drop(delivery, message.sequence)
            message.done()
        else:
            message.later(PAUSED_S)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a webhook delivery is given back", exc_info=error)

    async def _try(self, message: Pulled, delivery: Delivery, lane: Lane) -> None:
        keep = asyncio.create_task(message.keep())
        is_done = False
        try:
            if await self._log.is_delivered(delivery):
                await self._log.drop(delivery, message.sequence)
            else:
                await self._attempts.make(lane, delivery)
                await self._log.update(delivery, message.sequence)
                await self._attempts.pause_if_failing(lane)
            is_done = True
        except RevisionConflict:
            is_done = True  # replaced or removed meanwhile: what it is now comes by itself
        except Unavailable as error:
            log.info("a webhook delivery is given back: %s", error)
        finally:
            keep.cancel()
            lane.slots.release()
            if is_done:
                message.done()
            else:
                message.later(TROUBLE_S)
            await asyncio.gather(keep, return_exceptions=True)
