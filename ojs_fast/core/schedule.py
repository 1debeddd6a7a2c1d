"""When a cron job is due: cron expressions, intervals, time zones (ojs-cron sections 3 to 5). Pure.

The expression is checked here and handed to croniter in parts that name the day in one way each, as
numbers of naive local time; what is on the wall clock becomes an instant here, by zoneinfo.
"""

import calendar
import functools
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from croniter import CroniterBadDateError, croniter

MAX_EXPRESSION = 500
MAX_EVERY_MS = 3_153_600_000_000  # 100 years, the bound of every duration
# Evaluation more than once per second is forbidden (ojs-cron 7.3): shorter intervals are rounded up.
MIN_EVERY_MS = 1000
# Longer than the longest wait for a date that exists: 29 February on a given weekday, across 2100.
LONGEST_WAIT_YEARS = 50
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EXPECTED = "5 fields, 6 with leading seconds, '@every 1h30m', or one of " + ", ".join(ALIASES)

# fmt: off
_MONTHS = {"JAN": 1, "FEB": 2, "MAR": 3, "APR": 4, "MAY": 5, "JUN": 6,
           "JUL": 7, "AUG": 8, "SEP": 9, "OCT": 10, "NOV": 11, "DEC": 12}
_WEEKDAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}
# fmt: on
_EVERY_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_EVERY = re.compile(r"(?:\d{1,15}(?:\.\d{1,9})?(?:ms|s|m|h))+", re.ASCII)
_EVERY_PART = re.compile(r"([\d.]+)(ms|s|m|h)", re.ASCII)
# Abbreviations and offsets among the IANA names: EST, CET, EST5EDT, GMT+0, PRC; and what is no place at all.
_NO_PLACE = re.compile(r"[A-Z0-9+-]+|Factory|localtime|posixrules", re.ASCII)
_ONE_S = timedelta(seconds=1)


class ScheduleError(ValueError):
    """An expression or a time zone is not acceptable; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An instant at which a cron job is due, in epoch ms.

    `gap_ms`: the instant of the first daylight-saving gap before it that swallowed an occurrence, 0 = none.
    """

    at_ms: int
    gap_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: dict[str, int]

    def value(self, text: str) -> int:
        number = int(text) if text.isdigit() and len(text) < 3 else self.names.get(text, -1)
        if not self.low <= number <= self.high:
            names = f" or {next(iter(self.names))}-{list(self.names)[-1]}" if self.names else ""
            raise ScheduleError(f"{self.name} '{text}' is not in {self.low}-{self.high}{names}")
        return number

    def values(self, item: str) -> range:
        """The numbers that one item of a list stands for: `*`, `a`, `a-b`, each perhaps with `/step`."""
        body, slash, step_text = item.partition("/")
        step = 1
        if slash:
            step = int(step_text) if step_text.isdigit() and len(step_text) < 3 else 0
            if not 1 <= step <= self.high:
                raise ScheduleError(f"the step of {self.name} '{item}' is not in 1-{self.high}")
        # 7 is Sunday again, but only where it is written.
        top = 6 if self is _WEEKDAY else self.high
        if body == "*":
            return range(self.low, top + 1, step)
        first, dash, last = body.partition("-")
        low = self.value(first)
        if not dash:
            low = low % 7 if self is _WEEKDAY else low
            return range(low, (top if slash else low) + 1, step)
        high = 7 if self is _WEEKDAY and last == "SUN" else self.value(last)
        if low > high:
            raise ScheduleError(f"the range of {self.name} '{item}' runs backwards")
        return range(low, high + 1, step)

    def text(self, items: list[str]) -> str:
        """The field for croniter: every value spelled out, since `5-5` means all of them to it."""
        values = sorted({value % 7 if self is _WEEKDAY else value for item in items for value in self.values(item)})
        full = self.high - self.low + (0 if self is _WEEKDAY else 1)
        return "*" if len(values) == full else ",".join(map(str, values))


