# Enqueue requests: field rules of CONTRACT section 2, and the record they become.

import re as _re

_TYPE_RE = _re.compile(r"[a-z][a-z0-9_\-]*(\.[a-z][a-z0-9_\-]*)*")
_QUEUE_RE = _re.compile(r"[a-z0-9][a-z0-9\-.]*")

cdef int _MAX_TYPE = 255
cdef int _MAX_QUEUE = 128
cdef int _MAX_META_BYTES = 65536
cdef int64_t _MAX_RESULT_TTL_S = 3153600000  # 100 years
cdef int64_t _MAX_INTERVAL_MS = 3153600000000  # 100 years, the bound of every duration

# Members of the job that only the server sets; a client's values are ignored.
cdef frozenset _SERVER_MANAGED = frozenset((
    "specversion", "state", "attempt", "max_attempts", "created_at", "enqueued_at", "started_at",
    "completed_at", "cancelled_at", "discarded_at", "activated_at", "error", "errors", "result",
    "retry_delay_ms", "next_attempt_at", "worker_id", "parent_results", "workflow_id", "_ojs",
))
# Members that may stand in `options` or, as the wire format has it, at the top level.
cdef frozenset _OPTION_KEYS = frozenset((
    "queue", "priority", "timeout_ms", "delay_until", "scheduled_at", "expires_at", "retry",
    "retry_policy", "unique", "tags", "visibility_timeout_ms", "visibility_timeout", "timeout", "metadata",
    "rate_limit", "pending", "result_ttl",
))
cdef frozenset _POLICY_KEYS = frozenset((
    "max_attempts", "initial_interval", "initial_interval_ms", "backoff_coefficient", "max_interval",
    "max_interval_ms", "jitter", "backoff_strategy", "backoff_type", "non_retryable_errors", "on_exhaustion",
))
_STRATEGIES = ("none", "constant", "linear", "exponential", "polynomial")
# [max_attempts, initial_ms, coefficient, max_ms, jitter, strategy, non_retryable_errors, dead_letter]
DEFAULT_RETRY = [3, 1000, 2.0, 300000, True, "exponential", [], False]


class EnvelopeError(ValueError):
    """A field of an enqueue request breaks a rule.

    Attributes: `field` (JSON path), `received` (a short rendering of the value), `expected`,
    `retry_policy` (True: answered as 422 validation_error instead of 400 invalid_request).
    """

    def __init__(self, str field, object received, str expected, bint retry_policy=False):
        cdef str shown = received if isinstance(received, str) else repr(received)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"Field '{field}' is {shown}; expected {expected}.")
        self.field = field
        self.received = shown
        self.expected = expected
        self.retry_policy = retry_policy


cdef inline str _kind(bytes raw):
    cdef unsigned char c
    if not raw:
        return "empty"
    c = raw[0]
    if c == 123:
        return "an object"
    if c == 91:
        return "an array"
    if c == 34:
        return "the string " + raw[:80].decode("utf-8", "replace")
    return raw[:40].decode("utf-8", "replace")


cdef object _string_field(bytes raw, str field, str expected):
    if raw[0] != 34:
        raise EnvelopeError(field, _kind(raw), expected)
    return orjson.loads(raw) if b"\\" in raw else raw[1:len(raw) - 1].decode()


cdef object _int_field(bytes raw, str field, int64_t low, int64_t high):
    cdef object value = None
    if (raw[0] == 45 or 48 <= raw[0] <= 57) and len(raw) < 20 and raw.lstrip(b"-").isdigit():
        value = int(raw)
    if value is None or not low <= value <= high:
        raise EnvelopeError(field, _kind(raw), f"an integer from {low} to {high}")
    return value


cdef int64_t _moment_field(bytes raw, str field, int64_t now_ms, bint* relative):
    # RFC 3339 with a zone, or a duration from now ("+PT2S"; the JavaScript SDK sends "PT2S").
    cdef str expected = 'an RFC 3339 time with a zone ("2026-02-12T10:30:00Z") or a duration from now ("+PT5M")'
    cdef str text = _string_field(raw, field, expected)
    cdef int64_t moment
    relative[0] = text.startswith(("+P", "P"))
    try:
        if relative[0]:
            return now_ms + parse_duration_ms(text.removeprefix("+"))
        moment = parse_rfc3339_ms(text)
    except ValueError as error:
        raise EnvelopeError(field, f"'{text[:60]}' ({error})", expected) from None
    if moment < 0:
        raise EnvelopeError(field, f"'{text[:60]}'", expected + ", not before 1970")
    return moment


