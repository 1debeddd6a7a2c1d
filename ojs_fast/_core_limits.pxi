# Limits on the start of jobs: `options.rate_limit` and the override of a key (ojs-rate-limiting 6 and 10.2).
#
# A limit is [key, concurrency, rate, period_ms, throttle_ms, on_limit, throttle]: 0 = not set, concurrency
# -1 = none may run, rate = starts per period, throttle_ms = between two starts (a float below 1 ms),
# throttle = the number of starts it was declared for.

_LIMIT_KEY_RE = _re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:\-]*")

cdef int _MAX_LIMIT_KEY = 255
cdef int _MAX_CONCURRENCY = 10000  # every permit stands in the entry of its key
cdef int64_t _MAX_STARTS = 1000000000
cdef int64_t _LONGEST_PERIOD_MS = 31622400000  # 366 days
cdef dict _PERIODS = {"second": 1000, "minute": 60000, "hour": 3600000, "day": 86400000}
cdef tuple _LIMIT_MEMBERS = ("key", "concurrency", "rate", "period", "throttle", "on_limit", "max_per_second", "expires_at")
cdef str _PERIOD_EXPECTED = 'an ISO 8601 duration above zero, at most 366 days ("PT1M"), or second, minute, hour, day'


cpdef str check_limit_key(object value, str field):
    """The limit's key itself, or EnvelopeError (ojs-rate-limiting section 6.2; at most 255 characters)."""
    if not isinstance(value, str) or len(value) > _MAX_LIMIT_KEY or _LIMIT_KEY_RE.fullmatch(value) is None:
        raise EnvelopeError(field, f"'{value}'" if isinstance(value, str) else value,
                            "letters, digits, '.', '_', ':' and '-', the first a letter or digit, "
                            f"at most {_MAX_LIMIT_KEY} characters")
    return value


cdef dict _limit_members(bytes raw, str field):
    # Members of other names may hold what no double can.
    cdef dict spans, members = {}
    cdef object start, end
    try:
        spans = scan_json_object(raw, _JSON_DEEPEST)
    except (JsonError, TypeError):
        raise EnvelopeError(field or "the body", _kind(raw), "an object") from None
    for name in _LIMIT_MEMBERS:
        if name in spans:
            start, end = spans[name]
            try:
                members[name] = orjson.loads(raw[start:end])
            except orjson.JSONDecodeError:
                raise EnvelopeError(_limit_path(field, name), _kind(raw[start:end]),
                                    "numbers within the range of a double") from None
    return members


cdef inline str _limit_path(str field, str name):
    return field + "." + name if field else name


cdef int64_t _limit_count(object value, str field, int64_t low, int64_t high) except -2:
    if type(value) is not int or not low <= value <= high:
        raise EnvelopeError(field, "missing" if value is None else value, f"an integer from {low} to {high}")
    return value


cdef int64_t _limit_period(object value, str field) except -1:
    cdef int64_t period_ms = 0
    if isinstance(value, str):
        try:
            period_ms = _PERIODS.get(value) or parse_duration_ms(value)
        except ValueError:
            period_ms = 0
    if not 0 < period_ms <= _LONGEST_PERIOD_MS:
        raise EnvelopeError(field, "missing" if value is None else value, _PERIOD_EXPECTED)
    return period_ms


cdef tuple _limit_window(object value, str field):
    if not isinstance(value, dict):
        raise EnvelopeError(field, value, 'an object such as {"limit": 100, "period": "PT1M"}')
    return (
        _limit_count(value.get("limit"), field + ".limit", 1, _MAX_STARTS),
        _limit_period(value.get("period"), field + ".period"),
    )


