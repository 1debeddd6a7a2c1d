"""The connection to NATS: pipelined writes with one PubAck inbox, requests, reconnect hooks.

Two connections work as one: the wire (hot path: writes, pulls, reads) and nats-py (watches,
subscriptions). Owns outcomes and timeouts of single messages; must not know what the bytes mean.
"""

import asyncio
import base64
import contextlib
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from ojs_fast import _core
from ojs_fast.forever import forever
from ojs_fast.storage.access import NatsAccess
from ojs_fast.storage.errors import AccessDenied, TopologyError, Unavailable
from ojs_fast.storage.group_commit import GroupCommit
from ojs_fast.storage.headers import HEADERS_BEGIN
from ojs_fast.storage.wire import Wire

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0
LOOK_S = 0.5
RECONNECT_WAIT_S = 0.05
READ_AT_ONCE = 500
NO_MESSAGE_FOUND = 10037
MINIMUM_SERVER = (2, 12)
# JetStream's file store refuses larger messages whatever max_payload says (measured, 2.15.1).
FILE_STORE_LIMIT_BYTES = 32 * 1024 * 1024
# What a message holds beside the record: subject, headers, the revision in a work message.
FRAME_BYTES = 1024

PubAck = tuple[int, int, str]
Write = tuple[str, bytes, bytes]  # subject, payload, headers
Answer = Callable[[_core.WireMessage], bool]
NodeMessage = Msg  # what another node sends; core knows it by this name, not by the library's


def _masked(server: str) -> str:
    return server.rpartition("@")[2]


