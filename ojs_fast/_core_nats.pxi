# What JetStream answers: PubAcks and the subjects that messages are acknowledged on.
#
# Owns their syntax. Must not know connections, futures or streams by name.

from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp, strncmp

import json as _nats_json

cdef extern from "Python.h":
    const char *_nats_utf8 "PyUnicode_AsUTF8AndSize"(object text, Py_ssize_t *size) except NULL

cdef struct _NatsAck:
    uint64_t sequence
    uint64_t code
    uint64_t error_code
    const char *description
    Py_ssize_t description_length
    bint has_sequence
    bint has_error


# The scanners below return the position after what they read, or NULL for anything that the
# usual PubAck does not contain (escapes, non-ASCII, floats, nesting, unknown keys): rare enough
# for a real JSON decoder to look at instead. They rely on the byte after a bytes object's last
# one being 0, which is neither a quote, a digit nor a bracket, so no bound needs checking;
# a NUL inside the payload is refused the same way.


cdef inline const char *_nats_skip(const char *at) noexcept nogil:
    while at[0] == 32 or at[0] == 10 or at[0] == 13 or at[0] == 9:
        at += 1
    return at


cdef inline const char *_nats_string(
    const char *at, const char **start, Py_ssize_t *length
) noexcept nogil:
    if at[0] != c'"':
        return NULL
    at += 1
    start[0] = at
    while at[0] != c'"':
        # Signed chars: everything non-ASCII is negative and fails too.
        if at[0] < 32 or at[0] == c"\\":
            return NULL
        at += 1
    length[0] = at - start[0]
    return at + 1


cdef inline const char *_nats_number(const char *at, uint64_t *value) noexcept nogil:
    cdef const char *start = at
    cdef uint64_t number = 0
    while 48 <= at[0] <= 57:
        number = number * 10 + <uint64_t>(at[0] - 48)
        at += 1
    # 19 digits cannot overflow; a leading zero is no JSON.
    if at == start or at - start > 19 or (start[0] == 48 and at - start > 1):
        return NULL
    value[0] = number
    return at


cdef inline const char *_nats_key(
    const char *at, const char **key, Py_ssize_t *length
) noexcept nogil:
    at = _nats_string(_nats_skip(at), key, length)
    if at == NULL:
        return NULL
    at = _nats_skip(at)
    return _nats_skip(at + 1) if at[0] == c":" else NULL


cdef const char *_nats_error(const char *at, _NatsAck *ack) noexcept nogil:
    cdef const char *key = NULL
    cdef Py_ssize_t length = 0
    if at[0] != c"{":
        return NULL
    ack.has_error = True
    ack.code = ack.error_code = 0
    ack.description_length = 0
    while True:
        at = _nats_key(at + 1, &key, &length)
        if at == NULL:
            return NULL
        if length == 4 and memcmp(key, b"code", 4) == 0:
            at = _nats_number(at, &ack.code)
        elif length == 8 and memcmp(key, b"err_code", 8) == 0:
            at = _nats_number(at, &ack.error_code)
        elif length == 11 and memcmp(key, b"description", 11) == 0:
            at = _nats_string(at, &ack.description, &ack.description_length)
        else:
            return NULL
        if at == NULL:
            return NULL
        at = _nats_skip(at)
        if at[0] == c"}":
            return at + 1
        if at[0] != c",":
            return NULL


cdef const char *_nats_ack(const char *at, _NatsAck *ack) noexcept nogil:
    cdef const char *key = NULL
    cdef const char *text = NULL
    cdef Py_ssize_t length = 0
    cdef uint64_t number = 0
    at = _nats_skip(at)
    if at[0] != c"{":
        return NULL
    while True:
        at = _nats_key(at + 1, &key, &length)
        if at == NULL:
            return NULL
        if length == 3 and memcmp(key, b"seq", 3) == 0:
            ack.has_sequence = True
            at = _nats_number(at, &ack.sequence)
        elif length == 5 and memcmp(key, b"error", 5) == 0:
            at = _nats_error(at, ack)
        elif length == 5 and memcmp(key, b"count", 5) == 0:
            at = _nats_number(at, &number)
        elif length == 9 and memcmp(key, b"duplicate", 9) == 0:
            if strncmp(at, b"true", 4) == 0:
                at += 4
            elif strncmp(at, b"false", 5) == 0:
                at += 5
            else:
                return NULL
        elif (
            (length == 6 and (memcmp(key, b"stream", 6) == 0 or memcmp(key, b"domain", 6) == 0))
            or (length == 5 and memcmp(key, b"batch", 5) == 0)
            or (length == 3 and memcmp(key, b"val", 3) == 0)
        ):
            at = _nats_string(at, &text, &length)
        else:
            return NULL
        if at == NULL:
            return NULL
        at = _nats_skip(at)
        if at[0] == c"}":
            return _nats_skip(at + 1)
        if at[0] != c",":
            return NULL


