"""Batches written ahead: an intent, its records and a `done`, in one flush and without an atomic batch.

Only for a NATS that acknowledges before it syncs: there an atomic batch costs 2 ms and a third write of each record
(docs/performance.md). One stream handles one connection's messages in order, so what a crash cuts off is a suffix:
without the intent nothing is there; an intent without its `done` names records that no worker has seen, because
work messages follow `done`; whoever finds it writes those that are missing.

All of one slot's writes demand the revision of its last `done`. Whoever finishes a slot's batch in the owner's stead
writes `done` anew first, and what the owner still sends is refused from then on. Knows records only as bytes.
"""

import itertools
import logging
from dataclasses import dataclass

import orjson

from ojs_fast import _core
from ojs_fast.storage import names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import Connection, PubAck
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.records import Records

log = logging.getLogger(__name__)

Batch = list[tuple[str, bytes]]

# How long a fence outlives its slot: longer than a stopped process may sleep with a batch half sent.
FENCE_TTL_S = 24 * 3600
ATTEMPTS = 5
ID_BYTES = 64  # what an intent holds beside the bytes of one record, generously

_PREFIX = names.bucket_subject(names.JOBS, "")
_FENCED = (
    b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\nNats-Expected-Last-Subject-Sequence-Subject: %s\r\n\r\n"
)


class _Refused(Exception):
    """Some write of a batch was not accepted."""


@dataclass(slots=True)
class _Slot:
    """Room for one batch at a time; `number` counts them, `fence` is the revision of the last `done`."""

    key: str
    number: int = 0
    fence: int = 0