_SECOND = _Field("second", 0, 59, {})
_MINUTE = _Field("minute", 0, 59, {})
_HOUR = _Field("hour", 0, 23, {})
_DAY = _Field("day of month", 1, 31, {})
_MONTH = _Field("month", 1, 12, _MONTHS)
_WEEKDAY = _Field("day of week", 0, 7, _WEEKDAYS)


class _Part:
    """A part of an expression that names the day in one way; the expression is due when any part is."""

    __slots__ = ("_nearest_to", "_search")

    def __init__(self, expression: str, nearest_to: int = 0) -> None:
        self._search = croniter(
            expression, LONG_AGO, second_at_beginning=True, max_years_between_matches=LONGEST_WAIT_YEARS
        )
        self._nearest_to = nearest_to

    def next_wall(self, after: datetime) -> datetime | None:
        """The first local time behind `after`, None when there is none."""
        last_year = after.year + LONGEST_WAIT_YEARS
        while after.year <= last_year:
            try:
                found: datetime = self._search.get_next(datetime, start_time=after)
            except CroniterBadDateError:
                return None
            last_day = calendar.monthrange(found.year, found.month)[1]
            if self._nearest_to <= last_day:
                return found
            # croniter takes 31W for the last working day of a shorter month; that month has no 31st.
            after = found.replace(day=last_day, hour=23, minute=59, second=59)
        return None


