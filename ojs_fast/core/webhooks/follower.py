"""One subscription's share of the events on one node: takes messages of the event stream, sends what matches.

A message is a JSON array of up to a thousand events. It is acknowledged once each matching event was tried and what
came of it is written down; a failed one is then tried again by itself (retries.py). If the node dies before, another
one gets the whole message and leaves out what is written down.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

import orjson

from ojs_fast.core.clock import NowMs
from ojs_fast.core.webhooks.attempts import AT_ONCE, Attempts, Lane
from ojs_fast.core.webhooks.deliveries import Delivery, DeliveryLog, delivery_id
from ojs_fast.core.webhooks.model import Subscription
from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.durable_pull import ConsumerGone, DurablePull, Pulled
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

PULL_S = 30.0
TROUBLE_S = 1.0
#: Messages in hand; one more only while fewer events than this wait, so that memory stays small.
MESSAGES = 8
EVENTS_WAITING = 64
NS_PER_S = 1_000_000_000


def event_consumer(connection: Connection, subscription: Subscription, kept_s: int) -> DurablePull:
    """The consumer that holds a subscription's place in the event stream; `kept_s`: how long events are kept, 0 = ever.

    One that nobody used for as long has nothing left behind it: it goes, and is made again from the beginning.
    """
    config = {
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": subscription.from_sequence + 1,
        "filter_subjects": subscription.subjects(),
        "max_ack_pending": 1000,
        "inactive_threshold": (kept_s + 3600) * NS_PER_S if kept_s else 0,
    }
    return DurablePull(connection, names.EVENT_STREAM, names.webhook_consumer(subscription.id), config)


class Follower:
    """Runs while its subscription is active."""

    def __init__(self, pull: DurablePull, lane: Lane, attempts: Attempts, log: DeliveryLog, clock: NowMs) -> None:
        self._pull = pull
        self._lane = lane
        self._attempts = attempts
        self._log = log
        self._clock = clock
        #: how long what is in hand may go on when `run` is cancelled
        self.grace_s = 0.0
        self._waiting = 0
        self._less = asyncio.Event()
        self._messages: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take and send until cancelled; what is in hand then goes back."""
        try:
            while True:
                try:
                    await self._pull.open()
                    await self._take()
                except ConsumerGone as error:
                    log.info("webhook consumer is made again: %s", error)
                except Unavailable as error:
                    log.info("webhook events are taken again: %s", error)
                except Exception:
                    log.exception("webhook events are taken again")
                await asyncio.sleep(TROUBLE_S)
        finally:
            await end_all(self._messages, self.grace_s)
            await self._pull.close()

    async def _take(self) -> None:
        while True:
            await self._lane.health.ready()
            while len(self._messages) >= MESSAGES or self._waiting >= EVENTS_WAITING:
                self._less.clear()
                await self._less.wait()
            message = await self._pull.next(PULL_S)
            if message is not None:
                task = asyncio.create_task(self._handle(message))
                self._messages.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._messages.discard(task)
        self._less.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("webhook events are given back", exc_info=error)

    async def _handle(self, message: Pulled) -> None:
        keep = asyncio.create_task(message.keep())
        is_done = False
        back_s = 0.0
        try:
            is_done = await self._send_all(message)
            back_s = self._lane.health.break_s or TROUBLE_S
        except Unavailable as error:
            log.info("webhook events are given back: %s", error)
            back_s = TROUBLE_S
        finally:
            keep.cancel()
            if is_done:
                message.done()
            else:
                message.later(back_s)
            await asyncio.gather(keep, return_exceptions=True)

    async def _send_all(self, message: Pulled) -> bool:
        """True when every event was tried or is not for this subscription, False when not all could be."""
        subscription = self._lane.subscription
        waiting = list(_matching(message.data, subscription, self._clock()))
        if not waiting:
            return True
        if message.deliveries > 1:
            known = await self._log.known(subscription.id, [one.id for one in waiting])
            waiting = [one for one in waiting if one.id not in known]
        self._waiting += len(waiting)
        left = iter(waiting)
        try:
            async with asyncio.TaskGroup() as group:
                done = [group.create_task(self._send_each(left)) for _ in range(min(AT_ONCE, len(waiting)))]
        finally:
            self._waiting -= len(waiting)
        return all(task.result() for task in done)

    async def _send_each(self, left: Iterator[Delivery]) -> bool:
        for delivery in left:
            async with self._lane.slots:
                if self._lane.health.break_s:
                    return False
                try:
                    await self._attempts.make(self._lane, delivery)
                    await self._log.enter(delivery)
                    await self._attempts.pause_if_failing(self._lane)
                except Unavailable as error:
                    log.info("webhook events are given back: %s", error)
                    return False
        return True


async def end_all(tasks: "set[asyncio.Task[None]]", grace_s: float) -> None:
    """Cancel what does not end by itself in this time."""
    if tasks and grace_s:
        await asyncio.wait(tasks, timeout=grace_s)
    for task in (left := list(tasks)):
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _matching(payload: bytes, subscription: Subscription, now_ms: int) -> Iterator[Delivery]:
    if not subscription.may_match(payload):
        return
    try:
        events = orjson.loads(payload)
    except orjson.JSONDecodeError:  # not one of ours
        return
    for event in events if isinstance(events, list) else ():
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # not one of ours
            if subscription.matches(event):
                event_id = str(event["id"])
                one = delivery_id(subscription.id, event_id)
                yield Delivery(one, subscription.id, event_id, str(event["type"]), now_ms, event=orjson.dumps(event))