cdef int64_t _interval(object policy, str policy_field, str key, int64_t default_ms) except -1:
    cdef object value = policy.get(key)
    cdef object in_ms = policy.get(key + "_ms")
    cdef str field = policy_field + "." + key
    if value is None and in_ms is None:
        return default_ms
    if in_ms is not None and (type(in_ms) is not int or not 0 < in_ms <= _MAX_INTERVAL_MS):
        raise EnvelopeError(field + "_ms", in_ms, "a positive integer of milliseconds", True)
    if value is None:
        return in_ms
    try:
        if not isinstance(value, str):
            raise ValueError
        default_ms = parse_duration_ms(value)
    except ValueError:
        raise EnvelopeError(field, value, 'an ISO 8601 duration such as "PT1S"', True) from None
    if default_ms <= 0:
        raise EnvelopeError(field, value, "a duration above zero", True)
    return default_ms


cdef dict _policy_by_key(bytes raw, str field):
    # orjson refuses numbers beyond a double: name the key that has one. Unknown keys may.
    cdef dict members, policy = {}
    cdef bytes part
    try:
        members = scan_json_object(raw, _JSON_DEEPEST)
    except (JsonError, TypeError) as error:
        raise EnvelopeError(field, _kind(raw), f"an object ({error})", True) from None
    for key, (start, end) in members.items():
        part = raw[start:end]
        try:
            policy[key] = orjson.loads(part)
        except orjson.JSONDecodeError:
            if key in _POLICY_KEYS:
                raise EnvelopeError(f"{field}.{key}", _kind(part), "numbers within the range of a double", True) from None
    return policy


cpdef list parse_retry_policy(bytes raw, str field="options.retry"):
    """The retry policy (ojs-retry section 4) as `[max_attempts, initial_ms, coefficient, max_ms,
    jitter, strategy, non_retryable_errors, dead_letter]`, omitted keys at their defaults.

    `field` is where the policy stands. Raises EnvelopeError (`retry_policy` set) naming the field.
    """
    cdef object policy, attempts, coefficient, jitter, strategy, patterns, exhaustion
    cdef int64_t initial_ms, max_ms
    cdef str name
    try:
        policy = orjson.loads(raw)
    except orjson.JSONDecodeError:
        policy = _policy_by_key(raw, field)
    if not isinstance(policy, dict):
        raise EnvelopeError(field, _kind(raw), "an object", True)
    attempts = policy.get("max_attempts")
    if attempts is None:
        attempts = 3
    if type(attempts) is not int or not 0 <= attempts <= 1000000:
        raise EnvelopeError(field + ".max_attempts", attempts, "an integer from 0 to 1000000", True)
    initial_ms = _interval(policy, field, "initial_interval", 1000)
    max_ms = _interval(policy, field, "max_interval", max(300000, initial_ms))
    if max_ms < initial_ms:
        raise EnvelopeError(field + ".max_interval", f"{max_ms} ms",
                            f"a duration not below initial_interval ({initial_ms} ms)", True)
    coefficient = policy.get("backoff_coefficient")
    if coefficient is None:
        coefficient = 2.0
    if type(coefficient) not in (int, float) or not 1.0 <= coefficient <= 1e6:
        raise EnvelopeError(field + ".backoff_coefficient", coefficient, "a number from 1.0 to 1000000", True)
    jitter = policy.get("jitter")
    if jitter is None:
        jitter = True
    if type(jitter) is not bool:
        raise EnvelopeError(field + ".jitter", jitter, "true or false", True)
    strategy = "exponential"
    for name in ("backoff_type", "backoff_strategy"):
        # The later one goes before the other, which must be sound all the same: the job keeps both.
        if policy.get(name) is not None:
            strategy = policy[name]
            if strategy not in _STRATEGIES:
                raise EnvelopeError(f"{field}.{name}", strategy, "one of " + ", ".join(_STRATEGIES), True)
    patterns = policy.get("non_retryable_errors")
    if patterns is None:
        patterns = []
    if not isinstance(patterns, list) or [p for p in patterns if not isinstance(p, str)]:
        raise EnvelopeError(field + ".non_retryable_errors", patterns, "an array of strings", True)
    exhaustion = policy.get("on_exhaustion")
    if exhaustion is not None and exhaustion not in ("discard", "dead_letter"):
        raise EnvelopeError(field + ".on_exhaustion", exhaustion, '"discard" or "dead_letter"', True)
    return [attempts, initial_ms, float(coefficient), max_ms, jitter, strategy, patterns,
            exhaustion == "dead_letter"]


