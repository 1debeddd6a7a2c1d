# Times, durations and job ids as text (RFC 3339, ISO 8601, RFC 9562 version 7; CONTRACT section 2).
#
# Owns their syntax and arithmetic. Must not read a clock: instants come in as epoch milliseconds.

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport sprintf
from libc.string cimport memcpy

import os as _time_os

cdef extern from "Python.h":
    object _time_new_text "PyUnicode_New"(Py_ssize_t length, Py_UCS4 largest)
    void *_time_text_data "PyUnicode_DATA"(object text)
    bint _time_text_is_ascii "PyUnicode_IS_ASCII"(object text)
    long long _time_as_int64 "PyLong_AsLongLongAndOverflow"(object value, int *overflow) except? -1

cdef int64_t _TIME_SECOND_MS = 1000
cdef int64_t _TIME_MINUTE_MS = 60 * 1000
cdef int64_t _TIME_HOUR_MS = 60 * 60 * 1000
cdef int64_t _TIME_DAY_MS = 24 * 60 * 60 * 1000
cdef int64_t _TIME_FIRST_MS = -62135596800000  # 0001-01-01T00:00:00.000Z
cdef int64_t _TIME_LAST_MS = 253402300799999  # 9999-12-31T23:59:59.999Z

# Julian years: what a century is exactly does not matter, only that sums of accepted durations and
# instants stay far from overflowing.
cdef int64_t _TIME_LONGEST_MS = 36525 * _TIME_DAY_MS

cdef int64_t _TIME_LARGEST_UUID_MS = (1LL << 48) - 1


cdef inline void _time_put(char *out, int value, int digits) noexcept nogil:
    cdef int index
    for index in range(digits - 1, -1, -1):
        out[index] = <char>(48 + value % 10)
        value //= 10


cdef inline int _time_number(const char *text, int digits) noexcept nogil:
    # -1 where a character is no digit.
    cdef int value = 0
    cdef int index
    for index in range(digits):
        if not 48 <= text[index] <= 57:
            return -1
        value = value * 10 + (text[index] - 48)
    return value


cdef inline int64_t _time_days(int year, int month, int day) noexcept nogil:
    # Days since 1970-01-01. Years are counted from March, which puts the leap day at their end.
    cdef int shifted = year - (month <= 2)
    cdef int era = shifted // 400
    cdef int year_of_era = shifted - era * 400
    cdef int day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    cdef int day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return <int64_t>era * 146097 + day_of_era - 719468


cdef inline int _time_month_length(int year, int month) noexcept nogil:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


# One process formats "now" and near futures over and over, so nearly every call finds its day here.
cdef int64_t _time_cached_day = -1
cdef char[11] _time_cached_text


