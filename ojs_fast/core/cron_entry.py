"""A registered cron job as it lies in `ojs-cron`: its fields, what they may be, the request of a run. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core import schedule, unique
from ojs_fast.core.refusals import decode_field, refused
from ojs_fast.errors import InvalidRequest, OJSError, PayloadTooLarge

POLICIES = ("skip", "allow", "cancel_previous", "enqueue")
POLICY_ALIASES = {"cancel": "cancel_previous"}  # as openapi.yaml calls it
NAME = re.compile(r"[a-z0-9][a-z0-9\-.]*", re.ASCII)
MAX_NAME = 255
MAX_DESCRIPTION = 4096
MAX_TEMPLATE_BYTES = 262_144  # every node holds every entry in memory

_EXPRESSION_KEYS = ("expression", "cron", "schedule")
_Spans = dict[str, tuple[int, int]]
# Looks at the job that a new template makes; the text says where its fields stand.
CheckJob = Callable[[_core.Record, str], None]


@dataclass(slots=True, frozen=True)
class Entry:
    """One cron job. Times in epoch ms, 0 = none. `template` is the raw JSON text of each member of a run's request.

    `pending` is the id allotted to a run whose record may not exist yet, `fired_ms` the occurrence it is
    for; `instances` are the runs that had not ended when last looked at; `waiting` holds the occurrences
    that policy `enqueue` keeps back until the run before them has ended.
    """

    name: str
    expression: str
    created_ms: int
    timezone: str = "UTC"
    template: dict[str, str] = field(default_factory=dict)
    policy: str = "skip"
    enabled: bool = True
    description: str | None = None
    updated_ms: int = 0
    anchor_ms: int = 0
    next_ms: int = 0
    last_ms: int = 0
    run_count: int = 0
    pending: str = ""
    fired_ms: int = 0
    last_job_id: str = ""
    instances: tuple[str, ...] = ()
    waiting: tuple[int, ...] = ()

    @property
    def is_interval(self) -> bool:
        """Whether it counts from its anchor (`@every`) instead of following the calendar."""
        return schedule.parse(self.expression, self.timezone).every_ms > 0

    def next_after(self, reference_ms: int) -> schedule.Occurrence:
        """The first occurrence behind an instant; those of an interval keep step with its anchor."""
        parsed = schedule.parse(self.expression, self.timezone)
        if parsed.every_ms:
            passed = max(0, reference_ms - self.anchor_ms) // parsed.every_ms
            return schedule.Occurrence(self.anchor_ms + (passed + 1) * parsed.every_ms)
        return parsed.next_after(reference_ms)

    def value(self) -> dict[str, Any]:
        """The value in `ojs-cron`."""
        return {name: getattr(self, name) for name in Entry.__slots__}

    @staticmethod
    def read(value: dict[str, Any]) -> "Entry":
        """Undo `value`. Raises ValueError for what is none of ours."""
        try:
            return Entry(**{**value, "instances": tuple(value["instances"]), "waiting": tuple(value["waiting"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not an entry of ojs-cron: {error}") from None

    def planned(self, now_ms: int) -> "Entry":
        """With its next occurrence behind `now_ms`, with none while it is disabled."""
        return replace(self, next_ms=self.next_after(now_ms).at_ms if self.enabled else 0)

    def job_request(self, scheduled_ms: int) -> bytes:
        """The enqueue request of one run; its meta names the cron job and the occurrence (ojs-cron section 6.3)."""
        meta = self.template.get("meta", "{}")
        about = (
            f'"cron_name":{_core.quote_json(self.name)},"cron_triggered_at":"{_core.format_rfc3339_ms(scheduled_ms)}"'
        )
        # Ours come last, and the last of duplicate keys wins.
        meta = meta[:-1] + ("," if meta[1:-1].strip() else "") + about + "}"
        members = self.template | {"meta": meta}
        return ("{" + ",".join(f"{_core.quote_json(name)}:{raw}" for name, raw in members.items()) + "}").encode()

    def as_json(self) -> dict[str, Any]:
        """The entry in an answer: as openapi.yaml has it and as ojs-cron and the SDKs have it, in one object."""
        template = {name: orjson.Fragment(raw.encode()) for name, raw in self.template.items()}
        return {
            "name": self.name,
            "expression": self.expression,
            "cron": self.expression,
            "timezone": self.timezone,
            "overlap_policy": self.policy,
            "enabled": self.enabled,
            "status": "active" if self.enabled else "disabled",
            "description": self.description,
            "job_template": template,
            **template,
            "created_at": _time(self.created_ms),
            "updated_at": _time(self.updated_ms),
            "last_run_at": _time(self.last_ms),
            "next_run_at": _time(self.next_ms),
            "run_count": self.run_count,
            "last_job_id": self.last_job_id or None,
        }


def _time(epoch_ms: int) -> str | None:
    return _core.format_rfc3339_ms(epoch_ms) if epoch_ms else None


class Form:
    """The body of a registration or a change, both shapes: `{expression, job_template}` and flat `{cron, type, args}`.

    Raises OJSError naming the field.
    """

    def __init__(self, body: bytes, check: CheckJob) -> None:
        self._body = body
        self._check = check
        try:
            self._members: _Spans = _core.scan_json_object(body)
        except (ValueError, TypeError) as error:
            raise refused(error) from None

    def has(self, name: str) -> bool:
        """Whether a member is there and not null."""
        span = self._members.get(name)
        return span is not None and self._body[span[0] : span[1]] != b"null"

    def _decoded(self, name: str, kind: type, expected: str) -> Any:
        start, end = self._members[name]
        value = decode_field(self._body[start:end], name)
        if type(value) is not kind:
            raise _invalid(name, repr(value), expected)
        return value

    def text(self, name: str, limit: int, expected: str) -> str | None:
        """A string, None when it is missing."""
        if not self.has(name):
            return None
        value: str = self._decoded(name, str, expected)
        if len(value) > limit:
            raise _invalid(name, f"{len(value)} characters", f"at most {limit} characters")
        return value

    def name(self) -> str:
        """The name of the cron job."""
        expected = f"lower-case letters, digits, '-' and '.', at most {MAX_NAME} characters (required)"
        value = self.text("name", 10 * MAX_NAME, expected)
        if value is None:
            raise _invalid("name", "missing", expected)
        return check_name(value)

    def change(self, entry: Entry) -> Entry:
        """The entry with every field that the body names."""
        key = next((key for key in _EXPRESSION_KEYS if self.has(key)), "expression")
        expected = "a cron expression such as '0 9 * * MON-FRI'"
        expression = self.text(key, 1000, expected) if self.has(key) else entry.expression
        if not expression:
            raise _invalid(key, "empty" if self.has(key) else "missing", f"{expected} (required)")
        zone = self.text("timezone", 100, "an IANA time zone such as 'Europe/Berlin'")
        zone = entry.timezone if zone is None else zone
        _check("timezone", zone, "UTC or an IANA name such as 'America/New_York'", schedule.find_zone)
        _check(key, expression, schedule.EXPECTED, lambda text: schedule.parse(text, zone))
        enabled = self._decoded("enabled", bool, "true or false") if self.has("enabled") else entry.enabled
        description = self.text("description", MAX_DESCRIPTION, "a string")
        return replace(
            entry,
            expression=expression,
            timezone=zone,
            policy=self._policy(entry.policy),
            enabled=enabled,
            description=entry.description if description is None else description,
            template=self._template(entry.template),
        )

    def _policy(self, default: str) -> str:
        expected = f"one of {', '.join(POLICIES)}"
        value = self.text("overlap_policy", 100, expected)
        if value is None:
            return default
        value = POLICY_ALIASES.get(value, value)
        if value not in POLICIES:
            raise _invalid("overlap_policy", f"'{value}'", expected)
        return value

    def _template(self, default: dict[str, str]) -> dict[str, str]:
        body, members, at = self._body, self._members, ""
        if self.has("job_template"):
            start, end = members["job_template"]
            body, at = body[start:end], "job_template."
            if body[:1] != b"{":
                raise _invalid("job_template", body[:60].decode("utf-8", "replace"), "an object with type and args")
            members = _core.scan_json_object(body)
        names = [n for n in members if at or n in ("type", "args", "meta", "options", "schema")]
        changes = {n: body[members[n][0] : members[n][1]].decode() for n in names}
        template = {"args": "[]"} | ({} if at else default) | {n: raw for n, raw in changes.items() if raw != "null"}
        size = sum(map(len, template.values()))
        if size > MAX_TEMPLATE_BYTES:
            raise PayloadTooLarge(
                f"The job template takes {size} bytes; at most {MAX_TEMPLATE_BYTES} are taken.",
                details={"field": at or "args", "max_bytes": MAX_TEMPLATE_BYTES},
                hint="Pass a reference instead of the payload.",
            )
        record = _check_template(template, at)
        if changes:
            unique.check(record, at)
            self._check(record, at)
        return template


def _check(name: str, text: str, expected: str, parse: Callable[[str], object]) -> None:
    try:
        parse(text)
    except schedule.ScheduleError as error:
        raise _invalid(name, f"'{text[:100]}' ({error})", expected) from None


def _check_template(template: dict[str, str], at: str) -> _core.Record:
    for name in ("id", "scheduled_at", "delay_until"):
        if name in template:
            raise _invalid(at + name, template[name][:60], "nothing: the server sets it for each run")
    # ojs-cron section 2.2 has `meta` among the options.
    template.setdefault("meta", _option(template.get("options", ""), "meta") or "{}")
    trial = Entry("trial", "* * * * *", 0, template=template)
    if not template["meta"].startswith("{"):
        raise _invalid(at + "meta", template["meta"][:60], "an object")
    try:
        return _core.parse_enqueue(trial.job_request(0), 0, lambda _: "")
    except _core.EnvelopeError as error:
        raise refused(
            _core.EnvelopeError(at + error.field, error.received, error.expected, error.retry_policy)
        ) from None


def _option(options: str, name: str) -> str:
    raw = options.encode()
    if raw[:1] != b"{":
        return ""
    span = _core.scan_json_object(raw).get(name)
    return raw[span[0] : span[1]].decode() if span else ""


def check_name(name: str) -> str:
    """The name itself. Raises InvalidRequest (ojs-cron section 2.2)."""
    if len(name) > MAX_NAME or NAME.fullmatch(name) is None:
        raise _invalid(
            "name", f"'{name[:100]}'", f"lower-case letters, digits, '-' and '.', at most {MAX_NAME} characters"
        )
    return name


def _invalid(name: str, received: str, expected: str) -> OJSError:
    return InvalidRequest(
        f"Field '{name}' is {received}; expected {expected}.",
        details={"field": name, "received": received, "expected": expected},
    )
