"""Times, durations and version 7 UUIDs of `_core` (CONTRACT section 2, RFCs 3339 and 9562)."""

import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ojs_fast._core import (
    UuidV7Generator,
    format_duration_ms,
    format_rfc3339_ms,
    is_uuid7,
    parse_duration_ms,
    parse_rfc3339_ms,
    uuid7,
    uuid7_ms,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
FIRST_MS = -62_135_596_800_000
LAST_MS = 253_402_300_799_999
HUNDRED_YEARS_MS = 36_525 * 86_400_000
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

instants = st.integers(0, LAST_MS)


def by_datetime(epoch_ms: int) -> str:
    """RFC 3339 with milliseconds, the way the standard library writes it."""
    moment = EPOCH + epoch_ms * MILLISECOND
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


# RFC 3339


@given(st.lists(instants, min_size=1, max_size=5))
@example([0, LAST_MS, 0, 951_782_400_000, 4_107_542_400_000])
@example([86_399_999, 86_400_000, 86_399_999])
def test_times_are_written_as_the_standard_library_writes_them(moments: list[int]) -> None:
    """The text equals datetime's for every instant, whichever day was asked for before."""
    assert [format_rfc3339_ms(ms) for ms in moments] == [by_datetime(ms) for ms in moments]


@pytest.mark.parametrize("epoch_ms", [-1, LAST_MS + 1, -(2**63), 2**63, 10**30, -(10**30)])
def test_times_outside_1970_to_9999_are_not_written(epoch_ms: int) -> None:
    """An instant without a four-digit year from 1970 on raises ValueError."""
    with pytest.raises(ValueError, match=r"1970\.\.9999"):
        format_rfc3339_ms(epoch_ms)


@given(instants)
def test_what_is_written_is_read_back(epoch_ms: int) -> None:
    """Formatting and parsing are inverse to each other."""
    assert parse_rfc3339_ms(format_rfc3339_ms(epoch_ms)) == epoch_ms


@given(
    # Naive, as Hypothesis wants its bounds; two days in, for zones to stay within datetime's years.
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),  # noqa: DTZ001
    st.integers(-(23 * 60 + 59), 23 * 60 + 59),
    st.text("0123456789", max_size=12),
    st.sampled_from("Tt"),
)
def test_times_are_read_as_the_standard_library_reads_them(
    local: datetime, offset: int, fraction: str, separator: str
) -> None:
    """Date, time, zone and fraction give datetime's instant, the fraction cut to milliseconds."""
    local = local.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=offset)))
    sign = "-" if offset < 0 else "+"
    zone = f"{sign}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}"
    text = local.strftime(f"{local.year:04d}-%m-%d{separator}%H:%M:%S")
    text += (f".{fraction}" if fraction else "") + zone
    whole = (local - EPOCH) // MILLISECOND
    assert parse_rfc3339_ms(text) == whole + int((fraction + "000")[:3])


