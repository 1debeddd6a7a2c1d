"""Writing a backup into a NATS that holds nothing of ours, so that a half of it is never taken for the whole.

The stream OJS_RESTORE is made first and removed last; while it is there no server starts (storage/topology.py). A
restore that finds it starts over. Sequences go on far behind those of the backup, so that a revision, a cursor or an
acknowledgement from before means nothing that is written from now on.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import orjson

from ojs_fast.storage import names, topology
from ojs_fast.storage.archive import Archive, Entry
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import TopologyError, Unavailable
from ojs_fast.storage.headers import headers

SEQUENCES_LEFT_OUT = 1_000_000
TAKEN = 10058  # the stream exists with another configuration


class Refill:
    """Marks, makes and fills the streams."""

    def __init__(self, connection: Connection, archive: Archive) -> None:
        self._connection = connection
        self._archive = archive

    async def begin(self, wanted: list[dict[str, Any]]) -> bool:
        """Make the streams, empty; True when an unfinished restore was thrown away for it.

        Raises TopologyError, with nothing changed, when NATS holds streams of ours; Unavailable.
        """
        left = await topology.unfinished_restore(self._connection)
        if left:
            await self._delete([config["name"] for config in wanted])
            await self._delete([names.RESTORE_STREAM])
        about = {"backup": self._archive.checksum, "began_ms": int(time.time() * 1000)}
        marker = {
            **topology.MARKER,
            "num_replicas": wanted[0]["num_replicas"],
            "description": orjson.dumps(about).decode(),
        }
        answer = await self._connection.api(f"STREAM.CREATE.{names.RESTORE_STREAM}", marker)
        if answer.get("error", {}).get("err_code") == TAKEN:
            raise TopologyError("another restore into this NATS is under way; wait until it has ended")
        _check(answer, names.RESTORE_STREAM)
        # Behind the marker: a server that starts at this moment sees it, or its streams are seen here.
        taken = [config["name"] for config in wanted if await topology.find(self._connection, config["name"])]
        if taken:
            await self._delete([names.RESTORE_STREAM])
            raise TopologyError(
                f"this NATS holds data of ojs-fast already ({', '.join(taken[:3])}, …), which a restore does not "
                "touch; restore into an empty one: another OJS_DATA_DIR, NATS account or NATS server, or delete these "
                "streams first"
            )
        last = self._archive.manifest["last_sequences"]
        for config in wanted:
            first = last.get(config["name"], 0) + SEQUENCES_LEFT_OUT
            _check(
                await self._connection.api(f"STREAM.CREATE.{config['name']}", {**config, "first_seq": first}),
                config["name"],
            )
        return left

    async def finish(self) -> None:
        """All is there: let servers start. Raises Unavailable."""
        await self._delete([names.RESTORE_STREAM])

    async def write(self, entries: list[Entry]) -> list[int]:
        """Write messages in this order with what is left of their time to live; their sequences.

        0 for one whose time is over. Raises Unavailable.
        """
        now_ms = int(time.time() * 1000)
        pending: list[asyncio.Future[tuple[int, int, str]] | None] = []
        for entry in entries:
            ttl = _ttl_left(entry, now_ms)
            header = headers(Nats_TTL=ttl) if ttl else b""
            is_over = bool(entry.ttl) and not ttl
            pending.append(None if is_over else self._connection.write(entry.subject, entry.data, header))
        sequences: list[int] = []
        for written in pending:
            sequence, code, description = await written if written is not None else (0, 0, "")
            if code:
                raise Unavailable(f"JetStream refused a message: {description} (error {code})")
            sequences.append(sequence)
        return sequences

    async def _delete(self, streams: list[str]) -> None:
        for stream in streams:
            answer = await self._connection.api(f"STREAM.DELETE.{stream}")
            if answer.get("error", {}).get("err_code") != topology.STREAM_NOT_FOUND:
                _check(answer, stream)


def _check(answer: dict[str, Any], stream: str) -> None:
    if "error" in answer:
        error = answer["error"]
        raise Unavailable(f"JetStream, stream {stream}: {error.get('description')} (error {error.get('err_code')})")


def _ttl_left(entry: Entry, now_ms: int) -> str:
    """What is left of a time to live, "" when it is over or there is none."""
    match = re.fullmatch(r"(\d+)s", entry.ttl)
    if match is None:
        return entry.ttl
    left_ms = int(match[1]) * 1000 - (now_ms - entry.time_ms)
    return f"{-(-left_ms // 1000)}s" if left_ms > 0 else ""
