"""Walks over a stream: everything once, in order, in both directions, however rare the subject."""

from __future__ import annotations

import asyncio

import pytest

from ojs_fast.storage import walks
from ojs_fast.storage.connection import Connection
from tests.support.nats import Nats


@pytest.mark.parametrize(
    "gaps", [[], [1], [1] * 1700, [400] * 6, [1] * 600 + [3000] + [1] * 600, [2000, 1, 1]], ids=range(6)
)
async def test_both_directions_find_every_message(gaps: list[int]) -> None:
    """Messages of one subject lie so many sequences apart, among others."""
    with Nats() as nats:
        connection = Connection()
        await connection.open([nats.url], name="test")
        await connection.api("STREAM.CREATE.S", {"name": "S", "subjects": ["s.>"], "allow_direct": True})
        expected: list[int] = []
        last = 0
        for gap in gaps:
            for _ in range(gap - 1):
                connection.send("s.other", b"x")
            connection.send("s.mine.1", b"y")
            last += gap
            expected.append(last)
        for _ in range(7):
            connection.send("s.other", b"x")
        await connection.write("s.other", b"x")
        for walk, order in ((walks.oldest_first, 1), (walks.newest_first, -1)):
            async with asyncio.timeout(20):
                found = [message.sequence async for page in walk(connection, "S", "s.mine.*") for message in page]
            assert found == expected[::order]
        await connection.close()