@pytest.mark.parametrize(
    ("text", "epoch_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T00:00:00.001-00:00", 1),
        ("1970-01-01T00:00:00.0009999Z", 0),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2000-02-29T00:00:00Z", 951_782_400_000),
        ("2024-02-29T12:00:00+14:00", 1_709_157_600_000),
        ("0001-01-01T00:00:00Z", FIRST_MS),
        ("9999-12-31T23:59:59.999Z", LAST_MS),
        ("2026-02-12T10:30:00." + "1" * 5000 + "Z", 1_770_892_200_111),
        # The leap second at the end of 2016, here and elsewhere on the globe.
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("2016-12-31T23:59:60.999Z", 1_483_228_800_000),
        ("2017-01-01T05:29:60+05:30", 1_483_228_800_000),
        ("2016-12-31T15:59:60-08:00", 1_483_228_800_000),
    ],
)
def test_edges_of_rfc_3339_are_read(text: str, epoch_ms: int) -> None:
    """Either case, any fraction, the first and last year and leap seconds are understood."""
    assert parse_rfc3339_ms(text) == epoch_ms


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected YYYY"),
        ("2026-02-12", "expected YYYY"),
        ("2026-02-12 10:30:00Z", "expected YYYY"),
        ("2026-02-12T10:30Z", "expected YYYY"),
        ("2026-2-12T10:30:000Z", "expected YYYY"),
        ("2026/02/12T10:30:00Z", "expected YYYY"),
        ("+026-02-12T10:30:00Z", "expected YYYY"),
        ("2026-02-12T10:30:-1Z", "expected YYYY"),
        (" 2026-02-12T10:30:00Z", "expected YYYY"),
        ("2026-02-12T10:30:00", "zone is missing"),
        ("2026-02-12T10:30:00.5", "zone is missing"),
        ("2026-02-12T10:30:00.Z", "fraction"),
        ("2026-02-12T10:30:00.+01:00", "fraction"),
        ("2026-02-12T10:30:00,5Z", "zone must be"),
        ("2026-02-12T10:30:00 Z", "zone must be"),
        ("2026-02-12T10:30:00UTC", "zone must be"),
        ("2026-02-12T10:30:00+0100", "zone must be"),
        ("2026-02-12T10:30:00+01", "zone must be"),
        ("2026-02-12T10:30:00+01:000", "zone must be"),
        ("2026-02-12T10:30:00+24:00", "within 23:59"),
        ("2026-02-12T10:30:00+01:60", "within 23:59"),
        ("2026-02-12T10:30:00+-1:00", "within 23:59"),
        ("2026-02-12T10:30:00Z\n", "text after"),
        ("2026-02-12T10:30:00ZZ", "text after"),
        ("0000-01-01T00:00:00Z", "year"),
        ("2026-00-12T10:30:00Z", "month"),
        ("2026-13-12T10:30:00Z", "month"),
        ("2026-02-00T10:30:00Z", "no such day"),
        ("2026-02-29T10:30:00Z", "no such day"),
        ("2100-02-29T10:30:00Z", "no such day"),
        ("2026-04-31T10:30:00Z", "no such day"),
        ("2026-02-12T24:00:00Z", "hour"),
        ("2026-02-12T10:60:00Z", "minute"),
        ("2026-02-12T10:30:61Z", "second must"),
        ("2026-02-12T10:30:60Z", "second 60"),
        ("2016-12-31T23:59:60+01:00", "second 60"),
        ("9999-12-31T23:59:60Z", "0001..9999"),
        ("9999-12-31T23:59:59-00:01", "0001..9999"),
        ("0001-01-01T00:00:00+00:01", "0001..9999"),
        ("\u0968\u0966\u0968\u0966-02-12T10:30:00Z", "ASCII"),
        ("2026-02-12T10:30:00\ud800", "ASCII"),
        ("2026-02-12T10:30:00\x00", "zone must be"),
        ("x" * 10**6, "expected YYYY"),
    ],
)
def test_what_is_no_rfc_3339_time_is_refused_with_its_reason(text: str, reason: str) -> None:
    """Anything else raises a short ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=reason) as refusal:
        parse_rfc3339_ms(text)
    assert len(str(refusal.value)) < 200


@given(st.text("0123456789-+:.TtZz \x00é", max_size=32))
def test_arbitrary_text_is_a_time_or_a_value_error(text: str) -> None:
    """No input crashes the parser, and what it accepts, the standard library accepts too."""
    try:
        epoch_ms = parse_rfc3339_ms(text)
    except ValueError:
        return
    assume(":60" not in text)
    assert (datetime.fromisoformat(text.upper()) - EPOCH) // MILLISECOND == epoch_ms


# Durations

UNIT_MS = {"W": 604_800_000, "D": 86_400_000, "H": 3_600_000, "M": 60_000, "S": 1_000}
NUMBER = r"(\d+(?:[.,]\d+)?)"
DURATION = re.compile(
    rf"P(?:{NUMBER}W|(?:{NUMBER}D)?(?:T(?=\d)(?:{NUMBER}H)?(?:{NUMBER}M)?(?:{NUMBER}S)?)?)",
    re.ASCII,
)


def by_fractions(text: str) -> int | None:
    """Read a duration by a pattern and exact fractions; None where the text is none."""
    match = DURATION.fullmatch(text)
    if match is None or all(part is None for part in match.groups()):
        return None
    parts = [(n, u) for n, u in zip(match.groups(), "WDHMS", strict=True) if n is not None]
    if any("." in number or "," in number for number, _ in parts[:-1]):
        return None
    total = sum(Fraction(number.replace(",", ".")) * UNIT_MS[unit] for number, unit in parts)
    return int(total) if int(total) <= HUNDRED_YEARS_MS else None


counts = st.integers(0, 40_000).map(str)
fractions = st.tuples(counts, st.sampled_from(".,"), st.text("0123456789", min_size=1)).map("".join)


@st.composite
def durations(draw: st.DrawFn) -> str:
    """Mostly well-formed durations, some out of order, repeated or empty."""
    days: list[str] = draw(st.lists(st.sampled_from("WDD"), max_size=2))
    hours: list[str] = sorted(draw(st.lists(st.sampled_from("HMS"), max_size=3)))
    numbers = [draw(counts) for _ in days + hours]
    if numbers:
        numbers[-1] = draw(st.one_of(counts, fractions))
    pairs = [number + unit for number, unit in zip(numbers, days + hours, strict=True)]
    time = pairs[len(days) :]
    return "P" + "".join(pairs[: len(days)]) + ("T" if time else "") + "".join(time)


@given(st.one_of(durations(), st.text("PTWDHMSY0123456789.,-", max_size=12)))
@example("P1DT")
@example("PT")
@example("P36525D")
@example("P36525DT0.0009S")
@example("P36525DT0.001S")
@example("PT0." + "3" * 4000 + "H")
@example("P0.99999999999999999999999999W")
def test_durations_are_read_exactly(text: str) -> None:
    """Length or refusal agree with exact rational arithmetic for any text and any digits."""
    expected = by_fractions(text)
    if expected is None:
        with pytest.raises(ValueError, match="invalid ISO 8601 duration"):
            parse_duration_ms(text)
    else:
        assert parse_duration_ms(text) == expected


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("PT0S", 0),
        ("PT0.5S", 500),
        ("PT0,5S", 500),
        ("PT1S", 1_000),
        ("PT5M", 300_000),
        ("PT1.5H", 5_400_000),
        ("PT24H", 86_400_000),
        ("P1D", 86_400_000),
        ("P1DT1H1M1.001S", 90_061_001),
        ("P1DT1S", 86_401_000),
        ("P2W", 1_209_600_000),
        ("P0.5W", 302_400_000),
        ("PT0.0009S", 0),
        ("PT000000000000000000001S", 1_000),
        ("P36525D", HUNDRED_YEARS_MS),
    ],
)
def test_durations_of_the_contract_are_read(text: str, milliseconds: int) -> None:
    """Weeks, days, hours, minutes, seconds and fractions count what ISO 8601 says."""
    assert parse_duration_ms(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "start with P"),
        ("1S", "start with P"),
        ("pt1s", "start with P"),
        ("-PT1S", "start with P"),
        ("+PT1S", "start with P"),
        ("P", "no component"),
        ("PT", "nothing after T"),
        ("P1DT", "nothing after T"),
        ("P1Y", "years and months"),
        ("P1M", "years and months"),
        ("PT1Y", "years and months"),
        ("P1.5M", "years and months"),
        ("PTS", "expected a number"),
        ("PT-1S", "expected a number"),
        ("PT.5S", "expected a number"),
        ("PT 1S", "expected a number"),
        ("PT1", "needs a unit"),
        ("PT1.S", "fraction needs digits"),
        ("PT1.5", "needs a unit"),
        ("PT1s", "units must"),
        ("PT1D", "units must"),
        ("P1H", "units must"),
        ("P1S", "units must"),
        ("PT1W", "units must"),
        ("P1D1D", "units must"),
        ("P1D1W", "units must"),
        ("PT1S1M", "units must"),
        ("PT1M1M", "units must"),
        ("P1W1D", "weeks stand alone"),
        ("PT1.5H1M", "fraction ends"),
        ("P1WT1S", "misplaced T"),
        ("P1.5DT1S", "misplaced T"),
        ("PTT1S", "misplaced T"),
        ("PT1ST", "misplaced T"),
        ("P36526D", "100 years"),
        ("P36525DT1S", "100 years"),
        ("PT99999999999999999999S", "100 years"),
        ("PT" + "9" * 10**6 + "S", "100 years"),
        ("PT\uff11S", "ASCII"),
        ("PT1S\x00", "expected a number"),
        ("PT1S\n", "expected a number"),
    ],
)
def test_what_is_no_duration_is_refused_with_its_reason(text: str, reason: str) -> None:
    """Anything else raises a short ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=reason) as refusal:
        parse_duration_ms(text)
    assert len(str(refusal.value)) < 200


