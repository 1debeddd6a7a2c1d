"""Enqueue requests in `_core`: the field rules of CONTRACT section 2 and the record they become."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ojs_fast._core import (
    EnvelopeError,
    JsonError,
    Record,
    check_queue_name,
    format_rfc3339_ms,
    parse_batch,
    parse_enqueue,
    public_job,
)

NOW_MS = 1_770_892_200_123
JOB_ID = "019c516c-ac5b-7a1b-9c3d-0123456789ab"
YEAR_MS = 31_536_000_000


def enqueue(**fields: Any) -> Record:
    """Parse a request with a type, arguments and these members; a member that is bytes is raw JSON."""
    members = {"type": "a.b", "args": [], **fields}
    raw = (
        orjson.dumps(key) + b":" + (value if isinstance(value, bytes) else orjson.dumps(value))
        for key, value in members.items()
    )
    return parse_enqueue(b"{" + b",".join(raw) + b"}", NOW_MS, lambda _: JOB_ID)


def shown(record: Record) -> dict[str, Any]:
    """Give the job as GET would show it."""
    job: dict[str, Any] = json.loads(public_job(record.serialize()))
    return job


def refusal(**fields: Any) -> EnvelopeError:
    """Give the error of a request that must be refused."""
    with pytest.raises(EnvelopeError) as refused:
        enqueue(**fields)
    error = refused.value
    assert str(error) == f"Field '{error.field}' is {error.received}; expected {error.expected}."
    assert len(error.received) <= 80
    return error


KINDS: dict[str, bytes] = {
    "string": b'"text"',
    "integer": b"7",
    "negative": b"-7",
    "fraction": b"7.5",
    "exponent": b"1e1",
    "huge": b"9" * 400,
    "infinite": b"1e400",
    "true": b"true",
    "false": b"false",
    "array": b"[]",
    "numbers": b"[1]",
    "strings": b'["a"]',
    "object": b"{}",
}
TOP_LEVEL = {"type": (), "args": ("array", "numbers", "strings"), "id": (), "meta": ("object",), "schema": ("string",)}
# Where a string is right but "text" is not, the string has a test of its own below.
OPTIONS = {
    "queue": ("string",),
    "priority": ("integer", "negative"),
    "timeout_ms": ("integer",),
    "timeout": ("integer",),
    "visibility_timeout_ms": ("integer",),
    "visibility_timeout": ("integer",),
    "scheduled_at": (),
    "delay_until": (),
    "expires_at": (),
    "tags": ("array", "strings"),
    "metadata": ("object",),
    "unique": ("object",),
    "rate_limit": ("object",),
    "retry": ("object",),
    "retry_policy": ("object",),
    "pending": ("true", "false"),
}
STRINGS_FIT = {"type", "id", "scheduled_at", "delay_until", "expires_at"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", TOP_LEVEL)
def test_top_level_fields_take_their_type_only(field: str, kind: str) -> None:
    """Any other JSON type is refused, naming the field."""
    if kind in TOP_LEVEL[field]:
        enqueue(**{field: KINDS[kind]})
    elif not (field == "type" and kind == "string"):
        error = refusal(**{field: KINDS[kind]})
        assert (error.field, error.retry_policy) == (field, False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", OPTIONS)
def test_options_take_their_type_only(field: str, kind: str) -> None:
    """Below `options` and at the top level alike; the path in the error tells which."""
    for path, fields in (
        (field, {field: KINDS[kind]}),
        (f"options.{field}", {"options": b'{"%s":%s}' % (field.encode(), KINDS[kind])}),
    ):
        if kind in OPTIONS[field]:
            enqueue(**fields)
        else:
            error = refusal(**fields)
            assert (error.field, error.retry_policy) == (path, field.startswith("retry"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "object"])
def test_options_is_an_object(kind: str) -> None:
    """`options` of any other type is refused."""
    assert refusal(options=KINDS[kind]).field == "options"


@pytest.mark.parametrize("field", [*TOP_LEVEL, *OPTIONS, "options"])
def test_null_means_absent(field: str) -> None:
    """A null counts as if the member were not there, whatever the field (CONTRACT section 2)."""
    if field in ("type", "args"):
        assert refusal(**{field: None}).field == field
        return
    plain = shown(enqueue())
    assert shown(enqueue(**{field: None})) == plain
    if field in OPTIONS:
        assert shown(enqueue(options={field: None})) == plain


@pytest.mark.parametrize(("body", "field"), [(b"{}", "type"), (b'{"args":[]}', "type"), (b'{"type":"a"}', "args")])
def test_type_and_args_are_required(body: bytes, field: str) -> None:
    """A request without them is refused with the field's name."""
    with pytest.raises(EnvelopeError) as refused:
        parse_enqueue(body, NOW_MS, lambda _: JOB_ID)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "body", [b"", b" ", b"nonsense", b"{", b'{"type":"a","args":[]', b"\xff", b'{"type":"\\ud800"}']
)
def test_what_is_not_json_raises_json_error(body: bytes) -> None:
    """Malformed JSON is told apart from a broken field rule."""
    for parse in (parse_enqueue, parse_batch):
        with pytest.raises(JsonError):
            parse(body, NOW_MS, lambda _: JOB_ID)


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"'])
def test_what_is_no_object_raises_type_error(body: bytes) -> None:
    """JSON that is not an object is told apart as well."""
    for parse in (parse_enqueue, parse_batch):
        with pytest.raises(TypeError):
            parse(body, NOW_MS, lambda _: JOB_ID)


