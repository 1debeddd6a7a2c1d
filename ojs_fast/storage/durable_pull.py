"""A durable pull consumer that all nodes share: each message to one of them, again when that one dies.

Used for what takes long (webhooks); the work queue has its own, faster ways.
"""

import asyncio
import contextlib
from typing import Any

import orjson
from nats.aio.msg import Msg

from ojs_fast.storage import consumers
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable

# How long a node may be silent about a message before another one gets it.
ACK_WAIT_S = 15.0
WORKING_EVERY_S = 4.0
LATE_S = 1.0
NS_PER_S = 1_000_000_000


class ConsumerGone(Unavailable):
    """There is no such consumer (any more)."""


class Pulled:
    """One message in hand; exactly one of `done` and `later` ends it."""

    def __init__(self, connection: Connection, msg: Msg) -> None:
        self._connection = connection
        self._reply = msg.reply
        self.data = msg.data
        self.subject = msg.subject
        self.sequence = msg.metadata.sequence.stream
        #: how often it was handed out, this time included
        self.deliveries = msg.metadata.num_delivered or 1
        self.is_marker = "KV-Operation" in (msg.headers or {}) or "Nats-Marker-Reason" in (msg.headers or {})

    def done(self) -> None:
        """Never deliver it again."""
        self._connection.send(self._reply, b"+ACK")

    def later(self, delay_s: float) -> None:
        """Deliver it again, to any node, after this time."""
        delay_ns = int(max(0.0, delay_s) * NS_PER_S)
        self._connection.send(self._reply, b'-NAK {"delay":%d}' % delay_ns if delay_ns else b"-NAK")

    async def keep(self) -> None:
        """Until cancelled, tell NATS that this node still works on it."""
        while True:
            await asyncio.sleep(WORKING_EVERY_S)
            self._connection.send(self._reply, b"+WPI")


class DurablePull:
    """One node's side of a consumer."""

    def __init__(self, connection: Connection, stream: str, name: str, config: dict[str, Any]) -> None:
        """`config`: what a consumer has beside its name and its way of acknowledging (NATS API)."""
        self._connection = connection
        self._stream = stream
        self._name = name
        self._config = config
        self._inbox = ""
        self._subscription: Any = None
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()

    async def open(self) -> None:
        """Make the consumer, or bring it up to date, and listen. Raises Unavailable."""
        config = {
            "durable_name": self._name,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT_S * NS_PER_S),
            "max_deliver": -1,
            **self._config,
        }
        await consumers.create(self._connection, self._stream, config)
        if self._subscription is None:
            self._connection.on_disconnect(self._cut)
            self._inbox = self._connection.new_inbox()
            self._subscription = await self._connection.subscribe(self._inbox, self._received)

    async def _received(self, msg: Msg) -> None:
        self._arrived.put_nowait(msg)

    def _cut(self) -> None:
        self._arrived.put_nowait(None)  # whoever waits would wait for an answer that went down with the connection

    async def next(self, wait_s: float) -> Pulled | None:
        """The next message, None when none comes in this time. Raises ConsumerGone, Unavailable."""
        if self._arrived.empty():
            await self._connection.ready()
            request = orjson.dumps({"batch": 1, "expires": int(wait_s * NS_PER_S)})
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
            await self._connection.publish_behind(subject, request, self._inbox)
        try:
            async with asyncio.timeout(wait_s + LATE_S):
                msg = await self._arrived.get()
        except TimeoutError:
            return None
        if msg is None:
            raise Unavailable("the NATS connection was lost")
        status = (msg.headers or {}).get("Status", "")
        if status in ("503", "409"):  # no consumer; deleted, or another leader
            raise ConsumerGone(f"the consumer {self._name} does not answer")
        return None if status else Pulled(self._connection, msg)

    async def close(self) -> None:
        """Give back what came too late and stop listening; the consumer stays."""
        self._connection.off_disconnect(self._cut)
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(Exception):  # the connection may be gone
                await subscription.unsubscribe()
        while not self._arrived.empty():
            msg = self._arrived.get_nowait()
            if msg is not None and "Status" not in (msg.headers or {}):
                Pulled(self._connection, msg).later(0)