@given(st.integers(0, HUNDRED_YEARS_MS))
def test_durations_survive_being_written(milliseconds: int) -> None:
    """A formatted duration parses back to itself and has no empty or zero component."""
    text = format_duration_ms(milliseconds)
    assert parse_duration_ms(text) == milliseconds
    assert text == "PT0S" or re.search(r"(?<!\d)0+[HM]|(?<!\d)0S|\.\d*0S", text) is None


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "PT0S"),
        (1, "PT0.001S"),
        (500, "PT0.5S"),
        (1_000, "PT1S"),
        (60_000, "PT1M"),
        (60_010, "PT1M0.01S"),
        (5_400_000, "PT1H30M"),
        (3_601_000, "PT1H1S"),
        (86_400_000, "PT24H"),
        (HUNDRED_YEARS_MS, "PT876600H"),
    ],
)
def test_durations_are_written_in_one_form(milliseconds: int, text: str) -> None:
    """The canonical form uses hours, minutes and seconds, without trailing zeros."""
    assert format_duration_ms(milliseconds) == text


@pytest.mark.parametrize("milliseconds", [-1, HUNDRED_YEARS_MS + 1, 10**30, -(10**30)])
def test_lengths_that_could_not_be_read_back_are_not_written(milliseconds: int) -> None:
    """A negative or endless length raises ValueError."""
    with pytest.raises(ValueError, match="100 years"):
        format_duration_ms(milliseconds)


