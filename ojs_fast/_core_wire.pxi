# The NATS client protocol (text frames over TCP): parsing what the server sends, framing what we send.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp, memcpy


@cython.final
cdef class WireMessage:
    """One message from NATS. `headers` are raw (`NATS/1.0 …`), b"" when there are none."""

    cdef readonly str subject, reply
    cdef readonly int sid
    cdef readonly bytes headers, data

    cpdef str header(self, str name):
        """The value of a header, "" when missing; names are compared exactly."""
        cdef bytes key = b"\r\n" + name.encode() + b":"
        cdef Py_ssize_t at = self.headers.find(key), end
        if at < 0:
            return ""
        at += len(key)
        end = self.headers.find(b"\r\n", at)
        if end < 0:
            end = len(self.headers)
        return self.headers[at:end].decode().strip()

    @property
    def token(self):
        """The number that the subject ends with, behind its last dot; 0 when it is none."""
        cdef Py_ssize_t size = 0, i
        cdef Py_ssize_t value = 0, factor = 1
        cdef const char* text = _nats_utf8(self.subject, &size)
        for i in range(size - 1, max(size - 20, -1), -1):
            if text[i] == 46:
                return value
            if not 48 <= text[i] <= 57:
                return 0
            value += (text[i] - 48) * factor
            factor *= 10
        return 0

    @property
    def sequence(self):
        """The stream sequence of a message that a direct get returned; 0 when it is none."""
        cdef str value = self.header("Nats-Sequence")
        return int(value) if value else 0

    @property
    def stored_subject(self):
        """The subject of a message that a direct get returned."""
        return self.header("Nats-Subject")

    @property
    def is_live(self):
        """False for the marker of a deleted or expired key of a bucket."""
        return len(self.data) > 0 and b"\r\nKV-Operation:" not in self.headers \
            and b"\r\nNats-Marker-Reason:" not in self.headers

    @property
    def status(self):
        """The inline status of a message without data, such as "404"; "" when there is none."""
        if len(self.headers) > 11 and self.headers[8] == 32:
            return self.headers[9:12].decode()
        return ""


cdef Py_ssize_t _wire_int(const char* p, Py_ssize_t start, Py_ssize_t end) except -1:
    cdef Py_ssize_t value = 0
    if start >= end or end - start > 12:
        raise ValueError("NATS sent a frame with a malformed size")
    while start < end:
        if not 48 <= p[start] <= 57:
            raise ValueError("NATS sent a frame with a malformed size")
        value = value * 10 + p[start] - 48
        start += 1
    return value


@cython.final
cdef class WireParser:
    """Incremental parser of the NATS client protocol; holds the bytes of an unfinished frame."""

    cdef bytes _rest
    cdef Py_ssize_t _needed

    def __cinit__(self):
        self._rest = b""
        self._needed = 0

    def feed(self, bytes data not None):
        """The complete frames in what came so far: WireMessage for messages, `(verb, text)` for others.

        Verbs: INFO, PING, PONG, +OK, -ERR. Raises ValueError when the bytes are not the protocol.
        """
        cdef list frames = []
        cdef const char* p
        cdef const char* found
        cdef Py_ssize_t at = 0, size, line_end, next_at
        cdef bytes buffer = self._rest + data if self._rest else data
        size = PyBytes_GET_SIZE(buffer)
        if size < self._needed:
            # A large payload arrives in pieces: do not scan again before it is complete.
            self._rest = buffer
            return frames
        self._needed = 0
        p = PyBytes_AS_STRING(buffer)
        while at < size:
            found = <const char*>memchr(p + at, 10, size - at)
            if found == NULL:
                break
            line_end = found - p
            if p[at] == 77 or p[at] == 72:
                next_at = self._message(p, at, line_end - 1, size, frames)
                if next_at < 0:
                    break
                at = next_at
            else:
                verb, _, text = buffer[at:line_end].rstrip(b"\r").partition(b" ")
                if verb.upper() not in (b"INFO", b"PING", b"PONG", b"+OK", b"-ERR"):
                    raise ValueError(f"NATS sent {bytes(verb[:20])!r}, which is not its protocol")
                frames.append((verb.upper().decode(), text))
                at = line_end + 1
        self._rest = buffer[at:] if at < size else b""
        if self._needed:
            self._needed -= at
        return frames

    cdef Py_ssize_t _message(
        self, const char* p, Py_ssize_t at, Py_ssize_t end, Py_ssize_t size, list frames
    ) except -2:
        # MSG subject sid [reply] total  |  HMSG subject sid [reply] headers total; p[end] is the CR.
        cdef Py_ssize_t starts[6]
        cdef Py_ssize_t ends[6]
        cdef int fields = 0
        cdef Py_ssize_t i = at, total, sid, head = 0, data_at
        cdef bint with_headers = p[at] == 72
        cdef WireMessage message
        if end - at < 5 or p[end] != 13 or memcmp(p + at, b"HMSG " if with_headers else b"MSG ", 4 + with_headers) != 0:
            raise ValueError("NATS sent a frame that starts like a message and is none")
        while i < end:
            while i < end and (p[i] == 32 or p[i] == 9):
                i += 1
            if i >= end:
                break
            if fields == 6:
                raise ValueError("NATS sent a message frame with too many fields")
            starts[fields] = i
            while i < end and p[i] != 32 and p[i] != 9:
                i += 1
            ends[fields] = i
            fields += 1
        if not (5 if with_headers else 4) <= fields <= (6 if with_headers else 5):
            raise ValueError(f"NATS sent a message frame with {fields} fields")
        total = _wire_int(p, starts[fields - 1], ends[fields - 1])
        if with_headers:
            head = _wire_int(p, starts[fields - 2], ends[fields - 2])
        if head > total:
            raise ValueError("NATS sent a message frame with a malformed size")
        data_at = end + 2
        if size < data_at + total + 2:
            self._needed = data_at + total + 2
            return -1
        if p[data_at + total] != 13 or p[data_at + total + 1] != 10:
            raise ValueError("NATS sent a message frame that does not end where its size says")
        message = WireMessage.__new__(WireMessage)
        message.subject = PyBytes_FromStringAndSize(p + starts[1], ends[1] - starts[1]).decode()
        sid = _wire_int(p, starts[2], ends[2])
        if sid > 0x7FFFFFFF:
            raise ValueError("NATS sent a message of a subscription that cannot be ours")
        message.sid = <int>sid
        message.reply = ""
        if fields == (6 if with_headers else 5):
            message.reply = PyBytes_FromStringAndSize(p + starts[3], ends[3] - starts[3]).decode()
        message.headers = PyBytes_FromStringAndSize(p + data_at, head) if head else b""
        message.data = PyBytes_FromStringAndSize(p + data_at + head, total - head)
        frames.append(message)
        return data_at + total + 2


