# A job's record: the envelope as stored in `ojs-jobs`. Layout of the bytes:
#
#   {"_ojs":["<6 hex digits: offset of the public part>",private…],HEAD BODY TAIL}
#
# HEAD holds what the server manages and is written anew at every transition; BODY is what the client
# sent and is copied as bytes; TAIL holds errors and result, spliced from bytes too. What GET returns
# is "{" + HEAD BODY TAIL "}", so a read costs one slice and no decoding.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy

import orjson

cdef Py_ssize_t _RECORD_PREFIX_LENGTH = 10
cdef Py_ssize_t _RECORD_LARGEST_OFFSET = 0xFFFFFF
cdef int _ERRORS_KEPT = 25
cdef frozenset _RECORD_STATES = frozenset(STATES)

# Bits of `flags`: 1 = listed among the dead letters, 2 = expired before it ran, 4 = dropped before it ran, 8 = its meta
# may name a trace.

cpdef str quote_json(str text):
    """The JSON string for `text`."""
    return orjson.dumps(text).decode()


cdef Py_ssize_t _record_offset(bytes stored) except -1:
    # Where the public part starts. int() would also read "-00001" or "0x1_2a".
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(stored)
    cdef Py_ssize_t offset = 0, i
    if PyBytes_GET_SIZE(stored) < 18 or memcmp(p, b'{"_ojs":["', 10) != 0:
        raise ValueError("not a record of ojs-jobs: the private part is missing")
    for i in range(10, 16):
        if 48 <= p[i] <= 57:
            offset = offset * 16 + p[i] - 48
        elif 97 <= p[i] <= 102:
            offset = offset * 16 + p[i] - 87
        else:
            raise ValueError("not a record of ojs-jobs: the offset is malformed")
    if not 18 <= offset < PyBytes_GET_SIZE(stored):
        raise ValueError("not a record of ojs-jobs: it ends too early")
    return offset


cdef inline bytes _record_cut(bytes stored, Py_ssize_t at, Py_ssize_t size):
    if not 0 <= at <= PyBytes_GET_SIZE(stored) or not 0 <= size <= PyBytes_GET_SIZE(stored) - at:
        raise ValueError("the lengths do not add up")
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(stored) + at, size)


cdef int _record_put_time(const char* name, Py_ssize_t size, int64_t epoch_ms) except -1:
    _text_put(name, size)
    _text_time(epoch_ms)
    return _text_put(b'"', 1)


cdef int _record_put_json(object value) except -1:
    if value is None:
        return _text_put(b"null", 4)
    return _text_bytes(orjson.dumps(value))


cdef void _record_put_offset(char* at, Py_ssize_t offset) noexcept:
    cdef int i
    cdef int digit
    for i in range(5, -1, -1):
        digit = offset & 15
        at[i] = 48 + digit if digit < 10 else 87 + digit
        offset >>= 4