cdef void _time_cache_day(int64_t day) noexcept:
    global _time_cached_day
    cdef int64_t shifted = day + 719468
    cdef int era = <int>(shifted // 146097)
    cdef int day_of_era = <int>(shifted - <int64_t>era * 146097)
    cdef int year_of_era = (
        day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096
    ) // 365
    cdef int day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    cdef int march_month = (5 * day_of_year + 2) // 153
    cdef int month = march_month + (3 if march_month < 10 else -9)
    _time_put(_time_cached_text, year_of_era + era * 400 + (month <= 2), 4)
    _time_cached_text[4] = c"-"
    _time_put(_time_cached_text + 5, month, 2)
    _time_cached_text[7] = c"-"
    _time_put(_time_cached_text + 8, day_of_year - (153 * march_month + 2) // 5 + 1, 2)
    _time_cached_text[10] = c"T"
    _time_cached_day = day


cdef void _time_write_rfc3339(char *out, int64_t epoch_ms) noexcept:
    # Writes 24 characters; the caller has checked 0 <= epoch_ms <= _TIME_LAST_MS.
    cdef int64_t day = epoch_ms // _TIME_DAY_MS
    cdef int rest = <int>(epoch_ms - day * _TIME_DAY_MS)
    if day != _time_cached_day:
        _time_cache_day(day)
    memcpy(out, _time_cached_text, 11)
    _time_put(out + 11, rest // 3600000, 2)
    out[13] = c":"
    _time_put(out + 14, rest // 60000 % 60, 2)
    out[16] = c":"
    _time_put(out + 17, rest // 1000 % 60, 2)
    out[19] = c"."
    _time_put(out + 20, rest % 1000, 3)
    out[23] = c"Z"


def format_rfc3339_ms(epoch_ms):
    """Return the UTC time `epoch_ms` (int, ms since 1970) as "2026-02-12T10:30:00.000Z".

    Raises ValueError outside the years 1970..9999 (ojs-json-format.md: always `Z`, always ms).
    """
    cdef int overflow = 0
    cdef int64_t instant = _time_as_int64(epoch_ms, &overflow)
    if overflow or not 0 <= instant <= _TIME_LAST_MS:
        raise ValueError(f"epoch_ms must lie in the years 1970..9999, got {epoch_ms}")
    cdef object text = _time_new_text(24, 127)
    _time_write_rfc3339(<char *>_time_text_data(text), instant)
    return text


cdef int64_t _time_refuse(str kind, str text, str reason) except? -1:
    # Texts come from strangers: an error must not carry a megabyte of them.
    shown = text if len(text) <= 40 else text[:40] + "..."
    raise ValueError(f"invalid {kind} {shown!r}: {reason}")


cdef int64_t _time_parse_rfc3339(str text) except? -1:
    cdef str kind = "RFC 3339 time"
    cdef Py_ssize_t length = len(text)
    if not _time_text_is_ascii(text):
        return _time_refuse(kind, text, "only ASCII is allowed")
    if length < 19:
        return _time_refuse(kind, text, "expected YYYY-MM-DDTHH:MM:SS and a zone")
    cdef const char *at = <const char *>_time_text_data(text)
    cdef int year = _time_number(at, 4)
    cdef int month = _time_number(at + 5, 2)
    cdef int day = _time_number(at + 8, 2)
    cdef int hour = _time_number(at + 11, 2)
    cdef int minute = _time_number(at + 14, 2)
    cdef int second = _time_number(at + 17, 2)
    if (
        (year | month | day | hour | minute | second) < 0
        or at[4] != c"-"
        or at[7] != c"-"
        or (at[10] != c"T" and at[10] != c"t")
        or at[13] != c":"
        or at[16] != c":"
    ):
        return _time_refuse(kind, text, "expected YYYY-MM-DDTHH:MM:SS and a zone")
    if year < 1:
        return _time_refuse(kind, text, "year must be 0001..9999")
    if not 1 <= month <= 12:
        return _time_refuse(kind, text, "month must be 01..12")
    if not 1 <= day <= _time_month_length(year, month):
        return _time_refuse(kind, text, "no such day in that month")
    if hour > 23:
        return _time_refuse(kind, text, "hour must be 00..23")
    if minute > 59:
        return _time_refuse(kind, text, "minute must be 00..59")
    if second > 60:
        return _time_refuse(kind, text, "second must be 00..60")

    cdef Py_ssize_t index = 19
    cdef int milliseconds = 0
    cdef int weight = 100
    if index < length and at[index] == c".":
        index += 1
        if index == length or not 48 <= at[index] <= 57:
            return _time_refuse(kind, text, "a fraction needs digits")
        while index < length and 48 <= at[index] <= 57:
            milliseconds += (at[index] - 48) * weight
            weight //= 10
            index += 1

    cdef int offset_hours
    cdef int offset_minutes
    cdef int64_t offset_ms = 0
    if index == length:
        return _time_refuse(kind, text, "the time zone is missing")
    if at[index] == c"Z" or at[index] == c"z":
        if index + 1 != length:
            return _time_refuse(kind, text, "text after the time zone")
    elif at[index] == c"+" or at[index] == c"-":
        if length - index != 6 or at[index + 3] != c":":
            return _time_refuse(kind, text, "the time zone must be Z or +HH:MM or -HH:MM")
        offset_hours = _time_number(at + index + 1, 2)
        offset_minutes = _time_number(at + index + 4, 2)
        if not (0 <= offset_hours <= 23 and 0 <= offset_minutes <= 59):
            return _time_refuse(kind, text, "the time zone must lie within 23:59 of UTC")
        offset_ms = offset_hours * _TIME_HOUR_MS + offset_minutes * _TIME_MINUTE_MS
        if at[index] == c"-":
            offset_ms = -offset_ms
    else:
        return _time_refuse(kind, text, "the time zone must be Z or +HH:MM or -HH:MM")

    cdef int64_t minute_start = (
        _time_days(year, month, day) * _TIME_DAY_MS
        + hour * _TIME_HOUR_MS
        + minute * _TIME_MINUTE_MS
        - offset_ms
    )
    cdef int64_t instant
    if second == 60:
        # Epoch time has no leap seconds: all of one becomes the instant that follows it, so that
        # order is kept. They exist only before a UTC midnight (RFC 3339 section 5.7).
        instant = minute_start + _TIME_MINUTE_MS
        if instant % _TIME_DAY_MS != 0:
            return _time_refuse(kind, text, "second 60 exists only at 23:59 UTC")
    else:
        instant = minute_start + second * _TIME_SECOND_MS + milliseconds
    if not _TIME_FIRST_MS <= instant <= _TIME_LAST_MS:
        return _time_refuse(kind, text, "in UTC it lies outside the years 0001..9999")
    return instant


def parse_rfc3339_ms(str text not None):
    """Return the instant that `text` names, in ms since 1970 (int, negative before).

    RFC 3339 section 5.6: `T` and `Z` in either case, a zone is mandatory, "-00:00" is UTC, a
    fraction of any length is cut to ms. A leap second (:60) counts as the second after it.

    Raises ValueError with the reason for anything else, also for an instant outside the years
    0001..9999 of UTC.
    """
    return _time_parse_rfc3339(text)


# The letters in the order they must come in, each with its length; "T" separates days from hours.
cdef const char *_TIME_UNITS = b"WDHMS"
cdef int64_t[5] _time_unit_ms
_time_unit_ms[0] = 7 * _TIME_DAY_MS
_time_unit_ms[1] = _TIME_DAY_MS
_time_unit_ms[2] = _TIME_HOUR_MS
_time_unit_ms[3] = _TIME_MINUTE_MS
_time_unit_ms[4] = _TIME_SECOND_MS


cdef inline int64_t _time_fraction_ms(
    const char *digits, Py_ssize_t count, int64_t unit_ms
) noexcept nogil:
    # Long division from the last digit on: exact for any number of digits, where a double is not.
    cdef int64_t value = 0
    cdef Py_ssize_t index
    for index in range(count - 1, -1, -1):
        value = ((digits[index] - 48) * unit_ms + value) // 10
    return value


cdef int64_t _time_parse_duration(str text) except? -1:
    cdef str kind = "ISO 8601 duration"
    cdef Py_ssize_t length = len(text)
    if not _time_text_is_ascii(text):
        return _time_refuse(kind, text, "only ASCII is allowed")
    cdef const char *at = <const char *>_time_text_data(text)
    if length == 0 or at[0] != c"P":
        return _time_refuse(kind, text, "it must start with P")

    cdef Py_ssize_t index = 1
    cdef int64_t total = 0
    cdef int64_t number
    cdef Py_ssize_t fraction_start
    cdef Py_ssize_t fraction_length
    # The position in _TIME_UNITS below which no further unit may lie.
    cdef int next_unit = 0
    cdef int unit
    cdef bint in_time = False
    cdef bint closed = False
    cdef bint found = False
    while index < length:
        if at[index] == c"T":
            if in_time or closed:
                return _time_refuse(kind, text, "misplaced T")
            in_time = True
            # A T that nothing follows is refused below.
            found = False
            next_unit = 2
            index += 1
            continue
        if closed:
            return _time_refuse(kind, text, "weeks stand alone, and a fraction ends a duration")
        if not 48 <= at[index] <= 57:
            return _time_refuse(kind, text, "expected a number")
        number = 0
        while index < length and 48 <= at[index] <= 57:
            number = number * 10 + (at[index] - 48)
            if number > _TIME_LONGEST_MS:
                return _time_refuse(kind, text, "longer than 100 years")
            index += 1
        fraction_start = fraction_length = 0
        if index < length and (at[index] == c"." or at[index] == c","):
            index += 1
            fraction_start = index
            while index < length and 48 <= at[index] <= 57:
                index += 1
            fraction_length = index - fraction_start
            if fraction_length == 0:
                return _time_refuse(kind, text, "a fraction needs digits")
            closed = True
        if index == length:
            return _time_refuse(kind, text, "a number needs a unit")
        if at[index] == c"Y" or (at[index] == c"M" and not in_time):
            return _time_refuse(kind, text, "years and months have no fixed length")
        unit = next_unit
        while unit < 5 and at[index] != _TIME_UNITS[unit]:
            unit += 1
        if unit == 5 or (unit >= 2) != in_time:
            return _time_refuse(
                kind, text, "units must be W alone, or D, then T with H, M, S, each once in order"
            )
        if number > _TIME_LONGEST_MS // _time_unit_ms[unit]:
            return _time_refuse(kind, text, "longer than 100 years")
        total += number * _time_unit_ms[unit]
        total += _time_fraction_ms(at + fraction_start, fraction_length, _time_unit_ms[unit])
        if unit == 0:
            closed = True
        next_unit = unit + 1
        found = True
        index += 1
    if not found:
        return _time_refuse(kind, text, "it has no component" if not in_time else "nothing after T")
    if total > _TIME_LONGEST_MS:
        return _time_refuse(kind, text, "longer than 100 years")
    return total


def parse_duration_ms(str text not None):
    """Return the length of an ISO 8601 duration in ms (int, 0..100 years of 365.25 days).

    `PnW` or `PnDTnHnMnS` with at least one component, the last with a fraction after "." or ","
    if need be, cut to ms (ojs-retry.md section 4). Years and months are refused, having no fixed
    length, and so are signs. Raises ValueError with the reason.
    """
    return _time_parse_duration(text)


def format_duration_ms(milliseconds):
    """Return a length in ms (int, 0..100 years) as hours, minutes, seconds: "PT1H30M", "PT0.5S".

    A day is "PT24H" (ojs-retry.md section 4.1). Raises ValueError outside the range, so that
    whatever it returns can be parsed again.
    """
    cdef int overflow = 0
    cdef int64_t rest = _time_as_int64(milliseconds, &overflow)
    if overflow or not 0 <= rest <= _TIME_LONGEST_MS:
        raise ValueError(f"a duration must lie in 0..100 years of ms, got {milliseconds}")
    if rest == 0:
        return "PT0S"
    cdef char[48] out
    cdef int length = 2
    memcpy(out, b"PT", 2)
    if rest >= _TIME_HOUR_MS:
        length += sprintf(out + length, "%lldH", <long long>(rest // _TIME_HOUR_MS))
    rest %= _TIME_HOUR_MS
    if rest >= _TIME_MINUTE_MS:
        length += sprintf(out + length, "%dM", <int>(rest // _TIME_MINUTE_MS))
    rest %= _TIME_MINUTE_MS
    if rest:
        length += sprintf(out + length, "%d.%03d", <int>(rest // 1000), <int>(rest % 1000))
        while out[length - 1] == c"0":
            length -= 1
        if out[length - 1] == c".":
            length -= 1
        out[length] = c"S"
        length += 1
    return out[:length].decode("ascii")


cdef const char *_TIME_HEX = b"0123456789abcdef"


cdef object _time_uuid_text(const unsigned char *octets):
    cdef object text = _time_new_text(36, 127)
    cdef char *out = <char *>_time_text_data(text)
    cdef int index
    for index in range(16):
        if index == 4 or index == 6 or index == 8 or index == 10:
            out[0] = c"-"
            out += 1
        out[0] = _TIME_HEX[octets[index] >> 4]
        out[1] = _TIME_HEX[octets[index] & 15]
        out += 2
    return text


cdef inline void _time_put_epoch(unsigned char *octets, int64_t epoch_ms) noexcept nogil:
    cdef int index
    for index in range(5, -1, -1):
        octets[index] = <unsigned char>(epoch_ms & 0xFF)
        epoch_ms >>= 8


cdef int64_t _time_uuid_epoch(object epoch_ms) except -1:
    cdef int overflow = 0
    cdef int64_t instant = _time_as_int64(epoch_ms, &overflow)
    if overflow or not 0 <= instant <= _TIME_LARGEST_UUID_MS:
        raise ValueError(f"epoch_ms must lie in 0..2**48-1, got {epoch_ms}")
    return instant


def uuid7(epoch_ms, bytes random_bytes not None):
    """Return the version 7 UUID (lowercase str) of `epoch_ms` (ms since 1970) and 10 random bytes.

    RFC 9562 section 5.7; the six version and variant bits replace random ones. Raises ValueError
    for a time outside 0..2**48-1 or another number of bytes.
    """
    cdef unsigned char[16] octets
    cdef int64_t instant = _time_uuid_epoch(epoch_ms)
    if len(random_bytes) != 10:
        raise ValueError(f"random_bytes must be 10 bytes, got {len(random_bytes)}")
    _time_put_epoch(octets, instant)
    memcpy(octets + 6, <const char *>random_bytes, 10)
    octets[6] = 0x70 | (octets[6] & 0x0F)
    octets[8] = 0x80 | (octets[8] & 0x3F)
    return _time_uuid_text(octets)


# Counts the forks above this process: a child must never hand out its parent's random bytes.
cdef uint64_t _time_forks = 0


def _time_after_fork():
    global _time_forks
    _time_forks += 1


_time_os.register_at_fork(after_in_child=_time_after_fork)

cdef Py_ssize_t _TIME_ENTROPY_BLOCK = 4096
# 4 bytes seed a millisecond's counter, 6 are every id's own.
cdef Py_ssize_t _TIME_ENTROPY_NEED = 10
cdef uint32_t _TIME_COUNTER_SIZE = 1 << 26


@cython.final
cdef class UuidV7Generator:
    """Makes version 7 UUIDs that strictly increase within one process (RFC 9562 section 6.2).

    Method 1: rand_a and the first 14 bits of rand_b are a 26-bit counter, random anew in every
    millisecond with its first bit clear, so 2**25 ids fit before it runs over into the next
    millisecond; the last 48 bits are random in every id. When the clock goes back, the last
    millisecond is used on. A forked child starts afresh.
    """

    cdef bytes _entropy
    cdef Py_ssize_t _spent
    cdef int64_t _last_ms
    cdef uint32_t _counter
    cdef uint64_t _forks

    def __cinit__(self):
        self._entropy = b""
        self._spent = 0
        self._last_ms = -1
        self._counter = 0
        self._forks = _time_forks

    def next(self, epoch_ms):
        """Return the next id (lowercase str) for the time `epoch_ms` (int, ms since 1970).

        Raises ValueError for a time outside 0..2**48-1.
        """
        cdef int64_t instant = _time_uuid_epoch(epoch_ms)
        if self._forks != _time_forks:
            self._forks = _time_forks
            self._entropy = b""
            self._last_ms = -1
        # Asked for before any state is read: os.urandom may let another thread run.
        while len(self._entropy) - self._spent < _TIME_ENTROPY_NEED:
            self._entropy = _time_os.urandom(_TIME_ENTROPY_BLOCK)
            self._spent = 0
        cdef const unsigned char *entropy = (
            <const unsigned char *><const char *>self._entropy + self._spent
        )
        if instant > self._last_ms:
            self._last_ms = instant
            self._counter = self._seed(entropy)
        else:
            self._counter += 1
            if self._counter >= _TIME_COUNTER_SIZE:
                _time_uuid_epoch(self._last_ms + 1)
                self._last_ms += 1
                self._counter = self._seed(entropy)
        cdef unsigned char[16] octets
        _time_put_epoch(octets, self._last_ms)
        octets[6] = <unsigned char>(0x70 | (self._counter >> 22))
        octets[7] = <unsigned char>(self._counter >> 14 & 0xFF)
        octets[8] = <unsigned char>(0x80 | (self._counter >> 8 & 0x3F))
        octets[9] = <unsigned char>(self._counter & 0xFF)
        memcpy(octets + 10, entropy + 4, 6)
        self._spent += _TIME_ENTROPY_NEED
        return _time_uuid_text(octets)

    cdef inline uint32_t _seed(self, const unsigned char *entropy) noexcept:
        cdef uint32_t seed = 0
        memcpy(&seed, entropy, 4)
        return seed & ((_TIME_COUNTER_SIZE >> 1) - 1)


cdef inline int _time_hex_digit(char digit) noexcept nogil:
    if 48 <= digit <= 57:
        return digit - 48
    if 97 <= digit <= 102:
        return digit - 87
    return -1


cdef bint _time_is_uuid7(str text) noexcept:
    if len(text) != 36 or not _time_text_is_ascii(text):
        return False
    cdef const char *at = <const char *>_time_text_data(text)
    cdef int index
    for index in range(36):
        if index == 8 or index == 13 or index == 18 or index == 23:
            if at[index] != c"-":
                return False
        elif _time_hex_digit(at[index]) < 0:
            return False
    return at[14] == c"7" and (_time_hex_digit(at[19]) & 0xC) == 0x8


def is_uuid7(str text not None):
    """Return whether `text` is a job id: a lowercase version 7 UUID (CONTRACT section 2)."""
    return _time_is_uuid7(text)


def uuid7_ms(str text not None):
    """Return the time inside a version 7 UUID in ms since 1970 (int; RFC 9562 section 5.7).

    Raises ValueError where `is_uuid7` says no.
    """
    if not _time_is_uuid7(text):
        return _time_refuse("version 7 UUID", text, "expected 36 lowercase characters")
    cdef const char *at = <const char *>_time_text_data(text)
    cdef int64_t instant = 0
    cdef int index
    for index in range(13):
        if index != 8:
            instant = instant << 4 | _time_hex_digit(at[index])
    return instant
