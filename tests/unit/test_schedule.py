"""Cron expressions: syntax, time zones, the days on which the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojs_fast.core.schedule import DAYS, MONTHS, ScheduleError, parse


def ms(text: str) -> int:
    """Epoch ms of an ISO time."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def following(expression: str, zone: str, after: str, count: int) -> list[str]:
    """The next occurrences in local time with the offset, `!` where the clocks' change swallowed one before."""
    schedule, reference, found = parse(expression, zone), ms(after), []
    anchor = reference
    for _ in range(count):
        result = schedule.next_after(reference, anchor)
        assert result.at_ms is not None
        assert result.at_ms > reference
        reference = result.at_ms
        local = datetime.fromtimestamp(reference / 1000, ZoneInfo(zone))
        found.append(local.isoformat(timespec="seconds") + ("!" if result.gap_ms else ""))
    return found


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # the hour from 2 to 3 does not exist: no run that day, and it is told
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T00:00:00+01:00",
            ["2026-03-28T02:30:00+01:00", "2026-03-30T02:30:00+02:00!"],
        ),
        (
            "30 2 * * *",
            "America/New_York",
            "2026-03-07T00:00:00-05:00",
            ["2026-03-07T02:30:00-05:00", "2026-03-09T02:30:00-04:00!"],
        ),
        # half an hour does not exist: 2:00 and 2:15 go, 2:30 stays
        (
            "*/15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-04T00:00:00+10:30",
            ["2026-10-04T02:30:00+11:00!", "2026-10-04T02:45:00+11:00", "2026-10-05T02:00:00+11:00"],
        ),
        # the hour occurs twice: the first one counts
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T00:00:00+02:00",
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ),
        (
            "30 1 * * *",
            "America/New_York",
            "2026-11-01T00:00:00-04:00",
            ["2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"],
        ),
        (
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-05T00:00:00+11:00",
            ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"],
        ),
        # asked in the middle of the second pass: what it names has fired
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25T02:10:00+01:00", ["2026-10-25T03:00:00+01:00"]),
        ("* * * * * *", "Europe/Berlin", "2026-10-25T02:10:00+01:00", ["2026-10-25T03:00:00+01:00"]),
        # each second up to the change and from it on
        (
            "* * * * * *",
            "America/New_York",
            "2026-03-08T01:59:58-05:00",
            ["2026-03-08T01:59:59-05:00", "2026-03-08T03:00:00-04:00!", "2026-03-08T03:00:01-04:00"],
        ),
        # no change of clocks at all
        (
            "30 2 * * *",
            "Asia/Kolkata",
            "2026-03-28T00:00:00+05:30",
            ["2026-03-28T02:30:00+05:30", "2026-03-29T02:30:00+05:30", "2026-03-30T02:30:00+05:30"],
        ),
        (
            "0 9 * * MON-FRI",
            "Asia/Kolkata",
            "2026-10-23T10:00:00+05:30",
            ["2026-10-26T09:00:00+05:30", "2026-10-27T09:00:00+05:30"],
        ),
    ],
)
def test_a_wall_time_fires_once_or_not_at_all_when_the_clocks_change(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    """Skipped times do not fire, repeated ones fire the first time (ojs-cron section 5.2)."""
    assert following(expression, zone, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("@yearly", "2027-01-01T00:00:00"),
        ("@annually", "2027-01-01T00:00:00"),
        ("@monthly", "2026-03-01T00:00:00"),
        ("@weekly", "2026-02-15T00:00:00"),
        ("@daily", "2026-02-12T00:00:00"),
        ("@midnight", "2026-02-12T00:00:00"),
        ("@hourly", "2026-02-11T13:00:00"),
        ("@HOURLY", "2026-02-11T13:00:00"),
        ("@every 1h30m", "2026-02-11T13:30:00"),
        ("@every 500ms", "2026-02-11T12:00:01"),
        ("@every 1.5h", "2026-02-11T13:30:00"),
        ("  5  *  * * * ", "2026-02-11T12:05:00"),
        ("5/20 * * * *", "2026-02-11T12:05:00"),
        ("30 */5 * * * *", "2026-02-11T12:00:30"),
        ("0 0 L * *", "2026-02-28T00:00:00"),
        ("0 0 15W * *", "2026-02-16T00:00:00"),
        ("0 0 * * 5#3", "2026-02-20T00:00:00"),
        ("0 0 * * fri#3", "2026-02-20T00:00:00"),
        ("0 0 * * 5L", "2026-02-27T00:00:00"),
        ("0 0 * * 7", "2026-02-15T00:00:00"),
        ("0 0 * * 0", "2026-02-15T00:00:00"),
        ("0 0 * * SAT-SUN", "2026-02-14T00:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("0 0 31 * *", "2026-03-31T00:00:00"),
        ("0 0 1 jan,Jul *", "2026-07-01T00:00:00"),
    ],
)
def test_every_form_of_expression_is_understood(expression: str, expected: str) -> None:
    """Aliases, intervals, five and six fields, names in any case, L, W and #, from noon of 2026-02-11."""
    assert following(expression, "UTC", "2026-02-11T12:00:00+00:00", 1) == [expected + "+00:00"]


@pytest.mark.parametrize(
    "expression",
    [
        "", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *",
        "* * * * 8", "*/0 * * * *", "*/60 * * * *", "5-1 * * * *", "1,,2 * * * *", "a * * * *", "R * * * *",
        "H * * * *", "0 0 ? * *", "0 0 * foo *", "0 0 * * 1#6", "0 0 * * #2", "0 0 1-L * *", "0 0 LW * *",
        "0 0 0W * *", "-1 * * * *", "٣ * * * *", "0 0 30 2 *", "0 0 31 4,6 *", "@never", "@every", "@every 0s",
        "@every 1x", "@every -1m", "@every 99999h", "* " * 200, "1" * 300,
    ],
)  # fmt: skip
def test_other_expressions_are_refused_with_the_reason(expression: str) -> None:
    """Out of range, malformed, or without any date on which it fires: refused at once, naming what is wrong."""
    with pytest.raises(ScheduleError) as refused:
        parse(expression)
    assert refused.value.field == "expression"
    assert len(str(refused.value)) > 10


@pytest.mark.parametrize(
    "zone", ["", "EST", "CET", "EST5EDT", "+05:00", "UTC+5", "Mars/Phobos", "utc", "../etc/passwd"]
)
def test_only_iana_zones_are_taken(zone: str) -> None:
    """Offsets, abbreviations and unknown names are refused (ojs-cron section 5.1)."""
    with pytest.raises(ScheduleError) as refused:
        parse("* * * * *", zone)
    assert refused.value.field == "timezone"


def test_an_interval_counts_from_its_anchor() -> None:
    """However late one asks, the occurrences stay in step with the registration."""
    schedule = parse("@every 10s")
    assert schedule.next_after(1000, 1000).at_ms == 11_000
    assert schedule.next_after(10_999, 1000).at_ms == 11_000
    assert schedule.next_after(3_600_000, 1000).at_ms == 3_601_000
    assert schedule.next_after(0, 1000).at_ms == 11_000, "a clock that was put back"


def lists(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """A field and the values it names."""
    several = st.frozensets(st.integers(low, high), min_size=1, max_size=4).map(
        lambda s: (",".join(map(str, sorted(s))), s)
    )
    step = st.integers(1, high).map(lambda n: (f"*/{n}", frozenset(range(low, high + 1, n))))
    pair = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    between = pair.map(lambda p: (f"{p[0]}-{p[1]}", frozenset(range(p[0], p[1] + 1))))
    return st.one_of(st.just(("*", frozenset(range(low, high + 1)))), several, step, between)


@settings(max_examples=60)
@given(
    minute=lists(0, 59),
    hour=lists(0, 23),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
    start=st.sampled_from(["2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25", "2026-11-01"]),
    offset=st.integers(-1440, 1440),
)
def test_it_agrees_with_a_walk_through_every_minute(
    minute: tuple[str, frozenset[int]], hour: tuple[str, frozenset[int]], zone: str, start: str, offset: int
) -> None:
    """Around the days on which clocks change, the next occurrence is the first minute whose wall time matches."""
    schedule = parse(f"{minute[0]} {hour[0]} * * *", zone)
    reference = datetime.fromisoformat(start + "T00:00:00+00:00") + timedelta(minutes=offset)
    expected = None
    for n in range(1, 3 * 1440):
        moment = (reference + timedelta(minutes=n)).astimezone(ZoneInfo(zone))
        if not moment.fold and moment.minute in minute[1] and moment.hour in hour[1]:
            expected = moment.astimezone(UTC)
            break
    assert expected is not None
    found = schedule.next_after(int(reference.timestamp() * 1000), 0).at_ms
    assert found is not None
    assert datetime.fromtimestamp(found / 1000, UTC) == expected


@pytest.mark.parametrize(("names", "template"), [(MONTHS, "0 0 1 {} *"), (DAYS, "0 0 * * {}")])
def test_names_mean_their_numbers(names: tuple[str, ...], template: str) -> None:
    """JAN is 1, SUN is 0, in any case."""
    for number, name in enumerate(names, 1 if names is MONTHS else 0):
        assert parse(template.format(name.lower())).fields == parse(template.format(number)).fields
