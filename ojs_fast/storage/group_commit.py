"""Group commit, for a NATS that syncs before it acknowledges: writes that wait share the next sync.

nats-server syncs every single write by itself, but an atomic batch once (docs/performance.md). So a few writes go
alone; those that come while they are under way go together in one batch. A batch that is refused because one of
its members lost its compare-and-set is halved until the loser is alone, so each write has an outcome of its own.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ojs_fast.storage.errors import Unavailable

if TYPE_CHECKING:
    from ojs_fast.storage.connection import Connection, PubAck

# Fewer writes than this are faster alone than in a batch, which has a fixed cost of several syncs.
ALONE = 8
BATCH_LIMIT = 1000
BATCH_BYTES = 8 * 1024 * 1024
# The id of a batch whose members stand for themselves begins with it (no other's does: they are hexadecimal).
GROUP_MARK = "g"


@dataclass(slots=True, frozen=True)
class _Write:
    subject: str
    payload: bytes
    header: bytes
    outcome: "asyncio.Future[PubAck]"


class GroupCommit:
    """The writes of one node to one stream that allows atomic batches."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Write] = deque()
        self._under_way = 0
        self._is_due = False

    def write(self, subject: str, payload: bytes, header: bytes) -> "asyncio.Future[PubAck]":
        """As `Connection.write`."""
        outcome: asyncio.Future[PubAck] = self._loop.create_future()
        self._waiting.append(_Write(subject, payload, header, outcome))
        self._start_soon()
        return outcome

    def _start_soon(self) -> None:
        # Not at once: what the same turn of the event loop brings belongs to the same group.
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._is_due = False
        if self._under_way + len(self._waiting) <= ALONE:
            while self._waiting:
                self._send_alone(self._waiting.popleft())
        elif not self._under_way:
            self._send_together(self._next_group())

    def _ended(self, count: int) -> None:
        self._under_way -= count
        if self._waiting:
            self._start_soon()

    def _next_group(self) -> list[_Write]:
        group: list[_Write] = []
        subjects: set[str] = set()
        size = 0
        while self._waiting and len(group) < BATCH_LIMIT and size < BATCH_BYTES:
            write = self._waiting[0]
            # A batch checks all its members against what was there before it.
            if write.header and write.subject in subjects:
                break
            subjects.add(write.subject)
            size += len(write.payload)
            group.append(self._waiting.popleft())
        return group

    def _send_alone(self, write: _Write) -> None:
        self._under_way += 1
        answer = self._connection.write_alone(write.subject, write.payload, write.header)

        def settle(answer: "asyncio.Future[PubAck]") -> None:
            _settle(write.outcome, answer)
            self._ended(1)

        answer.add_done_callback(settle)

    def _send_together(self, group: list[_Write]) -> None:
        if len(group) <= ALONE:
            for write in group:
                self._send_alone(write)
            return
        self._under_way += len(group)
        batch = [(write.subject, write.payload, write.header) for write in group]
        answer = self._connection.write_batch(batch, GROUP_MARK)

        def settle(answer: "asyncio.Future[PubAck]") -> None:
            error = answer.exception()
            if error is None and answer.result()[1]:
                half = len(group) // 2
                self._send_together(group[:half])
                self._send_together(group[half:])
            else:
                sequence = 0 if error is not None else answer.result()[0] - len(group)
                for number, write in enumerate(group, 1):
                    if error is not None:
                        _fail(write.outcome, error)
                    elif not write.outcome.done():
                        write.outcome.set_result((sequence + number, 0, ""))
            self._ended(len(group))

        answer.add_done_callback(settle)


def _settle(outcome: "asyncio.Future[Any]", answer: "asyncio.Future[Any]") -> None:
    error = answer.exception()
    if error is not None:
        _fail(outcome, error)
    elif not outcome.done():
        outcome.set_result(answer.result())


def _fail(outcome: "asyncio.Future[Any]", error: BaseException) -> None:
    if not outcome.done():
        outcome.set_exception(Unavailable(str(error)))
        outcome.exception()  # whoever waits sees it; a write whose caller is gone is no unhandled error