class Connection:
    """Pipelined, individually acknowledged writes; reads; subscriptions."""

    def __init__(self, wait_ms: int = 2000) -> None:
        """`wait_ms`: how long `ready` waits for a lost connection to come back."""
        self._nc = Client()
        self._servers: list[str] = []
        self._access = NatsAccess()
        self._wire: Wire | None = None
        self._wait_s = wait_ms / 1000
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        # Whoever waits, by the token in the reply subject, oldest first: for a PubAck, or with a collector.
        self._token = 0
        self._batch_prefix = secrets.token_hex(8).encode()
        self._batch_numbers = itertools.count(1)
        self._acks: dict[int, asyncio.Future[PubAck]] = {}
        self._collected: dict[int, tuple[asyncio.Future[Any], Answer]] = {}
        self._up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._lost = asyncio.Event()
        self._on_disconnect: list[Callable[[], None]] = []
        self._on_delivery: Callable[[_core.WireMessage], None] = _ignore
        self._on_flush: Callable[[], None] = lambda: None
        # By `_stream_token`; empty unless NATS syncs before it acknowledges.
        self._groups: dict[str, GroupCommit] = {}
        self.messages_sent = 0
        #: Streams have replicas: one that lags behind may answer a direct get, and a leader may change silently.
        self.is_replicated = False
        #: A power cut may tear atomic batches, see `torn`.
        self.stages_in_memory = False
        #: The largest record that the server takes, as a work message too.
        self.max_record_bytes = 1024 * 1024 - FRAME_BYTES

    # -- life ------------------------------------------------------------------------------------

    async def open(self, servers: list[str], *, name: str, access: NatsAccess | None = None) -> None:
        """Connect. Raises Unavailable when no server answers or lets us in, TopologyError when it is too old."""
        self._servers = servers
        self._access = access or NatsAccess()
        self._loop = asyncio.get_running_loop()
        await self._connect_wire()  # first, because it says why a server does not let us in
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._nc = await nats.connect(
                    servers,
                    name=name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.1,
                    error_cb=self._error,
                    ping_interval=20,
                    max_outstanding_pings=2,
                    **self._access.for_client(servers),
                )
        except (OSError, TimeoutError, nats.errors.Error) as error:
            self._drop_wire()
            raise Unavailable(f"no NATS server answers at {', '.join(map(_masked, servers))}: {error!r}") from error
        version = self._nc.connected_server_version
        if (version.major, version.minor) < MINIMUM_SERVER:
            await self._nc.close()
            self._drop_wire()
            raise TopologyError(
                f"nats-server {version.major}.{version.minor}.{version.patch} is too old: ojs-fast needs "
                f"{MINIMUM_SERVER[0]}.{MINIMUM_SERVER[1]} or later (atomic batches, per-key TTL). "
                "Upgrade it, or unset NATS_URL to use the embedded one."
            )
        self._tasks = [
            asyncio.create_task(forever(self._reconnect_loop)),
            asyncio.create_task(forever(self._expire_loop)),
        ]

    async def close(self) -> None:
        """Send what is queued and disconnect; waiting writes end with Unavailable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drop_wire()
        with contextlib.suppress(OSError):  # nats-py still writes to a connection that NATS has just cut
            await self._nc.close()
        self._fail_all("the server is closing its NATS connection")

    def _drop_wire(self) -> None:
        self._up.clear()
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _connect_wire(self) -> None:
        # The server that nats-py found alive comes first.
        connected = self._nc.connected_url
        servers = list(self._servers)
        if connected is not None:
            servers.sort(key=lambda server: _masked(server).split("//")[-1] != connected.netloc.rpartition("@")[2])
        failure = Unavailable("no NATS server is configured")
        for server in servers:
            wire = Wire(server, self._access, self._inbox, self._received, self._wire_lost, self._flushing)
            try:
                await wire.connect()
            except Unavailable as error:
                # Of several reasons, one that does not go away by itself says more.
                failure = failure if isinstance(failure, AccessDenied) else error
                continue
            self._wire = wire
            self.max_record_bytes = min(wire.max_payload, FILE_STORE_LIMIT_BYTES) - FRAME_BYTES
            self._up.set()
            return
        raise failure

    def _wire_lost(self) -> None:
        # A PubAck that comes over a later connection must not vouch for messages that went down with
        # this one, so every outcome that is open now is unknown.
        self._wire = None
        self._up.clear()
        self._fail_all("the NATS connection was lost")
        for hook in list(self._on_disconnect):
            hook()
        log.warning("NATS connection lost, reconnecting")
        self._lost.set()

    async def _reconnect_loop(self) -> None:
        while True:
            await self._lost.wait()
            self._lost.clear()
            while self._wire is None:
                try:
                    await self._connect_wire()
                    log.info("NATS connection is back")
                except Unavailable as error:
                    log.debug("not reconnected yet: %s", error)
                    await asyncio.sleep(RECONNECT_WAIT_S)

    async def _error(self, error: Exception) -> None:
        log.debug("NATS client: %r", error)

    @property
    def is_up(self) -> bool:
        """True while the connection stands."""
        return self._wire is not None

    async def ready(self) -> None:
        """Wait briefly for a lost connection. Raises Unavailable when it stays away."""
        if self._up.is_set():
            return
        try:
            async with asyncio.timeout(self._wait_s):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable(f"NATS is not connected (waited {self._wait_s:g} s)") from None

    async def wait_up(self) -> None:
        """Wait, for as long as it takes, until the connection stands."""
        await self._up.wait()

    def on_disconnect(self, hook: Callable[[], None]) -> None:
        """Call `hook` when the connection is lost."""
        self._on_disconnect.append(hook)

    def off_disconnect(self, hook: Callable[[], None]) -> None:
        """Undo `on_disconnect`."""
        if hook in self._on_disconnect:
            self._on_disconnect.remove(hook)

    def on_delivery(self, hook: Callable[[_core.WireMessage], None]) -> None:
        """Call `hook` for each message that a pull delivers."""
        self._on_delivery = hook

    def on_flush(self, hook: Callable[[], None]) -> None:
        """Call `hook` right before queued messages leave; what it sends leaves with them."""
        self._on_flush = hook

    def flush_soon(self) -> None:
        """Have `on_flush` called in this turn of the event loop. Raises Unavailable."""
        if self._wire is None:
            raise Unavailable("NATS is not connected")
        self._wire.flush_soon()

    def _flushing(self) -> None:
        self._on_flush()

    # -- writes ----------------------------------------------------------------------------------

    def send(self, subject: str, payload: bytes, reply: str = "", header: bytes = b"") -> None:
        """Queue one message for the next flush; nothing tells whether it arrived."""
        if self._wire is not None:
            self.messages_sent += 1
            self._wire.send_frame(_core.wire_publish(subject, reply, header, payload))

    def write(self, subject: str, payload: bytes, header: bytes = b"") -> "asyncio.Future[PubAck]":
        """Queue a JetStream write; the future yields `(sequence, error code or 0, description)`.

        The future raises Unavailable when the connection is lost or no PubAck comes in 5 s; the write
        may have been applied all the same.
        """
        if self._groups:
            group = self._groups.get(_stream_token(subject))
            if group is not None:
                return group.write(subject, payload, header)
        return self.write_alone(subject, payload, header)

    def write_alone(self, subject: str, payload: bytes, header: bytes = b"") -> "asyncio.Future[PubAck]":
        """`write`, never in a group with others."""
        wire = self._wire
        if wire is None:
            return self._unavailable()
        self._token = token = self._token + 1
        future: asyncio.Future[PubAck] = self._loop.create_future()
        self._acks[token] = future
        self.messages_sent += 1
        wire.send_frame(_core.wire_publish(subject, self._inbox, header, payload, token))
        return future

    def write_batch(self, writes: Sequence[Write], mark: str = "") -> "asyncio.Future[PubAck]":
        """Queue an atomic batch (NATS ADR-50): all or none is written, `sequence` is that of the last.

        Every write has headers that begin with HEADERS_BEGIN, or none. With GROUP_MARK a power cut may leave a part
        of them. The future is as in `write`.
        """
        batch_id = b"%s%s-%d" % (mark.encode(), self._batch_prefix, next(self._batch_numbers))
        commit, future = self.expect()
        last = len(writes)
        for number, (subject, payload, header) in enumerate(writes, 1):
            member = b"%sNats-Batch-Id: %s\r\nNats-Batch-Sequence: %d\r\n%s%s" % (
                HEADERS_BEGIN, batch_id, number,
                b"Nats-Batch-Commit: 1\r\n" if number == last else b"",
                header[len(HEADERS_BEGIN) :] or b"\r\n",
            )  # fmt: skip
            self.send(subject, payload, commit if number == last else "", member)
        return future

    def commit_in_groups(self, subjects: Iterable[str]) -> None:
        """From now on let writes to the streams of these subjects share syncs; each must allow atomic batches."""
        self._groups = {_stream_token(subject): GroupCommit(self) for subject in subjects}

    @property
    def acks_speak_for_themselves(self) -> bool:
        """True when the acknowledgement of a write tells nothing about those that were sent before it."""
        return bool(self._groups) or self.is_replicated

    def expect(self, collector: Answer | None = None) -> tuple[str, "asyncio.Future[Any]"]:
        """A reply subject and the future of what comes to it: a PubAck, or what `collector` completes."""
        self._token = token = self._token + 1
        reply = f"{self._inbox}.{token}"
        if self._wire is None:
            return reply, self._unavailable()
        future: asyncio.Future[Any] = self._loop.create_future()
        if collector is None:
            self._acks[token] = future
        else:
            self._collected[token] = (future, collector)
        return reply, future

    def _unavailable(self) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        _fail(future, "NATS is not connected")
        return future

    def forget(self, reply: str) -> None:
        """Stop waiting for what `expect` announced."""
        self._collected.pop(int(reply.rpartition(".")[2]), None)

    def _received(self, message: _core.WireMessage) -> None:
        if message.reply:
            self._on_delivery(message)
            return
        future = self._acks.pop(message.token, None)
        if future is None:
            self._collect(message)
            return
        if future.done():
            return
        try:
            future.set_result(_core.parse_pub_ack(message.data))
        except ValueError as error:
            nobody = "no JetStream stream answers; is JetStream enabled?"
            _fail(future, nobody if message.status == "503" else f"not a PubAck: {error}")

    def _collect(self, message: _core.WireMessage) -> None:
        waiting = self._collected.get(message.token)
        if waiting is not None and waiting[1](message):
            del self._collected[message.token]

    async def _expire_loop(self) -> None:
        # The newest token of each look: those of ten looks ago have waited long enough.
        looks: deque[int] = deque(maxlen=round(ANSWER_TIMEOUT_S / LOOK_S))
        while True:
            await asyncio.sleep(LOOK_S)
            if len(looks) == looks.maxlen:
                self._expire(looks[0])
            looks.append(self._token)

    def _expire(self, newest: int) -> None:
        reason = f"NATS gave no answer in {ANSWER_TIMEOUT_S:g} s"
        for token in list(itertools.takewhile(newest.__ge__, self._acks)):
            _fail(self._acks.pop(token), reason)
        for token in list(itertools.takewhile(newest.__ge__, self._collected)):
            _fail(self._collected.pop(token)[0], reason)

    def _fail_all(self, reason: str) -> None:
        waiting = [*self._acks.values(), *(future for future, _ in self._collected.values())]
        self._acks, self._collected = {}, {}
        for future in waiting:
            _fail(future, reason)

    # -- reads and subscriptions -----------------------------------------------------------------

    async def subscribe(self, subject: str, callback: Callable[[Msg], Awaitable[None]]) -> Any:
        """Subscribe without pending limits: our own traffic is never to be dropped. Raises Unavailable."""
        try:
            return await self._nc.subscribe(subject, cb=callback, pending_msgs_limit=0, pending_bytes_limit=0)
        except nats.errors.Error as error:
            raise Unavailable(f"no subscription to {subject}: {error!r}") from error

    async def subscribe_ordered(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], config: ConsumerConfig
    ) -> Any:
        """Subscribe to a stream by an ordered consumer. Raises Unavailable."""
        try:
            return await self._nc.jetstream().subscribe(
                subject, cb=callback, ordered_consumer=True, config=config, pending_msgs_limit=0, pending_bytes_limit=0
            )
        except (nats.errors.Error, nats.js.errors.Error) as error:
            raise Unavailable(f"no ordered subscription to {subject}: {error!r}") from error

    async def reply(self, msg: Msg, payload: bytes) -> None:
        """Answer a message that came by `subscribe`."""
        await self._nc.publish(msg.reply, payload)

    async def publish_behind(self, subject: str, payload: bytes, reply: str) -> None:
        """Publish on the connection of `subscribe`: NATS knows the subscriptions made before."""
        await self._nc.publish(subject, payload, reply)

    def new_inbox(self) -> str:
        """A fresh inbox subject for `subscribe`."""
        return str(self._nc.new_inbox())

    async def request(self, subject: str, payload: bytes = b"") -> _core.WireMessage:
        """Ask and wait for one reply. Raises Unavailable."""
        await self.ready()
        answers: list[_core.WireMessage] = []

        def collect(message: _core.WireMessage) -> bool:
            answers.append(message)
            if not future.done():
                future.set_result(None)
            return True

        token, future = self.expect(collect)
        self.send(subject, payload, token)
        await future
        if answers[0].status == "503":
            raise Unavailable(f"nobody answers at {subject}")
        return answers[0]

    async def api(self, operation: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the JetStream API; the answer may hold `error`. Raises Unavailable."""
        payload = orjson.dumps(body) if body is not None else b""
        answer = await self.request(f"$JS.API.{operation}", payload)
        decoded: dict[str, Any] = orjson.loads(answer.data)
        return decoded

    async def stream_info(self, stream: str, query: dict[str, Any] | None = None) -> dict[str, Any]:
        """What NATS tells about a stream: `{"state": {...}, "ts": ..., ...}`. Raises Unavailable."""
        answer = await self.api(f"STREAM.INFO.{stream}", query)
        if "error" in answer:
            raise Unavailable(f"stream info failed: {answer['error'].get('description')}")
        return answer

    async def purge(self, stream: str, subject: str, through: int = 0, keep: int = 0) -> None:
        """Remove what a subject matches, up to sequence `through` or but the last `keep`. Raises Unavailable."""
        bound = {"seq": through + 1} if through else {"keep": keep} if keep else {}
        answer = await self.api(f"STREAM.PURGE.{stream}", {"filter": subject, **bound})
        if "error" in answer:
            raise Unavailable(f"purge failed: {answer['error'].get('description')}")

    async def last(self, stream: str, subject: str) -> tuple[bytes, int]:
        """`(bytes, sequence)` of the last message of a subject: b"" for a deletion marker, 0 when there is none.

        What was acknowledged before is seen, whoever wrote it. Raises Unavailable.
        """
        if self.is_replicated:
            return await self._last_of_leader(stream, subject)
        message = await self.request(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        if not message.sequence and message.status != "404":
            raise Unavailable(f"direct get failed: status {message.status}")
        return (message.data if message.sequence and message.is_live else b""), message.sequence

    async def _last_of_leader(self, stream: str, subject: str) -> tuple[bytes, int]:
        message = await self.stored(stream, last_by_subj=subject)
        return (base64.b64decode(message.get("data", "")), int(message["seq"])) if message else (b"", 0)

    async def stored(self, stream: str, **query: str | int) -> dict[str, Any]:
        """A message as the leader has it: `subject`, `seq`, `time`, `data` and `hdrs` (base64); or nothing.

        `query` is `last_by_subj`, `seq`, or `seq` and `next_by_subj`. Raises Unavailable.
        """
        answer = await self.api(f"STREAM.MSG.GET.{stream}", query)
        if "error" in answer and answer["error"].get("err_code") != NO_MESSAGE_FOUND:
            place = query.get("last_by_subj", stream)
            raise Unavailable(f"reading {place} failed: {answer['error'].get('description')}")
        message: dict[str, Any] = answer.get("message") or {}
        return message

    async def last_of_each(self, stream: str, subjects: Sequence[str]) -> dict[str, tuple[bytes, int]]:
        """`{subject: (bytes, sequence)}` as by `last`, without markers and unknown subjects. Raises Unavailable."""
        found: dict[str, tuple[bytes, int]] = {}
        for start in range(0, len(subjects), READ_AT_ONCE):
            part = subjects[start : start + READ_AT_ONCE]
            if self.is_replicated:
                answers = await asyncio.gather(*(self._last_of_leader(stream, subject) for subject in part))
                found.update((subject, one) for subject, one in zip(part, answers, strict=True) if one[0])
                continue
            for message in await self.get_batch(stream, {"multi_last": part, "batch": len(part)}):
                if message.is_live:
                    found[message.stored_subject] = (message.data, message.sequence)
        return found

    async def get_batch(self, stream: str, query: dict[str, Any]) -> list[_core.WireMessage]:
        """A batched direct get (NATS ADR-31): the messages, without the end-of-batch marker.

        A replica that answers may not have the newest ones yet. Raises Unavailable.
        """
        await self.ready()
        messages: list[_core.WireMessage] = []

        def collect(message: _core.WireMessage) -> bool:
            status = message.status
            if not status:
                messages.append(message)
                return False
            if not future.done():
                if status in ("204", "404"):
                    future.set_result(None)
                else:
                    future.set_exception(Unavailable(f"direct get on {stream} failed: status {status}"))
            return True

        token, future = self.expect(collect)
        self.send(f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(query), token)
        await future
        return messages


def _stream_token(subject: str) -> str:
    """What tells our streams apart in a subject: the bucket's name, or the second token."""
    return subject.split(".", 2)[1]


def _fail(future: "asyncio.Future[Any]", reason: str) -> None:
    if not future.done():
        future.set_exception(Unavailable(reason))
        # Whoever waits sees it; a write whose caller is gone must not be reported as unhandled.
        future.exception()


def _ignore(_: _core.WireMessage) -> None:
    """Deliveries before the work queue listens."""
