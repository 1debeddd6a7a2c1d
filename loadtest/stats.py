"""Arithmetic of the benchmark: percentiles, medians, ratios. Pure; must not know what was measured."""

import math
import statistics
from collections.abc import Mapping, Sequence


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of an ascending sequence; nan when it is empty.

    Nearest rank, because it is a latency that some request really had; interpolation invents one.
    """
    if not ordered:
        return math.nan
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}; expected 0 to 100")
    rank = max(1, math.ceil(len(ordered) * percent / 100))
    return ordered[rank - 1]


def median(values: Sequence[float]) -> float:
    """The median of the values that are numbers; nan when there is none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def paired_ratio(subject: Mapping[int, float], baseline: Mapping[int, float]) -> float:
    """The median of subject ÷ baseline, round by round; nan when no round has both.

    A round's two figures were taken within a minute, so what slows the machine for longer than that
    hits both and cancels out; a ratio of two medians could pair a good round with a bad one.
    """
    return median([subject[number] / baseline[number] for number in subject if baseline.get(number, 0.0) > 0])


def spread(values: Sequence[float]) -> float:
    """(highest - lowest) ÷ median: how far the rounds disagree; nan when there is no value."""
    known = [value for value in values if not math.isnan(value)]
    middle = median(known)
    return (max(known) - min(known)) / middle if known and middle else math.nan
