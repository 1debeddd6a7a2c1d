"""A cron expression is due exactly when its fields say so on the wall clock of its zone, once each time."""

from __future__ import annotations

import calendar
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojs_fast.core.schedule import ALIASES, ScheduleError, parse

MINUTE = timedelta(minutes=1)


def ms(text: str) -> int:
    """Read an instant, UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def text(epoch_ms: int) -> str:
    """Write an instant, UTC, in seconds."""
    assert epoch_ms % 1000 == 0
    return datetime.fromtimestamp(epoch_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def occurrences(expression: str, start: str, count: int, zone: str = "UTC") -> list[str]:
    """Give the first instants after a start."""
    found, at_ms, schedule = [], ms(start), parse(expression, zone)
    for _ in range(count):
        at_ms = schedule.next_after(at_ms).at_ms
        found.append(text(at_ms))
    return found


# --- expressions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", ["2026-01-01T00:01:00", "2026-01-01T00:02:00"]),
        ("* * * * * *", ["2026-01-01T00:00:01", "2026-01-01T00:00:02"]),
        (
            "*/20 5 * * * *",
            ["2026-01-01T00:05:00", "2026-01-01T00:05:20", "2026-01-01T00:05:40", "2026-01-01T01:05:00"],
        ),
        ("  0\t9 * * * ", ["2026-01-01T09:00:00", "2026-01-02T09:00:00"]),
        ("1,15 * * * *", ["2026-01-01T00:01:00", "2026-01-01T00:15:00", "2026-01-01T01:01:00"]),
        ("5-5 * * * *", ["2026-01-01T00:05:00", "2026-01-01T01:05:00"]),
        ("57-59 * * * *", ["2026-01-01T00:57:00", "2026-01-01T00:58:00", "2026-01-01T00:59:00", "2026-01-01T01:57:00"]),
        ("10-40/15 * * * *", ["2026-01-01T00:10:00", "2026-01-01T00:25:00", "2026-01-01T00:40:00"]),
        ("50/4 * * * *", ["2026-01-01T00:50:00", "2026-01-01T00:54:00", "2026-01-01T00:58:00", "2026-01-01T01:50:00"]),
        ("0 0 1 JAN,jul *", ["2026-07-01T00:00:00", "2027-01-01T00:00:00"]),
        ("0 0 1 feb-Apr *", ["2026-02-01T00:00:00", "2026-03-01T00:00:00", "2026-04-01T00:00:00"]),
        ("0 0 * * mon-FRI", ["2026-01-02T00:00:00", "2026-01-05T00:00:00"]),
        ("0 0 * * 0", ["2026-01-04T00:00:00", "2026-01-11T00:00:00"]),
        ("0 0 * * 7", ["2026-01-04T00:00:00", "2026-01-11T00:00:00"]),
        (
            "0 0 * * fri-sun",
            ["2026-01-02T00:00:00", "2026-01-03T00:00:00", "2026-01-04T00:00:00", "2026-01-09T00:00:00"],
        ),
        ("0 0 * * 5-7", ["2026-01-02T00:00:00", "2026-01-03T00:00:00", "2026-01-04T00:00:00", "2026-01-09T00:00:00"]),
        ("0 0 * * */3", ["2026-01-03T00:00:00", "2026-01-04T00:00:00", "2026-01-07T00:00:00"]),
        ("0 0 13 * FRI", ["2026-01-02T00:00:00", "2026-01-09T00:00:00", "2026-01-13T00:00:00", "2026-01-16T00:00:00"]),
        ("0 0 31 * *", ["2026-01-31T00:00:00", "2026-03-31T00:00:00", "2026-05-31T00:00:00"]),
        ("0 0 L * *", ["2026-01-31T00:00:00", "2026-02-28T00:00:00", "2026-03-31T00:00:00"]),
        ("0 0 1,L 2 *", ["2026-02-01T00:00:00", "2026-02-28T00:00:00", "2027-02-01T00:00:00"]),
        ("0 0 15W * *", ["2026-01-15T00:00:00", "2026-02-16T00:00:00", "2026-03-16T00:00:00"]),
        ("0 0 1W 8 *", ["2026-08-03T00:00:00", "2027-08-02T00:00:00"]),
        ("0 0 1,15W 2 *", ["2026-02-01T00:00:00", "2026-02-16T00:00:00", "2027-02-01T00:00:00"]),
        ("0 0 29W 2 *", ["2028-02-29T00:00:00", "2032-02-27T00:00:00"]),
        ("0 0 31W * *", ["2026-01-30T00:00:00", "2026-03-31T00:00:00", "2026-05-29T00:00:00"]),
        ("0 0 * * 5#3", ["2026-01-16T00:00:00", "2026-02-20T00:00:00"]),
        ("0 0 * * FRI#5", ["2026-01-30T00:00:00", "2026-05-29T00:00:00"]),
        ("0 0 * * 5L", ["2026-01-30T00:00:00", "2026-02-27T00:00:00"]),
        ("0 0 * * fril,L1", ["2026-01-26T00:00:00", "2026-01-30T00:00:00", "2026-02-23T00:00:00"]),
        ("0 0 1 * 5#3", ["2026-01-16T00:00:00", "2026-02-01T00:00:00", "2026-02-20T00:00:00"]),
        ("0 0 30 2 1#1", ["2026-02-02T00:00:00", "2027-02-01T00:00:00"]),
        ("0 0 29 2 *", ["2028-02-29T00:00:00", "2032-02-29T00:00:00"]),
        ("0 0 * 2 1#5", ["2044-02-29T00:00:00", "2072-02-29T00:00:00", "2112-02-29T00:00:00"]),
    ],
)
def test_an_expression_is_due_when_its_fields_say(expression: str, expected: list[str]) -> None:
    """Lists, ranges, steps, names, `L W #`, and either of the two day fields (ojs-cron section 3)."""
    assert occurrences(expression, "2026-01-01T00:00:00", len(expected)) == expected


@pytest.mark.parametrize(("alias", "meaning"), ALIASES.items())
def test_an_alias_means_its_expression(alias: str, meaning: str) -> None:
    """In any case of letters (ojs-cron section 4)."""
    expected = occurrences(meaning, "2026-01-01T00:00:00", 5)
    assert occurrences(alias, "2026-01-01T00:00:00", 5) == expected
    assert occurrences(alias.upper(), "2026-01-01T00:00:00", 5) == expected


@pytest.mark.parametrize(
    ("expression", "every_ms"),
    [
        ("@every 30m", 1_800_000),
        ("@every 2h", 7_200_000),
        ("@every 1h30m", 5_400_000),
        ("@every 2h45m30s", 9_930_000),
        ("@every 45s", 45_000),
        ("@every 1500ms", 1500),
        ("@every 1.5h", 5_400_000),
        ("@EVERY 90s", 90_000),
        ("@every 500ms", 1000),  # not more than once per second
        ("@every 876000h", 3_153_600_000_000),
    ],
)
def test_an_interval_counts_from_its_anchor(expression: str, every_ms: int) -> None:
    """Whatever the wall clock says (ojs-cron 4.1)."""
    schedule = parse(expression, "Europe/Berlin")
    assert schedule.every_ms == every_ms
    assert schedule.next_after(1_000_000_000_123).at_ms == 1_000_000_000_123 + every_ms


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("* * * *", "4 fields"),
        ("*", "1 field"),
        ("* * * * * * *", "7 fields"),
        ("60 * * * *", "minute '60'"),
        ("60 * * * * *", "second '60'"),
        ("* 24 * * *", "hour '24'"),
        ("* * 0 * *", "day of month '0'"),
        ("* * 32 * *", "day of month '32'"),
        ("* * * 0 *", "month '0'"),
        ("* * * 13 *", "month '13'"),
        ("* * * JANUARY *", "month 'JANUARY'"),
        ("* * * * 8", "day of week '8'"),
        ("* * * * MONDAY", "day of week 'MONDAY'"),
        ("JAN * * * *", "minute 'JAN'"),
        ("*/0 * * * *", "step of minute '*/0'"),
        ("*/60 * * * *", "step of minute '*/60'"),
        ("*/x * * * *", "step of minute '*/X'"),
        ("*/ * * * *", "step of minute '*/'"),
        ("*/-1 * * * *", "step of minute '*/-1'"),
        ("1/2/3 * * * *", "step of minute '1/2/3'"),
        ("5-1 * * * *", "backwards"),
        ("1- * * * *", "minute ''"),
        ("-1 * * * *", "minute ''"),
        ("1-2-3 * * * *", "minute '2-3'"),
        ("1,,2 * * * *", "minute ''"),
        (",1 * * * *", "minute ''"),
        ("1.5 * * * *", "minute '1.5'"),
        ("+1 * * * *", "minute '+1'"),
        ("1_0 * * * *", "minute '1_0'"),
        ("** * * * *", "minute '**'"),
        ("* * ? * *", "day of month '?'"),
        ("H * * * *", "minute 'H'"),
        ("L * * * *", "minute 'L'"),
        ("* * L-3 * *", "day of month 'L'"),
        ("* * LW * *", "day of month 'L'"),
        ("* * 32W * *", "day of month '32'"),
        ("* * W * *", "day of month ''"),
        ("* * 1-5W * *", "day of month '1-5'"),
        ("* * * * L", "day of week 'L'"),
        ("* * * * 8L", "day of week '8'"),
        ("* * * * 1#0", "behind #"),
        ("* * * * 1#6", "behind #"),
        ("* * * * 1#", "behind #"),
        ("* * * * #1", "day of week ''"),
        ("* * * * 1-5#2", "day of week '1-5'"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 2,4,6,9,11 *", "never fires"),
        ("0 0 30W,31W 2 *", "never fires"),
        ("@reboot", "no alias"),
        ("@", "no alias"),
        ("@daily 5", "no alias"),
        ("@every", "duration"),
        ("@every 5", "duration"),
        ("@every 1h 30m", "duration"),
        ("@every -1h", "duration"),
        ("@every 1d", "duration"),
        ("@every 1e3s", "duration"),
        ("@every 0s", "not above 0"),
        ("@every 0.1ms 5", "duration"),
        ("@every 876001h", "at most 100 years"),
        ("@every 999999999999999h999999999999999h", "at most 100 years"),
        ("\u0663 * * * *", "ASCII"),
        ("*\u00a0* * * *", "ASCII"),
        ("1\x00 * * * *", "minute"),
        ("1," * 300 + "1 * * * *", "500 characters"),
    ],
)
def test_a_wrong_expression_is_refused_with_the_reason(expression: str, reason: str) -> None:
    """At once, also when it would never fire."""
    started = time.perf_counter()
    with pytest.raises(ScheduleError) as caught:
        parse(expression, "UTC")
    assert reason in str(caught.value)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("zone", ["UTC", "America/Argentina/Buenos_Aires", "US/Eastern", "Etc/UTC", "Japan"])
def test_an_iana_name_is_a_zone(zone: str) -> None:
    """Names with and without an area, links too."""
    assert parse("0 9 * * *", zone).next_after(0).at_ms > 0


@pytest.mark.parametrize(
    "zone",
    [
        "", "EST", "CET", "EST5EDT", "PST8PDT", "GMT", "GMT+0", "GB", "PRC", "utc", "Z", "+05:00", "-08:00", "UTC+5",
        "05:00", "Factory", "localtime", "posixrules", "europe/berlin", "Europe/Atlantis", "Europe", "/etc/passwd",
        "../UTC", "Europe/Berlin ", "Europe/Berlin\x00", "x" * 255, "\ud7ff",
    ],
)  # fmt: skip
def test_an_offset_or_abbreviation_is_no_zone(zone: str) -> None:
    """Nor is anything else that is not exactly an IANA name (ojs-cron 5.1)."""
    with pytest.raises(ScheduleError):
        parse("0 9 * * *", zone)


# --- daylight saving --------------------------------------------------------------------------------------

BERLIN, NEW_YORK, LORD_HOWE, KOLKATA = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"


@pytest.mark.parametrize(
    ("zone", "expression", "start", "expected"),
    [
        # Spring: 02:00 becomes 03:00, so 02:30 is left out that day.
        (BERLIN, "30 2 * * *", "2026-03-27T12:00:00", ["2026-03-28T01:30:00", "2026-03-30T00:30:00"]),
        (NEW_YORK, "30 2 * * *", "2026-03-06T12:00:00", ["2026-03-07T07:30:00", "2026-03-09T06:30:00"]),
        (BERLIN, "0 2,3 * * *", "2026-03-28T12:00:00", ["2026-03-29T01:00:00", "2026-03-30T00:00:00"]),
        (BERLIN, "*/30 * * * *", "2026-03-29T00:00:00", ["2026-03-29T00:30:00", "2026-03-29T01:00:00"]),
        (BERLIN, "59 59 1 * * *", "2026-03-29T00:00:00", ["2026-03-29T00:59:59", "2026-03-29T23:59:59"]),
        (BERLIN, "* * * * * *", "2026-03-29T00:59:59", ["2026-03-29T01:00:00", "2026-03-29T01:00:01"]),
        # The clock goes by half an hour, in the other hemisphere: 02:00 becomes 02:30.
        (LORD_HOWE, "15 2 * * *", "2026-10-02T00:00:00", ["2026-10-02T15:45:00", "2026-10-04T15:15:00"]),
        (LORD_HOWE, "30 2 * * *", "2026-10-03T00:00:00", ["2026-10-03T15:30:00", "2026-10-04T15:30:00"]),
        (LORD_HOWE, "45 2 * * *", "2026-10-03T00:00:00", ["2026-10-03T15:45:00", "2026-10-04T15:45:00"]),
        # Autumn: what the clock shows twice counts the first time.
        (BERLIN, "30 2 * * *", "2026-10-24T12:00:00", ["2026-10-25T00:30:00", "2026-10-26T01:30:00"]),
        (NEW_YORK, "30 1 * * *", "2026-10-31T12:00:00", ["2026-11-01T05:30:00", "2026-11-02T06:30:00"]),
        (BERLIN, "*/30 * * * *", "2026-10-25T00:00:00", ["2026-10-25T00:30:00", "2026-10-25T02:00:00"]),
        (BERLIN, "0 3 * * *", "2026-10-24T12:00:00", ["2026-10-25T02:00:00", "2026-10-26T02:00:00"]),
        (LORD_HOWE, "45 1 * * *", "2026-04-04T00:00:00", ["2026-04-04T14:45:00", "2026-04-05T15:15:00"]),
        (LORD_HOWE, "15 2 * * *", "2026-04-04T12:00:00", ["2026-04-04T15:45:00", "2026-04-05T15:45:00"]),
        # Asked in the middle of the second time round.
        (BERLIN, "* * * * *", "2026-10-25T01:15:30", ["2026-10-25T02:00:00", "2026-10-25T02:01:00"]),
        (BERLIN, "* * * * * *", "2026-10-25T01:59:59", ["2026-10-25T02:00:00"]),
        (LORD_HOWE, "*/10 * * * *", "2026-04-04T15:05:00", ["2026-04-04T15:30:00", "2026-04-04T15:40:00"]),
        # No daylight saving, but half an hour off.
        (KOLKATA, "0 9 * * *", "2026-03-28T12:00:00", ["2026-03-29T03:30:00", "2026-03-30T03:30:00"]),
        (KOLKATA, "0 0 * * *", "2026-10-24T12:00:00", ["2026-10-24T18:30:00", "2026-10-25T18:30:00"]),
        # A whole day left out, and a midnight that does not exist.
        ("Pacific/Apia", "0 12 * * *", "2011-12-28T23:00:00", ["2011-12-29T22:00:00", "2011-12-30T22:00:00"]),
        ("America/Sao_Paulo", "0 0 * * *", "2018-11-03T00:00:00", ["2018-11-03T03:00:00", "2018-11-05T02:00:00"]),
    ],
)
def test_gaps_are_skipped_and_repeats_count_once(zone: str, expression: str, start: str, expected: list[str]) -> None:
    """Spring forward must not fire, fall back fires exactly once, the first time (ojs-cron 5.2)."""
    assert occurrences(expression, start, len(expected), zone) == expected


@pytest.mark.parametrize(
    ("zone", "expression", "start", "gap"),
    [
        (BERLIN, "30 2 * * *", "2026-03-28T12:00:00", "2026-03-29T01:00:00"),
        (NEW_YORK, "30 2 * * *", "2026-03-07T12:00:00", "2026-03-08T07:00:00"),
        (LORD_HOWE, "15 2 * * *", "2026-10-03T00:00:00", "2026-10-03T15:30:00"),
        (BERLIN, "30 2 29 3 *", "2025-06-01T00:00:00", "2026-03-29T01:00:00"),
    ],
)
def test_a_gap_that_swallows_an_occurrence_is_named(zone: str, expression: str, start: str, gap: str) -> None:
    """By its instant, the first one if there are several; no gap is named where none is in the way."""
    schedule = parse(expression, zone)
    assert schedule.next_after(ms("2026-05-01T00:00:00")).gap_ms == 0
    found = schedule.next_after(ms(start))
    assert text(found.gap_ms) == gap
    assert schedule.next_after(found.gap_ms).at_ms == found.at_ms


def test_many_occurrences_in_a_gap_cost_no_more_than_one() -> None:
    """A second-by-second schedule jumps over the 3600 seconds of a gap or a repeat."""
    schedule = parse("* * * * * *", BERLIN)
    for instant in ("2026-03-29T00:59:59", "2026-10-25T01:00:00"):
        started = time.perf_counter()
        schedule.next_after(ms(instant))
        assert time.perf_counter() - started < 0.1


# --- against models ---------------------------------------------------------------------------------------


@st.composite
def field(draw: st.DrawFn, low: int, high: int) -> tuple[str, set[int]]:
    """One field as text, and the numbers that it means."""
    kind = draw(st.sampled_from(["*", "*/", "list", "range", "range/", "from/"]))
    a, b = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
    step = draw(st.integers(1, high))
    if kind == "*":
        return "*", set(range(low, high + 1))
    if kind == "*/":
        return f"*/{step}", set(range(low, high + 1, step))
    if kind == "list":
        chosen = draw(st.lists(st.integers(low, high), min_size=1, max_size=5))
        return ",".join(map(str, chosen)), set(chosen)
    if kind == "range":
        return f"{a}-{b}", set(range(a, b + 1))
    if kind == "range/":
        return f"{a}-{b}/{step}", set(range(a, b + 1, step))
    return f"{a}/{step}", set(range(a, high + 1, step))


CHANGES = [
    (BERLIN, "2026-03-29T01:00:00"),
    (BERLIN, "2026-10-25T01:00:00"),
    (NEW_YORK, "2026-03-08T07:00:00"),
    (NEW_YORK, "2026-11-01T06:00:00"),
    (LORD_HOWE, "2026-10-03T15:30:00"),
    (LORD_HOWE, "2026-04-04T15:00:00"),
    (KOLKATA, "2026-03-29T01:00:00"),
    ("Africa/Casablanca", "2026-02-15T02:00:00"),
    ("America/St_Johns", "2026-11-01T04:30:00"),
    ("Pacific/Apia", "2011-12-30T10:00:00"),
    ("Asia/Pyongyang", "2018-05-04T15:00:00"),
    ("America/Sao_Paulo", "2018-11-04T03:00:00"),
]


def model(fields: list[tuple[str, set[int]]], zone: str, start_ms: int, minutes: int) -> list[int]:
    """Every minute that is due, found by looking at each one's wall clock."""
    (_, minute), (_, hour), (day_text, day), (_, month), (weekday_text, weekday) = fields
    local_zone, found = ZoneInfo(zone), []
    instant = datetime.fromtimestamp(start_ms // 1000, UTC)
    for _ in range(minutes):
        instant += MINUTE
        local = instant.astimezone(local_zone)
        on_day, on_weekday = local.day in day, local.isoweekday() % 7 in {number % 7 for number in weekday}
        both = day_text == "*" or weekday_text == "*"
        matches = on_day and on_weekday if both else on_day or on_weekday
        if matches and not local.fold and local.minute in minute and local.hour in hour and local.month in month:
            found.append(int(instant.timestamp()) * 1000)
    return found


@settings(max_examples=150)
@given(
    fields=st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6)),
    change=st.sampled_from(CHANGES),
    back=st.integers(0, 360),
)
def test_the_schedule_agrees_with_the_wall_clock(fields: Any, change: tuple[str, str], back: int) -> None:
    """Around each kind of change, minute by minute: what is due is due, and nothing else."""
    zone, at = change
    start_ms = ms(at) - back * 60_000
    expected = model(fields, zone, start_ms, 400)
    try:
        schedule = parse(" ".join(part for part, _ in fields), zone)
    except ScheduleError:
        assert not expected
        return
    found, next_ms = [], schedule.next_after(start_ms).at_ms
    while next_ms <= start_ms + 400 * 60_000:
        found.append(next_ms)
        next_ms = schedule.next_after(next_ms).at_ms
    assert found == expected