# -- names, ids, sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", "a1", "a.b", "email.send-now", "a_b.c_d", "a-", "a.b.c.d", "a" * 255])
def test_types_of_the_pattern_are_taken(value: str) -> None:
    """Lower-case segments, joined by dots, up to 255 characters."""
    assert enqueue(type=value).type == value


@pytest.mark.parametrize(
    "value", ["", "A", "aB", "1a", "_a", "-a", ".a", "a.", "a..b", "a.1", "a b", "a/b", "é", "a\n", "a\x00", "a" * 256]
)
def test_other_types_are_refused(value: str) -> None:
    """Anything else is refused, a trailing line feed and 256 characters among it."""
    assert refusal(type=value).field == "type"


@pytest.mark.parametrize("value", ["a", "1", "a-b", "a.b", "1.-", "q" * 128])
def test_queue_names_of_the_pattern_are_taken(value: str) -> None:
    """Lower-case letters, digits, hyphens and dots, up to 128 characters."""
    assert enqueue(queue=value).queue == enqueue(options={"queue": value}).queue == value
    assert check_queue_name(value, "x") == value


@pytest.mark.parametrize("value", ["", "A", "a_b", "-a", ".a", "a b", "é", "a\n", "a*", "a>", "\x00", "q" * 129])
def test_other_queue_names_are_refused(value: str) -> None:
    """Underscores, capitals and NATS wildcards among them."""
    assert refusal(queue=value).field == "queue"
    assert refusal(options={"queue": value}).field == "options.queue"
    with pytest.raises(EnvelopeError, match="Field 'queues\\[1\\]'"):
        check_queue_name(value, "queues[1]")


def test_a_lower_case_uuid7_is_the_id() -> None:
    """The client's id is kept; without one the server's is asked for."""
    mine = "019c516c-ac5b-7a1b-bc3d-0123456789ff"
    assert enqueue(id=mine).id == mine
    assert enqueue().id == JOB_ID


@pytest.mark.parametrize(
    "value",
    ["", "x", JOB_ID.upper(), JOB_ID[:-1], JOB_ID + "0", JOB_ID.replace("-7", "-4"), JOB_ID.replace("-9", "-c")],
)
def test_other_ids_are_refused(value: str) -> None:
    """Version 4, upper case, free text and the empty string are not ids."""
    assert refusal(id=value).field == "id"


