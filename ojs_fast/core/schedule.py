"""When a cron expression fires: syntax, time zones and daylight saving (ojs-cron sections 3 to 5). Pure.

croniter does the arithmetic on local wall time; what a wall time means on the day the clocks change is
decided here: one that does not exist is skipped, one that occurs twice means its first occurrence.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from croniter import CroniterError, croniter

# The evaluation of schedules is bound to once a second (ojs-cron section 7.3).
SHORTEST_INTERVAL_MS = 1000
LONGEST_EXPRESSION = 256
# What a change of the clocks moves them by at the most, in any zone and year.
LONGEST_CHANGE = timedelta(hours=24)
ONE_SECOND = timedelta(seconds=1)

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

_GO_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_GO_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:h|ms|m|s))+", re.ASCII)
_GO_PART = re.compile(r"([0-9.]+)(h|ms|m|s)", re.ASCII)


class ScheduleError(ValueError):
    """The expression or time zone cannot be used; `field` names which of them, the message says why."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field_name


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    first_name: int = 0

    def number(self, text: str) -> int:
        """A value or a name. Raises ScheduleError."""
        if text.upper() in self.names:
            return self.names.index(text.upper()) + self.first_name
        if not (text.isascii() and text.isdigit() and self.low <= int(text[:9]) <= self.high):
            raise ScheduleError("expression", f"{self.name} '{text}' is not from {self.low} to {self.high}")
        return int(text)

    def check(self, text: str) -> str:
        """Check one comma-separated list; returns it as croniter spells it. Raises ScheduleError."""
        return ",".join(self._element(part) for part in text.split(","))

    def _element(self, part: str) -> str:
        upper = part.upper()
        if self.name == "day of month" and (upper == "L" or (upper.endswith("W") and upper[:-1].isdigit())):
            return upper if upper == "L" else f"{self.number(upper[:-1])}W"
        if self.name == "day of week":
            if "#" in part:
                day, _, nth = part.partition("#")
                if nth not in ("1", "2", "3", "4", "5"):
                    raise ScheduleError("expression", f"{self.name} '{part}' must end in #1 to #5")
                return f"{self.number(day) % 7}#{nth}"
            if len(upper) > 1 and (upper.endswith("L") or upper.startswith("L")):
                return f"L{self.number(upper.strip('L')) % 7}"
        return self._range(part)

    def _range(self, part: str) -> str:
        body, slash, step = part.partition("/")
        if slash and not (step.isascii() and step.isdigit() and 1 <= int(step[:9]) <= self.high):
            raise ScheduleError("expression", f"{self.name} step '{step}' is not from 1 to {self.high}")
        if body != "*":
            first, dash, last = body.partition("-")
            low = self.number(first)
            if dash:
                high = self.number(last)
                if high == 0 and self.name == "day of week":
                    high = 7  # SAT-SUN
                if high < low:
                    raise ScheduleError("expression", f"{self.name} range '{body}' ends before it starts")
                if high == low:
                    return str(low)  # croniter reads `0-0` as `*`
                body = f"{low}-{high}"
            else:
                # `5/15` means from 5 on; croniter reads it as 5 alone unless the end is named.
                body = f"{low}-{self.high}" if slash else str(low)
        return body + slash + step


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, MONTHS, 1),
    _Field("day of week", 0, 7, DAYS),
)


@dataclass(frozen=True)
class Next:
    """The next occurrence (epoch ms), None when there is none; `gap_ms`: the change of clocks that swallowed one."""

    at_ms: int | None
    gap_ms: int | None = None


