# JSON scanning that decodes nothing: checks RFC 8259 and finds the spans of members, so that user
# JSON (args, meta, result) travels as bytes and is never decoded or encoded again.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcpy

import orjson


class JsonError(ValueError):
    """The bytes are not JSON (RFC 8259), or nest deeper than allowed.

    Attributes: `position` (byte offset of the defect), `reason` (a short sentence).
    """

    def __init__(self, str reason, Py_ssize_t position):
        super().__init__(f"{reason} (at byte {position})")
        self.reason = reason
        self.position = position


cdef struct JsonScan:
    const unsigned char* p
    Py_ssize_t n
    int depth_left
    int error
    Py_ssize_t error_at


cdef enum:
    JSON_OK = 0
    JSON_END = 1
    JSON_UNEXPECTED = 2
    JSON_STRING = 3
    JSON_CONTROL = 4
    JSON_ESCAPE = 5
    JSON_SURROGATE = 6
    JSON_UTF8 = 7
    JSON_NUMBER = 8
    JSON_DEPTH = 9
    JSON_TRAILING = 10

_JSON_REASONS = {
    JSON_END: "the JSON text ends too early",
    JSON_UNEXPECTED: "unexpected character",
    JSON_STRING: "a string is not closed",
    JSON_CONTROL: "a control character inside a string must be escaped",
    JSON_ESCAPE: "invalid escape sequence in a string",
    JSON_SURROGATE: "lone surrogate in a string",
    JSON_UTF8: "invalid UTF-8",
    JSON_NUMBER: "invalid number",
    JSON_DEPTH: "nested too deeply",
    JSON_TRAILING: "unexpected text after the JSON value",
}


cdef inline Py_ssize_t _json_fail(JsonScan* s, int error, Py_ssize_t at) noexcept nogil:
    if s.error == JSON_OK:
        s.error = error
        s.error_at = at
    return -1


cdef inline Py_ssize_t _json_space(JsonScan* s, Py_ssize_t i) noexcept nogil:
    while i < s.n and (s.p[i] == 32 or s.p[i] == 10 or s.p[i] == 13 or s.p[i] == 9):
        i += 1
    return i


cdef inline int _json_hex4(JsonScan* s, Py_ssize_t i) noexcept nogil:
    cdef int value = 0, k
    cdef unsigned char c
    if i + 4 > s.n:
        return -1
    for k in range(4):
        c = s.p[i + k]
        if 48 <= c <= 57:
            value = value * 16 + c - 48
        elif 97 <= c <= 102:
            value = value * 16 + c - 87
        elif 65 <= c <= 70:
            value = value * 16 + c - 55
        else:
            return -1
    return value


cdef inline Py_ssize_t _json_escape(JsonScan* s, Py_ssize_t i) noexcept nogil:
    # i points at the backslash; returns the index behind the whole escape.
    cdef int unit
    cdef unsigned char c
    if i + 1 >= s.n:
        return _json_fail(s, JSON_STRING, i)
    c = s.p[i + 1]
    if c != 117:
        if c == 34 or c == 92 or c == 47 or c == 98 or c == 102 or c == 110 or c == 114 or c == 116:
            return i + 2
        return _json_fail(s, JSON_ESCAPE, i)
    unit = _json_hex4(s, i + 2)
    if unit < 0:
        return _json_fail(s, JSON_ESCAPE, i)
    if 0xDC00 <= unit <= 0xDFFF:
        return _json_fail(s, JSON_SURROGATE, i)
    if not 0xD800 <= unit <= 0xDBFF:
        return i + 6
    if i + 7 >= s.n or s.p[i + 6] != 92 or s.p[i + 7] != 117:
        return _json_fail(s, JSON_SURROGATE, i)
    unit = _json_hex4(s, i + 8)
    if not 0xDC00 <= unit <= 0xDFFF:
        return _json_fail(s, JSON_SURROGATE, i)
    return i + 12


