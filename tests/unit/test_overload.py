"""How many requests may be under way (ojs_fast/api/overload.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ojs_fast.api.overload import FEWEST, MOST, START, TARGET_S, WINDOW_S, Load


class Clock:
    """A clock that stands still until it is told otherwise."""

    now_s = 0.0

    def __call__(self) -> float:
        """The time, in s."""
        return self.now_s


def filled(clock: Clock, count: int) -> Load:
    """A load of so many requests."""
    load = Load(clock)
    for _ in range(count):
        assert load.enter()
    return load


def test_more_than_the_limit_are_refused_and_each_end_makes_room_for_one() -> None:
    """A refused request does not count."""
    load = filled(Clock(), START)
    assert not load.enter()
    assert load.under_way == START
    load.leave()
    assert load.enter()
    assert not load.enter()


def test_the_limit_follows_what_gets_done() -> None:
    """With 3,000 done per second it is 1,500, with 100 it is the fewest, with very many the most."""
    for rate, limit in ((3000, round(3000 * TARGET_S)), (100, FEWEST), (40_000, MOST)):
        clock = Clock()
        load = filled(clock, FEWEST + 1)
        for _ in range(round(rate * WINDOW_S) - 1):
            assert load.enter()
            load.leave()
        clock.now_s = WINDOW_S
        load.leave()
        assert load.limit == limit


def test_a_quiet_server_learns_nothing() -> None:
    """A low rate of requests says nothing about how much can be done."""
    clock = Clock()
    load = Load(clock)
    for number in range(100):
        assert load.enter()
        clock.now_s = float(number)
        load.leave()
    assert load.limit == START


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=200))
def test_the_limit_stays_within_its_bounds(steps: list[tuple[bool, float]]) -> None:
    """Whatever comes and goes when."""
    clock = Clock()
    load = filled(clock, FEWEST)
    for comes, after_s in steps:
        clock.now_s += after_s
        before = load.under_way
        if comes:
            assert load.enter() == (before < load.limit)
        elif before:
            load.leave()
        assert FEWEST <= load.limit <= MOST
        assert load.under_way >= 0
