"""Work messages of jobs that wait for a limit: pulled, not claimed, given back in order when it makes room.

Held unacknowledged, so NATS delivers them to nobody else meanwhile; whoever fetches passes over them at no
cost. Only their acknowledgement subjects are kept.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator

from ojs_fast.storage.work import ack_sequence

MAX_PARKED = 50_000


class Parking:
    """All parked messages of one node, by limit key."""

    def __init__(self) -> None:
        # key → {job id: (sequence, ack subject, queue)}
        self._jobs: dict[str, dict[str, tuple[int, str, str]]] = {}
        # key → heap of (negative priority, sequence, job id); entries that were replaced or taken are skipped.
        self._order: dict[str, list[tuple[int, int, str]]] = {}
        self._queues: Counter[str] = Counter()
        self.total = 0

    def __contains__(self, key: str) -> bool:
        return key in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    @property
    def is_full(self) -> bool:
        """True when no more may be parked: memory is bounded."""
        return self.total >= MAX_PARKED

    def count(self, key: str) -> int:
        """How many jobs wait for this key here."""
        return len(self._jobs.get(key, ()))

    def of_queue(self, queue: str) -> int:
        """How many jobs of this queue wait here, whatever for."""
        return self._queues[queue]

    def sequences(self) -> list[int]:
        """Of all messages that are parked."""
        return [sequence for jobs in self._jobs.values() for sequence, _, _ in jobs.values()]

    def put(self, key: str, job_id: str, queue: str, priority: int, ack_subject: str) -> None:
        """Park one message; it replaces an older one of the same job."""
        jobs = self._jobs.setdefault(key, {})
        order = self._order.setdefault(key, [])
        sequence = ack_sequence(ack_subject)
        if job_id not in jobs:
            self.total += 1
            self._queues[queue] += 1
        jobs[job_id] = (sequence, ack_subject, queue)
        heapq.heappush(order, (-priority, sequence, job_id))

    def take(self, key: str, count: int) -> list[str]:
        """The ack subjects of up to `count` jobs, higher priorities first, then older messages; they leave."""
        jobs, order = self._jobs.get(key), self._order.get(key)
        taken: list[str] = []
        while jobs and order and len(taken) < count:
            _, sequence, job_id = heapq.heappop(order)
            if job_id in jobs and jobs[job_id][0] == sequence:
                _, ack_subject, queue = jobs.pop(job_id)
                taken.append(ack_subject)
                self._left(queue)
        if jobs is not None and not jobs:
            del self._jobs[key], self._order[key]
        return taken

    def _left(self, queue: str) -> None:
        self.total -= 1
        self._queues[queue] -= 1
        if not self._queues[queue]:
            del self._queues[queue]

    def take_all(self) -> Iterable[str]:
        """Everything, key by key."""
        for key in list(self._jobs):
            yield from self.take(key, self.count(key))

    def clear(self) -> None:
        """Forget all (after a reset)."""
        self._jobs.clear()
        self._order.clear()
        self._queues.clear()
        self.total = 0
