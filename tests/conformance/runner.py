"""Running cases against a server: requests, waits, concurrent steps, the reset before each case, the verdict.

Owns time and HTTP. What assertions mean is `dsl`'s business, what a case looks like is `cases`'.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import httpx

from tests.support.plain import PLAIN

from . import dsl
from .cases import Case, Step, known_defect
from .paths import Bodies, PathError, as_text, parse_object, resolve, substitute

TIMEOUT_S = 30.0
CONTENT_TYPE = "application/openjobspec+json"
RESET_PATH = "/ojs/v1/admin/reset"


class Verdict(StrEnum):
    """What a case came to."""

    PASSED = "passed"
    FAILED = "failed"
    KNOWN_DEFECT = "known defect"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step as it went; `phase` is setup, steps or teardown."""

    phase: str
    step: Step
    response: dsl.Response | None
    findings: dsl.Findings


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case as it went."""

    case: Case
    steps: tuple[StepResult, ...]
    duration_ms: float

    @property
    def failures(self) -> list[tuple[StepResult, dsl.Failure]]:
        """What failed, and in which step; teardown only tidies up, so it decides nothing."""
        judged = (one for one in self.steps if one.phase != "teardown")
        return [(one, failure) for one in judged for failure in one.findings.failures]

    @property
    def verdict(self) -> Verdict:
        """Passed, failed, or failed only where the case itself is known to be wrong."""
        if not self.failures:
            return Verdict.PASSED
        defect = known_defect(self.case)
        if defect and all(failure.assertion in defect.excused for _, failure in self.failures):
            return Verdict.KNOWN_DEFECT
        return Verdict.FAILED


def connect(base_url: str) -> httpx.AsyncClient:
    """Open a client for the server under test; no proxy, or loopback would be asked for elsewhere."""
    more = {"trust_env": False} if base_url.startswith("https:") else PLAIN
    return httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT_S, **more)


@dataclass(slots=True)
class Runner:
    """Runs cases against one server; `reset_url`, whole or a path, is posted to before each, unless None."""

    client: httpx.AsyncClient
    reset_url: str | None = RESET_PATH
    warnings: list[str] = field(default_factory=list)

    async def run_all(
        self, cases: Sequence[Case], *, jobs: int = 1, done: Callable[[CaseResult], None] = lambda _: None
    ) -> list[CaseResult]:
        """Run cases, up to `jobs` side by side, and call `done` after each."""
        if jobs > 1 and self.reset_url is not None:
            raise ValueError("cases cannot run side by side while each of them resets the server")
        slots = asyncio.Semaphore(jobs)

        async def run(case: Case) -> CaseResult:
            async with slots:
                result = await self.run_case(case)
            done(result)
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(case)) for case in cases]
        return [task.result() for task in tasks]

    async def run_case(self, case: Case) -> CaseResult:
        """Reset the server and run one case. A failed step does not stop later ones; a failed setup does."""
        await self.reset()
        started = time.perf_counter()
        bodies: dict[str, dict[str, Any] | None] = {}
        captured: dict[str, str] = {}
        results = await self._run_steps("setup", case.setup, bodies, captured)
        if not any(result.findings.failures for result in results):
            results += await self._run_steps("steps", case.steps, bodies, captured)
        results += await self._run_steps("teardown", case.teardown, bodies, captured)
        return CaseResult(case, tuple(results), (time.perf_counter() - started) * 1000)

    async def reset(self) -> None:
        """Wipe the server's state. Trouble is a warning, given once: many cases pass all the same."""
        if self.reset_url is None:
            return
        try:
            response = await self.client.post(self.reset_url)
        except httpx.HTTPError as error:
            self._warn(f"reset {self.reset_url}: no answer ({error!r})")
            return
        if response.status_code == HTTPStatus.NOT_FOUND:
            self._warn(
                f"reset {self.reset_url} answered 404, so cases see what earlier ones left behind: "
                "start the server with OJS_ENABLE_RESET=true"
            )
        elif not response.is_success:
            self._warn(f"reset {self.reset_url} answered {response.status_code}: {response.text[:200]}")

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    async def _run_steps(
        self,
        phase: str,
        steps: Sequence[Step],
        bodies: dict[str, dict[str, Any] | None],
        captured: dict[str, str],
    ) -> list[StepResult]:
        results: list[StepResult] = []
        for together in group_parallel(steps):
            # Answers are kept only afterwards: steps that run at once cannot refer to each other.
            ran = await asyncio.gather(*(self._run_step(phase, filled(step, captured), bodies) for step in together))
            for result in ran:
                if result.response is not None:
                    bodies[result.step.id] = result.response.body
                    captured |= captures(result.step, result.response.body)
            results += ran
        return results

    async def _run_step(self, phase: str, step: Step, bodies: Bodies) -> StepResult:
        await asyncio.sleep((step.delay_ms + (step.duration_ms if step.action == "WAIT" else 0)) / 1000)
        response: dsl.Response | None = None
        findings = dsl.Findings()
        try:
            if step.action == "ASSERT":
                findings = dsl.check_across(step.assertions, bodies)
            elif step.action != "WAIT":
                response = await self._send(step, bodies)
                findings = dsl.check(step.assertions, response, bodies)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            findings.require("request", "a reply", repr(error), holds=False)
        except (TypeError, KeyError, AttributeError) as error:
            findings.require("assertions", "well-formed assertions", repr(error), holds=False)
        findings.skipped += [f"{key}: ignored, as by the official runner" for key in step.ignored]
        return StepResult(phase, step, response, findings)

    async def _send(self, step: Step, bodies: Bodies) -> dsl.Response:
        headers = {name.lower(): value for name, value in step.headers.items()}
        content = body_of(step, bodies)
        if content is not None:
            headers.setdefault("content-type", CONTENT_TYPE)
        path = substitute(step.path, bodies)
        started = time.perf_counter()
        reply = await self.client.request(step.action, path, headers=headers, content=content)
        elapsed_ms = (time.perf_counter() - started) * 1000
        text = reply.content.decode("utf-8", "replace")
        return dsl.Response(
            status=reply.status_code,
            headers={name.lower(): value for name, value in reply.headers.items()},
            text=text,
            body=parse_object(text),
            elapsed_ms=elapsed_ms,
        )


