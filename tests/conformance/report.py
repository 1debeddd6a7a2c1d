"""What a run came to, for people (lines and a table) and for machines (JSON)."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .cases import UNNUMBERED_LEVEL, known_defect
from .runner import CaseResult, StepResult, Verdict

MAX_SHOWN = 300


def shown(value: Any) -> str:
    """Write a value on one line, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"


def step_name(result: StepResult) -> str:
    """Name a step: its id, its action and where it went."""
    phase = "" if result.phase == "steps" else f"{result.phase} "
    target = "" if result.step.action in {"WAIT", "ASSERT"} else f" {result.step.path}"
    return f"{phase}{result.step.id} {result.step.action}{target}"


def failure_lines(result: CaseResult) -> list[str]:
    """Tell what failed: the step, the assertion, expected and actual."""
    lines: list[str] = []
    for step, failure in result.failures:
        lines.append(f"  {step_name(step)}: {failure.assertion}")
        lines.append(f"      expected {shown(failure.expected)}")
        lines.append(f"      actual   {shown(failure.actual)}")
    return lines


def step_lines(result: CaseResult) -> list[str]:
    """Tell how each step went and what was not looked at."""
    lines: list[str] = []
    for step in result.steps:
        answer = ""
        if step.response is not None:
            answer = f" -> {step.response.status} in {step.response.elapsed_ms:.1f} ms"
        lines.append(f"    {step_name(step)}{answer}")
        lines += [f"      not checked: {text}" for text in step.findings.skipped]
    return lines


def progress_line(result: CaseResult, position: int, total: int) -> str:
    """Tell that a case is done."""
    width = len(str(total))
    verdict = result.verdict.upper() if result.verdict is Verdict.FAILED else result.verdict
    name = f"{result.case.test_id:<12} {result.case.key}"
    return f"[{position:>{width}}/{total}] {verdict:<12} {name} ({result.duration_ms:.0f} ms)"


def level_name(level: int) -> str:
    """Name a level."""
    return "ext" if level == UNNUMBERED_LEVEL else str(level)


def table(results: Iterable[CaseResult]) -> list[str]:
    """Count verdicts per level and category, with a sum per level and one over all."""
    counts: dict[int, dict[str, Counter[Verdict]]] = {}
    for result in results:
        categories = counts.setdefault(result.case.level, {})
        categories.setdefault(result.case.category, Counter())[result.verdict] += 1
    width = max([8, *(len(category) for categories in counts.values() for category in categories)])
    lines = [f"level  {'category':<{width}}  passed  failed  known defects  total"]
    overall: Counter[Verdict] = Counter()
    for level, categories in sorted(counts.items()):
        name = level_name(level)
        lines += [_row(name, category, one, width) for category, one in sorted(categories.items())]
        in_level = sum(categories.values(), Counter[Verdict]())
        lines.append(_row(name, "all", in_level, width))
        overall += in_level
    return [*lines, _row("all", "", overall, width)]


def _row(level: str, category: str, counts: Counter[Verdict], width: int) -> str:
    passed, failed = counts[Verdict.PASSED], counts[Verdict.FAILED]
    known, total = counts[Verdict.KNOWN_DEFECT], counts.total()
    return f"{level:<5}  {category:<{width}}  {passed:>6}  {failed:>6}  {known:>13}  {total:>5}"


def summary(results: Sequence[CaseResult], warnings: Iterable[str]) -> list[str]:
    """Tell the whole run: warnings, failures, known defects, table."""
    lines = [f"warning: {text}" for text in warnings]
    for result in results:
        defect = known_defect(result.case)
        if result.verdict is Verdict.FAILED:
            lines += ["", f"FAILED {result.case.test_id} {result.case.key}", *failure_lines(result)]
        elif defect is not None and result.verdict is Verdict.KNOWN_DEFECT:
            lines += ["", f"known defect {result.case.test_id} {result.case.key}: {defect.reason}"]
        elif defect is not None:
            lines += ["", f"{result.case.test_id} passed, though recorded as defective ({defect.reason}):"]
            lines.append("  either the case was repaired, or the server reads messages it should only store")
    return [*lines, "", *table(results)]


def as_json(url: str, results: Sequence[CaseResult], warnings: Sequence[str]) -> dict[str, Any]:
    """Make the report for machines."""
    counts = Counter(result.verdict for result in results)
    return {
        "url": url,
        "summary": {**{verdict.value: counts[verdict] for verdict in Verdict}, "total": len(results)},
        "warnings": list(warnings),
        "cases": [_case_as_json(result) for result in results],
    }


def _case_as_json(result: CaseResult) -> dict[str, Any]:
    return {
        "key": result.case.key,
        "test_id": result.case.test_id,
        "level": result.case.level,
        "category": result.case.category,
        "name": result.case.name,
        "verdict": result.verdict.value,
        "duration_ms": round(result.duration_ms, 1),
        "failures": [
            {
                "phase": step.phase,
                "step": step.step.id,
                "assertion": failure.assertion,
                "expected": failure.expected,
                "actual": failure.actual,
            }
            for step, failure in result.failures
        ],
        "not_checked": [f"{step.step.id} {text}" for step in result.steps for text in step.findings.skipped],
    }