cdef tuple _limit_rate(dict members, str field):
    # The windows of the specification, the flat form of its suite, and max_per_second of the level-4 suite.
    cdef object rate = members.get("rate")
    cdef object per_second = members.get("max_per_second")
    cdef str path = _limit_path(field, "rate")
    if members.get("period") is not None and type(rate) is not int:
        # It goes with a rate that is a number; the job keeps it all the same.
        _limit_period(members["period"], _limit_path(field, "period"))
    if per_second is not None:
        if rate is not None:
            raise EnvelopeError(path, rate, "either rate or max_per_second, not both")
        return _limit_count(per_second, _limit_path(field, "max_per_second"), 1, _MAX_STARTS), 1000
    if rate is None:
        return 0, 0
    if type(rate) is int:
        return _limit_count(rate, path, 1, _MAX_STARTS), _limit_period(members.get("period"), _limit_path(field, "period"))
    if not isinstance(rate, dict):
        raise EnvelopeError(path, rate, 'an integer with period beside it, or {"limit": 100, "period": "PT1M"}')
    return _limit_window(rate, path)


cdef object _limit_spacing(int64_t starts, int64_t period_ms):
    return period_ms // starts if period_ms % starts == 0 else period_ms / <double>starts


cpdef list parse_rate_limit(bytes raw, str queue, str field="options.rate_limit"):
    """`options.rate_limit` of a job in `queue` as a limit (see the top of this file; ojs-rate-limiting 6).

    Without a key, `max_per_second` counts on the key `queue:<queue>`. Raises EnvelopeError.
    """
    cdef dict members = _limit_members(raw, field)
    cdef int64_t concurrency = 0, rate, period_ms, starts = 1, throttle_period_ms
    cdef object key = members.get("key"), on_limit = members.get("on_limit"), spacing = 0
    if key is None and members.get("max_per_second") is not None:
        key = "queue:" + queue
    elif key is None:
        raise EnvelopeError(_limit_path(field, "key"), "missing", "the name that jobs share the limit by (required)")
    else:
        check_limit_key(key, _limit_path(field, "key"))
    if members.get("concurrency") is not None:
        concurrency = _limit_count(members["concurrency"], _limit_path(field, "concurrency"), 0, _MAX_CONCURRENCY) or -1
    rate, period_ms = _limit_rate(members, field)
    if members.get("throttle") is not None:
        starts, throttle_period_ms = _limit_window(members["throttle"], _limit_path(field, "throttle"))
        spacing = _limit_spacing(starts, throttle_period_ms)
    if on_limit is None:
        on_limit = "wait"
    if on_limit not in ("wait", "reschedule", "drop"):
        raise EnvelopeError(_limit_path(field, "on_limit"), on_limit, '"wait", "reschedule" or "drop"')
    return [key, concurrency, rate, period_ms, spacing, on_limit, starts]


def parse_limit_override(bytes raw not None, int64_t now_ms):
    """The override of a key (ojs-rate-limiting section 10.2) as a dict of what it replaces, at least one:
    `concurrency` (0 = none may run), `rate` [limit, period ms], `throttle` [ms between starts, starts],
    and `expires_ms` (0 = never). Raises EnvelopeError.
    """
    cdef dict members = _limit_members(raw, ""), override = {}
    cdef int64_t rate, period_ms
    cdef bint relative = False
    if members.get("concurrency") is not None:
        override["concurrency"] = _limit_count(members["concurrency"], "concurrency", 0, _MAX_CONCURRENCY)
    rate, period_ms = _limit_rate(members, "")
    if rate:
        override["rate"] = [rate, period_ms]
    if members.get("throttle") is not None:
        rate, period_ms = _limit_window(members["throttle"], "throttle")
        override["throttle"] = [_limit_spacing(rate, period_ms), rate]
    if not override:
        raise EnvelopeError("concurrency", "missing", "at least one of concurrency, rate and throttle")
    override["expires_ms"] = 0
    if members.get("expires_at") is not None:
        override["expires_ms"] = _moment_field(orjson.dumps(members["expires_at"]), "expires_at", now_ms, &relative)
        if override["expires_ms"] <= now_ms:
            raise EnvelopeError("expires_at", members["expires_at"], "a time in the future")
    return override
