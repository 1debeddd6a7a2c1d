"""Has something become slower? Ratios of a run against committed ones: absolute rates depend on the machine. Pure."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from loadtest.report import Line

#: Two noisy cores move a ratio by a tenth.
TOLERATED = 0.2


def ratios(found: Sequence[Line]) -> dict[str, float]:
    """The ratio of each row that has a baseline, by the row's key."""
    return {line.row.key: line.ratio for line in found if not math.isnan(line.ratio)}


def read(path: Path) -> dict[str, float]:
    """What `write` wrote. Raises OSError, ValueError."""
    committed = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(committed, dict) or not all(isinstance(one, (int, float)) for one in committed.values()):
        raise ValueError(f"{path} holds no ratios by row")
    return committed


def write(path: Path, found: Sequence[Line]) -> None:
    """Keep the ratios of a run. Raises OSError."""
    rounded = {key: round(ratio, 3) for key, ratio in ratios(found).items()}
    path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


def drops(committed: dict[str, float], found: Sequence[Line]) -> list[str]:
    """A line for each row whose ratio fell by more than `TOLERATED`."""
    now = ratios(found)
    return [
        f"{key}: its ratio to its baseline fell from {before:.3g} to {now[key]:.3g} ({now[key] / before - 1:+.0%})"
        for key, before in committed.items()
        if key in now and now[key] < (1 - TOLERATED) * before
    ]
