# Retry delays and the order of jobs (ojs-retry.md sections 3 and 5; CONTRACT section 4).
#
# Owns the arithmetic only. Must not know policies, defaults, clocks or where randomness comes from.

from libc.math cimport isfinite as _backoff_isfinite, llround as _backoff_llround
from libc.math cimport pow as _backoff_pow
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    long long _backoff_as_int64 "PyLong_AsLongLongAndOverflow"(
        object value, int *overflow
    ) except? -1

# Up to here a double holds every whole millisecond, so the arithmetic below is exact enough.
cdef int64_t _BACKOFF_LARGEST_MS = 1LL << 53

# 8 bits of priority above 55 bits of sequence fit a positive int64, so a key never becomes a
# multi-digit Python int slower to compare; 2**55 sequences last 11 000 years at 100 000 a second.
cdef int _BACKOFF_SEQUENCE_BITS = 55


cdef int64_t _backoff_milliseconds(object value, str name) except -1:
    cdef int overflow = 0
    cdef long long milliseconds = _backoff_as_int64(value, &overflow)
    if overflow or not 0 <= milliseconds <= _BACKOFF_LARGEST_MS:
        raise ValueError(f"{name} must lie in 0..2**53, got {value}")
    return milliseconds


cdef int64_t _backoff_positive(object value, str name) except -1:
    cdef int overflow = 0
    cdef long long number = _backoff_as_int64(value, &overflow)
    if overflow > 0:
        return 0x7FFFFFFFFFFFFFFFLL
    if overflow < 0 or number < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return number


def backoff_delay_ms(
    str strategy not None,
    retry_index,
    initial_ms,
    double coefficient,
    max_ms,
    bint jitter,
    double random_unit,
):
    """Return the delay in ms (int, 0..max_ms) before a failed job may run again.

    `strategy` is "none" (or "constant"), "linear", "exponential" or "polynomial"; `retry_index`
    is 1 after the first failed run; `coefficient` is the base or the exponent; `random_unit`
    in [0, 1) is the caller's randomness, looked at only with `jitter`. The cap applies before
    and after jitter (ojs-retry.md sections 3.5, 5.3); a growth beyond every number is the cap.
    Fractions of a millisecond round to the nearest; jitter is uniform over the whole
    milliseconds in [0.5 d, 1.5 d), both bounds as the spec has them (section 5.2).

    Raises ValueError for an unknown strategy, an index below 1, a coefficient below 1 or not
    finite, times outside 0..2**53 ms, or a `random_unit` outside [0, 1).
    """
    cdef int64_t index = _backoff_positive(retry_index, "retry_index")
    cdef int64_t initial = _backoff_milliseconds(initial_ms, "initial_ms")
    cdef int64_t cap = _backoff_milliseconds(max_ms, "max_ms")
    # Written so that NaN fails as well.
    if not coefficient >= 1.0 or not _backoff_isfinite(coefficient):
        raise ValueError(f"coefficient must be a finite number of at least 1.0, got {coefficient}")
    if jitter and not 0.0 <= random_unit < 1.0:
        raise ValueError(f"random_unit must lie in [0, 1), got {random_unit}")

    cdef double raw
    if strategy == "exponential":
        raw = <double>initial * _backoff_pow(coefficient, <double>(index - 1))
    elif strategy == "linear":
        raw = <double>initial * <double>index
    elif strategy == "polynomial":
        raw = <double>initial * _backoff_pow(<double>index, coefficient)
    elif strategy == "none" or strategy == "constant":
        raw = <double>initial
    else:
        raise ValueError(f"unknown backoff strategy {strategy!r}")

    cdef int64_t delay
    if initial == 0:
        # 0 times an overflowed power is NaN, yet no initial delay never grows into one.
        delay = 0
    elif raw >= <double>cap:
        delay = cap
    else:
        delay = _backoff_llround(raw)
    if jitter:
        # Not delay * (0.5 + unit): that sum rounds up to 1.5 for the largest units.
        delay = (delay + 1) // 2 + <int64_t>(<double>delay * random_unit)
        if delay > cap:
            delay = cap
    return delay


def priority_key(priority, sequence):
    """Return an int that sorts by priority, highest first, then by sequence, lowest first.

    `priority` is a priority in -100..100, `sequence` a stream sequence in 0..2**55-1
    (CONTRACT section 2). Raises ValueError outside these ranges.
    """
    cdef int overflow = 0
    cdef long long level = _backoff_as_int64(priority, &overflow)
    if overflow or not -100 <= level <= 100:
        raise ValueError(f"priority must lie in -100..100, got {priority}")
    cdef long long position = _backoff_as_int64(sequence, &overflow)
    if overflow or not 0 <= position < (1LL << _BACKOFF_SEQUENCE_BITS):
        raise ValueError(f"sequence must lie in 0..2**55-1, got {sequence}")
    return ((100 - level) << _BACKOFF_SEQUENCE_BITS) | position
