"""Retry delays and priority order of `_core` (CONTRACT section 4, ojs-retry.md 3 and 5)."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ojs_fast._core import backoff_delay_ms, priority_key

STRATEGIES = ("none", "constant", "linear", "exponential", "polynomial")
SECOND = 1_000
LARGEST = 2**53

units = st.floats(0, 1, exclude_max=True)
coefficients = st.floats(1, 1e308, allow_nan=False, allow_infinity=False)
times = st.integers(0, 10**12)


def raw_delay(strategy: str, index: int, initial_ms: int, coefficient: float) -> float:
    """Compute the formulas of ojs-retry Appendix A in plain floats."""
    if initial_ms == 0:
        return 0.0
    try:
        match strategy:
            case "linear":
                return float(initial_ms) * index
            case "exponential":
                return float(initial_ms * coefficient ** (index - 1))
            case "polynomial":
                return float(initial_ms * float(index) ** coefficient)
            case _:
                return float(initial_ms)
    except OverflowError:
        return math.inf


@given(st.sampled_from(STRATEGIES), st.integers(1, 10**6), times, coefficients, times)
@example("exponential", 10**6, 1, 1e308, 5)
@example("exponential", 1, 1000, 1e308, 5000)
@example("polynomial", 2, 0, 1e308, 5000)
def test_without_jitter_the_delay_is_the_capped_formula(
    strategy: str, index: int, initial_ms: int, coefficient: float, max_ms: int
) -> None:
    """The delay is the strategy's formula, capped, to the nearest millisecond."""
    delay = backoff_delay_ms(strategy, index, initial_ms, coefficient, max_ms, jitter=False, random_unit=0.0)
    expected = min(raw_delay(strategy, index, initial_ms, coefficient), max_ms)
    assert delay == pytest.approx(expected, rel=1e-12, abs=0.5)
    assert 0 <= delay <= max_ms


@given(st.sampled_from(STRATEGIES), st.integers(1, 50), times, times, units)
def test_jitter_multiplies_and_is_capped_again(
    strategy: str, index: int, initial_ms: int, max_ms: int, unit: float
) -> None:
    """With jitter the delay is min(d * (0.5 + unit), max), and never leaves [0.5 d, 1.5 d)."""
    base = backoff_delay_ms(strategy, index, initial_ms, 1.7, max_ms, jitter=False, random_unit=0.0)
    delay = backoff_delay_ms(strategy, index, initial_ms, 1.7, max_ms, jitter=True, random_unit=unit)
    assert delay == pytest.approx(min(base * (0.5 + unit), max_ms), abs=1)
    assert min(base / 2, max_ms) <= delay <= max_ms
    assert delay < 1.5 * base or base == 0


@given(st.integers(1, LARGEST))
@example(2**52)
@example(LARGEST)
def test_the_extremes_of_randomness_stay_inside_the_bounds(base: int) -> None:
    """Even the unit next to 1 gives less than 1.5 d, and 0 gives no less than 0.5 d (5.2)."""
    nearly_one = math.nextafter(1.0, 0.0)
    smallest = backoff_delay_ms("none", 1, base, 1.0, LARGEST, jitter=True, random_unit=0.0)
    largest = backoff_delay_ms("none", 1, base, 1.0, LARGEST, jitter=True, random_unit=nearly_one)
    assert smallest == (base + 1) // 2
    assert 2 * largest < 3 * base
    assert largest <= LARGEST


@pytest.mark.parametrize(
    ("strategy", "coefficient", "seconds"),
    [
        ("none", 2.0, [1, 1, 1, 1]),
        ("constant", 2.0, [1, 1, 1, 1]),
        ("linear", 1.0, [1, 2, 3, 4]),
        ("linear", 9.0, [1, 2, 3, 4]),
        ("exponential", 1.0, [1, 1, 1, 1]),
        ("exponential", 2.0, [1, 2, 4, 8]),
        ("exponential", 1.5, [1, 1.5, 2.25, 3.375]),
        ("polynomial", 4.0, [1, 16, 81, 256]),
    ],
)
def test_the_tables_of_the_spec_come_out(strategy: str, coefficient: float, seconds: list[float]) -> None:
    """The worked examples of ojs-retry section 3 hold to the millisecond."""
    delays = [
        backoff_delay_ms(strategy, index, SECOND, coefficient, 300 * SECOND, jitter=False, random_unit=0.0)
        for index in (1, 2, 3, 4)
    ]
    assert delays == [1000 * s for s in seconds]


