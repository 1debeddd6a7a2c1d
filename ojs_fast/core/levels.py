"""Strict priority over nodes: no job enters a level of a queue before every node drains that level.

A new level stands in the queue's entry as opening; whoever wants to enqueue there asks each live node whether it knows
that entry, waits for the last one, and opens the level for all. A node that is silent is waited for until its lease
ends; by then it looks its queues up itself before it fetches (`Leases.is_current`), so it can miss no level either.
"""

import asyncio
import time

from ojs_fast.core.peers import Peers
from ojs_fast.core.queues import Queues
from ojs_fast.errors import BackendUnavailable
from ojs_fast.storage.connection import NodeMessage
from ojs_fast.storage.leases import Leases

LEARN = b"learn "
KNOWN = b"known"
# A node that starts or reconnects does not listen yet: it is asked again.
ASK_AGAIN_S = 0.02
# Twice what a silent node's lease lasts.
LONGEST_S = 10.0


class Levels:
    """Makes every node know a queue's levels."""

    def __init__(self, queues: Queues, leases: Leases, peers: Peers) -> None:
        self._queues = queues
        self._leases = leases
        self._peers = peers

    async def announce(self, queue: str, revision: int) -> None:
        """Return when no node fetches from the queue by an older entry than this. Raises Unavailable, OJSError."""
        end = time.monotonic() + LONGEST_S
        knowing = {self._leases.node_id}
        question = LEARN + b"%d %s" % (revision, queue.encode())
        # From NATS, not from the watch: a node that is not listed by now loads the entry when it starts.
        asked = await self._leases.listed_nodes()
        while asked := asked - knowing:
            answers = await asyncio.gather(*(self._peers.ask(node_id, question) for node_id in asked))
            knowing.update(node_id for node_id, answer in zip(asked, answers, strict=True) if answer == KNOWN)
            if asked - knowing:
                if time.monotonic() > end:
                    raise BackendUnavailable(f"Queue '{queue}' cannot get a new priority: a node does not answer.")
                await asyncio.sleep(ASK_AGAIN_S)
                asked &= await self._leases.listed_nodes()

    async def answer(self, msg: NodeMessage) -> bytes:
        """Learn the entry that another node tells of. Raises Unavailable."""
        revision, _, queue = msg.data[len(LEARN) :].partition(b" ")
        return KNOWN if await self._queues.has_learnt(queue.decode(), int(revision)) else b""
