# Text under construction: bytes that grow at their end, for what is written once per job.
#
# There is one such text at a time, in memory that stays: whoever writes begins with `_text_begin`, calls nothing that
# may run other Python code, and takes what it wrote away before it returns.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Realloc
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

import orjson

cdef Py_ssize_t _TEXT_SMALLEST = 4096

cdef char* _text_start = NULL
cdef Py_ssize_t _text_size = 0
cdef Py_ssize_t _text_room = 0


cdef inline void _text_begin() noexcept:
    global _text_size
    _text_size = 0


cdef int _text_grow(Py_ssize_t more) except -1:
    global _text_start, _text_room
    cdef Py_ssize_t room = max(_TEXT_SMALLEST, 2 * (_text_size + more))
    cdef char* start = <char*>PyMem_Realloc(_text_start, room)
    if start == NULL:
        raise MemoryError
    _text_start, _text_room = start, room
    return 0


cdef inline char* _text_take(Py_ssize_t size) except NULL:
    # Room for so many bytes, which the caller fills.
    global _text_size
    if _text_size + size > _text_room:
        _text_grow(size)
    cdef char* at = _text_start + _text_size
    _text_size += size
    return at


cdef inline int _text_put(const char* text, Py_ssize_t size) except -1:
    memcpy(_text_take(size), text, size)
    return 0


cdef inline int _text_str(str text) except -1:
    cdef Py_ssize_t size = 0
    cdef const char* utf8 = _nats_utf8(text, &size)
    return _text_put(utf8, size)


cdef inline int _text_bytes(bytes text) except -1:
    return _text_put(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef int _text_json(str text) except -1:
    # A JSON string, as orjson writes it.
    cdef Py_ssize_t size = 0, i
    cdef const char* utf8 = _nats_utf8(text, &size)
    for i in range(size):
        if <unsigned char>utf8[i] < 32 or utf8[i] == 34 or utf8[i] == 92:
            return _text_bytes(orjson.dumps(text))
    cdef char* at = _text_take(size + 2)
    at[0] = 34
    memcpy(at + 1, utf8, size)
    at[size + 1] = 34
    return 0


cdef int _text_int(int64_t value) except -1:
    cdef char[20] digits
    if value < 0:
        _text_put(b"-", 1)
    cdef uint64_t magnitude = <uint64_t>value if value >= 0 else -<uint64_t>value
    return _text_put(digits, _wire_put_number(digits, magnitude) - digits)


cdef int _text_time(int64_t epoch_ms) except -1:
    # Raises ValueError outside the years 1970..9999, as `format_rfc3339_ms`.
    if not 0 <= epoch_ms <= _TIME_LAST_MS:
        raise ValueError(f"epoch_ms must lie in the years 1970..9999, got {epoch_ms}")
    _time_write_rfc3339(_text_take(24), epoch_ms)
    return 0


cdef inline bytes _text_end():
    return PyBytes_FromStringAndSize(_text_start, _text_size)
