"""The scanner of `_core`: what is JSON, where its members stand, and nothing read beyond the bytes."""

import json
from typing import Any, NoReturn

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ojs_fast._core import JsonError, plain_texts, scan_json_array, scan_json_object


def refuse(text: str) -> NoReturn:
    """Refuse NaN and infinities, which Python's decoder takes."""
    raise ValueError(text)


def check_text(value: object) -> object:
    """Refuse lone surrogates, which Python's decoder takes; everything else passes through."""
    if isinstance(value, str):
        value.encode()
    if isinstance(value, list):
        for element in value:
            check_text(element)
    return value


def check_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object whose duplicate members were checked too."""
    for key, value in pairs:
        check_text(key)
        check_text(value)
    return dict(pairs)


def decode(data: bytes) -> Any:
    """Decode by RFC 8259 with numbers as text, so that none is too large. Raises ValueError."""
    text = data.decode()
    return check_text(
        json.loads(text, object_pairs_hook=check_pairs, parse_int=str, parse_float=str, parse_constant=refuse)
    )


def orjson_takes(data: bytes) -> bool | None:
    """Whether orjson decodes it; None when it stops at a number that overflows a double."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return None if "infinity" in str(error) else False
    return True


def assert_agrees(data: bytes) -> None:
    """Fail unless the scanner, Python's decoder and orjson tell the same about `data`."""
    try:
        expected = decode(data)
    except ValueError:
        assert orjson_takes(data) is not True
        with pytest.raises(JsonError) as refusal:
            scan_json_object(data)
        assert 0 <= refusal.value.position <= len(data)
        assert str(refusal.value) == f"{refusal.value.reason} (at byte {refusal.value.position})"
        return
    assert orjson_takes(data) is not False
    if not isinstance(expected, dict):
        with pytest.raises(TypeError):
            scan_json_object(data)
        return
    spans = scan_json_object(data)
    assert {key: decode(data[start:end]) for key, (start, end) in spans.items()} == expected
    for start, end in spans.values():
        assert data[start:end] == data[start:end].strip()
        if data[start] == ord("["):
            elements = [decode(data[a:b]) for a, b in scan_json_array(data, start)]
            assert elements == decode(data[start:end])


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=20
)