# Version 7 UUIDs


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_a_uuid_has_the_layout_of_rfc_9562(epoch_ms: int, random_bytes: bytes) -> None:
    """Time, version, variant and all 74 random bits stand where section 5.7 puts them."""
    text = uuid7(epoch_ms, random_bytes)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == epoch_ms
    kept = (1 << 80) - 1 - (0xF << 76) - (0x3 << 62)
    assert parsed.int & kept == int.from_bytes(random_bytes, "big") & kept
    assert is_uuid7(text)
    assert uuid7_ms(text) == epoch_ms


@pytest.mark.parametrize("epoch_ms", [-1, 2**48, 10**30])
def test_times_that_do_not_fit_an_id_are_refused(epoch_ms: int) -> None:
    """Forty-eight bits of milliseconds are all there is; beyond them it is a ValueError."""
    with pytest.raises(ValueError, match="epoch_ms"):
        uuid7(epoch_ms, bytes(10))
    with pytest.raises(ValueError, match="epoch_ms"):
        UuidV7Generator().next(epoch_ms)


@pytest.mark.parametrize("size", [0, 9, 11, 16])
def test_an_id_needs_exactly_ten_random_bytes(size: int) -> None:
    """Fewer or more random bytes raise ValueError."""
    with pytest.raises(ValueError, match="10 bytes"):
        uuid7(0, bytes(size))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=200))
def test_generated_ids_strictly_increase_whatever_the_clock_does(clock: list[int]) -> None:
    """Ids of one generator sort in the order of their making, and never precede the clock."""
    generator = UuidV7Generator()
    ids = [generator.next(epoch_ms) for epoch_ms in clock]
    assert ids == sorted(set(ids))
    assert all(UUID7.fullmatch(text) for text in ids)
    highest = [max(clock[: index + 1]) for index in range(len(clock))]
    assert [uuid7_ms(text) for text in ids] == highest