cdef inline char* _wire_put(char* at, const char* text, Py_ssize_t size) noexcept nogil:
    memcpy(at, text, size)
    return at + size


cdef inline char* _wire_put_number(char* at, uint64_t value) noexcept nogil:
    cdef char[20] digits
    cdef int i = 20
    while True:
        i -= 1
        digits[i] = 48 + <char>(value % 10)
        value //= 10
        if value == 0:
            break
    return _wire_put(at, &digits[i], 20 - i)


cdef inline Py_ssize_t _wire_digits(Py_ssize_t value) noexcept nogil:
    cdef Py_ssize_t digits = 1
    while value >= 10:
        value //= 10
        digits += 1
    return digits


cpdef bytes wire_publish(str subject, str reply, bytes headers, bytes payload, Py_ssize_t token=0):
    """A PUB or HPUB frame; `headers` are complete (`NATS/1.0\\r\\n…\\r\\n\\r\\n`) or b"".

    A `token` above 0 is appended to `reply` as `.<token>`.
    """
    cdef Py_ssize_t subject_size = 0, reply_size = 0
    cdef Py_ssize_t headers_size = len(headers), payload_size = len(payload)
    cdef const char* subject_text = _nats_utf8(subject, &subject_size)
    cdef const char* reply_text = _nats_utf8(reply, &reply_size)
    cdef Py_ssize_t total = headers_size + payload_size, head
    # "PUB " or "HPUB ", a space behind subject and reply each, the numbers, two line ends
    head = 4 + subject_size + 1 + reply_size + 1 + _wire_digits(total) + 4
    if headers_size:
        head += 1 + _wire_digits(headers_size) + 1
    if token > 0:
        head += 1 + _wire_digits(token)
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, head + total)
    cdef char* at = PyBytes_AS_STRING(frame)
    at = _wire_put(at, b"HPUB ", 5) if headers_size else _wire_put(at, b"PUB ", 4)
    at = _wire_put(at, subject_text, subject_size)
    at = _wire_put(at, b" ", 1)
    at = _wire_put(at, reply_text, reply_size)
    if token > 0:
        at = _wire_put(at, b".", 1)
        at = _wire_put_number(at, token)
    at = _wire_put(at, b" ", 1)
    if headers_size:
        at = _wire_put_number(at, headers_size)
        at = _wire_put(at, b" ", 1)
    at = _wire_put_number(at, total)
    at = _wire_put(at, b"\r\n", 2)
    at = _wire_put(at, PyBytes_AS_STRING(headers), headers_size)
    at = _wire_put(at, PyBytes_AS_STRING(payload), payload_size)
    _wire_put(at, b"\r\n", 2)
    return frame