cdef bytes _merged_meta(bytes meta, bytes metadata):
    # `options.metadata` is merged into `meta` (openapi.yaml); the top-level key wins.
    cdef dict mine = _json_submembers(meta, 0), other = _json_submembers(metadata, 0)
    cdef list members = []
    for key, (start, end) in other.items():
        if key not in mine:
            members.append(orjson.dumps(key) + b":" + metadata[start:end])
    for key, (start, end) in mine.items():
        members.append(orjson.dumps(key) + b":" + meta[start:end])
    return b"{" + b",".join(members) + b"}"


cdef inline bytes _member(bytes data, dict members, str key):
    # The raw value of a member; b"" when it is missing or null, which means the same (CONTRACT 2).
    cdef object span = members.get(key)
    cdef bytes raw
    if span is None:
        return b""
    raw = data[(<tuple>span)[0]:(<tuple>span)[1]]
    return b"" if raw == b"null" else raw


cdef class _Fields:
    # One enqueue request under validation.
    cdef bytes data
    cdef dict top, options
    cdef str at

    cdef bytes option(self, str key):
        cdef bytes raw = _member(self.data, self.options, key)
        return raw if raw else _member(self.data, self.top, key)

    cdef str path(self, str key):
        return self.at + ("options." + key if key in self.options else key)


cdef str _required_type(_Fields f):
    cdef bytes raw = _member(f.data, f.top, "type")
    cdef str expected = "a dot-separated lower-case name such as 'email.send' (required)"
    cdef str value
    if not raw:
        raise EnvelopeError(f.at + "type", "missing", expected)
    value = _string_field(raw, f.at + "type", expected)
    if len(value) > _MAX_TYPE or _TYPE_RE.fullmatch(value) is None:
        raise EnvelopeError(f.at + "type", f"'{value}'", expected + f", at most {_MAX_TYPE} characters")
    return value


cpdef str check_queue_name(str value, str field):
    """The queue name itself, or EnvelopeError (ojs-core section 5: `[a-z0-9][a-z0-9-.]*`, ≤ 128)."""
    if len(value) > _MAX_QUEUE or _QUEUE_RE.fullmatch(value) is None:
        raise EnvelopeError(field, f"'{value}'",
                            f"lower-case letters, digits, '-' and '.', at most {_MAX_QUEUE} characters")
    return value


cdef str _queue(_Fields f):
    cdef bytes raw = f.option("queue")
    if not raw:
        return "default"
    return check_queue_name(_string_field(raw, f.path("queue"), "a string"), f.path("queue"))


cdef str _id(_Fields f, object new_id, int64_t now_ms):
    cdef bytes raw = _member(f.data, f.top, "id")
    cdef str value
    if not raw:
        return new_id(now_ms)
    value = _string_field(raw, f.at + "id", "a lower-case UUIDv7")
    if not is_uuid7(value):
        raise EnvelopeError(f.at + "id", f"'{value}'", "a lower-case UUIDv7")
    return value


cdef bytes _meta(_Fields f):
    cdef bytes meta = _member(f.data, f.top, "meta")
    cdef bytes metadata = f.option("metadata")
    if meta and meta[0] != 123:
        raise EnvelopeError(f.at + "meta", _kind(meta), "an object")
    if metadata:
        if metadata[0] != 123:
            raise EnvelopeError(f.path("metadata"), _kind(metadata), "an object")
        meta = _merged_meta(meta or b"{}", metadata)
    if len(meta) > _MAX_META_BYTES:
        raise EnvelopeError(f.at + "meta", f"{len(meta)} bytes", f"at most {_MAX_META_BYTES} bytes")
    return meta or b"{}"


cdef bytes _tags(_Fields f):
    cdef bytes raw = f.option("tags")
    cdef Py_ssize_t start, end
    if not raw:
        return b""
    if raw[0] != 91:
        raise EnvelopeError(f.path("tags"), _kind(raw), "an array of strings")
    for start, end in _json_elements(raw, 0):
        if raw[start] != 34:
            raise EnvelopeError(f.path("tags"), _kind(raw[start:end]), "an array of strings")
    return raw


