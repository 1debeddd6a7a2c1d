"""Small KV buckets: put, get, delete, compare-and-set, watch; and the outbox for what may come late.

Index entries are written behind: the outbox keeps each one until JetStream has acknowledged it, over
any number of reconnects. If the node dies first, reconcile writes them from the records.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import orjson
from nats.aio.msg import Msg

from ojs_fast import _core
from ojs_fast.forever import forever
from ojs_fast.storage import names
from ojs_fast.storage.connection import READ_AT_ONCE, Connection, PubAck
from ojs_fast.storage.errors import RevisionConflict, Unavailable
from ojs_fast.storage.headers import headers
from ojs_fast.storage.records import CONFLICTS, WRONG_LAST_SEQUENCE

log = logging.getLogger(__name__)

MARKER_TTL_S = 30
REFUSED_WAIT_S = 1.0
CLOSE_S = 2.0
HEARTBEAT_S = 5
MATCHES = 1000
ONLY_NEW = headers(Nats_Expected_Last_Subject_Sequence=0)
ONLY_NEW_FOR = ONLY_NEW[:-2] + b"Nats-TTL: %ds\r\n\r\n"
DELETED = headers(KV_Operation="DEL", Nats_TTL=f"{MARKER_TTL_S}s")


# Entries that are none of ours, each told once.
_foreign: set[tuple[str, str]] = set()


def _tell_foreign(bucket: str, key: str, reason: str) -> None:
    if (bucket, key) not in _foreign:
        _foreign.add((bucket, key))
        log.error("a foreign entry in %s is left alone: %s", bucket, reason, extra={"key": key[:200]})


class Bucket:
    """One KV bucket with values in JSON."""

    def __init__(self, connection: Connection, name: str, fields: Mapping[str, type] | None = None) -> None:
        """`fields`: what every value has at least, and of which types; any other value is foreign."""
        self._connection = connection
        self.name = name
        self._fields = fields or {}

    def _headers(self, revision: int | None, ttl_s: int) -> bytes:
        if revision == 0:
            return ONLY_NEW_FOR % ttl_s if ttl_s else ONLY_NEW
        fields: dict[str, str | int] = {}
        if revision is not None:
            fields["Nats-Expected-Last-Subject-Sequence"] = revision
        if ttl_s:
            fields["Nats-TTL"] = f"{ttl_s}s"
        return headers(**fields) if fields else b""

    async def put(self, key: str, value: Any, revision: int | None = None, ttl_s: int = 0) -> int:
        """Write and return the revision; with `revision` only over that one (0 = new key).

        Raises RevisionConflict or Unavailable.
        """
        if not self._connection.is_up:
            await self._connection.ready()
        sequence, code, description = await self._connection.write(
            names.bucket_subject(self.name, key), orjson.dumps(value), self._headers(revision, ttl_s)
        )
        if code in CONFLICTS:
            raise RevisionConflict(key)
        if code:
            raise Unavailable(f"JetStream refused {self.name}/{key}: {description} (error {code})")
        return sequence

    async def get(self, key: str) -> tuple[Any, int] | None:
        """`(value, revision)`, or None. Raises Unavailable."""
        value, revision = await self.last(key)
        return (value, revision) if value is not None else None

    async def last(self, key: str) -> tuple[Any, int]:
        """`(value, revision)` to write over; the value of a key that does not exist is None. Raises Unavailable."""
        stored, revision = await self._connection.last(
            names.bucket_stream(self.name), names.bucket_subject(self.name, key)
        )
        return self._decoded(key, stored) if stored else None, revision

    def _decoded(self, key: str, stored: bytes) -> Any:
        """The value, None for one that none of us has written."""
        try:
            value = orjson.loads(stored)
            if all(type(value[name]) is kind for name, kind in self._fields.items()):
                return value
            reason = f"expected {', '.join(self._fields)}"
        except (orjson.JSONDecodeError, TypeError, KeyError) as error:
            reason = repr(error)
        _tell_foreign(self.name, key, reason)
        return None

    async def delete(self, key: str) -> None:
        """Remove a key; its marker goes by itself. Raises Unavailable."""
        await self._connection.ready()
        _, code, description = await self._connection.write(names.bucket_subject(self.name, key), b"", DELETED)
        if code:
            raise Unavailable(f"JetStream refused to delete {self.name}/{key}: {description}")

    def start_remove(self, key: str, revision: int) -> "asyncio.Future[PubAck]":
        """Send what removes a key if it still is at `revision`; nobody looks after it."""
        header = headers(Nats_Expected_Last_Subject_Sequence=revision, KV_Operation="DEL", Nats_TTL=f"{MARKER_TTL_S}s")
        return self._connection.write(names.bucket_subject(self.name, key), b"", header)

    async def remove(self, key: str, revision: int) -> None:
        """Remove a key if it still is at `revision`; otherwise it stays. Raises Unavailable."""
        await self._connection.ready()
        _, code, description = await self.start_remove(key, revision)
        if code not in (0, WRONG_LAST_SEQUENCE):
            raise Unavailable(f"JetStream refused to delete {self.name}/{key}: {description}")

    async def page(self, after: int, limit: int, keys: str = ">") -> list[tuple[str, Any, int]]:
        """Up to `limit` live entries behind revision `after`: `[(key, value, revision)]`, oldest first.

        Raises Unavailable.
        """
        prefix = len(names.bucket_subject(self.name, ""))
        found: list[tuple[str, Any, int]] = []
        while len(found) < limit:
            wanted = min(limit - len(found), READ_AT_ONCE)
            query = {"next_by_subj": names.bucket_subject(self.name, keys), "seq": after + 1, "batch": wanted}
            batch = await self._connection.get_batch(names.bucket_stream(self.name), query)
            for message in batch:
                after = message.sequence
                key = message.stored_subject[prefix:]
                if message.is_live and (value := self._decoded(key, message.data)) is not None:
                    found.append((key, value, after))
            if len(batch) < wanted:
                break
        return found

    async def matching(self, keys: str) -> list[tuple[str, Any, int]]:
        """The live entries whose keys match a wildcard, a thousand at most. Raises Unavailable."""
        prefix = len(names.bucket_subject(self.name, ""))
        query = {"multi_last": [names.bucket_subject(self.name, keys)], "batch": MATCHES}
        batch = await self._connection.get_batch(names.bucket_stream(self.name), query)
        live = [(m.stored_subject[prefix:], m) for m in batch if m.is_live]
        return [(key, value, m.sequence) for key, m in live if (value := self._decoded(key, m.data)) is not None]

    async def count(self, keys: str = ">") -> int:
        """How many keys there are, markers of recent deletions included. Raises Unavailable."""
        query = {"subjects_filter": names.bucket_subject(self.name, keys)} if keys != ">" else None
        state = (await self._connection.stream_info(names.bucket_stream(self.name), query))["state"]
        return len(state.get("subjects") or {}) if keys != ">" else int(state["messages"])

    async def keys(self, keys: str = ">") -> list[str]:
        """Every key that matches, markers of recent deletions included, sorted. Raises Unavailable."""
        found: list[str] = []
        while True:
            query = {"subjects_filter": names.bucket_subject(self.name, keys), "offset": len(found)}
            info = await self._connection.stream_info(names.bucket_stream(self.name), query)
            subjects = info["state"].get("subjects") or {}
            found.extend(subjects)
            if not subjects or len(found) >= info.get("total", 0):
                return sorted(subject[len(names.bucket_subject(self.name, "")) :] for subject in found)

    async def get_many(self, keys: list[str]) -> dict[str, tuple[Any, int]]:
        """`{key: (value, revision)}` of those that exist. Raises Unavailable."""
        prefix = names.bucket_subject(self.name, "")
        found = await self._connection.last_of_each(names.bucket_stream(self.name), [prefix + key for key in keys])
        named = [(subject[len(prefix) :], stored, at) for subject, (stored, at) in found.items()]
        return {key: (value, at) for key, stored, at in named if (value := self._decoded(key, stored)) is not None}

    async def written_ms(self, key: str) -> int:
        """When a key was written last, by the clock of NATS (epoch ms); 0 when there is none. Raises Unavailable."""
        message = await self._connection.stored(
            names.bucket_stream(self.name), last_by_subj=names.bucket_subject(self.name, key)
        )
        return _core.parse_rfc3339_ms(message["time"]) if message else 0

    async def erase(self, key: str, revision: int = 0) -> None:
        """Remove a key without leaving a marker, so that `count` stays exact; what was written after `revision` stays.

        Raises Unavailable.
        """
        await self._connection.purge(names.bucket_stream(self.name), names.bucket_subject(self.name, key), revision)

    async def keep_latest(self, keys: str, count: int) -> None:
        """Remove all that a wildcard matches but the latest `count`, without markers. Raises Unavailable."""
        await self._connection.purge(names.bucket_stream(self.name), names.bucket_subject(self.name, keys), keep=count)


class Outbox:
    """Writes that must arrive but that nobody waits for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._late: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        # What is not acknowledged yet, oldest first; a number keeps its place over re-sending.
        self._open: dict[int, None] = {}
        self._puts: dict[int, None] = {}
        self._erasures: deque[tuple[int, str, str]] = deque()
        self._number = 0
        self._progress = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start re-sending what gets lost."""
        self._task = asyncio.create_task(forever(self._resend_loop))

    async def close(self) -> None:
        """Wait briefly for what is under way, then stop."""
        await self.flushed_within(CLOSE_S)
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def flushed(self) -> None:
        """Wait until all that was handed over before this call has arrived."""
        last = self._number
        while self._open and next(iter(self._open)) <= last:
            await self._progress.wait()

    async def flushed_within(self, limit_s: float) -> None:
        """`flushed`, but no longer than that: NATS may be away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.flushed()

    def put(self, bucket: str, key: str, value: Any, ttl_s: int = 0, *, only_new: bool = False) -> None:
        """Write a key; re-sent until acknowledged. `only_new` leaves a value that is there as it is."""
        header = ONLY_NEW if only_new else b""
        if ttl_s:
            header = ONLY_NEW_FOR % ttl_s if only_new else headers(Nats_TTL=f"{ttl_s}s")
        self._send(self._enter(), names.bucket_subject(bucket, key), orjson.dumps(value), header)

    def delete(self, bucket: str, key: str) -> None:
        """Remove a key; re-sent until acknowledged."""
        self._send(self._enter(), names.bucket_subject(bucket, key), b"", DELETED)

    def erase(self, bucket: str, key: str) -> None:
        """Remove a key without a marker, so that counting keys stays exact; watches are not told."""
        self._number += 1
        self._open[self._number] = None
        self._erasures.append((self._number, names.bucket_stream(bucket), names.bucket_subject(bucket, key)))
        self._erase_ripe()

    def _erase_ripe(self) -> None:
        # NATS purges at once but stores in order: a purge must not overtake the write that it is to undo.
        oldest = next(iter(self._puts), self._number + 1)
        while self._erasures and self._erasures[0][0] < oldest:
            self._purge(*self._erasures.popleft())

    def _enter(self) -> int:
        self._number += 1
        self._open[self._number] = self._puts[self._number] = None
        return self._number

    def _send(self, number: int, subject: str, payload: bytes, header: bytes) -> None:
        future = self._connection.write(subject, payload, header)

        def check(answer: "asyncio.Future[tuple[int, int, str]]") -> None:
            if answer.cancelled() or answer.exception() is not None:
                self._late.put_nowait(partial(self._send, number, subject, payload, header))
                return
            _, code, description = answer.result()
            if code and not (code in CONFLICTS and header.startswith(ONLY_NEW[:-2])):
                # No leader, no space: a job may depend on this entry, so it is sent until it is taken.
                log.warning("JetStream refused %s, it is sent again: %s (error %d)", subject, description, code)
                again = partial(self._send, number, subject, payload, header)
                asyncio.get_running_loop().call_later(REFUSED_WAIT_S, self._late.put_nowait, again)
                return
            self._done(number)

        future.add_done_callback(check)

    def _purge(self, number: int, stream: str, subject: str) -> None:
        def collect(message: _core.WireMessage) -> bool:
            if future.done():
                return True
            # "No responders", or an error: a cluster without a leader at this moment.
            error = orjson.loads(message.data).get("error") if message.data else f"status {message.status}"
            if error:
                future.set_exception(Unavailable(f"purging {subject} failed: {error}"))
            else:
                future.set_result(None)
            return True

        def check(answer: "asyncio.Future[None]") -> None:
            if answer.cancelled() or answer.exception() is not None:
                self._late.put_nowait(partial(self._purge, number, stream, subject))
            else:
                self._done(number)

        token, future = self._connection.expect(collect)
        self._connection.send(f"$JS.API.STREAM.PURGE.{stream}", orjson.dumps({"filter": subject}), token)
        future.add_done_callback(check)

    def _done(self, number: int) -> None:
        del self._open[number]
        if self._puts.pop(number, self) is None and self._erasures:
            self._erase_ripe()
        self._progress.set()
        self._progress = asyncio.Event()

    async def _resend_loop(self) -> None:
        while True:
            send = await self._late.get()
            await self._connection.wait_up()
            send()
            if self._late.qsize() == 0:
                # A stream that refuses for a while (no leader) must not be asked in a tight loop.
                await asyncio.sleep(0.2)