@cython.final
cdef class Record:
    """One job as stored in `ojs-jobs` (ojs-core section 5; CONTRACT sections 2 and 3).

    Times are integers in ms since the epoch, 0 = not set; durations in ms. `body` is the immutable
    client part (`,"args":[…],"meta":{…}…`), `errors` the raw JSON of each failed attempt (oldest
    first), `result` the raw JSON a worker sent. `extra` is None or a dict of JSON values by feature: what a
    workflow, a unique lock or a limit has to remember about the job (`Propagator.on_extra`). The transition methods mutate the record; they raise
    IllegalTransition and then leave it as it was.
    """

    cdef public str id, type, queue, state, worker_id, node_id, ack_subject, test_directive
    cdef public int priority, attempt, max_attempts, flags
    cdef public int64_t created_ms, enqueued_ms, scheduled_ms, started_ms, ended_ms, next_attempt_ms
    cdef public int64_t retry_delay_ms, expires_ms, visibility_ms, reservation_ms, timeout_ms, activated_ms
    cdef public object retry, extra
    cdef public bytes body
    cdef public list errors
    cdef public bytes result

    def __init__(self, str id not None, str type not None, str queue not None, bytes body not None):
        self.id = id
        self.type = type
        self.queue = queue
        self.body = body
        self.state = "available"
        self.worker_id = ""
        self.node_id = ""
        self.ack_subject = ""
        self.test_directive = ""
        self.max_attempts = 3
        self.errors = []
        self.result = b""

    # -- bytes ---------------------------------------------------------------------------------

    @staticmethod
    def parse(bytes stored not None):
        """Read a stored record. Raises ValueError when the bytes are not one of ours."""
        cdef Py_ssize_t offset = _record_offset(stored)
        cdef Record record = Record.__new__(Record)
        try:
            record._read(stored, offset, orjson.loads(_record_cut(stored, 8, offset - 9)))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"not a record of ojs-jobs: {error}") from None
        return record

    cdef int _read(self, bytes stored, Py_ssize_t offset, list private) except -1:
        cdef Py_ssize_t at, size, result_size
        cdef list error_sizes
        (
            _, self.id, self.type, self.queue, self.state, self.priority, self.attempt,
            self.max_attempts, self.flags, self.created_ms, self.enqueued_ms, self.scheduled_ms,
            self.started_ms, self.ended_ms, self.next_attempt_ms, self.retry_delay_ms,
            self.expires_ms, self.visibility_ms, self.reservation_ms, self.timeout_ms,
            self.activated_ms,
            self.worker_id, self.node_id, self.ack_subject, self.test_directive, self.retry,
            self.extra, at, size, error_sizes, result_size,
        ) = private
        self._check()
        if not 0 <= at <= PyBytes_GET_SIZE(stored) - offset:
            raise ValueError("the lengths do not add up")
        at += offset
        self.body = _record_cut(stored, at, size)
        at += size
        self.errors = []
        if error_sizes:
            at += 11  # ,"errors":[
            for size in error_sizes:
                self.errors.append(_record_cut(stored, at, size))
                at += size + 1
            if self.shows_error():
                at += 9 + len(<bytes>self.errors[len(self.errors) - 1])  # ,"error":
        if result_size:
            at += 10  # ,"result":
            self.result = _record_cut(stored, at, result_size)
            at += result_size
        else:
            self.result = b""
        if at + 1 != len(stored):
            raise ValueError("the lengths do not add up")
        return 0

    cdef int _check(self) except -1:
        # What later code relies on and typed attributes do not ensure: they also take None.
        if self.state is None or self.state not in _RECORD_STATES:
            raise ValueError("it has no state")
        if self.id is None or self.type is None or self.queue is None or self.worker_id is None \
                or self.node_id is None or self.ack_subject is None or self.test_directive is None:
            raise ValueError("null instead of a text")
        if self.retry is not None and (type(self.retry) is not list or len(self.retry) != 8):
            raise ValueError("no retry policy")
        if self.extra is not None and type(self.extra) is not dict:
            raise ValueError("the extras are no object")
        return 0

    cpdef bint shows_error(self):
        return len(self.errors) > 0 and self.state != "completed"

    cdef int _put_head(self) except -1:
        _text_put(b'"specversion":"1.0","id":"', 26)
        _text_str(self.id)
        _text_put(b'","type":"', 10)
        _text_str(self.type)
        _text_put(b'","queue":"', 11)
        _text_str(self.queue)
        _text_put(b'","state":"', 11)
        _text_str(self.state)
        _text_put(b'","priority":', 13)
        _text_int(self.priority)
        _text_put(b',"attempt":', 11)
        _text_int(self.attempt)
        _text_put(b',"max_attempts":', 16)
        _text_int(self.max_attempts)
        _record_put_time(b',"created_at":"', 15, self.created_ms)
        if self.enqueued_ms:
            _record_put_time(b',"enqueued_at":"', 16, self.enqueued_ms)
        if self.activated_ms:
            _record_put_time(b',"activated_at":"', 17, self.activated_ms)
        if self.started_ms:
            _record_put_time(b',"started_at":"', 15, self.started_ms)
        if self.ended_ms:
            if self.state == "completed":
                _record_put_time(b',"completed_at":"', 17, self.ended_ms)
            elif self.state == "cancelled":
                _record_put_time(b',"cancelled_at":"', 17, self.ended_ms)
            else:
                _record_put_time(b',"discarded_at":"', 17, self.ended_ms)
                # A job that failed for good also completed; one that expired or was dropped never ran (L2-TTL-001).
                if not self.flags & 6:
                    _record_put_time(b',"completed_at":"', 17, self.ended_ms)
        if self.retry_delay_ms:
            _text_put(b',"retry_delay_ms":', 18)
            _text_int(self.retry_delay_ms)
        if self.next_attempt_ms:
            _record_put_time(b',"next_attempt_at":"', 20, self.next_attempt_ms)
        if self.worker_id:
            _text_put(b',"worker_id":', 13)
            _text_json(self.worker_id)
        return 0

    cdef int _put_private(self, Py_ssize_t head_size) except -1:
        # What `_read` takes apart, from its first comma on.
        cdef str text
        cdef int64_t number
        cdef Py_ssize_t i
        for text in (self.id, self.type, self.queue, self.state):
            _text_put(b",", 1)
            _text_json(text)
        for number in (
            self.priority, self.attempt, self.max_attempts, self.flags, self.created_ms, self.enqueued_ms,
            self.scheduled_ms, self.started_ms, self.ended_ms, self.next_attempt_ms, self.retry_delay_ms,
            self.expires_ms, self.visibility_ms, self.reservation_ms, self.timeout_ms, self.activated_ms,
        ):
            _text_put(b",", 1)
            _text_int(number)
        for text in (self.worker_id, self.node_id, self.ack_subject, self.test_directive):
            _text_put(b",", 1)
            _text_json(text)
        _text_put(b",", 1)
        _record_put_json(self.retry)
        _text_put(b",", 1)
        _record_put_json(self.extra)
        for number in (head_size, PyBytes_GET_SIZE(self.body)):
            _text_put(b",", 1)
            _text_int(number)
        _text_put(b",[", 2)
        for i in range(len(self.errors)):
            if i:
                _text_put(b",", 1)
            _text_int(len(<bytes>self.errors[i]))
        _text_put(b"],", 2)
        _text_int(PyBytes_GET_SIZE(self.result))
        return _text_put(b"]", 1)

    cpdef bytes serialize(self):
        """The bytes to store."""
        _text_begin()
        self._put_head()
        cdef Py_ssize_t head_size = _text_size
        self._put_private(head_size)
        cdef Py_ssize_t private_size = _text_size - head_size
        # `{"_ojs":["` and 6 hex digits and a quote, private, a comma
        cdef Py_ssize_t offset = _RECORD_PREFIX_LENGTH + 7 + private_size + 1
        if offset > _RECORD_LARGEST_OFFSET:
            raise ValueError(f"the private part of job {self.id} is too long for its 6 hex digits")
        cdef bytes tail = self._tail()
        cdef Py_ssize_t body_size = PyBytes_GET_SIZE(self.body)
        cdef bytes stored = PyBytes_FromStringAndSize(
            NULL, offset + head_size + body_size + PyBytes_GET_SIZE(tail) + 1
        )
        cdef char* at = PyBytes_AS_STRING(stored)
        at = _wire_put(at, b'{"_ojs":["', _RECORD_PREFIX_LENGTH)
        _record_put_offset(at, offset)
        at = _wire_put(at + 6, b'"', 1)
        at = _wire_put(at, _text_start + head_size, private_size)
        at = _wire_put(at, b",", 1)
        at = _wire_put(at, _text_start, head_size)
        at = _wire_put(at, PyBytes_AS_STRING(self.body), body_size)
        at = _wire_put(at, PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail))
        _wire_put(at, b"}", 1)
        return stored

    cdef bytes _tail(self):
        cdef list parts
        if not self.errors and not self.result:
            return b""
        parts = []
        if self.errors:
            parts.append(b',"errors":[')
            parts.append(b",".join(self.errors))
            parts.append(b"]")
            if self.shows_error():
                parts.append(b',"error":')
                parts.append(self.errors[len(self.errors) - 1])
        if self.result:
            parts.append(b',"result":')
            parts.append(self.result)
        return b"".join(parts)

    def brief(self):
        """The bytes of the record without its body, errors and result: a `Record` whose body is empty."""
        cdef bytes body = self.body, result = self.result
        cdef list errors = self.errors
        self.body, self.errors, self.result = b"", [], b""
        try:
            return self.serialize()
        finally:
            self.body, self.errors, self.result = body, errors, result

    # -- transitions ---------------------------------------------------------------------------

    def claim(self, int64_t now_ms, str worker_id not None, int64_t reservation_ms, int64_t timeout_ms):
        """available → active; counts the attempt. The job's own visibility and execution timeouts
        win over the given ones (ms)."""
        self.state = transition("claim", self.state)
        self.attempt += 1
        self.started_ms = now_ms
        self.next_attempt_ms = 0
        self.worker_id = worker_id
        self.reservation_ms = self.visibility_ms if self.visibility_ms else reservation_ms
        if not self.timeout_ms:
            self.timeout_ms = timeout_ms

    def complete(self, int64_t now_ms, bytes result not None):
        """active → completed; `result` is raw JSON, b"" = none. The error history stays, `error` goes."""
        self.state = transition("ack", self.state)
        self.ended_ms = now_ms
        self.result = result
        self.retry_delay_ms = 0
        self.ack_subject = ""

    def fail(self, bytes error not None):
        """Append one raw JSON error to the history of attempts; the oldest beyond 25 go."""
        self.errors.append(error)
        if len(self.errors) > _ERRORS_KEPT:
            del self.errors[0]

    def schedule_retry(self, int64_t now_ms, int64_t delay_ms):
        """active → retryable, to be promoted at `now_ms + delay_ms`."""
        self.state = transition("retry", self.state)
        self.retry_delay_ms = delay_ms
        self.next_attempt_ms = now_ms + delay_ms
        self.ack_subject = ""

    def discard(self, int64_t now_ms, bint dead_letter):
        """active → discarded: runs spent or not retryable."""
        self.state = transition("discard", self.state)
        self.ended_ms = now_ms
        self.retry_delay_ms = 0
        self.ack_subject = ""
        if dead_letter:
            self.flags |= 1

    def requeue(self, int64_t now_ms, bint counts):
        """active → available. `counts=False` gives the attempt back: no worker ever saw the job."""
        self.state = transition("requeue", self.state)
        self.enqueued_ms = now_ms
        self.worker_id = ""
        self.ack_subject = ""
        if not counts:
            self.attempt -= 1
            self.started_ms = 0

    def promote(self, int64_t now_ms):
        """scheduled or retryable → available."""
        self.state = transition("promote", self.state)
        self.enqueued_ms = now_ms
        self.next_attempt_ms = 0
        self.worker_id = ""

    def activate(self, int64_t now_ms):
        """pending → available."""
        self.state = transition("activate", self.state)
        self.enqueued_ms = now_ms
        self.activated_ms = now_ms

    def cancel(self, int64_t now_ms):
        """Any non-terminal state → cancelled."""
        self.state = transition("cancel", self.state)
        self.ended_ms = now_ms
        self.next_attempt_ms = 0
        self.ack_subject = ""

    def expire(self, int64_t now_ms):
        """available, scheduled or retryable → discarded because `expires_at` passed."""
        self.state = transition("expire", self.state)
        self.flags |= 2
        self.ended_ms = now_ms
        self.next_attempt_ms = 0

    def reschedule(self, int64_t due_ms):
        """available → scheduled, to start at `due_ms`: a limit refuses its start now. No attempt counts."""
        self.state = transition("reschedule", self.state)
        self.scheduled_ms = due_ms
        self.enqueued_ms = 0
        self.worker_id = ""
        self._reset_scheduled_at()

    cdef int _reset_scheduled_at(self) except -1:
        # What the client asked for was another time; the rest of what it sent stays as it is.
        cdef bytes whole = b"{" + self.body[1:] + b"}"
        cdef object span = _json_submembers(whole, 0).get("scheduled_at")
        cdef Py_ssize_t start, end
        if span is not None:
            start, end = span
            start = whole.rindex(b',"scheduled_at"', 0, start)
            self.body = b"," + whole[1:start] + whole[end:len(whole) - 1]
        self.body += b',"scheduled_at":"' + format_rfc3339_ms(self.scheduled_ms).encode() + b'"'
        return 0

    def drop(self, int64_t now_ms):
        """available → discarded: a limit refuses its start, and the job is not worth waiting."""
        self.state = transition("drop", self.state)
        self.flags |= 4
        self.ended_ms = now_ms

    def revive(self, int64_t now_ms):
        """discarded dead letter → available with all its runs back; the error history stays."""
        self.state = transition("dead_letter_retry", self.state)
        self.flags &= 8
        self.attempt = 0
        self.enqueued_ms = now_ms
        self.started_ms = 0
        self.ended_ms = 0
        self.retry_delay_ms = 0
        self.worker_id = ""

    @property
    def dead_letter(self):
        """True when the job is to be listed among the dead letters."""
        return (self.flags & 1) != 0

    @property
    def expired(self):
        """True when the job was discarded because `expires_at` passed."""
        return (self.flags & 2) != 0

    @property
    def may_be_traced(self):
        """False when its `meta` names no trace for certain; looked for once, when it is enqueued."""
        return (self.flags & 8) != 0