cdef object _nats_whole_number(object value, str name):
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"{name} is not a whole number")
    return value


cdef tuple _nats_decode(bytes payload):
    try:
        ack = _nats_json.loads(payload)
        if type(ack) is not dict:
            raise ValueError("no object")
        error = ack.get("error")
        if error is None:
            return _nats_whole_number(ack.get("seq"), "seq"), 0, ""
        if type(error) is not dict:
            raise ValueError("error is no object")
        code = _nats_whole_number(error.get("err_code", 0), "err_code")
        if code == 0:
            code = _nats_whole_number(error.get("code", 0), "code")
        if code == 0:
            raise ValueError("an error without a code")
        description = error.get("description", "")
        if type(description) is not str:
            raise ValueError("description is no string")
        return _nats_whole_number(ack.get("seq", 0), "seq"), code, description
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"not a PubAck: {payload[:80]!r} ({reason})") from None


def parse_pub_ack(bytes payload not None):
    """Return (sequence, error code, error description) of a JetStream PubAck.

    `sequence` is the stream sequence of the stored message, 0 if there is none; the code is the
    server's `err_code` (10071: wrong last sequence), its `code` where that is missing, 0 for
    success, whose description is "" (NATS ADR-1). Keys that it does not know are ignored.

    Raises ValueError for whatever is no PubAck.
    """
    cdef _NatsAck ack
    ack.has_sequence = ack.has_error = False
    ack.sequence = ack.code = ack.error_code = 0
    ack.description_length = 0
    ack.description = NULL
    cdef const char *start = payload
    cdef const char *end = _nats_ack(start, &ack)
    if end != start + len(payload) or end == NULL:
        return _nats_decode(payload)
    if not ack.has_error:
        return (ack.sequence, 0, "") if ack.has_sequence else _nats_decode(payload)
    if ack.error_code == 0:
        ack.error_code = ack.code
    if ack.error_code == 0:
        return _nats_decode(payload)
    description = ack.description[: ack.description_length].decode("ascii")
    return ack.sequence, ack.error_code, description


cdef object _nats_refuse(str subject):
    shown = subject if len(subject) <= 120 else subject[:120] + "..."
    raise ValueError(f"not an acknowledgement subject: {shown!r}")


def parse_ack_subject(str subject not None):
    """Return what a message's acknowledgement subject tells (NATS ADR-15).

    (stream, consumer, delivered, stream_sequence, consumer_sequence, timestamp_ns, pending):
    names are str, the rest ints; `delivered` counts deliveries from 1, the timestamp is in ns
    since 1970. Reads `$JS.ACK.` with 7 more tokens, and the newer form with domain and account
    hash before them and possibly one token after them. Raises ValueError for anything else.
    """
    cdef Py_ssize_t size = 0
    cdef const char *at
    try:
        at = _nats_utf8(subject, &size)
    except UnicodeEncodeError:
        return _nats_refuse(subject)
    if size < 8 or memcmp(at, b"$JS.ACK.", 8) != 0:
        return _nats_refuse(subject)
    cdef const char *end = at + size
    cdef const char *dot
    cdef const char *tokens[10]
    cdef Py_ssize_t lengths[10]
    cdef int count = 0
    at += 8
    while True:
        if count == 10:
            return _nats_refuse(subject)
        dot = <const char *>memchr(at, c".", end - at)
        tokens[count] = at
        lengths[count] = (end if dot == NULL else dot) - at
        if lengths[count] == 0:
            return _nats_refuse(subject)
        count += 1
        if dot == NULL:
            break
        at = dot + 1
    if count != 7 and count != 9 and count != 10:
        return _nats_refuse(subject)
    cdef int first = 0 if count == 7 else 2
    cdef uint64_t[5] numbers
    cdef int index
    for index in range(5):
        # A number ends at its dot or at the NUL behind the text, so what follows tells its length.
        at = tokens[first + 2 + index]
        if _nats_number(at, &numbers[index]) != at + lengths[first + 2 + index]:
            return _nats_refuse(subject)
    return (
        tokens[first][: lengths[first]].decode("utf-8"),
        tokens[first + 1][: lengths[first + 1]].decode("utf-8"),
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3],
        numbers[4],
    )