class IntentLog:
    """One node's batches on their way, and those that dead nodes left half written."""

    def __init__(self, connection: Connection, records: Records, node_id: str) -> None:
        self._connection = connection
        self._records = records
        self._bucket = Bucket(connection, names.JOBS)
        self._node_id = node_id
        self._numbers = itertools.count()
        self._free: list[_Slot] = []
        # Slots whose last batch has an unknown outcome and nobody waiting for it.
        self._doubtful: list[_Slot] = []

    def fits(self, batch: Batch) -> bool:
        """True when one message can hold the whole batch."""
        return sum(len(stored) + ID_BYTES for _, stored in batch) < self._connection.max_record_bytes

    async def create_all(self, batch: Batch) -> list[int]:
        """Create the records of one batch, all or none, under ids that nobody else can have.

        Returns their revisions, 0 for one that was changed meanwhile. Raises Unavailable when NATS stays away;
        then all of them exist in the end, or none.
        """
        for _ in range(ATTEMPTS):
            await self._connection.ready()
            slot = self._free.pop() if self._free else _Slot(f"{self._node_id}.{next(self._numbers)}")
            slot.number += 1
            revisions = await self._create(slot, batch)
            if revisions is not None:
                return revisions
        raise Unavailable("a batch gets lost again and again before it reaches NATS")

    async def _create(self, slot: _Slot, batch: Batch) -> list[int] | None:
        is_settled = False
        try:
            try:
                revisions: list[int] | None = await self._write(slot, batch, _intent(slot.number, batch))
                self._free.append(slot)
            except (Unavailable, _Refused) as error:
                log.info("a batch is looked after: %s", error)
                revisions = await self._resolve(slot, batch)
            is_settled = True
        finally:
            if not is_settled:
                self._doubtful.append(slot)
        return revisions

    async def _resolve(self, slot: _Slot, batch: Batch) -> list[int] | None:
        """What became of a batch, None when nothing of it exists; the slot is not used again."""
        number, _ = await self._finish(slot.key)
        if number != slot.number:
            return None
        found = await self._records.get_many(job_id for job_id, _ in batch)
        return [found[job_id][1] if found.get(job_id, (b"",))[0] == stored else 0 for job_id, stored in batch]

    async def _write(self, slot: _Slot, records: Batch, intent: bytes = b"", ttl_s: int = 0) -> list[int]:
        """Send what is given and `done` in one flush; the records' revisions. Raises Unavailable, _Refused."""
        done = _PREFIX + _done_key(slot.key)
        header = _FENCED % (slot.fence, done.encode())
        writes = [(_intent_key(slot.key), intent), *records] if intent else records
        acks: list[PubAck] = []

        def collect(message: _core.WireMessage) -> bool:
            acks.append(_core.parse_pub_ack(message.data))
            if len(acks) <= len(writes):
                return False
            if not answered.done():
                answered.set_result(None)
            return True

        reply, answered = self._connection.expect(collect)
        send = self._connection.send
        for key, value in writes:
            send(_PREFIX + key, value, reply, header)
        send(done, b"%d" % slot.number, reply, header[:-2] + b"Nats-TTL: %ds\r\n\r\n" % ttl_s if ttl_s else header)
        try:
            await answered
        finally:
            self._connection.forget(reply)
        for _, code, description in acks:
            if code:
                raise _Refused(f"JetStream refused a write in slot {slot.key}: {description} (error {code})")
        slot.fence = acks[-1][0]
        return [sequence for sequence, _, _ in acks[len(acks) - 1 - len(records) : -1]]

    # -- what was left half written --------------------------------------------------------------

    async def settle(self) -> list[str]:
        """Finish this node's batches whose requests ended too early; the ids of their jobs. Raises Unavailable."""
        jobs: list[str] = []
        while self._doubtful:
            jobs += (await self._finish(self._doubtful[0].key))[1]
            self._doubtful.pop(0)
        return jobs

    async def finish_dead(self, live: set[str]) -> int:
        """Finish the batches of nodes that are not `live`; how many slots they left. Raises Unavailable."""
        keys = await self._bucket.keys(_intent_key(">"))
        left = [key.partition(".")[2] for key in keys]
        dead = [slot_key for slot_key in left if slot_key.partition(".")[0] not in live]
        for slot_key in dead:
            await self._finish(slot_key)
        return len(dead)

    async def _finish(self, slot_key: str) -> tuple[int, list[str]]:
        """Fence a slot for good and write what its last batch lacks.

        Returns the number of its last complete batch and, if its intent still lies there, the ids of its jobs.
        Raises Unavailable.
        """
        slot = await self._fence(slot_key)
        found = await self._records.get(_intent_key(slot_key))
        if found is None:
            return slot.number, []
        number, batch = _parse_intent(found[0])
        if number != slot.number:
            there = await self._records.get_many(job_id for job_id, _ in batch)
            slot.number = number
            try:
                await self._write(slot, [one for one in batch if one[0] not in there], ttl_s=FENCE_TTL_S)
            except _Refused as error:  # somebody else finishes it, or NATS takes nothing
                raise Unavailable(str(error)) from error
            log.info("a batch was completed", extra={"jobs": len(batch), "missing": len(batch) - len(there)})
        await self._bucket.erase(_intent_key(slot_key))
        return number, [job_id for job_id, _ in batch]

    async def _fence(self, slot_key: str) -> _Slot:
        for _ in range(ATTEMPTS):
            number, revision = await self._bucket.last(_done_key(slot_key))
            slot = _Slot(slot_key, number or 0, revision)
            try:
                await self._write(slot, [], ttl_s=FENCE_TTL_S)
            except _Refused as error:  # a `done` came in between
                log.info("a slot is fenced again: %s", error)
                continue
            return slot
        raise Unavailable(f"slot {slot_key} cannot be fenced: somebody else writes to it")

    # -- life ------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Remove the traces of this node's slots, unless a batch of theirs is open. Raises Unavailable."""
        if self._free and not self._doubtful:
            await self._bucket.erase(_intent_key(f"{self._node_id}.>"))
            await self._bucket.erase(_done_key(f"{self._node_id}.>"))

    def forget(self) -> None:
        """Drop every slot (after a reset)."""
        self._free.clear()
        self._doubtful.clear()


def _intent_key(slot_key: str) -> str:
    return f"intent.{slot_key}"


def _done_key(slot_key: str) -> str:
    return f"done.{slot_key}"


def _intent(number: int, batch: Batch) -> bytes:
    head = orjson.dumps([number, [job_id for job_id, _ in batch], [len(stored) for _, stored in batch]])
    return b"".join([head, b"\n", *[stored for _, stored in batch]])


def _parse_intent(intent: bytes) -> tuple[int, Batch]:
    head, _, rest = intent.partition(b"\n")
    number, job_ids, lengths = orjson.loads(head)
    ends = list(itertools.accumulate(lengths))
    return number, [(job_id, rest[end - size : end]) for job_id, size, end in zip(job_ids, lengths, ends, strict=True)]