@st.composite
def spelled(draw: st.DrawFn, what: st.SearchStrategy[Any] = values) -> bytes:
    """JSON in any spelling: escapes or UTF-8, any white space."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r\n:\n")]))
    ascii_only, indent = draw(st.booleans()), draw(st.sampled_from([None, 1]))
    text = json.dumps(draw(what), separators=separators, ensure_ascii=ascii_only, indent=indent)
    before, after = draw(st.sampled_from(["", " ", "\n\t"])), draw(st.sampled_from(["", "\r\n"]))
    return (before + text + after).encode()


objects = spelled(st.dictionaries(st.text(), values))
PIECES = ["{", "}", "[", "]", ",", ":", '"', '"a"', "\\", "\\u", "d800", "\\udc00", "-", "0", "1", ".", "e", "+"]
SOUP = st.lists(st.sampled_from([*PIECES, "true", "false", "null", " ", "\x00", "\x1f", "é", "\U0001f600"]))


@given(spelled())
def test_json_of_any_spelling_is_taken(data: bytes) -> None:
    """Whatever is JSON passes, and the spans of an object decode to its members."""
    assert_agrees(data)


@given(st.one_of(st.binary(), SOUP.map("".join).map(str.encode)))
@example(b"")
@example(b"{")
@example(b"{}")
@example(b'{"')
@example(b'{"a"')
@example(b'{"a":')
@example(b'{"a":1')
@example(b'{"a":1,')
@example(b'{"a":1,}')
@example(b'{"a":1 "b":2}')
@example(b'{"a" 1}')
@example(b"{1:2}")
@example(b"{}{}")
@example(b"{} x")
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":[1,]}')
@example(b'{"a":[,]}')
@example(b'{"a":[1}')
@example(b'{"a":NaN}')
@example(b'{"a":-Infinity}')
@example(b'{"a":nul}')
@example(b'{"a":truex}')
@example(b"[]")
@example(b" 1 ")
@example(b"tru")
@example(b"\x00")
@example(b"{}\x00")
@example(b'{"a\x00":1}')
@example(b'{"a":"\x7f"}')
def test_any_bytes_are_judged_as_a_decoder_judges_them(data: bytes) -> None:
    """Bytes at random are refused exactly when they are not JSON."""
    assert_agrees(data)


@given(objects, st.integers(0, 400), st.binary(max_size=3))
def test_damaged_json_is_judged_as_a_decoder_judges_it(data: bytes, index: int, damage: bytes) -> None:
    """A cut, inserted or overwritten byte is noticed, or left the text JSON."""
    index = min(index, len(data))
    assert_agrees(data[:index])
    assert_agrees(data[:index] + damage + data[index:])
    assert_agrees(data[:index] + damage + data[index + len(damage) :])


@pytest.mark.parametrize(
    "number", ["0", "-0", "1.5", "1e5", "1E+5", "-1.0e-5", "1e400", "9" * 5000, "-" + "9" * 5000, "0." + "1" * 5000]
)
def test_numbers_of_any_size_are_json(number: str) -> None:
    """No number is too large: it is passed on as text."""
    data = b'{"n":%s}' % number.encode()
    assert scan_json_object(data) == {"n": (5, 5 + len(number))}
    assert_agrees(data)


@pytest.mark.parametrize("number", ["", "-", "+1", "01", "-01", "1.", ".5", "1.e5", "1e", "1e+", "0x1", "1_0", "--1"])
def test_other_numbers_are_refused(number: str) -> None:
    """RFC 8259 knows one way to write a number."""
    assert_agrees(b'{"n":%s}' % number.encode())
    assert_agrees(b'{"n":%s' % number.encode())


@pytest.mark.parametrize(
    "text",
    [
        b"\\ud800",
        b"\\udc00",
        b"\\ud800\\ud800",
        b"\\ud800\\u0041",
        b"\\ud800x",
        b"\\ud800\\",
        b"\\ud83d\\ude00",
        b"\\uD83D\\uDE00",
        b"\\u12",
        b"\\u12g4",
        b"\\x41",
        b"\\'",
        b"\\",
        b"\\\\",
        b'\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000',
        b"\n",
        b"\x1f",
        b"\x80",
        b"\xc0\xaf",
        b"\xc2",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xed\x9f\xbf",
        b"\xef\xbf\xbf",
        b"\xf0\x80\x80\x80",
        b"\xf0\x9f\x98\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xe2\x82",
        b"\xff",
    ],
)
def test_strings_are_judged_wherever_the_odd_byte_stands(text: bytes) -> None:
    """Escapes, surrogates, control characters and UTF-8 are checked at every offset of an 8-byte step."""
    for before in range(18):
        for after in (0, 1, 7, 8):
            value = b"a" * before + text + b"b" * after
            assert_agrees(b'{"k":"%s"}' % value)
            assert_agrees(b'{"%s":1}' % value)
        assert_agrees(b'{"k":"%s' % (b"a" * before + text))


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("limit", [2, 3, 100, 1000])
def test_nesting_is_limited_exactly(opening: bytes, closing: bytes, limit: int) -> None:
    """The outermost object counts as one level; the limit itself is allowed, one more is not."""
    inner = limit - 1
    at_limit = b'{"a":' + opening * inner + b"1" + closing * inner + b"}"
    over = b'{"a":' + opening * limit + b"1" + closing * limit + b"}"
    assert scan_json_object(at_limit, limit) == {"a": (5, len(at_limit) - 1)}
    with pytest.raises(JsonError, match="nested too deeply") as refusal:
        scan_json_object(over, limit)
    assert refusal.value.position == 5 + inner * len(opening)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_no_limit_lets_the_stack_overflow(opening: bytes) -> None:
    """However high the limit is set, a megabyte of brackets is refused at level 1000."""
    with pytest.raises(JsonError, match="nested too deeply"):
        scan_json_object(b'{"a":' + opening * 1_000_000, 2**31 - 1)
    with pytest.raises(JsonError, match="nested too deeply"):
        scan_json_array(b"[" * 1_000_000, 0)


def test_siblings_do_not_add_up_to_depth() -> None:
    """Only levels count, not containers."""
    data = b'{"a":[%s],"b":{"c":{}}}' % b",".join([b"[]"] * 1000)
    assert set(scan_json_object(data, 3)) == {"a", "b"}


def test_the_last_of_duplicate_keys_wins() -> None:
    """Also when one spelling of the key is escaped (RFC 8259 section 4)."""
    data = b'{"a":1,"\\u0061":2,"b":3}'
    assert scan_json_object(data) == {"a": (16, 17), "b": (22, 23)}


def test_escaped_keys_are_decoded() -> None:
    """Keys are text as any decoder gives it."""
    data = rb'{"\"\\\/\b\n\u0000\ud83d\ude00":1,"":2}'
    assert set(scan_json_object(data)) == {'"\\/\b\n\x00\U0001f600', ""}


@given(st.one_of(spelled(st.lists(values)), SOUP.map("".join).map(str.encode), st.binary()), st.integers(-3, 40))
@example(b"[", 0)
@example(b"[1", 0)
@example(b"[1 ", 0)
@example(b"[1,", 0)
@example(b"[1 2]", 0)
@example(b"[]", 2)
@example(b"", 0)
def test_an_array_is_found_or_refused_wherever_one_looks(data: bytes, start: int) -> None:
    """Even where nothing was validated before, elements come from the bytes or JsonError is raised."""
    try:
        spans = scan_json_array(data, start)
    except JsonError:
        return
    assert data[start] == ord("[")
    end = start + 1
    for first, last in spans:
        assert end <= first < last <= len(data)
        decode(data[first:last])
        end = last


@pytest.mark.parametrize("value", [None, "{}", bytearray(b"{}"), 1])
def test_only_bytes_are_scanned(value: Any) -> None:
    """Anything but bytes raises TypeError, None included, instead of crashing compiled code."""
    with pytest.raises(TypeError):
        scan_json_object(value)
    with pytest.raises(TypeError):
        scan_json_array(value, 0)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text() | st.none() | st.integers() | st.lists(st.text())))
def test_plain_texts_are_what_a_decoder_reads(members: dict[str, Any]) -> None:
    """Strings without escapes come out as decoded; anything that needs a decoder is left to one."""
    data = json.dumps(members, ensure_ascii=False).encode()
    found = plain_texts(data, scan_json_object(data), ("a", "b"))
    wanted = [members.get("a", ""), members.get("b", "")]
    if found is None:
        odd = [json.dumps(members[key]) for key in ("a", "b") if key in members]
        assert any(not text.startswith('"') or text == '""' or "\\" in text for text in odd)
    else:
        assert found == wanted


@pytest.mark.parametrize("value", [None, "x", 1])
def test_plain_texts_take_only_bytes(value: Any) -> None:
    """Anything else raises TypeError instead of crashing compiled code."""
    with pytest.raises(TypeError):
        plain_texts(value, {}, ())
    with pytest.raises(TypeError):
        plain_texts(b"{}", value, ())
