"""The configuration of a queue: what may be set, and what it means (ojs-queue-config, ojs-backpressure). Pure."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.errors import InvalidRequest, JobTypeNotAllowed, Unsupported, ValidationFailed

STRATEGIES = ("reject", "block", "drop_oldest")
MAX_SECONDS = 31_536_000
MAX_DEPTH = 1_000_000_000
MAX_TYPES = 1000
MAX_CONCURRENCY = 10_000  # as for every limit: each permit stands in the entry of its key
# Not kept with the rest: the limit of the queue's key is the truth (limit_admin).
CONCURRENCY = "concurrency"
HONOURED = (
    CONCURRENCY,
    "backpressure",
    "max_size",
    "overflow_policy",
    "retention",
    "visibility_timeout",
    "default_timeout",
    "default_retry",
    "allowed_job_types",
)
# What the documents name and this server does not do: refused, so that nobody relies on it.
UNSUPPORTED = (
    "rate_limit",
    "max_size_bytes",
    "dead_letter_queue",
    "dead_letter_max_size",
    "dead_letter_ttl",
    "producers",
)


@dataclass(slots=True, frozen=True)
class QueueRules:
    """What a configuration means. 0, None and () = not set; times in the unit of their name."""

    max_depth: int = 0
    strategy: str = "reject"
    warning_threshold: float = 0.8
    retention_s: dict[str, int] = field(default_factory=dict)
    visibility_ms: int = 0
    timeout_ms: int = 0
    retry: list[Any] | None = None
    allowed_job_types: tuple[str, ...] = ()

    def check_type(self, record: _core.Record, at: str = "") -> None:
        """Refuse a new job of a type that is not taken; `at` is where it stands in the request.

        Raises JobTypeNotAllowed.
        """
        if self.allowed_job_types and not any(_fits(one, record.type) for one in self.allowed_job_types):
            raise JobTypeNotAllowed(
                f"Field '{at}type' is '{record.type}'; queue '{record.queue}' takes "
                f"{', '.join(self.allowed_job_types)[:200]}.",
                details={"field": f"{at}type", "received": record.type, "queue": record.queue},
            )

    def apply(self, record: _core.Record) -> None:
        """Take a new job: `check_type`, then `fill`. Raises JobTypeNotAllowed."""
        self.check_type(record)
        self.fill(record)

    def fill(self, record: _core.Record) -> None:
        """Give a new job what it does not set itself (ojs-queue-config section 7.3)."""
        if not record.timeout_ms:
            record.timeout_ms = self.timeout_ms
        if not record.visibility_ms:
            record.visibility_ms = self.visibility_ms
        if record.retry is None and self.retry is not None:
            record.retry = self.retry
            record.max_attempts = max(1, self.retry[0])


def _fits(pattern: str, job_type: str) -> bool:
    return job_type == pattern or (pattern.endswith("*") and job_type.startswith(pattern[:-1]))


def _refused(name: str, value: Any, expected: str) -> InvalidRequest:
    shown = repr(value)[:80]
    return InvalidRequest(
        f"Field '{name}' is {shown}; expected {expected}.",
        details={"field": name, "received": shown, "expected": expected},
    )


def merged(present: dict[str, Any], change: Any, at: str = "") -> dict[str, Any]:
    """The configuration after a change: members given replace, null removes, the rest stays; without `concurrency`.

    `at` is where the change stands in the request. Raises InvalidRequest, Unsupported, ValidationFailed.
    """
    if not isinstance(change, dict):
        raise _refused(at.rstrip(".") or "config", change, "an object")
    for name in change:
        if name in UNSUPPORTED:
            raise Unsupported(
                f"Field '{at}{name}' is not supported; this server honours {', '.join(HONOURED)}.",
                details={"field": at + name, "supported": list(HONOURED)},
            )
        if name not in HONOURED:
            raise _refused(at + name, change[name], f"only {', '.join(HONOURED)}")
    if change.get("overflow_policy") is not None:
        _choice(change["overflow_policy"], at + "overflow_policy")  # also where backpressure goes before it
    most = change.get(CONCURRENCY)
    if most is not None and (type(most) is not int or not 0 <= most <= MAX_CONCURRENCY):
        raise _refused(at + CONCURRENCY, most, f"an integer from 0 (no job starts) to {MAX_CONCURRENCY}")
    members = {**present, **change}
    config = {name: value for name, value in members.items() if value is not None and name != CONCURRENCY}
    if isinstance(change.get("backpressure"), dict) and "max_size" not in change:
        # Two names for one bound: the one that was set last counts.
        config.pop("max_size", None)
        config.pop("overflow_policy", None)
    elif "max_size" in change and "backpressure" not in change:
        config.pop("backpressure", None)
    rules(config, at)
    return config


def rules(config: dict[str, Any], at: str = "") -> QueueRules:
    """What a configuration means. Raises InvalidRequest, ValidationFailed."""
    max_depth, strategy, threshold = _bound(config, at)
    return QueueRules(
        max_depth,
        strategy,
        threshold,
        _retention(config, at),
        _seconds(config, "visibility_timeout", at, 1) * 1000,
        _seconds(config, "default_timeout", at, 1) * 1000,
        _retry(config, at),
        _types(config, at),
    )


def _bound(config: dict[str, Any], at: str) -> tuple[int, str, float]:
    pressure = config.get("backpressure")
    if pressure is None:
        policy = config.get("overflow_policy", "reject")
        _choice(policy, at + "overflow_policy")
        return _depth(config.get("max_size"), at + "max_size"), policy, 0.8
    at += "backpressure"
    if not isinstance(pressure, dict):
        raise _refused(at, pressure, "an object")
    if "max_size" in config:
        raise _refused(at, pressure, "not both backpressure and max_size")
    for name in pressure:
        if name == "max_size_bytes" and (pressure[name] is False or pressure[name] not in (0, None)):
            raise Unsupported(
                f"Field '{at}.{name}' is not supported; set max_depth.", details={"field": f"{at}.{name}"}
            )
        if name not in ("max_depth", "max_size_bytes", "strategy", "warning_threshold"):
            raise _refused(f"{at}.{name}", pressure[name], "only max_depth, strategy and warning_threshold")
    strategy = pressure.get("strategy")
    strategy = "reject" if strategy is None else strategy
    _choice(strategy, at + ".strategy")
    threshold = pressure.get("warning_threshold")
    threshold = 0.8 if threshold is None else threshold
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise _refused(at + ".warning_threshold", threshold, "a number from 0.0 to 1.0")
    return _depth(pressure.get("max_depth"), at + ".max_depth"), strategy, float(threshold)


def _choice(value: Any, name: str) -> None:
    if value not in STRATEGIES:
        raise _refused(name, value, f"one of {', '.join(STRATEGIES)}")


def _depth(value: Any, name: str) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= MAX_DEPTH:
        raise _refused(name, value, f"an integer from 0 (no bound) to {MAX_DEPTH}")
    return value


def _seconds(config: dict[str, Any], name: str, at: str, low: int) -> int:
    value = config.get(name)
    if value is None:
        return 0
    if type(value) is not int or not low <= value <= MAX_SECONDS:
        raise _refused(at + name, value, f"an integer of seconds from {low} to {MAX_SECONDS}")
    return value


def _retention(config: dict[str, Any], at: str) -> dict[str, int]:
    value = config.get("retention")
    if value is None:
        return {}
    at += "retention"
    if not isinstance(value, dict):
        raise _refused(at, value, "an object")
    found: dict[str, int] = {}
    for state, text in value.items():
        if state not in ("completed", "discarded", "cancelled"):
            raise _refused(f"{at}.{state}", text, "only completed, discarded and cancelled")
        if text is None:
            continue
        try:
            seconds, rest = divmod(_core.parse_duration_ms(text) if isinstance(text, str) else 0, 1000)
        except ValueError:
            seconds, rest = 0, 0
        if seconds <= 0 or rest:
            raise _refused(f"{at}.{state}", text, 'an ISO 8601 duration of whole seconds such as "P7D"')
        found[state] = seconds
    return found


def _retry(config: dict[str, Any], at: str) -> list[Any] | None:
    value = config.get("default_retry")
    if value is None:
        return None
    try:
        return _core.parse_retry_policy(orjson.dumps(value), at + "default_retry")
    except _core.EnvelopeError as error:
        raise ValidationFailed(
            str(error), details={"field": error.field, "received": error.received, "expected": error.expected}
        ) from None


def _types(config: dict[str, Any], at: str) -> tuple[str, ...]:
    value = config.get("allowed_job_types")
    if value is None or value == ["*"]:
        return ()
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_TYPES
        or not all(isinstance(one, str) and 1 <= len(one) <= 255 for one in value)
    ):
        raise _refused(at + "allowed_job_types", value, f'an array of 1 to {MAX_TYPES} job types or patterns ("a.*")')
    return () if "*" in value else tuple(value)