cdef int _times(_Fields f, Record record, list body, int64_t now_ms) except -1:
    cdef bint relative = False
    cdef bytes raw = f.option("scheduled_at"), alias = f.option("delay_until")
    cdef str key = "scheduled_at"
    if not raw:
        raw = alias
        key = "delay_until"
    elif alias:
        _moment_field(alias, f.path("delay_until"), now_ms, &relative)
    if raw:
        record.scheduled_ms = _moment_field(raw, f.path(key), now_ms, &relative)
        body.append(b',"scheduled_at":')
        body.append(b'"' + format_rfc3339_ms(record.scheduled_ms).encode() + b'"' if relative else raw)
        if record.scheduled_ms > now_ms:
            record.state = "scheduled"
        else:
            record.scheduled_ms = 0
    raw = f.option("expires_at")
    if raw:
        # 0 means unset, and 1970 is over.
        record.expires_ms = max(1, _moment_field(raw, f.path("expires_at"), now_ms, &relative))
        body.append(b',"expires_at":')
        body.append(b'"' + format_rfc3339_ms(record.expires_ms).encode() + b'"' if relative else raw)
    return 0


cdef int64_t _seconds_field(bytes raw, str field):
    # Core's `timeout` and `visibility_timeout` are seconds; openapi.yaml allows an ISO 8601 duration.
    cdef int64_t value_ms
    if raw[0] == 34:
        try:
            value_ms = parse_duration_ms(_string_field(raw, field, "a duration"))
        except ValueError:
            raise EnvelopeError(field, _kind(raw), 'seconds, or an ISO 8601 duration such as "PT30S"') from None
        return value_ms
    return <int64_t>_int_field(raw, field, 0, 31536000) * 1000


cdef int _durations(_Fields f, Record record, list body) except -1:
    record.timeout_ms = _duration(f, "timeout", "timeout_ms", 0, body)
    record.visibility_ms = _duration(f, "visibility_timeout", "visibility_timeout_ms", 1, body)
    return 0


cdef int64_t _duration(_Fields f, str name, str name_ms, int64_t low_ms, list body) except -1:
    # The one in milliseconds goes first; the other one must be sound all the same, as a template keeps both.
    cdef bytes raw = f.option(name), raw_ms = f.option(name_ms)
    cdef int64_t value_ms = 0
    if raw:
        value_ms = _seconds_field(raw, f.path(name))
    if raw_ms:
        value_ms = _int_field(raw_ms, f.path(name_ms), low_ms, 31536000000)
        name, raw = name_ms, raw_ms
    if raw:
        body.append(b',"' + name.encode() + b'":')
        body.append(raw)
    return value_ms


cdef int _result_ttl(_Fields f, Record record, list body) except -1:
    cdef bytes raw = f.option("result_ttl")
    if raw:
        # -1 = for ever, 0 = the result is not kept (ojs-results section 7.1).
        _remember(record, "ttl", _int_field(raw, f.path("result_ttl"), -1, _MAX_RESULT_TTL_S))
        body.append(b',"result_ttl":')
        body.append(raw)
    return 0


cdef int _remember(Record record, str feature, object value) except -1:
    if record.extra is None:
        record.extra = {}
    (<dict>record.extra)[feature] = value
    return 0


cdef int _retry(_Fields f, Record record, list body) except -1:
    cdef bytes raw = f.option("retry"), alias = f.option("retry_policy")
    if alias:
        # Where `retry` goes before it, it must be sound all the same: a template keeps both.
        record.retry = parse_retry_policy(alias, f.path("retry_policy"))
    if raw:
        record.retry = parse_retry_policy(raw, f.path("retry"))
    else:
        raw = alias
    if not raw:
        return 0
    # 0 runs make no sense; the specification lets it behave as 1 (CONTRACT section 2).
    record.max_attempts = max(1, <int>record.retry[0])
    body.append(b',"retry":')
    body.append(raw)
    return 0


cdef int _objects(_Fields f, Record record, list body) except -1:
    cdef bytes raw
    cdef str key
    for key in ("unique", "rate_limit"):
        raw = f.option(key)
        if raw:
            if raw[0] != 123:
                raise EnvelopeError(f.path(key), _kind(raw), "an object")
            body.append(b',"' + key.encode() + b'":')
            body.append(raw)
            if key == "unique":
                # The policy as the client wrote it, and where; `core.unique` makes what is stored of it.
                _remember(record, "unique", [f.path(key), raw.decode()])
            elif _json_submembers(raw, 0):
                _remember(record, "limits", [parse_rate_limit(raw, record.queue, f.path(key))])
    return 0


cdef int _unknown(_Fields f, list body) except -1:
    # Unknown members are kept: at the top level of the job, or below its `options` (ojs-core 5.4).
    cdef list kept = []
    cdef tuple span
    cdef str key
    for key, span in f.top.items():
        if key in ("type", "args", "meta", "id", "schema", "options") or key in _SERVER_MANAGED \
                or key in _OPTION_KEYS:
            continue
        body.append(b"," + orjson.dumps(key) + b":")
        body.append(f.data[span[0]:span[1]])
    for key, span in f.options.items():
        if key not in _OPTION_KEYS:
            kept.append(orjson.dumps(key) + b":" + f.data[span[0]:span[1]])
    if kept:
        body.append(b',"options":{' + b",".join(kept) + b"}")
    return 0


