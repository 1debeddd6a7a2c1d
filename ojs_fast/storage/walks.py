"""Walks over the messages of a stream in either direction, a few hundred at a time.

NATS reads forward only. Backwards, windows of sequences are read, wider where the subject is rare.
"""

from collections.abc import AsyncIterator

from ojs_fast import _core
from ojs_fast.storage.connection import Connection

READ_AT_ONCE = 500
WIDEST = 1 << 22


async def oldest_first(connection: Connection, stream: str, subject: str) -> AsyncIterator[list[_core.WireMessage]]:
    """Every live message whose subject matches, in pages, up to the newest there is now. Raises Unavailable.

    So whoever changes what is found does not meet the messages of these changes.
    """
    after, last = await _bounds(connection, stream)
    after -= 1
    while after < last:
        query = {"next_by_subj": subject, "seq": after + 1, "batch": READ_AT_ONCE}
        batch = await connection.get_batch(stream, query)
        yield [message for message in batch if message.is_live and message.sequence <= last]
        if len(batch) < READ_AT_ONCE:
            return
        after = batch[-1].sequence


async def newest_first(connection: Connection, stream: str, subject: str) -> AsyncIterator[list[_core.WireMessage]]:
    """The same from the newest on. Raises Unavailable."""
    first, last = await _bounds(connection, stream)
    width = READ_AT_ONCE
    while last >= first:
        start = max(first, last - width + 1)
        query = {"next_by_subj": subject, "seq": start, "batch": READ_AT_ONCE}
        batch = [message for message in await connection.get_batch(stream, query) if message.sequence <= last]
        if len(batch) == READ_AT_ONCE and last - start >= READ_AT_ONCE:
            width //= 2  # the window may hold more than one reading can bring
            continue
        yield [message for message in reversed(batch) if message.is_live]
        last = start - 1
        if len(batch) < READ_AT_ONCE // 4:
            width = min(2 * width, WIDEST)


async def _bounds(connection: Connection, stream: str) -> tuple[int, int]:
    state = (await connection.stream_info(stream))["state"]
    return int(state["first_seq"]), int(state["last_seq"])
