"""The event stream as it grows: every message from now on, once, in order, over reconnects.

An ordered consumer of nats-py: it notices gaps and begins anew behind the last message it saw.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection


class EventFeed:
    """Follows `OJS_EVENTS` for as long as somebody wants it."""

    def __init__(self, connection: Connection, on_message: Callable[[int, bytes], None]) -> None:
        """`on_message(sequence, payload)` must return at once."""
        self._connection = connection
        self._on_message = on_message
        self._subscription: Any = None

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""
        return self._subscription is not None

    async def open(self) -> int:
        """Start; the sequence of the last message before the first one that comes. Raises Unavailable."""
        last = int((await self._connection.stream_info(names.EVENT_STREAM))["state"]["last_seq"])
        config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=last + 1)
        self._subscription = await self._connection.subscribe_ordered("ojs.events.>", self._received, config)
        return last

    async def close(self) -> None:
        """Stop."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error):  # the connection may be gone, and the consumer with it
                await subscription.unsubscribe()

    async def _received(self, message: Msg) -> None:
        self._on_message(message.metadata.sequence.stream, message.data)