def captures(step: Step, body: dict[str, Any] | None) -> dict[str, str]:
    """What a step of an extension suite keeps of its answer, by name."""
    kept: dict[str, str] = {}
    for name, path in step.capture.items():
        with contextlib.suppress(PathError):
            kept[name] = as_text(resolve(body, path))
    return kept


def filled(step: Step, captured: Mapping[str, str]) -> Step:
    """Fill in what earlier steps kept: `{{name}}` anywhere in the step."""
    if not captured:
        return step

    def fill(value: Any) -> Any:
        text = json.dumps(value, ensure_ascii=False)
        for name, kept in captured.items():
            text = text.replace("{{" + name + "}}", json.dumps(kept, ensure_ascii=False)[1:-1])
        return json.loads(text)

    texts = {"path": fill(step.path), "headers": fill(dict(step.headers)), "body": fill(step.body)}
    return replace(step, **texts, assertions=fill(dict(step.assertions)))


def body_of(step: Step, bodies: Bodies) -> bytes | None:
    """Make the body of a request: `raw_body` as it stands, `body` as JSON with templates filled in."""
    if step.raw_body is not None:
        raw = step.raw_body if isinstance(step.raw_body, str) else json.dumps(step.raw_body)
        return raw.encode()
    if step.body is None:
        return None
    return substitute(json.dumps(step.body, ensure_ascii=False), bodies).encode()


def group_parallel(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yield what runs at once: neighbours that carry, or are named by, `parallel_with`; else one by one."""
    named = {name for step in steps for name in step.parallel_with}
    together: list[Step] = []
    for step in steps:
        if step.parallel_with or step.id in named:
            together.append(step)
            continue
        if together:
            yield together
            together = []
        yield [step]
    if together:
        yield together