class Schedule:
    """A checked expression in its time zone; made by `parse`."""

    __slots__ = ("_parts", "_zone", "every_ms")

    def __init__(self, parts: tuple[_Part, ...], zone: zoneinfo.ZoneInfo, every_ms: int) -> None:
        self._parts = parts
        self._zone = zone
        self.every_ms = every_ms
        """The length of an interval (`@every`), 0 for a calendar expression."""

    def next_after(self, epoch_ms: int) -> Occurrence:
        """The first occurrence later than an instant; for an interval, that instant is its anchor.

        A local time that a daylight-saving gap leaves out is passed over, of a repeated one only the
        first counts (ojs-cron 5.2).
        """
        if self.every_ms:
            return Occurrence(epoch_ms + self.every_ms)
        instant = datetime.fromtimestamp(epoch_ms // 1000, UTC)
        after = self._wall(instant)
        if instant.astimezone(self._zone).fold:
            first = after.replace(tzinfo=self._zone).astimezone(UTC)
            after = self._wall(self._change(first, instant) - _ONE_S)
        gap_ms = 0
        while True:
            wall = self._next_wall(after)
            at = wall.replace(tzinfo=self._zone).astimezone(UTC)
            if self._wall(at) == wall:
                return Occurrence(_epoch_ms(at), gap_ms)
            change = self._change(wall.replace(tzinfo=self._zone, fold=1).astimezone(UTC), at)
            gap_ms = gap_ms or _epoch_ms(change)
            after = self._wall(change) - _ONE_S

    def _next_wall(self, after: datetime) -> datetime:
        return min(found for part in self._parts if (found := part.next_wall(after)) is not None)

    def _wall(self, instant: datetime) -> datetime:
        return instant.astimezone(self._zone).replace(tzinfo=None, fold=0)

    def _change(self, before: datetime, after: datetime) -> datetime:
        """The instant, in seconds, at which the zone's offset changes between two others."""
        offset = before.astimezone(self._zone).utcoffset()
        while after - before > _ONE_S:
            middle = before + (after - before) // 2
            middle = middle.replace(microsecond=0)
            if middle.astimezone(self._zone).utcoffset() == offset:
                before = middle
            else:
                after = middle
        return after


def _epoch_ms(instant: datetime) -> int:
    return int(instant.timestamp()) * 1000


@functools.lru_cache(maxsize=16_384)
def parse(expression: str, timezone: str) -> Schedule:
    """Check an expression and an IANA time zone. Raises ScheduleError with the reason."""
    zone = find_zone(timezone)
    text = ALIASES.get(expression.strip().lower(), expression)
    words = text.split()
    if not words:
        raise ScheduleError("it is empty")
    if not text.isascii():
        raise ScheduleError("it has characters beyond ASCII")
    if len(text) > MAX_EXPRESSION:
        raise ScheduleError(f"it has more than {MAX_EXPRESSION} characters")
    if words[0].lower() == "@every":
        return Schedule((), zone, _parse_every(words[1:]))
    if words[0].startswith("@"):
        raise ScheduleError(f"'{words[0]}' is no alias")
    if len(words) not in (5, 6):
        raise ScheduleError(f"it has {len(words)} field{'s' if len(words) > 1 else ''}")
    # A part that never fires contributes no date, and costs a search of decades each time.
    parts = tuple(part for part in _parse_fields(words) if part.next_wall(LONG_AGO) is not None)
    if not parts:
        raise ScheduleError("it never fires: no such date exists")
    return Schedule(parts, zone, 0)


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """A zone by its IANA name (ojs-cron 5.1: no offsets, no abbreviations). Raises ScheduleError."""
    if name == "UTC":
        return zoneinfo.ZoneInfo(name)
    if _NO_PLACE.fullmatch(name):
        raise ScheduleError("it is an abbreviation or an offset, which say nothing about daylight saving")
    if name not in _zone_names():
        raise ScheduleError("there is no such time zone")
    return zoneinfo.ZoneInfo(name)


@functools.cache
def _zone_names() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def _parse_every(words: list[str]) -> int:
    text = "".join(words)
    if len(words) != 1 or not _EVERY.fullmatch(text):
        raise ScheduleError("the duration of @every must be like 1h30m, 45s or 500ms")
    total_ms = sum(float(number) * _EVERY_UNITS_MS[unit] for number, unit in _EVERY_PART.findall(text))
    if not 0 < total_ms <= MAX_EVERY_MS:
        raise ScheduleError("the duration of @every is not above 0 and at most 100 years")
    return max(MIN_EVERY_MS, round(total_ms))


def _parse_fields(words: list[str]) -> Iterator[_Part]:
    seconds, minute, hour, day, month, weekday = (["0"] if len(words) == 5 else []) + [word.upper() for word in words]
    time = " ".join(
        field.text(word.split(",")) for field, word in ((_SECOND, seconds), (_MINUTE, minute), (_HOUR, hour))
    )
    months = _MONTH.text(month.split(","))
    days, weekdays = day.split(","), weekday.split(",")
    day_parts = [_Part(f"{time} {text} {months} *", nearest_to) for text, nearest_to in _days(days)]
    weekday_parts = [_Part(f"{time} * {months} {text}") for text in _weekdays(weekdays)]
    # As in every cron: a day that matches either field, unless one of them is `*`.
    if "*" not in days:
        yield from day_parts
    if "*" not in weekdays:
        yield from weekday_parts
    if "*" in days and "*" in weekdays:
        yield _Part(f"{time} * {months} *")


def _days(items: list[str]) -> Iterator[tuple[str, int]]:
    """`(field for croniter, day of an nW)` of each way in which the day of month is named."""
    plain = []
    for item in items:
        if item == "L":
            yield "L", 0
        elif item.endswith("W"):
            yield item, _DAY.value(item[:-1])
        else:
            plain.append(item)
    if plain:
        yield _DAY.text(plain), 0


def _weekdays(items: list[str]) -> Iterator[str]:
    plain = []
    for item in items:
        name, number_sign, nth = item.partition("#")
        if number_sign:
            if nth not in ("1", "2", "3", "4", "5"):
                raise ScheduleError(f"the number behind # of day of week '{item}' is not in 1-5")
            yield f"{_WEEKDAY.value(name) % 7}#{nth}"
        elif len(item) > 1 and (item.startswith("L") or item.endswith("L")):
            yield f"L{_WEEKDAY.value(item.removeprefix('L') if item[0] == 'L' else item[:-1]) % 7}"
        else:
            plain.append(item)
    if plain:
        yield _WEEKDAY.text(plain)
