"""What became of a queue's jobs, in numbers that add up: totals, minutes, histograms. Pure.

One `Counts` says what one owner saw; the sum over all owners of a queue is the truth about it.
"""

from collections.abc import Iterable
from typing import Any

from ojs_fast import _core

MINUTES_KEPT = 61  # the last hour, and the minute that is not over
HOURS_KEPT = 2
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
_EXACT = 8  # below 8 ms each millisecond has a bucket; above, eight buckets double the time

Histogram = dict[int, int]
# completed, failed, milliseconds of running, milliseconds of waiting
_Minute = list[int]


def bucket_of(milliseconds: int) -> int:
    """The histogram bucket of a time; a bucket is at most an eighth of its time wide."""
    if milliseconds < _EXACT:
        return max(0, milliseconds)
    size = milliseconds.bit_length()
    return (size - 3) * 8 + ((milliseconds >> (size - 4)) & 7)


def bucket_middle(bucket: int) -> int:
    """The time in the middle of a bucket (ms)."""
    if bucket < _EXACT:
        return bucket
    size = bucket // 8 + 3
    width = 1 << (size - 4)
    return (1 << (size - 1)) + (bucket & 7) * width + width // 2


def percentile(histogram: Histogram, share: float) -> int | None:
    """The time (ms) that `share` (0 to 1) of the cases did not exceed; None without a case."""
    cases = sum(histogram.values())
    if not cases:
        return None
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= share * cases:
            break
    return bucket_middle(bucket)


class Counts:
    """Jobs of one queue that ended, as one owner counted them."""

    __slots__ = ("cancelled", "completed", "discarded", "hours", "minutes")

    def __init__(self) -> None:
        self.completed = 0
        self.discarded = 0
        self.cancelled = 0
        self.minutes: dict[int, _Minute] = {}
        # hour → histograms of running and of waiting
        self.hours: dict[int, tuple[Histogram, Histogram]] = {}

    def add(self, record: _core.Record, state: str) -> None:
        """Count a job that reached the final `state`, or left it again (`-state`).

        The record tells about times only while it is in that state.
        """
        if state.startswith("-"):
            setattr(self, state[1:], getattr(self, state[1:]) - 1)
            return
        if record.state != state or state == "cancelled":
            setattr(self, state, getattr(self, state) + 1)
            return
        ended_ms, started_ms = record.ended_ms, record.started_ms
        minute = self.minutes.get(ended_ms // MINUTE_MS)
        if minute is None:
            minute = self.minutes[ended_ms // MINUTE_MS] = [0, 0, 0, 0]
        if state == "discarded":
            self.discarded += 1
            minute[1] += 1
            return
        self.completed += 1
        running_ms = ended_ms - started_ms if ended_ms > started_ms else 0
        waiting_ms = started_ms - record.enqueued_ms if started_ms > record.enqueued_ms else 0
        minute[0] += 1
        minute[2] += running_ms
        minute[3] += waiting_ms
        running, waiting = self._hour(ended_ms // HOUR_MS)
        bucket = bucket_of(running_ms)
        running[bucket] = running.get(bucket, 0) + 1
        bucket = bucket_of(waiting_ms)
        waiting[bucket] = waiting.get(bucket, 0) + 1

    def _hour(self, hour: int) -> tuple[Histogram, Histogram]:
        pair = self.hours.get(hour)
        if pair is None:
            pair = self.hours[hour] = ({}, {})
        return pair

    def merge(self, other: "Counts") -> "Counts":
        """Add what another owner counted; returns self."""
        self.completed += other.completed
        self.discarded += other.discarded
        self.cancelled += other.cancelled
        for minute, values in other.minutes.items():
            mine = self.minutes.setdefault(minute, [0, 0, 0, 0])
            self.minutes[minute] = [a + b for a, b in zip(mine, values, strict=True)]
        for hour, histograms in other.hours.items():
            for mine_, theirs in zip(self._hour(hour), histograms, strict=True):
                for bucket, cases in theirs.items():
                    mine_[bucket] = mine_.get(bucket, 0) + cases
        return self

    def as_json(self, now_ms: int) -> dict[str, Any]:
        """The value in `ojs-stats`, without minutes and hours that are too old to be asked for."""
        first_minute, first_hour = now_ms // MINUTE_MS - MINUTES_KEPT, now_ms // HOUR_MS - HOURS_KEPT
        self.minutes = {minute: values for minute, values in self.minutes.items() if minute > first_minute}
        self.hours = {hour: values for hour, values in self.hours.items() if hour > first_hour}
        return {
            "completed": self.completed,
            "discarded": self.discarded,
            "cancelled": self.cancelled,
            "minutes": [[minute, *values] for minute, values in self.minutes.items()],
            "hours": [[hour, *(list(one.items()) for one in pair)] for hour, pair in self.hours.items()],
        }

    @classmethod
    def parse(cls, value: dict[str, Any]) -> "Counts":
        """Read what `as_json` made; `{}` is nothing."""
        counts = cls()
        counts.completed = value.get("completed", 0)
        counts.discarded = value.get("discarded", 0)
        counts.cancelled = value.get("cancelled", 0)
        counts.minutes = {minute: values for minute, *values in value.get("minutes", ())}
        counts.hours = {hour: (dict(running), dict(waiting)) for hour, running, waiting in value.get("hours", ())}
        return counts

    # -- what is asked for -----------------------------------------------------------------------

    def recent(self, now_ms: int, minutes: int) -> _Minute:
        """`[completed, failed, ms running, ms waiting]` of the last full minutes and the present one."""
        first = now_ms // MINUTE_MS - minutes
        sums = [0, 0, 0, 0]
        for minute, values in self.minutes.items():
            if minute >= first:
                sums = [a + b for a, b in zip(sums, values, strict=True)]
        return sums

    def history(self, now_ms: int, minutes: int) -> list[tuple[int, dict[str, Any]]]:
        """`[(start in epoch ms, numbers)]` of the last hour, oldest first, in spans of so many minutes."""
        last, spans = now_ms // MINUTE_MS, []
        for start in range((last - MINUTES_KEPT + 1) // minutes * minutes, last + 1, minutes):
            sums = [0, 0, 0, 0]
            for minute in range(start, start + minutes):
                sums = [a + b for a, b in zip(sums, self.minutes.get(minute, (0, 0, 0, 0)), strict=True)]
            completed, failed, running_ms, waiting_ms = sums
            numbers = {
                "processed": completed,
                "failed": failed,
                "avg_duration_ms": running_ms // completed if completed else 0,
                "avg_wait_ms": waiting_ms // completed if completed else 0,
            }
            spans.append((start * MINUTE_MS, numbers))
        return spans

    def percentiles(self, now_ms: int) -> dict[str, dict[str, int | None]]:
        """Percentiles of running and waiting times, in ms, of this hour and the last one."""
        pairs = [pair for hour, pair in self.hours.items() if hour > now_ms // HOUR_MS - HOURS_KEPT]
        return {
            name: {f"p{share}": percentile(_sum(pair[at] for pair in pairs), share / 100) for share in (50, 95, 99)}
            for at, name in enumerate(("latency_ms", "wait_ms"))
        }


def _sum(histograms: Iterable[Histogram]) -> Histogram:
    total: Histogram = {}
    for histogram in histograms:
        for bucket, cases in histogram.items():
            total[bucket] = total.get(bucket, 0) + cases
    return total
