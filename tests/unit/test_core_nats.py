"""Reading JetStream's PubAcks and acknowledgement subjects in `_core`."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ojs_fast._core import parse_ack_subject, parse_pub_ack

LARGEST = 2**64 - 1


def whole(value: object) -> bool:
    """Whether a decoded JSON value is an unsigned 64-bit number."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def by_json(payload: bytes) -> tuple[int, int, str] | None:
    """Read a PubAck with a full JSON decoder; None for what is none."""
    try:
        ack = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(ack, dict):
        return None
    error = ack.get("error")
    if error is None:
        return (ack["seq"], 0, "") if whole(ack.get("seq")) else None
    if not isinstance(error, dict) or not whole(ack.get("seq", 0)):
        return None
    code = error.get("err_code", 0)
    if whole(code) and code == 0:
        code = error.get("code", 0)
    description = error.get("description", "")
    if not whole(code) or code == 0 or not isinstance(description, str):
        return None
    return ack.get("seq", 0), code, description


def assert_agrees(payload: bytes) -> None:
    """Fail unless the scanner and the full decoder see the same in `payload`."""
    expected = by_json(payload)
    if expected is None:
        with pytest.raises(ValueError, match="not a PubAck"):
            parse_pub_ack(payload)
    else:
        assert parse_pub_ack(payload) == expected


texts = st.text(max_size=12)
numbers = st.one_of(st.integers(0, 100_000), st.integers(-1, LARGEST + 1))
errors = st.fixed_dictionaries({}, optional={"code": numbers, "err_code": numbers, "description": texts, "more": texts})
acks = st.fixed_dictionaries(
    {},
    optional={
        "error": st.one_of(errors, st.none()),
        "stream": texts,
        "seq": numbers,
        "domain": texts,
        "duplicate": st.booleans(),
        "val": texts,
        "batch": texts,
        "count": numbers,
        "unknown": st.lists(numbers, max_size=2),
    },
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """PubAcks in any key order and any JSON spelling."""
    fields = draw(acks)
    order = draw(st.permutations(list(fields)))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r\n:\n")]))
    text = json.dumps(
        {key: fields[key] for key in order},
        separators=separators,
        ensure_ascii=draw(st.booleans()),
    )
    return (draw(st.sampled_from(["", " ", "\n"])) + text).encode("utf-8", "surrogatepass")


@given(payloads())
def test_pub_acks_of_any_spelling_mean_what_json_says(payload: bytes) -> None:
    """Order, white space, escapes, missing and unknown keys change nothing about the meaning."""
    assert_agrees(payload)


USUAL = b'{"stream":"KV_ojs-jobs","seq":42,"duplicate":true,"domain":"x","batch":"b","count":3}'
FAILED = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"},"stream":"","seq":0}'


@given(st.sampled_from([USUAL, FAILED]), st.integers(0, 140), st.binary(max_size=2))
@example(USUAL, 21, b"")
def test_damaged_pub_acks_are_never_misread(payload: bytes, index: int, damage: bytes) -> None:
    """A cut, inserted or overwritten byte gives the full decoder's answer or a ValueError."""
    assert_agrees(payload[:index])
    assert_agrees(payload[:index] + damage + payload[index:])
    assert_agrees(payload[:index] + damage + payload[index + len(damage) :])


@given(st.one_of(st.binary(max_size=40), st.text('{}[]":,0123456789truefalsnq \\').map(str.encode)))
@example(b"")
@example(b"{}")
@example(b"[" * 100_000)
@example(b'{"seq":' + b"9" * 5_000 + b"}")
@example(b'{"seq":042}')
@example(b'{"seq":1}\x00')
@example(b'{"seq":1,}')
@example(b'{"seq":18446744073709551615}')
@example(b'{"seq":18446744073709551616}')
@example(b'{"seq":1,"seq":2}')
@example(b'{"error":{"code":1},"error":null,"seq":3}')
@example(b'{"error":{"code":1,"description":"a"},"error":{"code":2}}')
@example(b'{"seq":true}')
@example(b'{"error":{}}')
@example(b'{"error":{"err_code":0,"code":0},"seq":1}')
@example(b'{"seq":1}t')
@example(b'{"duplicate":t')
def test_arbitrary_bytes_are_a_pub_ack_or_a_value_error(payload: bytes) -> None:
    """No bytes crash the scanner or mean more to it than to a full decoder."""
    assert_agrees(payload)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"stream":"KV_ojs-jobs","seq":42}', (42, 0, "")),
        (b'{"stream":"KV_ojs-jobs", "seq": 42}', (42, 0, "")),
        (b'{"stream":"OJS","seq":7,"duplicate":true}', (7, 0, "")),
        (b'{"stream":"OJS","domain":"hub","seq":7,"duplicate":false}', (7, 0, "")),
        (b'{"stream":"OJS","seq":1000,"batch":"Xy1","count":64}', (1000, 0, "")),
        (b'{"stream":"KV_ojs-stats","seq":9,"val":"5"}', (9, 0, "")),
        (FAILED, (0, 10071, "wrong last sequence: 5")),
        (
            b'{"error":{"code":503,"description":"no space"},"stream":"OJS","seq":0}',
            (0, 503, "no space"),
        ),
        (b'{"error":{"code":503}}', (0, 503, "")),
        (b'{"error":{"code":400,"description":"a \\"b\\" \\u00e9"}}', (0, 400, 'a "b" é')),
        ('{"stream":"é","seq":3}'.encode(), (3, 0, "")),
    ],
)
def test_pub_acks_of_the_server_are_read(payload: bytes, expected: tuple[int, int, str]) -> None:
    """What nats-server 2.12 and later sends gives sequence, code and description."""
    assert parse_pub_ack(payload) == expected