def nearest_weekday(year: int, month: int, day: int) -> int:
    """Give the working day nearest to a day, in the same month; 0 when there is no such day."""
    last = calendar.monthrange(year, month)[1]
    if day > last:
        return 0
    weekdays = [other for other in range(1, last + 1) if calendar.weekday(year, month, other) < 5]
    return min(weekdays, key=lambda other: (abs(other - day), other))


def days_of(item: str, year: int, month: int) -> set[int]:
    """Give the days of a month that one item of a day field means."""
    last = calendar.monthrange(year, month)[1]
    by_weekday: dict[int, list[int]] = {}
    for day in range(1, last + 1):
        by_weekday.setdefault((calendar.weekday(year, month, day) + 1) % 7, []).append(day)
    if item == "L":
        return {last}
    if item.endswith("W"):
        return {nearest_weekday(year, month, int(item[:-1]))} - {0}
    if "#" in item:
        weekday, nth = map(int, item.split("#"))
        return set(by_weekday[weekday % 7][nth - 1 : nth])
    if item.endswith("L"):
        return {by_weekday[int(item[:-1]) % 7][-1]}
    return {int(item)} if int(item) <= last else set()


DAY_ITEMS = st.one_of(st.just("L"), st.integers(1, 31).map(str), st.integers(1, 31).map(lambda day: f"{day}W"))
WEEKDAY_ITEMS = st.one_of(
    st.tuples(st.integers(0, 7), st.integers(1, 5)).map(lambda pair: f"{pair[0]}#{pair[1]}"),
    st.integers(0, 7).map(lambda day: f"{day}L"),
)