cdef Record _build_record(_Fields f, int64_t now_ms, object new_id):
    cdef str type_ = _required_type(f)
    cdef bytes args = _member(f.data, f.top, "args")
    cdef bytes meta, raw
    cdef Record record
    cdef list body
    cdef dict meta_members
    if not args or args[0] != 91:
        raise EnvelopeError(f.at + "args", _kind(args) if args else "missing or null", "an array (required)")
    meta = _meta(f)
    record = Record(_id(f, new_id, now_ms), type_, _queue(f), b"")
    body = [b',"args":', args, b',"meta":', meta]
    raw = f.option("priority")
    if raw:
        record.priority = _int_field(raw, f.path("priority"), -100, 100)
    raw = _tags(f)
    if raw:
        body.append(b',"tags":')
        body.append(raw)
    raw = _member(f.data, f.top, "schema")
    if raw:
        _string_field(raw, f.at + "schema", "a schema URI")
        body.append(b',"schema":')
        body.append(raw)
    record.created_ms = now_ms
    _times(f, record, body, now_ms)
    _durations(f, record, body)
    _retry(f, record, body)
    _result_ttl(f, record, body)
    _objects(f, record, body)
    raw = f.option("pending")
    if raw == b"true":
        record.state = "pending"
        record.scheduled_ms = 0
    elif raw and raw != b"false":
        raise EnvelopeError(f.path("pending"), _kind(raw), "true or false")
    if b'"trace' in meta:
        record.flags = 8
    if b'"test_directive"' in meta:
        # Not by decoding meta: what a user's JSON may hold, orjson need not take (1e400).
        meta_members = _json_submembers(meta, 0)
        raw = _member(meta, meta_members, "test_directive")
        if raw and raw[0] == 34:
            record.test_directive = _string_field(raw, f.at + "meta.test_directive", "a string")
    if len(f.top) > 2 or f.options:
        _unknown(f, body)
    record.body = b"".join(body)
    if record.state == "available":
        record.enqueued_ms = now_ms
    return record


cdef _Fields _fields(bytes data, dict top, str at):
    cdef _Fields f = _Fields.__new__(_Fields)
    cdef bytes options = _member(data, top, "options")
    cdef tuple span
    f.data = data
    f.top = top
    f.at = at
    f.options = {}
    if options:
        if options[0] != 123:
            raise EnvelopeError(at + "options", _kind(options), "an object")
        span = top["options"]
        f.options = _json_submembers(data, span[0])
    return f


def parse_enqueue(bytes body not None, int64_t now_ms, object new_id, int max_depth=100):
    """One enqueue request (`POST /jobs`) as a Record in its first state.

    `new_id(now_ms) -> str` makes the id when the client gave none. Raises JsonError, TypeError (not
    an object) or EnvelopeError (ojs-core section 5, ojs-http-binding section 9.1).
    """
    return _build_record(_fields(body, scan_json_object(body, max_depth), ""), now_ms, new_id)


def parse_batch(bytes body not None, int64_t now_ms, object new_id, int max_depth=100, int max_jobs=10000):
    """A batch request (`{"jobs": […]}`, ojs-http-binding section 9.2) as a list of Records.

    Raises what parse_enqueue raises; the field of an EnvelopeError starts with `jobs[i].`.
    """
    cdef dict top = scan_json_object(body, max_depth)
    cdef bytes raw = _member(body, top, "jobs")
    cdef list spans, records = []
    cdef Py_ssize_t start, end, i
    cdef JsonScan s = _json_scan(body, _JSON_DEEPEST)
    if not raw or raw[0] != 91:
        raise EnvelopeError("jobs", _kind(raw) if raw else "missing", "an array of jobs (required)")
    spans = _json_elements(body, (<tuple>top["jobs"])[0])
    if not 1 <= len(spans) <= max_jobs:
        raise EnvelopeError("jobs", f"{len(spans)} jobs", f"from 1 to {max_jobs} jobs")
    for i in range(len(spans)):
        start, end = spans[i]
        if body[start] != 123:
            raise EnvelopeError(f"jobs[{i}]", _kind(body[start:end]), "an object")
        records.append(
            _build_record(_fields(body, _json_members(&s, body, start, &end), f"jobs[{i}]."), now_ms, new_id)
        )
    return records