cdef inline Py_ssize_t _json_utf8(JsonScan* s, Py_ssize_t i) noexcept nogil:
    # Well-formed byte sequences of Unicode table 3-7: no overlong forms, no surrogates.
    cdef unsigned char c = s.p[i], low = 0x80, high = 0xBF
    cdef int more, k
    if 0xC2 <= c <= 0xDF:
        more = 1
    elif 0xE0 <= c <= 0xEF:
        more = 2
        if c == 0xE0:
            low = 0xA0
        elif c == 0xED:
            high = 0x9F
    elif 0xF0 <= c <= 0xF4:
        more = 3
        if c == 0xF0:
            low = 0x90
        elif c == 0xF4:
            high = 0x8F
    else:
        return _json_fail(s, JSON_UTF8, i)
    if i + more >= s.n:
        return _json_fail(s, JSON_UTF8, i)
    if not low <= s.p[i + 1] <= high:
        return _json_fail(s, JSON_UTF8, i)
    for k in range(2, more + 1):
        if s.p[i + k] & 0xC0 != 0x80:
            return _json_fail(s, JSON_UTF8, i)
    return i + more + 1


cdef Py_ssize_t _json_string(JsonScan* s, Py_ssize_t i) noexcept nogil:
    # i points at the opening quote; returns the index behind the closing one.
    cdef unsigned char c
    cdef Py_ssize_t start = i
    cdef uint64_t word, quote, back
    i += 1
    while i < s.n:
        # Eight plain ASCII bytes at a time: a long payload is mostly those.
        while i + 8 <= s.n:
            memcpy(&word, s.p + i, 8)
            quote = word ^ <uint64_t>0x2222222222222222
            back = word ^ <uint64_t>0x5C5C5C5C5C5C5C5C
            if (
                word
                | (quote - <uint64_t>0x0101010101010101)
                | (back - <uint64_t>0x0101010101010101)
                | (word - <uint64_t>0x2020202020202020)
            ) & <uint64_t>0x8080808080808080:
                break
            i += 8
        if i >= s.n:
            break
        c = s.p[i]
        if c == 34:
            return i + 1
        if c == 92:
            i = _json_escape(s, i)
        elif c < 32:
            return _json_fail(s, JSON_CONTROL, i)
        elif c >= 128:
            i = _json_utf8(s, i)
        else:
            i += 1
        if i < 0:
            return -1
    return _json_fail(s, JSON_STRING, start)


cdef inline Py_ssize_t _json_digits(JsonScan* s, Py_ssize_t i) noexcept nogil:
    while i < s.n and 48 <= s.p[i] <= 57:
        i += 1
    return i