@dataclass(frozen=True)
class Schedule:
    """A checked expression in its zone. `every_ms` > 0: an interval, anchored outside."""

    fields: str
    zone: ZoneInfo
    every_ms: int = 0
    _cron: croniter | None = field(default=None, compare=False, repr=False)

    def next_after(self, reference_ms: int, anchor_ms: int) -> Next:
        """The first occurrence behind `reference_ms`; intervals count from `anchor_ms`."""
        if self.every_ms:
            passed = max(0, reference_ms - anchor_ms) // self.every_ms
            return Next(anchor_ms + (passed + 1) * self.every_ms)
        assert self._cron is not None
        wall = self._wall_after(reference_ms)
        gap_ms: int | None = None
        while True:
            try:
                self._cron.set_current(wall, force=True)
                candidate: datetime = self._cron.get_next(datetime)
                at_ms = self._instant_ms(candidate)
            except (CroniterError, OverflowError, ValueError):
                return Next(None, gap_ms)
            if at_ms is None:
                end = self._first(candidate, lambda wall: self._instant_ms(wall) is not None)
                gap_ms = self._instant_ms(end)
                wall = end - ONE_SECOND
            elif at_ms > reference_ms:
                return Next(at_ms, gap_ms)
            else:
                wall = candidate

    def _wall_after(self, reference_ms: int) -> datetime:
        local = datetime.fromtimestamp(reference_ms // 1000, UTC).astimezone(self.zone)
        wall = local.replace(tzinfo=None, fold=0)
        if not local.fold:
            return wall
        # The hour occurs for the second time: what it names has fired; go to where it ends.
        return self._first(wall, lambda w: (self._instant_ms(w) or 0) > reference_ms) - ONE_SECOND

    def _instant_ms(self, wall: datetime) -> int | None:
        """The first instant with this wall time; None when the clocks jump over it."""
        instant = wall.replace(tzinfo=self.zone).astimezone(UTC)
        if instant.astimezone(self.zone).replace(tzinfo=None, fold=0) != wall:
            return None
        return int(instant.timestamp()) * 1000

    def _first(self, wall: datetime, holds: Callable[[datetime], bool]) -> datetime:
        # The first wall time from `wall` on for which something holds that then goes on to hold.
        low, high = 0, int(LONGEST_CHANGE.total_seconds())
        while low < high:
            middle = (low + high) // 2
            if holds(wall + timedelta(seconds=middle)):
                high = middle
            else:
                low = middle + 1
        return wall + timedelta(seconds=low)


def parse_zone(name: str) -> ZoneInfo:
    """An IANA zone (ojs-cron section 5.1). Raises ScheduleError for offsets, abbreviations and unknown names."""
    # Names without a region are offsets in disguise (EST, CET, EST5EDT); UTC is the one that is none.
    if name == "UTC" or ("/" in name and name in _zones()):
        return ZoneInfo(name)
    raise ScheduleError(
        "timezone",
        f"'{name[:60]}' is no IANA time zone; expected UTC or a name such as 'America/New_York', no offset and no "
        "abbreviation",
    )


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


@lru_cache(maxsize=16_384)
def parse(expression: str, zone_name: str = "UTC") -> Schedule:
    """Check an expression (ojs-cron sections 3 and 4). Raises ScheduleError."""
    zone = parse_zone(zone_name)
    text = expression.strip()
    if len(text) > LONGEST_EXPRESSION:
        raise ScheduleError("expression", f"it has {len(text)} characters; expected at most {LONGEST_EXPRESSION}")
    if text.startswith("@"):
        word, _, rest = text.partition(" ")
        if word == "@every":
            return Schedule(text, zone, _interval_ms(rest.strip()))
        if text.lower() not in ALIASES:
            known = ", ".join([*ALIASES, "@every 1h30m"])
            raise ScheduleError("expression", f"'{text}' is unknown; expected one of {known}")
        text = ALIASES[text.lower()]
    tokens = text.split()
    if len(tokens) not in (5, 6):
        raise ScheduleError(
            "expression", f"it has {len(tokens)} fields; expected 5 (minute hour day month weekday) or 6 (second first)"
        )
    fields = " ".join(f.check(token) for f, token in zip(_FIELDS[-len(tokens) :], tokens, strict=True))
    try:
        cron = croniter(fields, datetime(2000, 1, 1), second_at_beginning=True)  # noqa: DTZ001 - wall time
        cron.get_next(datetime)
    except CroniterError as error:
        reason = "it never fires: there is no such date" if "failed to find" in str(error) else str(error)
        raise ScheduleError("expression", reason) from None
    return Schedule(fields, zone, 0, cron)


def _interval_ms(text: str) -> int:
    if not _GO_DURATION.fullmatch(text):
        raise ScheduleError("expression", f"'{text[:60]}' is no duration; expected one such as 30m, 1h30m or 45s")
    total = sum(float(amount) * _GO_UNITS_MS[unit] for amount, unit in _GO_PART.findall(text))
    if not 0 < total <= 10 * 365 * 86_400_000:
        raise ScheduleError("expression", f"the interval '{text[:60]}' is not above zero and at most ten years")
    return max(SHORTEST_INTERVAL_MS, round(total))