class Watch:
    """Follows a bucket: the current value of every key, then each change, over any reconnect.

    After a reconnect all current values come again, so `changed` must be idempotent. `value` is None
    for a deleted or expired key.
    """

    def __init__(self, connection: Connection, bucket: str, changed: Callable[[str, bytes | None, int], None]) -> None:
        self._connection = connection
        self._bucket = bucket
        self._changed = changed
        self._prefix = len(names.bucket_subject(bucket, ""))
        self._alive = asyncio.Event()
        self._broken = False
        self._last_delivered = 0
        self._inbox = ""
        self._task: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()

    async def open(self) -> None:
        """Start to follow; `synced` is set once the present state was handed over."""
        self._connection.on_disconnect(self._break)
        self._task = asyncio.create_task(forever(self._run))

    async def close(self) -> None:
        """Stop to follow."""
        self._connection.off_disconnect(self._break)
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _break(self) -> None:
        # The consumer may be gone, or messages may have been lost on the way: start over.
        self._broken = True
        self._alive.set()

    async def _run(self) -> None:
        while True:
            self._broken = False
            self._last_delivered = 0
            try:
                async with self._consumer():
                    await self._until_silent()
            except Unavailable as error:
                log.info("watch of %s starts again: %s", self._bucket, error)
                await self._connection.wait_up()
                await asyncio.sleep(0.1)

    async def _until_silent(self) -> None:
        # Heartbeats come every 5 s: silence means that the consumer is gone (reconnect, new leader).
        while not self._broken:
            self._alive.clear()
            try:
                async with asyncio.timeout(3 * HEARTBEAT_S):
                    await self._alive.wait()
            except TimeoutError:
                return

    @contextlib.asynccontextmanager
    async def _consumer(self) -> AsyncIterator[None]:
        await self._connection.ready()
        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, self._message)
        stream = names.bucket_stream(self._bucket)
        config = {
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "filter_subject": names.bucket_subject(self._bucket, ">"),
            "flow_control": True,
            "idle_heartbeat": HEARTBEAT_S * 1_000_000_000,
            "inactive_threshold": 60_000_000_000,
            "num_replicas": 1,
            "mem_storage": True,
        }
        try:
            answer = await self._connection.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
            if "error" in answer:
                raise Unavailable(f"no consumer for {self._bucket}: {answer['error'].get('description')}")
            if answer.get("num_pending", 0) == 0 and answer.get("delivered", {}).get("consumer_seq", 0) == 0:
                self.synced.set()
            yield
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    async def _message(self, msg: Msg) -> None:
        self._alive.set()
        fields = msg.headers or {}
        if fields.get("Status") == "100":
            if msg.reply:
                self._connection.send(msg.reply, b"")
            elif stalled := fields.get("Nats-Consumer-Stalled"):
                self._connection.send(stalled, b"")
            if int(fields.get("Nats-Last-Consumer", 0)) > self._last_delivered:
                self._break()
            return
        tokens = msg.reply.split(".")
        if int(tokens[6]) != self._last_delivered + 1:
            self._break()
        self._last_delivered = int(tokens[6])
        value = None if "KV-Operation" in fields or "Nats-Marker-Reason" in fields or not msg.data else msg.data
        key = msg.subject[self._prefix :]
        try:
            self._changed(key, value, int(tokens[5]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _tell_foreign(self._bucket, key, repr(error))
        if tokens[8] == "0":
            self.synced.set()