def test_many_ids_of_one_millisecond_stay_in_it() -> None:
    """A burst keeps the true time: 100 000 ids do not run over into the next millisecond."""
    generator = UuidV7Generator()
    ids = [generator.next(1_770_892_200_000) for _ in range(100_000)]
    assert ids == sorted(set(ids))
    assert {uuid7_ms(text) for text in ids} == {1_770_892_200_000}


def test_the_end_of_time_is_an_error_and_changes_nothing() -> None:
    """The last millisecond still gives ids in order, and a refused time leaves the order intact."""
    generator = UuidV7Generator()
    first = generator.next(2**48 - 1)
    with pytest.raises(ValueError, match="epoch_ms"):
        generator.next(2**48)
    assert generator.next(2**48 - 1) > first


def test_two_generators_share_no_id() -> None:
    """Generators of one millisecond differ in their random bits, as two nodes must."""
    one, other = UuidV7Generator(), UuidV7Generator()
    ids = {generator.next(7) for generator in (one, other) for _ in range(10_000)}
    assert len(ids) == 20_000


def test_threads_may_share_a_generator() -> None:
    """Concurrent callers get distinct ids, refills of randomness included."""
    generator = UuidV7Generator()
    with ThreadPoolExecutor(4) as pool:
        batches = pool.map(lambda _: [generator.next(7) for _ in range(5_000)], range(4))
        ids = [text for batch in batches for text in batch]
    assert len(set(ids)) == 20_000


def test_a_forked_child_does_not_repeat_its_parent() -> None:
    """After a fork parent and child draw from different randomness, down to the last 48 bits."""
    # In a process of its own: forking one that has threads is what Python warns about.
    script = (
        "import os\n"
        "from ojs_fast._core import UuidV7Generator\n"
        "generator = UuidV7Generator()\n"
        "generator.next(7)\n"
        "child = os.fork()\n"
        "os.write(1, (generator.next(7) + '\\n').encode())\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "else:\n"
        "    os._exit(0)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    one, other = run.stdout.split()
    assert one != other
    assert one[-12:] != other[-12:]


@given(st.one_of(st.text("0123456789abcdefAF-", min_size=34, max_size=38), st.uuids().map(str)))
@example("01890a5d-ac96-774b-bcce-b302099a8057")
@example("01890A5D-AC96-774B-BCCE-B302099A8057")
@example("01890a5d-ac96-774b-ccce-b302099a8057")
@example("01890a5d-ac96-474b-bcce-b302099a8057")
@example("01890a5d-ac96-774b-bcce-b302099a8057\n")
@example("01890a5d-ac96-774b-bcce-b302099a805é")
@example("01890a5d-ac96-774b-bcce-b302099a805g")
@example("01890a5dac96774bbcceb302099a8057")
@example("")
def test_ids_are_told_by_the_pattern_of_the_contract(text: str) -> None:
    """`is_uuid7` says exactly what the regular expression says, and guards `uuid7_ms`."""
    matches = UUID7.fullmatch(text) is not None
    assert is_uuid7(text) is matches
    if matches:
        assert uuid7_ms(text) == int(text.replace("-", "")[:12], 16)
    else:
        with pytest.raises(ValueError, match="version 7 UUID"):
            uuid7_ms(text)


@given(st.integers(0, 2**48 - 1), st.integers(0, 35), st.characters())
def test_one_wrong_character_is_noticed(epoch_ms: int, index: int, character: str) -> None:
    """Changing any single character of an id leaves it to the pattern again."""
    text = uuid7(epoch_ms, bytes(10))
    changed = text[:index] + character + text[index + 1 :]
    assert is_uuid7(changed) is (UUID7.fullmatch(changed) is not None)


@pytest.mark.parametrize(
    "function", [parse_rfc3339_ms, parse_duration_ms, is_uuid7, uuid7_ms], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("value", [None, 7, b"PT1S", ["PT1S"]])
def test_only_text_is_read(function: object, value: object) -> None:
    """Anything but str raises TypeError, None included, instead of crashing compiled code."""
    with pytest.raises(TypeError):
        function(value)  # type: ignore[operator]