def test_escaped_strings_are_read_as_text() -> None:
    """The spelling of a string makes no difference."""
    record = enqueue(type=b'"\\u0061.b"', queue=b'"q\\u0031"')
    assert (record.type, record.queue) == ("a.b", "q1")


def test_meta_may_take_64_kib() -> None:
    """65 536 bytes of meta are taken, one more is not; with `metadata` the sum counts."""
    fitting = b'{"a":"%s"}' % (b"x" * (65536 - 8))
    assert len(fitting) == 65536
    assert fitting in enqueue(meta=fitting).serialize()
    assert refusal(meta=b'{"a":"%s"}' % (b"x" * (65536 - 7))).field == "meta"
    assert refusal(meta=fitting, options={"metadata": {"b": 1}}).field == "meta"


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("priority", -100, 100),
        ("timeout_ms", 0, YEAR_MS),
        ("visibility_timeout_ms", 1, YEAR_MS),
        ("timeout", 0, YEAR_MS // 1000),
        ("visibility_timeout", 0, YEAR_MS // 1000),
    ],
)
def test_integers_are_limited_exactly(field: str, low: int, high: int) -> None:
    """Both limits are allowed, one beyond is refused, as is every integer beyond 64 bits."""
    for value in (low, high):
        assert shown(enqueue(**{field: value}))[field] == value
    for value in (low - 1, high + 1, 2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 2**64, 10**30):
        if not low <= value <= high:
            assert refusal(**{field: b"%d" % value}).field == field


def test_times_in_seconds_and_milliseconds_mean_the_same() -> None:
    """`timeout` and `visibility_timeout` are seconds or an ISO 8601 duration; the other form wins."""
    assert enqueue(timeout=2).timeout_ms == enqueue(timeout="PT2S").timeout_ms == 2000
    assert enqueue(visibility_timeout=2).visibility_ms == enqueue(visibility_timeout="PT2S").visibility_ms == 2000
    assert enqueue(timeout=2, timeout_ms=5).timeout_ms == 5
    assert enqueue(visibility_timeout=2, visibility_timeout_ms=5).visibility_ms == 5
    assert refusal(timeout="2").field == "timeout"
    assert refusal(visibility_timeout="P1Y").field == "visibility_timeout"


@pytest.mark.parametrize(
    ("first", "second", "bad"),
    [
        ({"timeout_ms": 5}, "timeout", ""),
        ({"visibility_timeout_ms": 5}, "visibility_timeout", -1),
        ({"retry": {"max_attempts": 2}}, "retry_policy", "x"),
        ({"scheduled_at": "+PT5S"}, "delay_until", "soon"),
    ],
)
def test_the_second_of_two_names_must_be_sound_too(first: dict[str, Any], second: str, bad: object) -> None:
    """The first one counts, but a template keeps and shows both."""
    enqueue(options=first)
    assert refusal(options={**first, second: bad}).field == f"options.{second}"


# -- moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["scheduled_at", "delay_until"])
def test_a_future_time_schedules_and_is_shown_verbatim(field: str) -> None:
    """An absolute time keeps its spelling, a relative one is shown as a time."""
    record = enqueue(options={field: "2099-12-31T23:59:59+01:00"})
    assert (record.state, record.enqueued_ms) == ("scheduled", 0)
    assert shown(record)["scheduled_at"] == "2099-12-31T23:59:59+01:00"
    assert "enqueued_at" not in shown(record)
    for relative in ("+PT2S", "PT2S"):
        record = enqueue(options={field: relative})
        assert (record.state, record.scheduled_ms) == ("scheduled", NOW_MS + 2000)
        assert shown(record)["scheduled_at"] == format_rfc3339_ms(NOW_MS + 2000)


@pytest.mark.parametrize("value", ["2020-01-01T00:00:00Z", "1970-01-01T00:00:00Z", format_rfc3339_ms(NOW_MS), "+PT0S"])
def test_a_past_time_makes_the_job_available(value: str) -> None:
    """A time that is not in the future schedules nothing; the client sees what it said."""
    record = enqueue(scheduled_at=value)
    assert (record.state, record.scheduled_ms, record.enqueued_ms) == ("available", 0, NOW_MS)
    assert shown(record)["scheduled_at"] == (format_rfc3339_ms(NOW_MS) if value == "+PT0S" else value)


