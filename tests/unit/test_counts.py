"""Counts of ended jobs add up whatever the order, survive storage, and tell times within an eighth."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from ojs_fast import _core
from ojs_fast.core.counts import HOUR_MS, MINUTE_MS, Counts, bucket_middle, bucket_of, percentile

NOW_MS = 1_800_000_000_000
STATES = st.sampled_from(["completed", "discarded", "cancelled", "-discarded"])
TIMES = st.integers(0, 10_000_000)


def ended(state: str, running_ms: int = 0, waiting_ms: int = 0, at_ms: int = NOW_MS) -> _core.Record:
    """Make a record that reached its final state."""
    record = _core.Record("id", "a.b", "q", b"")
    record.state = state.removeprefix("-")
    record.ended_ms = at_ms
    record.started_ms = at_ms - running_ms
    record.enqueued_ms = record.started_ms - waiting_ms
    return record


@given(st.integers(0, 1 << 40))
def test_a_bucket_is_an_eighth_of_its_time_wide(milliseconds: int) -> None:
    """The middle of a time's bucket is within an eighth of the time."""
    assert abs(bucket_middle(bucket_of(milliseconds)) - milliseconds) <= milliseconds / 8


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_buckets_keep_the_order_of_times(one: int, other: int) -> None:
    """A longer time never has a lower bucket."""
    assert (bucket_of(one) <= bucket_of(other)) or one > other


def test_a_negative_time_counts_as_none() -> None:
    """Clocks that run apart must not break the count."""
    assert bucket_of(-5) == 0


@given(st.lists(TIMES, min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_close_to_the_one_of_the_sorted_times(times: list[int], share: float) -> None:
    """Within an eighth of the value that stands at that share of the sorted list."""
    histogram: dict[int, int] = {}
    for one in times:
        histogram[bucket_of(one)] = histogram.get(bucket_of(one), 0) + 1
    exact = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
    told = percentile(histogram, share)
    assert told is not None
    assert abs(told - exact) <= exact / 8


def test_there_is_no_percentile_of_nothing() -> None:
    """An idle queue has no latency."""
    assert percentile({}, 0.5) is None


@given(st.lists(st.tuples(STATES, TIMES, TIMES, st.integers(0, 2))))
def test_counts_over_several_owners_are_the_counts_of_one(jobs: list[tuple[str, int, int, int]]) -> None:
    """Whoever counts which job, stored in between or not: the sum is the same."""
    alone = Counts()
    owners = [Counts(), Counts(), Counts()]
    for state, running_ms, waiting_ms, owner in jobs:
        record = ended(state, running_ms, waiting_ms)
        alone.add(record, state)
        owners[owner].add(record, state)
    total = Counts()
    for one in owners:
        total.merge(Counts.parse(orjson.loads(orjson.dumps(one.as_json(NOW_MS)))))
    assert total.as_json(NOW_MS) == {**alone.as_json(NOW_MS), "hours": total.as_json(NOW_MS)["hours"]}
    assert total.percentiles(NOW_MS) == alone.percentiles(NOW_MS)
    assert total.recent(NOW_MS, 60) == alone.recent(NOW_MS, 60)


def test_only_the_last_hour_is_kept_in_minutes() -> None:
    """What is stored stays small; the totals remember all."""
    counts = Counts()
    for minute in range(200):
        counts.add(ended("completed", at_ms=NOW_MS - minute * MINUTE_MS), "completed")
    stored = counts.as_json(NOW_MS)
    assert stored["completed"] == 200
    assert len(stored["minutes"]) == 61
    assert len(stored["hours"]) == 2
    assert counts.recent(NOW_MS, 4)[0] == 5


def test_a_record_that_has_moved_on_counts_without_its_times() -> None:
    """A discarded job that was retried since tells nothing about when it was discarded."""
    counts = Counts()
    record = ended("discarded")
    record.state = "active"
    counts.add(record, "discarded")
    assert counts.discarded == 1
    assert not counts.minutes


def test_old_hours_are_no_part_of_percentiles() -> None:
    """Percentiles tell about this hour and the last one."""
    counts = Counts()
    counts.add(ended("completed", 5000, at_ms=NOW_MS - 3 * HOUR_MS), "completed")
    assert counts.percentiles(NOW_MS)["latency_ms"]["p50"] is None
