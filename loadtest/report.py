"""Turns samples into the table, the lines of the targets and the JSON file. Pure."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest import plan
from loadtest.measure import Sample
from loadtest.plan import ROWS, TARGETS, Row
from loadtest.stats import median, paired_ratio, spread

#: Strangers that keep more of a core busy than this while a row is measured make its figures doubtful.
BUSY_CORES = 0.2

HEADINGS = (
    "", "rate", "", "p50 ms", "p99 ms", "ratio", "of", "server µs", "NATS µs", "load %", "others %", "spread %",
)  # fmt: skip

LEGEND = """\
rate      median of the rounds; ratio: median of the rounds' own ratios to the baseline named beside it
server µs CPU of the server's processes per request or job; NATS µs: of nats-server
load %    share of one core that the load generator itself used; of raw JetStream: the client process
others %  share of one core that strangers used in the worst round; spread %: (highest - lowest) ÷ median rate"""


@dataclass(frozen=True)
class Line:
    """One row's figures over all rounds: medians, and the ratio to its baseline."""

    row: Row
    rate: float
    p50_ms: float
    p99_ms: float
    ratio: float
    server_us: float
    nats_us: float
    load_cores: float
    foreign_cores: float
    spread: float
    rounds: int


def rates(samples: Sequence[Sample], key: str) -> dict[int, float]:
    """A row's rate in each round; `plan.CEILING` is the best ceiling row of each."""
    found: dict[int, float] = {}
    for sample in samples:
        if math.isnan(sample.rate):
            continue
        if sample.row == key or (key == plan.CEILING and sample.row.startswith("ceiling-")):
            found[sample.round] = max(sample.rate, found.get(sample.round, 0.0))
    return found


def lines(samples: Sequence[Sample]) -> list[Line]:
    """A line per row that was measured, in the order of `plan.ROWS`."""
    return [_line(row, samples) for row in ROWS if any(sample.row == row.key for sample in samples)]


def _line(row: Row, samples: Sequence[Sample]) -> Line:
    own = [sample for sample in samples if sample.row == row.key]
    ratio = paired_ratio(rates(samples, row.key), rates(samples, row.baseline)) if row.baseline else math.nan
    return Line(
        row,
        rate=median([sample.rate for sample in own]),
        p50_ms=median([sample.p50_ms for sample in own]),
        p99_ms=median([sample.p99_ms for sample in own]),
        ratio=ratio,
        server_us=median([sample.server_us for sample in own]),
        nats_us=median([sample.nats_us for sample in own]),
        load_cores=median([sample.load_cores for sample in own]),
        foreign_cores=max((sample.foreign_cores for sample in own if not math.isnan(sample.foreign_cores)), default=0),
        spread=spread([sample.rate for sample in own]),
        rounds=len(own),
    )


def _number(value: float, decimals: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:,.{decimals}f}"


def _cells(line: Line) -> tuple[str, ...]:
    row = line.row
    latencies = (_number(line.p50_ms, 2), _number(line.p99_ms, 2))
    if row.is_part:
        return (row.title, "", "", *latencies, *[""] * (len(HEADINGS) - 5))
    return (
        row.title,
        _number(line.rate),
        row.unit,
        *latencies,
        _number(line.ratio, 3),
        {plan.CEILING: "raw"}.get(row.baseline, row.baseline) if not math.isnan(line.ratio) else "",
        _number(line.server_us, 1),
        _number(line.nats_us, 1),
        _number(line.load_cores * 100),
        _number(line.foreign_cores * 100),
        _number(line.spread * 100) if line.rounds > 1 else "",
    )


def table(found: Sequence[Line]) -> str:
    """The table as text."""
    rows = [HEADINGS, *map(_cells, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    left = (0, 2, 6)  # words; all else are numbers
    text = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def targets(found: Sequence[Line]) -> list[dict[str, Any]]:
    """Each target with its figure (None when it was not measured) and whether it is met."""
    by_key = {line.row.key: line for line in found}
    results = []
    for target in TARGETS:
        line = by_key.get(target.row)
        figure = getattr(line, target.measure) if line else math.nan
        is_known = not math.isnan(figure)
        results.append(
            {
                "target": target.text,
                "bound": target.bound,
                "at_least": target.at_least,
                "figure": figure if is_known else None,
                "met": target.is_met(figure) if is_known else None,
            }
        )
    return results


def target_text(results: Sequence[dict[str, Any]]) -> str:
    """A line per target; for information, as other machines may well miss one."""
    text = []
    for one in results:
        sign = "≥" if one["at_least"] else "≤"
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[one["met"]]
        figure = "" if one["figure"] is None else f"{one['figure']:.3g}"
        text.append(f"{one['target']:<52} {figure:>7}  {sign} {one['bound']:<5g} {verdict}")
    return "\n".join(text)


def busy_rows(samples: Sequence[Sample]) -> list[str]:
    """The samples that strangers disturbed, for people: `row (round n: 0.5 cores)`."""
    return [
        f"{sample.row} (round {sample.round}: {sample.foreign_cores:.2f} cores)"
        for sample in samples
        if sample.foreign_cores > BUSY_CORES
    ]


def as_json(found: Sequence[Line], samples: Sequence[Sample]) -> dict[str, Any]:
    """Everything for `--json`; what has no value is null, since JSON knows no nan."""
    rows = [
        {"key": line.row.key, "group": line.row.group, "title": line.row.title.strip(), "unit": line.row.unit,
         "baseline": line.row.baseline}
        | {name: value for name, value in asdict(line).items() if name != "row"}
        | {"samples": [asdict(sample) for sample in samples if sample.row == line.row.key]}
        for line in found
    ]  # fmt: skip
    cleaned: dict[str, Any] = _without_nan({"rows": rows, "targets": targets(found)})
    return cleaned


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_without_nan(member) for member in value]
    return None if isinstance(value, float) and math.isnan(value) else value
