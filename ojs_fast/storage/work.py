"""The work queue in stream `OJS`: publish work messages, pull them, acknowledge them.

Concurrent fetches of one queue share its pulls, and the work messages of one flush share one PubAck: NATS
handles a connection's messages in order, so the last PubAck speaks for all before it. Knows subjects,
consumers and sequences, no job rule.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ojs_fast import _core
from ojs_fast.storage import consumers, names
from ojs_fast.storage.connection import NO_MESSAGE_FOUND, Connection, PubAck
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.recounts import Recounts

log = logging.getLogger(__name__)

# Long, because deadlines are ours: redelivery only saves what a dead node pulled and nobody repaired.
ACK_WAIT_NS = 24 * 3600 * 1_000_000_000
# No messages; requests pending.
EMPTY = ("404", "408")
# A pull that no message fits into tells whether there is one.
TOO_SMALL_FOR_ANY = b'{"batch":1,"no_wait":true,"max_bytes":1}'
# NATS tells consumers of a message beside acknowledging it: a pull right behind that waits 20 ms for the first one.
PATIENT = b',"expires":20000000'
CONSUMERS_TOLD_S = 0.005
PULL_LIMIT = 1000
# Flushes with messages that clients were told of and NATS has not acknowledged: more, and NATS does not keep up.
MOST_PROMISES = 100
# Levels in a row that were empty the last time: so many are looked at together before they are pulled from.
WORTH_A_LOOK = 2


@dataclass(slots=True, frozen=True)
class WorkMessage:
    """One delivered work message: `payload` is `revision + record`, `ack_subject` settles it."""

    payload: bytes
    ack_subject: str


@dataclass(slots=True)
class _Puller:
    # One priority level of one queue: at most one pull is under way.
    name: str
    subject: str
    got: list[WorkMessage] = field(default_factory=list)
    asked: int = 0
    done: "asyncio.Future[bool] | None" = None
    exists: bool = False
    # What the last pull or look found; says what to try first, never what to pass over.
    seems_empty: bool = False


@dataclass(slots=True)
class _Taker:
    # One fetch: what it wants and what it has got so far.
    count: int
    one_level: bool
    #: waits a moment for a message that must be there
    is_patient: bool = False
    future: "asyncio.Future[list[WorkMessage]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    got: list[WorkMessage] = field(default_factory=list)


@dataclass(slots=True)
class _Line:
    # Whoever waits for messages of one queue; at most one walk down its levels is under way.
    levels: tuple[int, ...] = ()
    looks: bool = True
    waiting: list[_Taker] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None


class WorkQueue:
    """All work messages, seen from one node."""

    def __init__(self, connection: Connection, recounts: Recounts, replicas: int = 1) -> None:
        self._connection = connection
        self._recounts = recounts
        self._replicas = replicas
        self._pullers: dict[str, _Puller] = {}
        self._lines: dict[str, _Line] = {}
        self._batch: list[tuple[str, bytes]] = []
        self._batch_future: asyncio.Future[PubAck] | None = None
        # Queue → messages that a client may count on though NATS has not acknowledged them yet.
        self._promised: dict[str, set[asyncio.Future[PubAck]]] = {}
        self._promises = 0
        self._last_sequence = 0
        # consumer → its last acknowledgement that NATS may not have handled yet
        self._acked: dict[str, str] = {}

    def open(self) -> None:
        """Listen to deliveries."""
        self._connection.on_delivery(self._delivered)
        self._connection.on_flush(self._flush)
        self._connection.on_disconnect(self._disconnected)

    # -- publish ---------------------------------------------------------------------------------

    def publish(self, queue: str, priority: int, payload: bytes) -> "asyncio.Future[PubAck]":
        """Publish a work message; the future is shared by all of this flush and raises Unavailable.

        Wait by `asyncio.shield`: whoever is cancelled while waiting must not cancel it for all others.
        """
        if self._batch_future is None:
            self._batch_future = asyncio.get_running_loop().create_future()
        shared = self._batch_future
        self._batch.append((names.work_subject(queue, priority), payload))
        try:
            self._connection.flush_soon()
        except Unavailable as error:
            self._batch, self._batch_future = [], None
            shared.set_exception(error)
            shared.exception()
        return shared

    def promise(self, queue: str, message: "asyncio.Future[PubAck]") -> bool:
        """A client is to be told of a job before NATS has acknowledged its message: takes of this node wait for it.

        False when so many are promised that the client must wait as well.
        """
        promised = self._promised.get(queue)
        if promised is not None and message in promised:
            return True
        if self._promises >= MOST_PROMISES:
            return False
        if promised is None:
            promised = self._promised[queue] = set()
        promised.add(message)
        self._promises += 1

        def forget() -> None:
            promised.discard(message)
            if not promised and self._promised.get(queue) is promised:
                del self._promised[queue]

        def arrived(_: "asyncio.Future[PubAck]") -> None:
            self._promises -= 1
            asyncio.get_running_loop().call_later(CONSUMERS_TOLD_S, forget)

        message.add_done_callback(arrived)
        return True

    async def arrived(self) -> None:
        """Wait until every promised message is acknowledged, or lost."""
        promised = set().union(*self._promised.values())
        if promised:
            await asyncio.wait(promised)

    def _flush(self) -> None:
        if self._batch_future is None:
            return
        batch, self._batch = self._batch, []
        shared, self._batch_future = self._batch_future, None
        if self._connection.acks_speak_for_themselves:
            self._write_each(batch, shared)
            return
        token, acked = self._connection.expect()
        last = len(batch) - 1
        for number, (subject, payload) in enumerate(batch):
            self._connection.send(subject, payload, token if number == last else "")
        count = len(batch)

        def settle(answer: "asyncio.Future[PubAck]") -> None:
            if shared.done():
                return
            error = answer.exception()
            if error is None:
                sequence, code, description = answer.result()
                if code == 0 and sequence - self._last_sequence >= count:
                    self._last_sequence = sequence
                    shared.set_result(answer.result())
                    return
                self._last_sequence = max(self._last_sequence, sequence)
                error = Unavailable(f"JetStream refused work messages: {description or 'a gap'} (error {code})")
            shared.set_exception(error)
            # Several callers may share this future and some may be gone.
            shared.exception()

        acked.add_done_callback(settle)

    def _write_each(self, batch: list[tuple[str, bytes]], shared: "asyncio.Future[PubAck]") -> None:
        waiting = len(batch)

        def settle(answer: "asyncio.Future[PubAck]") -> None:
            nonlocal waiting
            waiting -= 1
            error = answer.exception()
            if error is None and answer.result()[1]:
                error = Unavailable(f"JetStream refused work messages: {answer.result()[2]}")
            if shared.done():
                return
            if error is not None:
                shared.set_exception(error)
                shared.exception()
            elif not waiting:
                shared.set_result(answer.result())

        for subject, payload in batch:
            self._connection.write(subject, payload).add_done_callback(settle)

    # -- pull ------------------------------------------------------------------------------------

    async def take(
        self, queue: str, levels: tuple[int, ...], count: int, *, one_level: bool = False, looks: bool = True
    ) -> list[WorkMessage]:
        """Take up to `count` messages, of the first of the levels first, oldest first; empty when there are none.

        A level is passed over only when NATS, asked after this call, has nothing there, so fewer than `count` means
        that nothing else is there; with `one_level`, that the first level that has any has no more. `looks=False` when
        messages may have been given back: a look puts the first of them behind the others. Raises Unavailable.
        Messages stay unacknowledged until `ack`.
        """
        promised = set(self._promised.get(queue, ()))
        got = await self._take(_Taker(count, one_level), queue, levels, looks=looks)
        if not promised or len(got) >= count:
            return got
        try:
            await asyncio.wait(promised)
            return got + await self._take(
                _Taker(count - len(got), one_level, is_patient=True), queue, levels, looks=looks
            )
        except Unavailable:
            if not got:
                raise
            return got
        except asyncio.CancelledError:
            self._give_all_back(got)
            raise

    async def _take(self, taker: _Taker, queue: str, levels: tuple[int, ...], *, looks: bool) -> list[WorkMessage]:
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = _Line()
        line.levels, line.looks = levels, looks
        line.waiting.append(taker)
        if line.task is None:
            line.task = asyncio.create_task(self._serve(queue, line))
        try:
            return await taker.future
        except asyncio.CancelledError:
            taker.future.cancel()
            self._give_all_back(taker.got)
            raise

    async def _serve(self, queue: str, line: _Line) -> None:
        # One walk for all that wait, the next for all that came meanwhile: the more they are, the less a level costs.
        try:
            while line.waiting:
                takers, line.waiting = line.waiting, []
                try:
                    await self._walk(queue, line.levels, takers, looks=line.looks)
                except Unavailable as error:
                    for taker in takers:
                        if not taker.future.done() and not taker.got:
                            taker.future.set_exception(error)
                for taker in takers:
                    if not taker.future.done():
                        taker.future.set_result(taker.got)
        finally:
            line.task = None

    async def _walk(self, queue: str, levels: tuple[int, ...], takers: list[_Taker], *, looks: bool) -> None:
        pullers = [self._puller(queue, level) for level in levels]
        at = 0
        while at < len(pullers) and any(not taker.future.done() for taker in takers):
            end = at
            while looks and end < len(pullers) and pullers[end].seems_empty:
                end += 1
            if end - at >= WORTH_A_LOOK:
                filled = await self._look(pullers[at:end])
            else:
                filled = pullers[at : (end := at + 1)]
            for puller in filled:
                await self._pull(puller, takers)
            at = end

    def _puller(self, queue: str, level: int) -> _Puller:
        name = names.consumer_name(queue, level)
        puller = self._pullers.get(name)
        if puller is None:
            puller = self._pullers[name] = _Puller(name, names.work_subject(queue, level))
        return puller

    async def _look(self, pullers: list[_Puller]) -> list[_Puller]:
        """Those that may have messages (409: one that does not fit; 503: no consumer), asked together; takes none."""
        await self._connection.ready()
        futures: list[asyncio.Future[bool]] = []
        tokens: list[str] = []

        def answered(number: int, message: _core.WireMessage) -> bool:
            if not futures[number].done():
                futures[number].set_result(message.status in EMPTY)
            return True

        for number, puller in enumerate(pullers):
            token, future = self._connection.expect(partial(answered, number))
            tokens.append(token)
            futures.append(future)
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{names.WORK_STREAM}.{puller.name}"
            self._connection.send(subject, TOO_SMALL_FOR_ANY, token)
        try:
            for puller, future in zip(pullers, futures, strict=True):
                puller.seems_empty = await future
        finally:
            for token in tokens:
                self._connection.forget(token)
        return [puller for puller in pullers if not puller.seems_empty]

    async def _pull(self, puller: _Puller, takers: list[_Taker]) -> None:
        while wanted := sum(taker.count - len(taker.got) for taker in takers if not taker.future.done()):
            asked = min(PULL_LIMIT, wanted)
            is_patient = any(taker.is_patient for taker in takers if not taker.future.done())
            messages = await self._pull_once(puller, asked, PATIENT if is_patient else b"")
            at = 0
            for taker in takers:
                if taker.future.done():
                    continue
                part = messages[at : at + taker.count - len(taker.got)]
                at += len(part)
                taker.got += part
                if len(taker.got) == taker.count or (part and taker.one_level):
                    taker.future.set_result(taker.got)
            self._give_all_back(messages[at:])
            puller.seems_empty = len(messages) < asked
            if puller.seems_empty:
                return

    async def _pull_once(self, puller: _Puller, count: int, more: bytes) -> list[WorkMessage]:
        await self._connection.ready()
        if not puller.exists:
            await self._create_consumer(puller)
        for _ in range(2):
            puller.got = []
            puller.asked = count
            token, puller.done = self._connection.expect(lambda message: self._ended(puller, message))
            self._connection.send(
                f"$JS.API.CONSUMER.MSG.NEXT.{names.WORK_STREAM}.{puller.name}",
                b'{"batch":%d,"no_wait":true%b}' % (count, more),
                token,
            )
            try:
                exists = await puller.done
            except Unavailable as error:
                raise self._give_up(puller, str(error)) from None
            finally:
                puller.done = None
                self._connection.forget(token)
            if exists or puller.got:
                got, puller.got = puller.got, []
                return got
            puller.exists = False
            await self._create_consumer(puller)
        raise Unavailable(f"the consumer {puller.name} vanishes as soon as it is made")

    def _give_up(self, puller: _Puller, reason: str) -> Unavailable:
        self._give_all_back(puller.got)
        puller.got = []
        puller.exists = False
        return Unavailable(reason)

    def _delivered(self, message: _core.WireMessage) -> None:
        # $JS.ACK.<stream>.<consumer>.…
        puller = self._pullers.get(message.reply.split(".", 4)[3])
        if puller is None:
            log.warning("a delivery of an unknown consumer is given back: %s", message.reply)
            self._connection.send(message.reply, b"-NAK")
            return
        work = WorkMessage(message.data, message.reply)
        if puller.done is None or puller.done.done():
            self.give_back(work)  # a pull that outlived its connection, or whoever waited for it
            return
        puller.got.append(work)
        if len(puller.got) >= puller.asked:
            puller.done.set_result(True)

    def _ended(self, puller: _Puller, message: _core.WireMessage) -> bool:
        # 404 no messages and 408 requests pending end a pull; anything else means there is no consumer.
        if puller.done is not None and not puller.done.done():
            puller.done.set_result(message.status in EMPTY)
        return True

    def _disconnected(self) -> None:
        self._last_sequence = 0
        shared, self._batch_future, self._batch = self._batch_future, None, []
        if shared is not None and not shared.done():
            shared.set_exception(Unavailable("the NATS connection was lost"))
            shared.exception()
        for puller in self._pullers.values():
            puller.exists = False

    async def _create_consumer(self, puller: _Puller) -> None:
        config = {
            "durable_name": puller.name,
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_NS,
            "max_deliver": -1,
            "max_ack_pending": -1,
            "max_waiting": 4096,
            "filter_subject": puller.subject,
            "num_replicas": self._replicas,
        }
        await consumers.create(self._connection, names.WORK_STREAM, config)
        puller.exists = True
        self._recounts.made(names.WORK_STREAM, puller.name, puller.subject, partial(self._vanished, puller.name))

    def _vanished(self, name: str) -> None:
        puller = self._pullers.get(name)
        if puller is not None:
            puller.exists = False

    def forget(self) -> None:
        """Drop what this node knows of consumers and messages in hand (after a reset)."""
        self._pullers = {name: p for name, p in self._pullers.items() if p.done is not None}
        for puller in self._pullers.values():
            puller.exists = False
        self._last_sequence = 0
        self._acked.clear()

    # -- settle ----------------------------------------------------------------------------------

    def ack(self, ack_subject: str) -> None:
        """Remove a work message; nothing waits, because a message that stays is stale and harmless."""
        self._connection.send(ack_subject, b"+ACK")
        self._acked[ack_subject.split(".", 4)[3]] = ack_subject

    async def acks_arrived(self, queue: str, priorities: Iterable[int]) -> None:
        """Wait until NATS has removed what was acknowledged before this call. Raises Unavailable."""
        for priority in priorities:
            consumer = names.consumer_name(queue, priority)
            ack_subject = self._acked.get(consumer)
            if ack_subject is not None:
                # Consumers handle acknowledgements one by one, beside everything else; this one is answered.
                await self._connection.request(ack_subject, b"+WPI")
                if self._acked.get(consumer) is ack_subject:
                    del self._acked[consumer]

    def _give_all_back(self, messages: list[WorkMessage]) -> None:
        # Kept, every other node would pass over them. Without a connection the walk after the cut finds them.
        for message in messages:
            self.give_back(message)

    def give_back(self, message: WorkMessage) -> None:
        """Let a message that was pulled but not claimed be delivered again, to any node."""
        self.give_back_to(message.ack_subject)

    def give_back_to(self, ack_subject: str, delay_ms: int = 0) -> None:
        """`give_back` of the message that this subject settles; `delay_ms` later."""
        self._connection.send(ack_subject, b'-NAK {"delay":%d}' % (delay_ms * 1_000_000) if delay_ms else b"-NAK")

    async def delete(self, sequence: int) -> None:
        """Delete a stale message by its sequence. Raises Unavailable."""
        answer = await self._connection.api(
            f"STREAM.MSG.DELETE.{names.WORK_STREAM}", {"seq": sequence, "no_erase": True}
        )
        error = answer.get("error")
        if error and error.get("err_code") not in (NO_MESSAGE_FOUND, 10043, 10057):
            raise Unavailable(f"work message {sequence} was not deleted: {error.get('description')}")

    # -- for reconcile ---------------------------------------------------------------------------

    async def consumers(self) -> list[dict[str, Any]]:
        """Consumer info of every level of every queue. Raises Unavailable."""
        return await consumers.listed(self._connection, names.WORK_STREAM)

    async def recount(self) -> None:
        """Compare each consumer with its stream soon: another leader of it may not know of all messages.

        Raises Unavailable.
        """
        for info in await self.consumers():
            name, subject = info["name"], info["config"]["filter_subject"]
            self._recounts.made(names.WORK_STREAM, name, subject, partial(self._vanished, name))

    async def messages(self, query: dict[str, Any], subject: str = "ojs.queue.>") -> list[tuple[int, str, bytes]]:
        """Up to 500 stored messages: `[(sequence, subject, payload)]`. `query` is `seq` or `start_time`."""
        batch = await self._connection.get_batch(names.WORK_STREAM, {"next_by_subj": subject, "batch": 500, **query})
        return [(message.sequence, message.stored_subject, message.data) for message in batch]


def ack_sequence(ack_subject: str) -> int:
    """The stream sequence of the message that an ack subject settles. Raises ValueError."""
    return int(_core.parse_ack_subject(ack_subject)[3])