def test_expiry_is_shown_verbatim() -> None:
    """`2099-12-31T23:59:59Z` gets no milliseconds; a relative expiry is shown as a time."""
    assert shown(enqueue(expires_at="2099-12-31T23:59:59Z"))["expires_at"] == "2099-12-31T23:59:59Z"
    record = enqueue(options={"expires_at": "+PT2S"})
    assert record.expires_ms == NOW_MS + 2000
    assert shown(record)["expires_at"] == format_rfc3339_ms(NOW_MS + 2000)


def test_expiry_at_the_epoch_is_an_expiry() -> None:
    """Midnight of 1970-01-01 is 0 ms, yet not the absence of an expiry."""
    assert 0 < enqueue(expires_at="1970-01-01T00:00:00Z").expires_ms < NOW_MS


@pytest.mark.parametrize("field", ["scheduled_at", "delay_until", "expires_at"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        "2026-02-12",
        "2026-02-12T10:30:00",
        "2026-02-30T10:30:00Z",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59-01:00",
        "+2s",
        "+PT",
        "P",
        "P1Y",
        "-PT2S",
        "++PT2S",
        "+P999999999D",
        "+PT" + "9" * 400 + "S",
        "é",
        "\x00",
    ],
)
def test_other_times_are_refused(field: str, value: str) -> None:
    """No zone, no such day, before 1970, no fixed length or too far away."""
    assert refusal(**{field: value}).field == field
    assert refusal(options={field: value}).field == f"options.{field}"


def test_pending_waits_for_activation() -> None:
    """`pending` comes before a schedule; false is the default."""
    assert enqueue(pending=True).state == "pending"
    assert enqueue(pending=True, scheduled_at="+PT2S").state == "pending"
    assert enqueue(pending=True).enqueued_ms == 0
    assert enqueue(pending=False).state == "available"


# -- what is kept ----------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_contract() -> None:
    """A minimal request gets queue, meta, priority and runs; nothing unset is shown."""
    assert shown(enqueue()) == {
        "specversion": "1.0",
        "id": JOB_ID,
        "type": "a.b",
        "queue": "default",
        "state": "available",
        "args": [],
        "meta": {},
        "priority": 0,
        "attempt": 0,
        "max_attempts": 3,
        "created_at": format_rfc3339_ms(NOW_MS),
        "enqueued_at": format_rfc3339_ms(NOW_MS),
    }


def test_options_win_over_the_top_level() -> None:
    """Where both have a member, the one below `options` counts and is the only one shown."""
    record = enqueue(
        queue="top",
        priority=1,
        tags=["top"],
        timeout_ms=1,
        unique={"top": 1},
        options={"queue": "mine", "priority": 2, "tags": ["mine"], "timeout_ms": 2, "unique": {"mine": 1}},
    )
    job = shown(record)
    assert (record.queue, record.priority, record.timeout_ms) == ("mine", 2, 2)
    assert (job["tags"], job["unique"]) == (["mine"], {"mine": 1})
    assert public_job(record.serialize()).count(b'"tags"') == 1


def test_a_null_option_leaves_the_top_level_in_force() -> None:
    """A null below `options` is absent, so the top level counts."""
    assert enqueue(priority=1, options={"priority": None}).priority == 1


def test_unknown_members_are_kept_where_they_stood() -> None:
    """At the top level, and below `options`; their bytes are not touched."""
    job = public_job(enqueue(x_top=b"1.50", **{'k"\n': None}, options=b'{"x_opt":[1 , 1e400],"queue":"q"}').serialize())
    assert b'"x_top":1.50' in job
    assert b'"options":{"x_opt":[1 , 1e400]}' in job
    assert json.loads(job)['k"\n'] is None
    assert "queue" not in json.loads(job)["options"]


