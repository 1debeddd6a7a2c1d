"""Waiting messages come back by priority, oldest first, each once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ojs_fast.core import parking
from ojs_fast.core.parking import Parking


def subject(sequence: int) -> str:
    """Make an ack subject of a message."""
    return f"$JS.ACK.OJS.q.1.{sequence}.1.1.0"


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 20), st.integers(-2, 2), st.integers(1, 1000)), max_size=60
    )
)
def test_the_latest_message_of_each_job_comes_back_in_order(puts: list[tuple[str, int, int, int]]) -> None:
    """A newer message of a job replaces its older one; higher priorities come first, then the order is the stream's."""
    lot, expected = Parking(), dict[str, dict[int, tuple[int, int]]]()
    for key, job, priority, at in puts:
        sequence = at * 5 + priority  # no two messages of a stream share one
        lot.put(key, f"job-{job}", "q", priority, subject(sequence))
        expected.setdefault(key, {})[job] = (-priority, sequence)
    assert lot.total == sum(map(len, expected.values())) == lot.of_queue("q")
    assert set(lot) == set(expected)
    for key, jobs in expected.items():
        assert lot.count(key) == len(jobs)
        first = lot.take(key, 1)
        rest = lot.take(key, 1000)
        assert [int(one.split(".")[5]) for one in [*first, *rest]] == [at for _, at in sorted(jobs.values())]
        assert key not in lot
    assert (lot.total, lot.of_queue("q"), lot.take("a", 5)) == (0, 0, [])


def test_it_says_when_it_is_full() -> None:
    """Memory is bounded; what comes beyond is not parked."""
    lot = Parking()
    for number in range(parking.MAX_PARKED):
        lot.put(f"k{number % 7}", f"job-{number}", "q", 0, subject(number + 1))
    assert [lot.is_full, len(lot.take("k1", 1)), lot.is_full] == [True, 1, False]
    assert len(list(lot.take_all())) == parking.MAX_PARKED - 1
    lot.put("k", "j", "q", 0, subject(1))
    lot.clear()
    assert (lot.total, list(lot)) == (0, [])
