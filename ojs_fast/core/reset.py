"""Wipe everything, for test suites only: finished when it returns, on every node."""

import asyncio
import logging
from collections.abc import Callable

from ojs_fast.core.stores import Stores
from ojs_fast.core.tallies import Tallies
from ojs_fast.core.webhooks.service import Webhooks
from ojs_fast.storage import names
from ojs_fast.storage.connection import NodeMessage
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.leases import Leases

log = logging.getLogger(__name__)

RESET = b"reset"
KEPT = (names.NODES,)


class Resetter:
    """Purges streams and makes every node forget what it holds in memory."""

    def __init__(
        self, stores: Stores, leases: Leases, tallies: Tallies, webhooks: Webhooks, forget: Callable[[], None]
    ) -> None:
        self._stores = stores
        self._leases = leases
        self._tallies = tallies
        self._webhooks = webhooks
        self._forget = forget

    async def answer(self, msg: NodeMessage) -> None:
        """Forget because another node resets."""
        self._forget()
        await self._tallies.quiet()
        if msg.reply:
            await self._stores.connection.reply(msg, b"done")

    async def run(self) -> None:
        """Wipe all state. Raises Unavailable."""
        await self._stores.work.arrived()
        self._forget()
        for info in await self._stores.work.consumers():
            await self._stores.connection.api(f"CONSUMER.DELETE.{names.WORK_STREAM}.{info['name']}")
        await self._webhooks.wipe()
        buckets = [names.bucket_stream(bucket) for bucket in names.BUCKETS if bucket not in KEPT]
        streams = [names.WORK_STREAM, names.EVENT_STREAM, names.STATS_STREAM, *buckets]
        answers = await asyncio.gather(*(self._stores.connection.api(f"STREAM.PURGE.{stream}") for stream in streams))
        for stream, answer in zip(streams, answers, strict=True):
            if "error" in answer:
                raise Unavailable(f"purging {stream} failed: {answer['error'].get('description')}")
        others = self._leases.live_nodes() - {self._leases.node_id}
        await asyncio.gather(
            *(self._stores.connection.request(names.node_subject(node_id), RESET) for node_id in others)
        )
        self._forget()
        await self._tallies.quiet()
        # What a node had under way when it was told to forget.
        await self._stores.connection.api(f"STREAM.PURGE.{names.bucket_stream(names.TALLIES)}")