cdef bytes _record_public(bytes stored, bytes before, bytes behind):
    # Copied once, as jobs may be large.
    cdef Py_ssize_t offset = _record_offset(stored), first = len(before), last = len(behind)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(stored) - offset
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, first + 1 + size + last)
    cdef char* at = PyBytes_AS_STRING(whole)
    memcpy(at, PyBytes_AS_STRING(before), first)
    at[first] = 123  # {
    memcpy(at + first + 1, PyBytes_AS_STRING(stored) + offset, size)
    memcpy(at + first + 1 + size, PyBytes_AS_STRING(behind), last)
    return whole


def public_job(bytes stored not None):
    """The JSON object (bytes) that a GET returns, cut from the stored bytes of a record.

    Raises ValueError when they are not one of ours.
    """
    return _record_public(stored, b"", b"")


def job_reply(bytes stored not None, bytes more not None=b""):
    """`{"job":{…}}` (bytes) from a stored record; `more` is further members, with a leading comma.

    Raises ValueError when the record is not one of ours.
    """
    return _record_public(stored, b'{"job":', more + b"}")


def split_work_message(bytes payload not None):
    """`(revision, record bytes)` of a work message. Raises ValueError when it is not one of ours."""
    cdef Py_ssize_t at = payload.find(b" ", 0, 20)
    # 19 digits, only digits: int() would also read "+1", "1_0" or "1\n".
    if at < 1 or not payload[:at].isdigit():
        raise ValueError("not a work message: the revision is missing")
    return int(payload[:at]), payload[at + 1:]