SERVER_MANAGED = (
    "specversion state attempt max_attempts created_at enqueued_at started_at completed_at cancelled_at discarded_at "
    "activated_at error errors result retry_delay_ms next_attempt_at worker_id parent_results workflow_id _ojs"
)


def test_what_the_server_manages_is_ignored() -> None:
    """A client cannot set state, counters, times or results (CONTRACT section 2)."""
    assert shown(enqueue(**dict.fromkeys(SERVER_MANAGED.split(), "mine"))) == shown(enqueue())


def test_metadata_is_merged_into_meta() -> None:
    """Members of `options.metadata` join `meta`, whose own members win; values stay as bytes."""
    record = enqueue(meta=b'{"a":1.0,"b":2}', options=b'{"metadata":{"b":3,"c":1e400}}')
    assert b'"meta":{"c":1e400,"a":1.0,"b":2}' in record.serialize()
    assert shown(enqueue(options={"metadata": {"c": 4}}))["meta"] == {"c": 4}
    assert "metadata" not in shown(record)


def test_a_test_directive_is_found_in_meta() -> None:
    """Text counts, anything else does not, and what else is in meta makes no difference."""
    assert enqueue(meta=b'{"test_directive":"quiet","n":1e400}').test_directive == "quiet"
    assert enqueue(options={"metadata": {"test_directive": "terminate"}}).test_directive == "terminate"
    assert enqueue(meta={"a": {"test_directive": "quiet"}}).test_directive == ""
    for other in (b"1", b"null", b"{}", b"1e400"):
        assert enqueue(meta=b'{"test_directive":%s}' % other).test_directive == ""


def test_the_last_duplicate_wins() -> None:
    """RFC 8259 section 4, at every level."""
    record = parse_enqueue(
        b'{"type":"a","type":"b","args":[1],"args":[2],"options":{"queue":"x","queue":"y"}}', NOW_MS, lambda _: JOB_ID
    )
    assert (record.type, record.queue, shown(record)["args"]) == ("b", "y", [2])


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_its_jobs() -> None:
    """Each element becomes what it would have become alone."""
    first, second = b'{"type":"a","args":[1]}', b' { "type":"b" ,"args":[2], "queue":"q" } '
    numbers = iter(range(9))
    records = parse_batch(b'{"jobs":[%s,%s]}' % (first, second), NOW_MS, lambda _: f"id{next(numbers)}")
    assert [record.id for record in records] == ["id0", "id1"]
    for record, body in zip(records, (first, second), strict=True):
        alone = parse_enqueue(body, NOW_MS, lambda _, same=record.id: str(same))  # type: ignore[misc]
        assert record.serialize() == alone.serialize()


@pytest.mark.parametrize(
    ("jobs", "field"),
    [
        (b"null", "jobs"),
        (b"[]", "jobs"),
        (b"{}", "jobs"),
        (b"1", "jobs"),
        (b"[1]", "jobs[0]"),
        (b'[{"type":"a","args":[]},null]', "jobs[1]"),
        (b"[{}]", "jobs[0].type"),
        (b'[{"type":"a","args":[]},{"type":"a"}]', "jobs[1].args"),
        (b'[{"type":"a","args":[],"options":[]}]', "jobs[0].options"),
        (b'[{"type":"a","args":[],"options":{"priority":1.5}}]', "jobs[0].options.priority"),
        (b'[{"type":"a","args":[],"queue":"_"}]', "jobs[0].queue"),
        (b'[{"type":"a","args":[],"meta":1}]', "jobs[0].meta"),
        (b'[{"type":"a","args":[],"options":{"retry":1}}]', "jobs[0].options.retry"),
        (b'[{"type":"a","args":[],"retry":{"jitter":1}}]', "jobs[0].retry.jitter"),
    ],
)
def test_an_error_in_a_batch_names_the_job(jobs: bytes, field: str) -> None:
    """The field starts with the element's number."""
    with pytest.raises(EnvelopeError) as refused:
        parse_batch(b'{"jobs":%s}' % jobs, NOW_MS, lambda _: JOB_ID)
    assert refused.value.field == field


