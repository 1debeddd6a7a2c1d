"""Asking the other live nodes what only they know, and telling them what became of what they hold."""

import asyncio
import logging

from ojs_fast.core.stores import Stores
from ojs_fast.storage import names
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.leases import Leases

log = logging.getLogger(__name__)

# A node that does not answer in this time counts as one that has nothing to tell.
ANSWER_S = 1.0


class Peers:
    """The nodes beside this one."""

    def __init__(self, stores: Stores, leases: Leases) -> None:
        self._stores = stores
        self._leases = leases

    def settled(self, holder: str, job_id: str, revision: int) -> None:
        """A job that a node had claimed was settled here, at this revision: whoever holds it may let go."""
        if holder == self._leases.node_id:
            return
        # Whoever adopted the claim of a dead node is known to nobody else.
        subject = names.node_subject(holder) if self._leases.renews(holder) else names.ALL_NODES
        self._stores.connection.send(subject, b"%b %d" % (job_id.encode(), revision))

    async def ask(self, node_id: str, question: bytes) -> bytes | None:
        """What one node answers, None when it does not in ANSWER_S."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return (await self._stores.connection.request(names.node_subject(node_id), question)).data
        except (Unavailable, TimeoutError) as error:
            log.debug("node %s does not answer: %r", node_id, error)
            return None

    async def ask_others(self, question: bytes) -> list[bytes]:
        """The answers of all live nodes but this one that give one."""
        others = list(self._leases.live_nodes() - {self._leases.node_id})
        answers = await asyncio.gather(*(self.ask(node_id, question) for node_id in others))
        for node_id, answer in zip(others, answers, strict=True):
            if answer is None:
                log.info("node %s does not tell what it knows", node_id)
        return [answer for answer in answers if answer is not None]