@settings(max_examples=150)
@given(
    days=st.lists(DAY_ITEMS, max_size=3),
    weekdays=st.lists(WEEKDAY_ITEMS, max_size=3),
    year=st.integers(2024, 2104),
    month=st.integers(1, 12),
)
def test_named_days_agree_with_the_calendar(days: list[str], weekdays: list[str], year: int, month: int) -> None:
    """Every mixture of `L`, `nW`, `n#k` and `nL`, over a quarter."""
    expression = f"0 0 {','.join(days) or '*'} * {','.join(weekdays) or '*'}"
    expected = []
    for number in range(3):
        y, m = year + (month - 1 + number) // 12, (month - 1 + number) % 12 + 1
        all_days = set(range(1, calendar.monthrange(y, m)[1] + 1))
        due = set().union(*(days_of(item, y, m) for item in [*days, *weekdays])) if days or weekdays else all_days
        expected += [f"{y}-{m:02}-{day:02}T00:00:00" for day in sorted(due)]
    schedule, at_ms = parse(expression, "UTC"), ms(f"{year}-{month:02}-01T00:00:00") - 1000
    found: list[str] = []
    while len(found) < len(expected):
        at_ms = schedule.next_after(at_ms).at_ms
        found.append(text(at_ms))
    assert found == expected


@given(
    expression=st.text(alphabet="0123456789*/,-LW#JANSUMO @everyhms.", max_size=40),
    zone=st.sampled_from([BERLIN, "UTC"]),
)
def test_any_text_is_a_schedule_or_refused(expression: str, zone: str) -> None:
    """Nothing but ScheduleError comes out, and what is accepted is due later than asked."""
    try:
        schedule = parse(expression, zone)
    except ScheduleError:
        return
    now_ms = ms("2026-03-29T00:59:30")
    assert schedule.next_after(now_ms).at_ms > now_ms