def work_message(int64_t revision, bytes stored not None):
    """The payload (bytes) of a work message: the revision of the record, a space, the record."""
    return b"%d %s" % (revision, stored)


def jobs_reply(list stored not None):
    """`{"jobs":[…]}` (bytes) from stored records, without decoding them."""
    cdef list parts = []
    cdef object one
    for one in stored:
        if type(one) is not bytes:
            raise TypeError(f"a stored record is bytes, not {type(one).__name__}")
        parts.append(_record_public(one, b"", b""))
    return b'{"jobs":[' + b",".join(parts) + b"]}"


def job_event(Record record not None, str event_type not None, str event_id not None, str source not None,
              int64_t now_ms, str extra not None):
    """The envelope (bytes) of an event about one job (ojs-events section 2).

    `extra` is more JSON members of `data`, with a leading comma.
    """
    _text_begin()
    _text_put(b'{"specversion":"1.0","id":"evt_', 31)
    _text_str(event_id)
    _text_put(b'","type":"', 10)
    _text_str(event_type)
    _text_put(b'","source":"', 12)
    _text_str(source)
    _record_put_time(b'","time":"', 10, now_ms)
    _text_put(b',"subject":"', 12)
    _text_str(record.id)
    _text_put(b'","data":{"job_id":"', 20)
    _text_str(record.id)
    _text_put(b'","job_type":"', 14)
    _text_str(record.type)
    _text_put(b'","type":"', 10)
    _text_str(record.type)
    _text_put(b'","queue":"', 11)
    _text_str(record.queue)
    _text_put(b'","state":"', 11)
    _text_str(record.state)
    _text_put(b'","attempt":', 12)
    _text_int(record.attempt)
    _record_put_time(b',"timestamp":"', 14, now_ms)
    _text_str(extra)
    _text_put(b"}}", 2)
    return _text_end()
