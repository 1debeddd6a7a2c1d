"""Requests to create a workflow: what they may look like, and the definition they become. Pure.

Two shapes (ojs-workflows section 3, ojs-http-binding section 14): `type` with a list of steps or jobs, and
named steps with `depends_on`. Jobs stay bytes; only what wraps them is read.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import orjson

from ojs_fast import _core
from ojs_fast.core.refusals import refused
from ojs_fast.core.workflows.graph import Graph
from ojs_fast.core.workflows.model import BATCH, CALLBACKS, CHAIN, GRAPH, Member
from ojs_fast.errors import InvalidWorkflow, OJSError

MAX_JOBS = 10_000
MAX_CHAIN = 1000
MAX_NESTING = 8
MAX_ID = 255
DEEPEST = 1000  # the shape is judged before the depth, so that the answer names the nesting

# As the JavaScript SDK writes them in workflow steps.
_CAMEL = {
    b'"maxAttempts"': b'"max_attempts"',
    b'"initialInterval"': b'"initial_interval"',
    b'"initialIntervalMs"': b'"initial_interval_ms"',
    b'"maxInterval"': b'"max_interval"',
    b'"maxIntervalMs"': b'"max_interval_ms"',
    b'"backoffCoefficient"': b'"backoff_coefficient"',
    b'"backoffStrategy"': b'"backoff_strategy"',
    b'"backoffType"': b'"backoff_type"',
    b'"nonRetryableErrors"': b'"non_retryable_errors"',
    b'"onExhaustion"': b'"on_exhaustion"',
}
_NAMING = ("id", "name", "depends_on")

Fields = dict[str, bytes]
# Looks at the job that a member becomes; the text says where it stands.
Check = Callable[[_core.Record, str], None]


@dataclass(slots=True)
class Draft:
    """A workflow as asked for. `jobs` counts those of nested workflows too, but no callbacks."""

    type: str
    name: str
    members: list[Member]
    callbacks: dict[str, Member]
    jobs: int
    nested: int


@dataclass(slots=True)
class _Step:
    """One element of the list on its way to a Member."""

    at: str
    fields: Fields
    id: str
    needs: list[str]
    callback: str = ""
    options: Fields = field(default_factory=dict)


def parse_workflow(body: bytes, now_ms: int, max_depth: int, check: Check) -> Draft:
    """Read and validate a whole request, nested workflows included. Raises OJSError."""
    try:
        members = _core.scan_json_object(body, DEEPEST)
    except (ValueError, TypeError) as error:
        raise refused(error) from None
    return _Reader(now_ms, max_depth, check).workflow(_cut(body, members), "", 1, {})


def invalid(field_: str, received: str, expected: str) -> InvalidWorkflow:
    """The answer to a workflow that breaks a rule (ojs-workflows section 11.1)."""
    if len(received) > 80:
        received = received[:77] + "..."
    return InvalidWorkflow(
        f"Field '{field_}' is {received}; expected {expected}.",
        details={
            "field": field_,
            "received": received,
            "expected": expected,
            "validation_errors": [{"path": f"$.{field_}", "message": f"is {received}; expected {expected}"}],
        },
    )


def _cut(data: bytes, members: dict[str, tuple[int, int]]) -> Fields:
    # null means the same as missing (CONTRACT section 2).
    return {key: data[start:end] for key, (start, end) in members.items() if data[start:end] != b"null"}


def _kind(raw: bytes) -> str:
    kinds = {b"{": "an object", b"[": "an array", b'"': "the string " + raw[:60].decode("utf-8", "replace")}
    return kinds.get(raw[:1], raw[:40].decode("utf-8", "replace"))


def _object(raw: bytes, at: str) -> Fields:
    if raw[:1] != b"{":
        raise invalid(at, _kind(raw), "an object")
    return _cut(raw, _core.scan_json_object(raw, DEEPEST))


def _string(raw: bytes | None, at: str) -> str:
    if raw is None:
        return ""
    text = orjson.loads(raw) if raw[:1] == b'"' else None
    if not isinstance(text, str) or not 0 < len(text) <= MAX_ID:
        shown = f"{len(text)} characters long" if text else "empty" if text == "" else _kind(raw)
        raise invalid(at, shown, f"a string of 1 to {MAX_ID} characters")
    return text


def _joined(fields: Fields) -> bytes:
    return b"{" + b",".join(orjson.dumps(key) + b":" + raw for key, raw in fields.items()) + b"}"


def is_nested(fields: Fields) -> bool:
    """Whether a step is a workflow itself: it has a list of its own, or the type of one and no arguments."""
    if "steps" in fields or "jobs" in fields:
        return True
    return "args" not in fields and fields.get("type") in (b'"chain"', b'"group"', b'"batch"')


class _Reader:
    """One request under validation."""

    def __init__(self, now_ms: int, max_depth: int, check: Check) -> None:
        self._now_ms = now_ms
        self._max_depth = max_depth
        self._check = check

    def workflow(self, fields: Fields, at: str, level: int, inherited: Fields) -> Draft:
        """The workflow at one place of the request."""
        if level > MAX_NESTING:
            raise invalid(at.rstrip("."), f"nested {level} levels deep", f"at most {MAX_NESTING} levels")
        type_ = self._type(fields, at)
        name = _string(fields.get("name"), f"{at}name")
        defaults = {**inherited, **(_object(fields["options"], f"{at}options") if "options" in fields else {})}
        steps = self._steps(fields, at, type_)
        callbacks = self._callbacks(fields, at, type_, steps, defaults)
        steps = [step for step in steps if not step.callback]
        depends_on = self._edges(steps, at, type_)
        jobs = nested = 0
        members = []
        for step, needed in zip(steps, depends_on, strict=True):
            if is_nested(step.fields):
                draft = self._nested(step, level, defaults)
                jobs, nested = jobs + draft.jobs, nested + 1
                members.append(Member(step.id, draft.type, self._nested_raw(step, defaults), needed, nested=True))
            else:
                jobs += 1
                members.append(self._job(step, needed, defaults))
            if jobs > MAX_JOBS:
                raise invalid(f"{at}{_list_name(fields)}", "a list of too many jobs", f"at most {MAX_JOBS} jobs in all")
        if callbacks and not any(depends_on):
            type_ = BATCH
        return Draft(type_, name, members, callbacks, jobs, nested)

    def _type(self, fields: Fields, at: str) -> str:
        raw = fields.get("type", b'"dag"' if "steps" in fields else b"missing")
        type_ = raw[1:-1].decode() if raw in (b'"chain"', b'"group"', b'"batch"', b'"dag"') else ""
        if not type_:
            raise invalid(f"{at}type", _kind(raw), "'chain', 'group' or 'batch', or no type and steps with depends_on")
        return type_

    def _steps(self, fields: Fields, at: str, type_: str) -> list[_Step]:
        name = _list_name(fields) or ("steps" if type_ in (CHAIN, GRAPH) else "jobs")
        if "steps" in fields and "jobs" in fields:
            raise invalid(f"{at}jobs", "given beside steps", "either steps or jobs")
        raw = fields.get(name, b"missing")
        if raw[:1] != b"[":
            raise invalid(f"{at}{name}", _kind(raw), "an array with at least one job (required)")
        spans = _core.scan_json_array(raw, 0)
        limit = MAX_CHAIN if type_ == CHAIN else MAX_JOBS
        if not 1 <= len(spans) <= limit:
            raise invalid(f"{at}{name}", f"an array of {len(spans)}", f"1 to {limit} elements")
        steps = []
        for index, (start, end) in enumerate(spans):
            where = f"{at}{name}[{index}]"
            steps.append(self._step(_object(raw[start:end], where), where + ".", type_))
        self._name(steps)
        return steps

    def _step(self, fields: Fields, at: str, type_: str) -> _Step:
        needs: list[str] = []
        if "depends_on" in fields:
            raw = fields["depends_on"]
            if raw[:1] != b"[":
                raise invalid(f"{at}depends_on", _kind(raw), "an array of step ids")
            needs = [
                _string(raw[start:end], f"{at}depends_on[{i}]")
                for i, (start, end) in enumerate(_core.scan_json_array(raw, 0))
            ]
            if needs and type_ != GRAPH:
                raise invalid(f"{at}depends_on", _kind(raw), f"none in a {type_}; leave out the workflow's type")
        step = _Step(at, fields, _string(fields.get("id"), f"{at}id"), needs)
        if "options" in fields and not is_nested(fields):
            step.options = _object(fields["options"], f"{at}options")
            raw = step.options.pop("callback_type", b"")
            step.callback = _string(raw, f"{at}options.callback_type") if raw else ""
            if step.callback and (step.callback not in CALLBACKS or type_ != GRAPH):
                raise invalid(f"{at}options.callback_type", f"'{step.callback}'", _expected_callback(type_))
        return step

    def _name(self, steps: list[_Step]) -> None:
        given: set[str] = set()
        for step in steps:
            if step.id in given:
                raise invalid(f"{step.at}id", f"'{step.id}', which another step has", "a unique step id")
            given.update([step.id] if step.id else [])
        for index, step in enumerate(steps):
            while not step.id:
                candidate = f"{index}"
                step.id = candidate if candidate not in given else f"step-{index}-{len(given)}"
                given.add(step.id)

    def _edges(self, steps: list[_Step], at: str, type_: str) -> list[tuple[int, ...]]:
        numbers = {step.id: index for index, step in enumerate(steps)}
        edges = [self._needed(step, numbers) for step in steps]
        if type_ == GRAPH and (cycle := Graph(edges).cycle()):
            path = " → ".join(steps[index].id for index in [*cycle, cycle[0]])
            raise invalid(f"{at}steps", f"a list with the cycle {path}", "steps whose dependencies form no cycle")
        return edges

    def _needed(self, step: _Step, numbers: dict[str, int]) -> tuple[int, ...]:
        for place, need in enumerate(step.needs):
            where = f"{step.at}depends_on[{place}]"
            if need == step.id:
                raise invalid(where, f"'{need}', the step itself", "another step's id")
            if need not in numbers:
                raise invalid(where, f"'{need}'", "the id of a step of this workflow that is no callback")
        return tuple(dict.fromkeys(numbers[need] for need in step.needs))

    def _callbacks(
        self, fields: Fields, at: str, type_: str, steps: list[_Step], defaults: Fields
    ) -> dict[str, Member]:
        found: dict[str, Member] = {}
        ids = {step.id for step in steps}
        for step in steps:
            if not step.callback:
                continue
            if step.callback in found:
                raise invalid(f"{step.at}options.callback_type", f"'{step.callback}' again", "one step of each kind")
            for place, need in enumerate(step.needs):
                if need == step.id or need not in ids:
                    raise invalid(f"{step.at}depends_on[{place}]", f"'{need}'", "another step's id")
            found[step.callback] = self._job(step, (), defaults)
        if found and len(found) == len(steps):
            raise invalid(f"{at}steps", "a list of callbacks only", "at least one job that they wait for")
        raw = fields.get("callbacks")
        given = _object(raw, f"{at}callbacks") if raw is not None else {}
        if given and type_ != BATCH:
            raise invalid(f"{at}callbacks", "given", f"none in a {type_}; a batch has callbacks")
        for name, job in given.items():
            where = f"{at}callbacks.{name}"
            if name not in CALLBACKS:
                raise invalid(where, "an unknown callback", ", ".join(CALLBACKS))
            parts = _object(job, where)
            if is_nested(parts):
                raise invalid(where, "a workflow", "a job")
            step = _Step(where + ".", parts, name, [])
            step.options = _object(parts["options"], f"{where}.options") if "options" in parts else {}
            found[name] = self._job(step, (), defaults)
        if type_ == BATCH and not found:
            raise invalid(f"{at}callbacks", "empty" if raw else "missing", f"at least one of {', '.join(CALLBACKS)}")
        return {name: found[name] for name in CALLBACKS if name in found}

    def _nested(self, step: _Step, level: int, defaults: Fields) -> Draft:
        return self.workflow({k: v for k, v in step.fields.items() if k != "id"}, step.at, level + 1, defaults)

    def _nested_raw(self, step: _Step, defaults: Fields) -> bytes:
        own = _object(step.fields["options"], f"{step.at}options") if "options" in step.fields else {}
        fields = {k: v for k, v in step.fields.items() if k not in ("id", "depends_on", "options")}
        merged = {**defaults, **own}
        return _joined({**fields, "options": _joined(merged)} if merged else fields)

    def _job(self, step: _Step, needed: tuple[int, ...], defaults: Fields) -> Member:
        fields = {k: v for k, v in step.fields.items() if k not in _NAMING}
        options = {**{k: v for k, v in defaults.items() if k not in fields}, **step.options}
        for place in (options, fields):
            for key in ("retry", "retry_policy"):
                if place.get(key, b"")[:1] == b"{":
                    place[key] = _snake(place[key])
        if options:
            fields["options"] = _joined(options)
        else:
            fields.pop("options", None)
        raw = _joined(fields)
        try:
            record = _core.parse_enqueue(raw, self._now_ms, lambda _: "", self._max_depth)
        except (ValueError, TypeError) as error:
            raise _at(step.at, error) from None
        self._check(record, step.at.rstrip("."))
        return Member(step.id, record.type, raw, needed)


def _list_name(fields: Fields) -> str:
    return "steps" if "steps" in fields else "jobs" if "jobs" in fields else ""


def _expected_callback(type_: str) -> str:
    names: Iterable[str] = CALLBACKS if type_ == GRAPH else ()
    return f"one of {', '.join(names)}" if names else f"none in a {type_}; use its callbacks"


def _snake(raw: bytes) -> bytes:
    members = _cut(raw, _core.scan_json_object(raw, DEEPEST))
    renamed = {_CAMEL.get(orjson.dumps(key), orjson.dumps(key)): value for key, value in members.items()}
    return b"{" + b",".join(key + b":" + value for key, value in renamed.items()) + b"}"


def _at(place: str, error: Exception) -> OJSError:
    if isinstance(error, _core.EnvelopeError):
        error = _core.EnvelopeError(place + error.field, error.received, error.expected, error.retry_policy)
    elif isinstance(error, _core.JsonError):
        return invalid(place.rstrip("."), error.reason, "JSON within OJS_MAX_DEPTH")
    return refused(error)