@pytest.mark.parametrize("strategy", ["linear", "exponential", "polynomial"])
@pytest.mark.parametrize("index", [2**31, 2**63 - 1, 2**63, 10**400])
def test_growth_beyond_every_number_is_the_cap(strategy: str, index: int) -> None:
    """No retry index is too large: the delay is then max_ms."""
    assert backoff_delay_ms(strategy, index, 1000, 2.0, 300_000, jitter=False, random_unit=0.0) == 300_000


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_initial_interval_means_no_delay(strategy: str) -> None:
    """Zero stays zero under any growth, jitter or not, rather than turning into NaN."""
    assert backoff_delay_ms(strategy, 10**9, 0, 1e308, 1000, jitter=False, random_unit=0.0) == 0
    assert backoff_delay_ms(strategy, 10**9, 0, 1e308, 1000, jitter=True, random_unit=0.9) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strategy": "fibonacci"}, "unknown backoff strategy 'fibonacci'"),
        ({"strategy": ""}, "unknown backoff strategy"),
        ({"retry_index": 0}, "retry_index"),
        ({"retry_index": -(10**30)}, "retry_index"),
        ({"initial_ms": -1}, "initial_ms"),
        ({"initial_ms": LARGEST + 1}, "initial_ms"),
        ({"initial_ms": 10**30}, "initial_ms"),
        ({"max_ms": -1}, "max_ms"),
        ({"max_ms": 10**30}, "max_ms"),
        ({"coefficient": 0.999}, "coefficient"),
        ({"coefficient": math.nan}, "coefficient"),
        ({"coefficient": math.inf}, "coefficient"),
        ({"random_unit": 1.0}, "random_unit"),
        ({"random_unit": -0.1}, "random_unit"),
        ({"random_unit": math.nan}, "random_unit"),
    ],
)
def test_input_out_of_range_is_refused(change: dict[str, object], reason: str) -> None:
    """A value outside its range raises ValueError naming the parameter."""
    arguments: dict[str, object] = {
        "strategy": "exponential",
        "retry_index": 1,
        "initial_ms": 1000,
        "coefficient": 2.0,
        "max_ms": 300_000,
        "jitter": True,
        "random_unit": 0.5,
    }
    with pytest.raises(ValueError, match=reason):
        backoff_delay_ms(**(arguments | change))  # type: ignore[arg-type]


def test_randomness_is_ignored_without_jitter() -> None:
    """Without jitter the caller need not provide a sensible unit."""
    assert backoff_delay_ms("none", 1, 1000, 1.0, 5000, jitter=False, random_unit=7.5) == 1000


@given(st.lists(st.tuples(st.integers(-100, 100), st.integers(0, 2**55 - 1)), unique=True))
def test_priority_keys_sort_high_priority_first_then_first_come(
    jobs: list[tuple[int, int]],
) -> None:
    """Keys order jobs by priority descending, then sequence ascending, and never collide."""
    by_key = sorted(jobs, key=lambda job: priority_key(*job))
    assert by_key == sorted(jobs, key=lambda job: (-job[0], job[1]))
    assert len({priority_key(*job) for job in jobs}) == len(jobs)
    assert all(0 <= priority_key(*job) < 2**63 for job in jobs)


@pytest.mark.parametrize(
    ("priority", "sequence"),
    [(101, 0), (-101, 0), (10**30, 0), (0, -1), (0, 2**55), (0, 10**30), (0, -(10**30))],
)
def test_priority_keys_refuse_what_would_not_sort(priority: int, sequence: int) -> None:
    """A priority or sequence outside its bits raises ValueError instead of sorting wrongly."""
    with pytest.raises(ValueError, match="must lie in"):
        priority_key(priority, sequence)
