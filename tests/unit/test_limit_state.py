"""What may start under a limit, against a model that remembers every start."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ojs_fast.core.limit_state import IDLE_S, MAX_SLICES, SLICES, UNBOUNDED, Limit, LimitState

DAY_MS = 86_400_000
PAUSES_MS = st.lists(st.floats(0, 700, allow_nan=False), min_size=1, max_size=150)


@dataclass
class Model:
    """All starts by rate and throttle, and all holders."""

    starts: list[float] = field(default_factory=list)

    def in_window(self, now_ms: float, period_ms: int) -> int:
        """Count the starts in the half-open window that ends now."""
        return sum(1 for at_ms in self.starts if now_ms - period_ms < at_ms <= now_ms)


def run(limit: Limit, pauses_ms: list[float]) -> tuple[Model, LimitState]:
    """Try a start after each pause, as a queue without end would."""
    state, model, now_ms = LimitState(limit), Model(), 1_000_000.0
    for number, pause_ms in enumerate(pauses_ms):
        now_ms += pause_ms
        if state.refusal(limit, now_ms) is None:
            model.starts.append(state.start(f"job-{number}", "p", limit, now_ms))
        state = LimitState.parse(orjson.loads(orjson.dumps(state.as_json())))
    return model, state


@given(PAUSES_MS, st.integers(1, 12), st.integers(1, 3000))
def test_no_window_of_the_period_holds_more_starts_than_the_rate(
    pauses_ms: list[float], rate: int, period_ms: int
) -> None:
    """Wherever the window lies; and a start comes at most 1/64 of the period later than the model allows it."""
    limit = Limit("k", rate=rate, period_ms=period_ms)
    model, state = run(limit, pauses_ms)
    for at_ms in model.starts:
        assert model.in_window(at_ms, period_ms) <= rate
    now_ms = state.last_ms + 0.001
    refusal = state.refusal(limit, now_ms)
    if refusal is not None:
        assert (refusal.strategy, refusal.limit) == ("rate", rate)
        late_ms = refusal.until_ms - (sorted(model.starts)[-rate] + period_ms)
        assert -1e-6 <= late_ms <= period_ms / SLICES + 1e-6
        assert state.refusal(limit, refusal.until_ms) is None
        assert state.room(limit, refusal.until_ms) >= 1
    assert state.room(limit, now_ms) <= rate - min(rate, model.in_window(now_ms, period_ms))


@given(PAUSES_MS, st.floats(0.01, 2000, allow_nan=False))
def test_a_throttle_spaces_starts_evenly(pauses_ms: list[float], throttle_ms: float) -> None:
    """Two starts are an interval apart; below the grain of 10 ms, as many as fit into the grain come together."""
    limit = Limit("k", throttle_ms=throttle_ms)
    model, state = run(limit, pauses_ms)
    for first, second in zip(model.starts, model.starts[1:], strict=False):
        if throttle_ms >= 10:
            assert second - first >= throttle_ms - 1e-6
    for number, at_ms in enumerate(model.starts):
        since = [one for one in model.starts[: number + 1] if one > at_ms - 1000]
        assert len(since) <= 1000 / throttle_ms + 10 / throttle_ms + 2
    refusal = state.refusal(limit, state.last_ms)
    if refusal is not None:
        assert refusal.strategy == "throttle"
        assert state.refusal(limit, refusal.until_ms + 1e-6) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60), st.integers(1, 4))
def test_concurrency_is_the_number_of_permits_out(steps: list[tuple[int, bool]], most: int) -> None:
    """Permits go out up to the limit and come back once each, whatever else is returned."""
    limit = Limit("k", concurrency=most)
    state, held = LimitState(limit), dict[str, str]()
    for number, (job, is_start) in enumerate(steps):
        job_id = f"job-{job}"
        if is_start and job_id not in held:
            refusal = state.refusal(limit, 5.0)
            assert (refusal is None) == (len(held) < most)
            if refusal is None:
                held[job_id] = f"p{number}"
                state.start(job_id, held[job_id], limit, 5.0)
        elif not is_start:
            assert not state.give_back(job_id, "of another delivery", 0)
            assert state.give_back(job_id, held.get(job_id, "none"), 0) == (job_id in held)
            held.pop(job_id, None)
        assert state.room(limit, 5.0) == most - len(held)
        assert {one: permit for one, (permit, _) in state.holders.items()} == held


@given(st.lists(st.tuples(st.floats(0, 5000), st.sampled_from([50, 1000, 60_000])), max_size=300))
def test_jobs_of_one_key_with_different_periods_stay_within_each(steps: list[tuple[float, int]]) -> None:
    """No rate is exceeded once the longest period was seen, and the entry stays small."""
    state, model, now_ms, rate = LimitState(Limit("k"), span_ms=60_000), Model(), 0.0, 5
    for pause_ms, period_ms in steps:
        now_ms += pause_ms
        limit = Limit("k", rate=rate, period_ms=period_ms)
        if state.refusal(limit, now_ms) is None:
            model.starts.append(state.start("j", "p", limit, now_ms))
            assert model.in_window(now_ms, period_ms) <= rate
        assert len(state.starts) <= MAX_SLICES


def test_a_thousand_starts_take_a_bounded_entry() -> None:
    """A rate of 100,000 a minute costs no more room than SLICES slices."""
    limit = Limit("k", rate=100_000, period_ms=60_000)
    state = LimitState(limit)
    for number in range(20_000):
        state.start(str(number), "p", limit, number * 7.0)
    assert len(state.starts) <= SLICES + 2
    assert len(orjson.dumps(state.as_json())) < 4096


def test_a_start_that_did_not_happen_frees_its_slot() -> None:
    """A claim that failed after its permit costs nothing."""
    limit = Limit("k", rate=1, period_ms=1000)
    state = LimitState(limit)
    at_ms = state.start("j", "p", limit, 100.0)
    assert state.refusal(limit, 100.0) is not None
    assert state.give_back("j", "p", at_ms)
    assert state.refusal(limit, 100.0) is None
    assert state.starts == []


def test_a_clock_that_lags_does_not_make_starts_older() -> None:
    """A node whose clock is behind counts from the latest start that any node made."""
    limit = Limit("k", rate=1, period_ms=1000)
    state = LimitState(limit)
    state.start("j", "p", limit, 5000.0)
    assert state.now_ms(4000.0) == 5000.0
    assert state.now_ms(6000.0) == 6000.0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"concurrency": 0, "expires_ms": 0}, Limit("k", -1, 7, 1000, 50, "wait", 2)),
        ({"concurrency": 9, "expires_ms": 2000}, Limit("k", 9, 7, 1000, 50, "wait", 2)),
        ({"rate": [1, 60_000], "expires_ms": 2000}, Limit("k", 3, 1, 60_000, 50, "wait", 2)),
        ({"throttle": [20, 5], "expires_ms": 2000}, Limit("k", 3, 7, 1000, 20, "wait", 5)),
        ({"concurrency": 9, "expires_ms": 999}, Limit("k", 3, 7, 1000, 50, "wait", 2)),
    ],
)
def test_an_override_replaces_what_it_names_until_it_expires(override: dict[str, object], expected: Limit) -> None:
    """The rest stays as the job declares it."""
    limit = Limit("k", 3, 7, 1000, 50, "wait", 2)
    assert LimitState(limit, override).effective(limit, 1000.0) == expected


def test_concurrency_zero_lets_none_run() -> None:
    """-1 stands for it, as 0 means that nothing is set."""
    limit = Limit("k", concurrency=-1)
    refusal = LimitState(limit).refusal(limit, 0)
    assert refusal is not None
    assert (refusal.strategy, refusal.limit, refusal.until_ms) == ("concurrency", 0, 0)


def test_a_pause_holds_everything_until_it_ends() -> None:
    """A handler's feedback counts for jobs without any other limit on the key too."""
    limit = Limit("k")
    state = LimitState(limit, until_ms=100)
    refusal = state.refusal(limit, 99)
    assert refusal is not None
    assert (refusal.strategy, refusal.until_ms) == ("dynamic", 100)
    assert state.next_room_ms(limit, 99) == 100
    assert state.room(limit, 100) == UNBOUNDED


def test_an_entry_lives_as_long_as_it_says_something() -> None:
    """For ever while a permit is out or an override has no end, else a day beyond what it remembers."""
    limit = Limit("k", rate=1, period_ms=DAY_MS)
    state = LimitState(limit)
    assert state.ttl_s(0) == IDLE_S
    state.start("j", "p", limit, 0)
    assert state.ttl_s(0) == IDLE_S + DAY_MS // 1000
    assert LimitState(limit, holders={"j": ("p", 0)}).ttl_s(0) == 0
    assert LimitState(limit, {"concurrency": 1, "expires_ms": 0}).ttl_s(0) == 0
    assert LimitState(limit, {"concurrency": 1, "expires_ms": 5000}).ttl_s(0) == IDLE_S + 5
    assert LimitState(limit, {"concurrency": 1, "expires_ms": 1000 * 365 * DAY_MS}).ttl_s(0) == 0
