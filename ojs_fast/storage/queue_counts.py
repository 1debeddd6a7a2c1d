"""How many messages and index entries a queue has, from numbers that NATS keeps anyway: no scan, no listing."""

import asyncio
import contextlib
import itertools
from typing import Any

from ojs_fast import _core
from ojs_fast.storage import consumers, names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable
from ojs_fast.storage.recounts import Recounts

MESSAGES = 500
INDEXES = (names.SCHEDULED, names.RETRY, names.DEAD)


class QueueCounts:
    """Counts of single queues. Every call costs the same whatever lies in the queue."""

    def __init__(self, connection: Connection, recounts: Recounts, replicas: int) -> None:
        self._connection = connection
        self._recounts = recounts
        self._replicas = replicas

    async def work_messages(self, queue: str) -> dict[int, int]:
        """`{priority: messages}`: available and active jobs. Raises Unavailable."""
        subject = f"ojs.queue.{names.encode_token(queue)}.>"
        info = await self._connection.stream_info(names.WORK_STREAM, {"subjects_filter": subject})
        subjects = info["state"].get("subjects") or {}
        counts: dict[int, int] = {}
        for one, count in subjects.items():
            with contextlib.suppress(ValueError):  # a subject that is none of ours, and whose messages no level has
                counts[names.parse_work_subject(one)[1]] = int(count)
        return counts

    async def all_work_messages(self) -> int:
        """Available and active jobs of all queues. Raises Unavailable."""
        return int((await self._connection.stream_info(names.WORK_STREAM))["state"]["messages"])

    async def indexed(self, bucket: str, queue: str) -> int:
        """Entries of a queue in one of INDEXES. Raises Unavailable."""
        stream, name = names.bucket_stream(bucket), names.counting_consumer(queue)
        answer = await self._connection.api(f"CONSUMER.INFO.{stream}.{name}")
        if answer.get("error", {}).get("err_code") == consumers.CONSUMER_NOT_FOUND:
            config = self._config(bucket, queue, name)
            answer = await self._connection.api(
                f"CONSUMER.DURABLE.CREATE.{stream}.{name}", {"stream_name": stream, "config": config}
            )
            self._recounts.made(stream, name, config["filter_subject"], lambda: None)
        if "error" in answer:
            raise Unavailable(f"counting {queue} in {bucket} failed: {answer['error'].get('description')}")
        return int(answer["num_pending"])

    def _config(self, bucket: str, queue: str, name: str) -> dict[str, Any]:
        # NATS keeps the number of messages that a consumer has not delivered; nobody pulls from this one.
        return {
            "durable_name": name,
            "ack_policy": "none",
            "filter_subject": names.bucket_subject(bucket, f"{names.encode_token(queue)}.>"),
            "num_replicas": self._replicas,
            "mem_storage": True,
        }

    async def all_of(self, queue: str) -> tuple[dict[int, int], int, int]:
        """`(work messages by priority, scheduled, retryable)`. Raises Unavailable."""
        return await asyncio.gather(
            self.work_messages(queue), self.indexed(names.SCHEDULED, queue), self.indexed(names.RETRY, queue)
        )

    async def depth(self, queue: str) -> int:
        """Jobs of a queue that have not ended, as NATS sees them at this moment. Raises Unavailable."""
        messages, scheduled, retryable = await self.all_of(queue)
        return sum(messages.values()) + scheduled + retryable

    async def oldest_messages(self, queue: str, priorities: list[int], count: int) -> list[tuple[int, bytes]]:
        """`[(sequence, payload)]` of the oldest work messages that were not delivered yet. Raises Unavailable."""
        found = await asyncio.gather(*(self._first_waiting(queue, priority, count) for priority in priorities))
        return sorted(itertools.chain.from_iterable(found))[:count]

    async def _first_waiting(self, queue: str, priority: int, count: int) -> list[tuple[int, bytes]]:
        consumer = names.consumer_name(queue, priority)
        info = await self._connection.api(f"CONSUMER.INFO.{names.WORK_STREAM}.{consumer}")
        delivered = info.get("delivered", {}).get("stream_seq", 0)
        query = {
            "next_by_subj": names.work_subject(queue, priority),
            "seq": delivered + 1,
            "batch": min(count, MESSAGES),
        }
        batch = await self._connection.get_batch(names.WORK_STREAM, query)
        return [(message.sequence, message.data) for message in batch]

    async def remove_consumers(self, queue: str, priorities: list[int]) -> None:
        """Remove all consumers of a queue. Raises Unavailable."""
        for priority in priorities:
            await self._remove(names.WORK_STREAM, names.consumer_name(queue, priority))
        await self.remove_counting(queue)

    async def remove_counting(self, queue: str) -> None:
        """Remove the consumers that only count; the next question makes them anew. Raises Unavailable."""
        for bucket in INDEXES:
            await self._remove(names.bucket_stream(bucket), names.counting_consumer(queue))

    async def _remove(self, stream: str, consumer: str) -> None:
        await self._connection.api(f"CONSUMER.DELETE.{stream}.{consumer}")

    async def remove_idle(self, idle_s: float) -> int:
        """Remove the consumers of empty levels that delivered nothing for a while; how many. Raises Unavailable."""
        removed = 0
        for stream in (names.WORK_STREAM, *map(names.bucket_stream, INDEXES)):
            for info in await self._consumers(stream):
                if not info["num_pending"] and not info.get("num_ack_pending") and _idle_s(info) > idle_s:
                    await self._remove(stream, info["name"])
                    removed += 1
        return removed

    async def _consumers(self, stream: str) -> list[dict[str, Any]]:
        found = await consumers.listed(self._connection, stream)
        return [one for one in found if one["config"].get("durable_name")]


def _idle_s(info: dict[str, Any]) -> float:
    # By NATS' own clock: `ts` is when it answered.
    now, since = info["ts"], info.get("delivered", {}).get("last_active") or info["created"]
    return (_core.parse_rfc3339_ms(now) - _core.parse_rfc3339_ms(since)) / 1000