cdef Py_ssize_t _json_number(JsonScan* s, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t start = i, j
    if s.p[i] == 45:
        i += 1
    if i >= s.n or not 48 <= s.p[i] <= 57:
        return _json_fail(s, JSON_NUMBER, start)
    if s.p[i] == 48:
        i += 1
        if i < s.n and 48 <= s.p[i] <= 57:
            return _json_fail(s, JSON_NUMBER, start)
    else:
        i = _json_digits(s, i)
    if i < s.n and s.p[i] == 46:
        j = _json_digits(s, i + 1)
        if j == i + 1:
            return _json_fail(s, JSON_NUMBER, start)
        i = j
    if i < s.n and (s.p[i] == 101 or s.p[i] == 69):
        i += 1
        if i < s.n and (s.p[i] == 43 or s.p[i] == 45):
            i += 1
        j = _json_digits(s, i)
        if j == i:
            return _json_fail(s, JSON_NUMBER, start)
        i = j
    return i


cdef inline Py_ssize_t _json_literal(JsonScan* s, Py_ssize_t i, const char* word, int size) noexcept nogil:
    cdef int k
    if i + size > s.n:
        return _json_fail(s, JSON_UNEXPECTED, i)
    for k in range(size):
        if s.p[i + k] != <unsigned char>word[k]:
            return _json_fail(s, JSON_UNEXPECTED, i)
    return i + size


cdef Py_ssize_t _json_container(JsonScan* s, Py_ssize_t i, unsigned char closing) noexcept nogil:
    cdef bint first = True
    if s.depth_left <= 0:
        return _json_fail(s, JSON_DEPTH, i)
    s.depth_left -= 1
    i = _json_space(s, i + 1)
    while True:
        if i >= s.n:
            return _json_fail(s, JSON_END, s.n)
        if first and s.p[i] == closing:
            break
        if closing == 125:
            if s.p[i] != 34:
                return _json_fail(s, JSON_UNEXPECTED, i)
            i = _json_string(s, i)
            if i < 0:
                return -1
            i = _json_space(s, i)
            if i >= s.n:
                return _json_fail(s, JSON_END, s.n)
            if s.p[i] != 58:
                return _json_fail(s, JSON_UNEXPECTED, i)
            i = _json_space(s, i + 1)
        i = _json_value(s, i)
        if i < 0:
            return -1
        i = _json_space(s, i)
        if i >= s.n:
            return _json_fail(s, JSON_END, s.n)
        if s.p[i] == closing:
            break
        if s.p[i] != 44:
            return _json_fail(s, JSON_UNEXPECTED, i)
        first = False
        i = _json_space(s, i + 1)
    s.depth_left += 1
    return i + 1


cdef Py_ssize_t _json_value(JsonScan* s, Py_ssize_t i) noexcept nogil:
    cdef unsigned char c
    if i >= s.n:
        return _json_fail(s, JSON_END, s.n)
    c = s.p[i]
    if c == 34:
        return _json_string(s, i)
    if c == 123:
        return _json_container(s, i, 125)
    if c == 91:
        return _json_container(s, i, 93)
    if c == 45 or 48 <= c <= 57:
        return _json_number(s, i)
    if c == 116:
        return _json_literal(s, i, b"true", 4)
    if c == 102:
        return _json_literal(s, i, b"false", 5)
    if c == 110:
        return _json_literal(s, i, b"null", 4)
    return _json_fail(s, JSON_UNEXPECTED, i)


cdef object _json_raise(JsonScan* s):
    raise JsonError(_JSON_REASONS[s.error], s.error_at)


# The scanner recurses: 1000 levels (the ceiling of OJS_MAX_DEPTH) are safe on any thread's stack, and
# orjson, which decodes small parts later, goes to 1024.
cdef int _JSON_DEEPEST = 1000


cdef inline JsonScan _json_scan(bytes data, int max_depth):
    cdef JsonScan s
    s.p = <const unsigned char*>PyBytes_AS_STRING(data)
    s.n = PyBytes_GET_SIZE(data)
    s.depth_left = min(max_depth, _JSON_DEEPEST)
    s.error = JSON_OK
    s.error_at = 0
    return s


cdef dict _json_members(JsonScan* s, bytes data, Py_ssize_t i, Py_ssize_t* end):
    # Spans of the members of the object at i; the last of duplicate keys wins (RFC 8259 section 4).
    cdef dict members = {}
    cdef Py_ssize_t key_start, value_start
    cdef str key
    cdef bytes raw
    if s.depth_left <= 0:
        _json_fail(s, JSON_DEPTH, i)
        _json_raise(s)
    s.depth_left -= 1
    i = _json_space(s, i + 1)
    if i < s.n and s.p[i] == 125:
        end[0] = i + 1
        s.depth_left += 1
        return members
    while True:
        if i >= s.n:
            _json_fail(s, JSON_END, s.n)
            _json_raise(s)
        if s.p[i] != 34:
            _json_fail(s, JSON_UNEXPECTED, i)
            _json_raise(s)
        key_start = i
        i = _json_string(s, i)
        if i < 0:
            _json_raise(s)
        raw = data[key_start:i]
        key = orjson.loads(raw) if b"\\" in raw else raw[1:len(raw) - 1].decode()
        i = _json_space(s, i)
        if i >= s.n or s.p[i] != 58:
            _json_fail(s, JSON_END if i >= s.n else JSON_UNEXPECTED, i)
            _json_raise(s)
        i = _json_space(s, i + 1)
        value_start = i
        i = _json_value(s, i)
        if i < 0:
            _json_raise(s)
        members[key] = (value_start, i)
        i = _json_space(s, i)
        if i >= s.n:
            _json_fail(s, JSON_END, s.n)
            _json_raise(s)
        if s.p[i] == 125:
            break
        if s.p[i] != 44:
            _json_fail(s, JSON_UNEXPECTED, i)
            _json_raise(s)
        i = _json_space(s, i + 1)
    end[0] = i + 1
    s.depth_left += 1
    return members


def scan_json_object(bytes data not None, int max_depth=100):
    """Validate a JSON object and return its members as `{key: (start, end)}` byte spans.

    Nothing is decoded but the keys. Raises JsonError for anything that is not JSON, is not UTF-8,
    holds a lone surrogate or nests deeper than `max_depth` (at most 1000); TypeError when the text
    is valid JSON but not an object.
    """
    cdef JsonScan s = _json_scan(data, max_depth)
    cdef Py_ssize_t i = _json_space(&s, 0), end = 0
    cdef dict members
    if i >= s.n:
        raise JsonError("the body is empty", i)
    if s.p[i] != 123:
        end = _json_value(&s, i)
        if end < 0 or _json_space(&s, end) != s.n:
            _json_fail(&s, JSON_TRAILING, end)
            _json_raise(&s)
        raise TypeError("the JSON text is not an object")
    members = _json_members(&s, data, i, &end)
    end = _json_space(&s, end)
    if end != s.n:
        _json_fail(&s, JSON_TRAILING, end)
        _json_raise(&s)
    return members


cdef list _json_elements(bytes data, Py_ssize_t start):
    # Spans of the elements of the array at `start`; what follows the array is not looked at.
    cdef JsonScan s = _json_scan(data, _JSON_DEEPEST)
    cdef list spans = []
    cdef Py_ssize_t i = _json_space(&s, start + 1), value_start
    # The byte behind a bytes object's last one is 0, so p[n] may be looked at: it is no bracket.
    if s.p[i] == 93:
        return spans
    while True:
        value_start = i
        i = _json_value(&s, i)
        if i < 0:
            _json_raise(&s)
        spans.append((value_start, i))
        i = _json_space(&s, i)
        if s.p[i] == 93:
            return spans
        if s.p[i] != 44:
            _json_fail(&s, JSON_END if i >= s.n else JSON_UNEXPECTED, i)
            _json_raise(&s)
        i = _json_space(&s, i + 1)


cdef dict _json_submembers(bytes data, Py_ssize_t start):
    # Members of a nested object that was validated before.
    cdef JsonScan s = _json_scan(data, _JSON_DEEPEST)
    cdef Py_ssize_t end = 0
    return _json_members(&s, data, start, &end)


def scan_json_array(bytes data not None, Py_ssize_t start):
    """Spans `[(start, end), …]` of the elements of the array at `start`, one of scan_json_object's.

    Raises JsonError where no array starts or it is not JSON; what follows it is not looked at.
    """
    if not 0 <= start < len(data) or data[start] != 91:
        raise JsonError("no array starts here", start)
    return _json_elements(data, start)


cdef str _json_plain_text(bytes data, dict members, str name):
    # A member that is a string without escapes; "" when it is missing, None when it is anything else.
    cdef object span = members.get(name)
    cdef Py_ssize_t start, end
    cdef const char* p = PyBytes_AS_STRING(data)
    if span is None:
        return ""
    start, end = <tuple>span
    if p[start] != 34 or end - start < 3 or memchr(p + start, 92, end - start) != NULL:
        return None
    return data[start + 1:end - 1].decode()


def plain_texts(bytes data not None, dict members not None, tuple names not None):
    """The values (list of str) of some members of a scanned object, "" for one that is missing.

    None when one of them is no string, is empty or has escapes: then it takes a real decoder to say what it is.
    """
    cdef list found = []
    cdef str name, text
    for name in names:
        text = _json_plain_text(data, members, name)
        if text is None:
            return None
        found.append(text)
    return found