def test_a_refused_payload_is_shown_in_part() -> None:
    """The error names the payload's beginning, not a megabyte of it."""
    with pytest.raises(ValueError, match="not a PubAck") as refusal:
        parse_pub_ack(b'{"seq":' + b"x" * 10**6)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("value", [None, "{}", bytearray(b"{}"), 1])
def test_only_bytes_are_scanned(value: object) -> None:
    """Anything but bytes raises TypeError, None included, instead of crashing compiled code."""
    with pytest.raises(TypeError):
        parse_pub_ack(value)  # type: ignore[arg-type]


names = st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1)
counters = st.integers(0, 10**19 - 1)


@given(
    st.tuples(names, names),
    st.tuples(counters, counters, counters, counters, counters),
    st.one_of(st.none(), st.tuples(names, names)),
    st.one_of(st.none(), names),
)
def test_ack_subjects_give_back_what_the_server_put_in(
    consumer: tuple[str, str],
    figures: tuple[int, int, int, int, int],
    account: tuple[str, str] | None,
    random_token: str | None,
) -> None:
    """Both forms of ADR-15 are read, domain, account and random token left aside."""
    tokens = ["$JS", "ACK", *(account or ()), *consumer, *map(str, figures)]
    if account and random_token:
        tokens.append(random_token)
    assert parse_ack_subject(".".join(tokens)) == (*consumer, *figures)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "$JS.ACK.",
        "$JS.ACK",
        "$JS.NAK.OJS.c.1.2.3.4.5",
        "_INBOX.abc.1",
        "$JS.ACK.OJS.c.1.2.3.4",
        "$JS.ACK.OJS.c.1.2.3.4.5.6",
        "$JS.ACK._.hash.OJS.c.1.2.3.4.5.r.more",
        "$JS.ACK.OJS.c.1.2.3.4.",
        "$JS.ACK..c.1.2.3.4.5",
        "$JS.ACK.OJS..1.2.3.4.5",
        "$JS.ACK.OJS.c.1.2.3.4.5.",
        "$JS.ACK.OJS.c.x.2.3.4.5",
        "$JS.ACK.OJS.c.-1.2.3.4.5",
        "$JS.ACK.OJS.c.1.2.3.4.5x",
        "$JS.ACK.OJS.c.1.2.3.4.5\x00",
        "$JS.ACK.OJS.c.01.2.3.4.5",
        "$JS.ACK.OJS.c.1.2.3.4.99999999999999999999",
        "$JS.ACK.OJS.c.1.2.3.4.\u0665",
        "$JS.ACK.OJS.\ud800.1.2.3.4.5",
        "$JS.ACK." + "x." * 100_000,
    ],
)
def test_other_subjects_are_refused(subject: str) -> None:
    """Wrong prefix, token count or number raises a short ValueError."""
    with pytest.raises(ValueError, match="not an acknowledgement subject") as refusal:
        parse_ack_subject(subject)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("value", [None, b"$JS.ACK.OJS.c.1.2.3.4.5", 1])
def test_only_text_is_a_subject(value: object) -> None:
    """Anything but str raises TypeError, None included, instead of crashing compiled code."""
    with pytest.raises(TypeError):
        parse_ack_subject(value)  # type: ignore[arg-type]