def test_a_batch_is_limited_exactly() -> None:
    """As many jobs as allowed, not one more; the nesting limit counts from the outermost object."""
    job = b'{"type":"a","args":[]}'
    assert len(parse_batch(b'{"jobs":[%s,%s]}' % (job, job), NOW_MS, lambda _: JOB_ID, 100, 2)) == 2
    with pytest.raises(EnvelopeError, match="3 jobs"):
        parse_batch(b'{"jobs":[%s,%s,%s]}' % (job, job, job), NOW_MS, lambda _: JOB_ID, 100, 2)
    assert len(parse_batch(b'{"jobs":[%s]}' % job, NOW_MS, lambda _: JOB_ID, 4)) == 1
    with pytest.raises(JsonError, match="nested too deeply"):
        parse_batch(b'{"jobs":[%s]}' % job, NOW_MS, lambda _: JOB_ID, 3)


# -- anything --------------------------------------------------------------------------------------

FIELDS = [*TOP_LEVEL, *OPTIONS, "options", "jobs", "state", "x", "test_directive", "max_attempts", "initial_interval"]
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["a.b", "q", JOB_ID, "+PT1S", "2099-01-01T00:00:00Z", 2**63, -(2**63), 10**400, 100, 65536]),
)
anything = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.sampled_from(FIELDS), inner)), max_leaves=12
)


@settings(max_examples=500)
@given(st.dictionaries(st.sampled_from(FIELDS), anything), st.sampled_from([{}, {"type": "a.b", "args": []}]))
@example({"meta": {"test_directive": "x", "n": float("inf")}}, {"type": "a", "args": []})
@example({"retry": {"max_attempts": 10**400}}, {"type": "a", "args": []})
@example({"retry": {"x": float("inf")}}, {"type": "a", "args": []})
@example({"unique": {}}, {"type": "a", "args": []})
def test_any_object_is_taken_or_refused_by_name(members: dict[str, Any], required: dict[str, Any]) -> None:
    """Whatever the members are, the outcome is a job or an error that names a field."""
    body = json.dumps(members | required).replace("Infinity", "1e400").encode()
    try:
        records = [parse_enqueue(body, NOW_MS, lambda _: JOB_ID)]
    except EnvelopeError as error:
        records = []
        assert error.field  # noqa: PT017 - either outcome is right
    with_jobs = b'{"jobs":[%s]}' % body
    try:
        batch = parse_batch(with_jobs, NOW_MS, lambda _: JOB_ID)
    except EnvelopeError as error:
        batch = []
        assert error.field.startswith("jobs[0]")  # noqa: PT017 - as above
    for record in batch:
        if record.extra and "unique" in record.extra:  # as it was written, and where
            at, policy = record.extra["unique"]
            record.extra = {**record.extra, "unique": [at.removeprefix("jobs[0]."), policy]}
    assert [record.serialize() for record in batch] == [record.serialize() for record in records]
    for record in records:
        stored = record.serialize()
        assert Record.parse(stored).serialize() == stored
        assert shown(record)["args"] == json.loads(body.replace(b"1e400", b"Infinity"))["args"]


@pytest.mark.parametrize("value", [None, "{}", bytearray(b"{}"), 1])
def test_only_bytes_are_parsed(value: Any) -> None:
    """Anything but bytes raises TypeError, None included, instead of crashing compiled code."""
    for parse in (parse_enqueue, parse_batch):
        with pytest.raises(TypeError):
            parse(value, NOW_MS, lambda _: JOB_ID)


def test_an_id_maker_that_gives_no_text_is_noticed() -> None:
    """A mistake of the caller raises TypeError."""
    with pytest.raises(TypeError):
        parse_enqueue(b'{"type":"a","args":[]}', NOW_MS, lambda _: None)  # type: ignore[arg-type,return-value]
