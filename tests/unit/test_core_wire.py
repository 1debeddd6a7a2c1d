"""The NATS client protocol in `_core`: frames in whatever pieces they arrive, and the frames sent."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ojs_fast._core import WireMessage, WireParser, wire_publish

Frame = tuple[object, ...]
MISSING = b"NATS/1.0 404 No Messages\r\n\r\n"
STORED = b"NATS/1.0\r\nNats-Stream: S\r\nNats-Subject: a.b\r\nNats-Sequence: 42\r\nNats-Num-Pending: 0\r\n\r\n"


def plain(frame: WireMessage | tuple[str, bytes]) -> Frame:
    """Give a frame as a tuple that can be compared."""
    if isinstance(frame, tuple):
        return frame
    return (frame.subject, frame.sid, frame.reply, frame.headers, frame.data)


def feed(chunks: Iterable[bytes]) -> list[Frame]:
    """Give all frames in these pieces of one byte stream."""
    parser = WireParser()
    return [plain(frame) for chunk in chunks for frame in parser.feed(chunk)]


def message(headers: bytes = b"", data: bytes = b"x") -> WireMessage:
    """Give one message as the parser makes it."""
    frame = b"HMSG s 1 %d %d\r\n%s\r\n" % (len(headers), len(headers + data), headers + data)
    (parsed,) = WireParser().feed(frame)
    assert isinstance(parsed, WireMessage)
    return parsed


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)


@st.composite
def message_frames(draw: st.DrawFn) -> tuple[bytes, Frame]:
    """Build a MSG or HMSG and what it means; payloads may look like frames."""
    subject, sid, reply = draw(names), draw(st.integers(0, 2**31 - 1)), draw(st.one_of(st.just(""), names))
    data = draw(st.one_of(st.binary(max_size=60), st.just(b"\r\n"), st.just(b"PING\r\nMSG a 1 0\r\n\r\n")))
    with_headers = draw(st.booleans())
    headers = draw(st.sampled_from([b"", MISSING, STORED])) if with_headers else b""
    space = draw(st.sampled_from([" ", " ", "\t", "  "]))
    sizes = [len(headers), len(headers + data)] if with_headers else [len(data)]
    words = [subject, str(sid), *([reply] if reply else []), *map(str, sizes)]
    line = f"{'HMSG' if with_headers else 'MSG'} {space.join(words)}\r\n".encode()
    return line + headers + data + b"\r\n", (subject, sid, reply, headers, data)


CONTROL = [
    (b"PING\r\n", ("PING", b"")),
    (b"PONG\r\n", ("PONG", b"")),
    (b"pong\r\n", ("PONG", b"")),
    (b"+OK\r\n", ("+OK", b"")),
    (b"-ERR 'Stale Connection'\r\n", ("-ERR", b"'Stale Connection'")),
    (b'INFO {"max_payload":1048576,"x":"a b"}\r\n', ("INFO", b'{"max_payload":1048576,"x":"a b"}')),
]
frames = st.lists(st.one_of(message_frames(), st.sampled_from(CONTROL)), max_size=8)


@given(frames, st.lists(st.integers(0, 300), max_size=12))
def test_frames_do_not_depend_on_how_the_bytes_arrive(expected: list[tuple[bytes, Frame]], cuts: list[int]) -> None:
    """In one piece, byte by byte or cut anywhere: the same frames in the same order."""
    stream = b"".join(raw for raw, _ in expected)
    meaning = [frame for _, frame in expected]
    assert feed([stream]) == meaning
    assert feed(stream[at : at + 1] for at in range(len(stream))) == meaning
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert feed(stream[a:b] for a, b in pairwise(edges)) == meaning


@given(message_frames())
def test_an_unfinished_frame_is_waited_for(expected: tuple[bytes, Frame]) -> None:
    """However much of a frame is there, nothing comes out before its last byte."""
    raw, meaning = expected
    for cut in range(len(raw)):
        parser = WireParser()
        assert parser.feed(raw[:cut]) == []
        assert [plain(frame) for frame in parser.feed(raw[cut:] + b"PING\r\n")] == [meaning, ("PING", b"")]


def test_a_large_payload_arrives_in_pieces() -> None:
    """8 MiB in pieces of 64 KiB, frames before and behind it."""
    data = bytes(range(256)) * 32768
    stream = b"PING\r\nMSG a 1 r %d\r\n%s\r\n+OK\r\n" % (len(data), data)
    pieces = [stream[at : at + 65536] for at in range(0, len(stream), 65536)]
    assert feed(pieces) == [("PING", b""), ("a", 1, "r", b"", data), ("+OK", b"")]


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n",
        b" PING\r\n",
        b"FOO\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\n",
        b"msg a 1 0\r\n\r\n",
        b"M\n",
        b"MSG\r\n",
        b"MSG \r\n",
        b"HMSG\r\n",
        b"MOO a 1 2\r\nab\r\n",
        b"HELP a 1 0 2\r\nab\r\n",
        b"MSGa 1 2 3\r\nabc\r\n",
        b"MSG a 1\r\n\r\n",
        b"MSG a 1 r x 1\r\na\r\n",
        b"HMSG a 1 1\r\na\r\n",
        b"HMSG a 1 r x 0 1\r\na\r\n",
        b"MSG a 1 x\r\n\r\n",
        b"MSG a 1 -1\r\n\r\n",
        b"MSG a 1 +1\r\na\r\n",
        b"MSG a 1 1.0\r\na\r\n",
        b"MSG a 1 9999999999999\r\n",
        b"MSG a x 1\r\na\r\n",
        b"MSG a 2147483648 1\r\na\r\n",
        b"HMSG a 1 2 1\r\na\r\n",
        b"HMSG a 1 x 1\r\na\r\n",
        b"MSG a 1 1\na\r\n",
        b"MSG a 1 1\r\nabc",
        b"MSG a 1 2\r\na\r\n\r\n",
        b"MSG \xff 1 1\r\na\r\n",
        b"MSG a 1 \xff 1\r\na\r\n",
    ],
)
def test_malformed_frames_are_refused(raw: bytes) -> None:
    """A wrong verb, field count, number or end raises ValueError, at once and byte by byte."""
    with pytest.raises(ValueError, match=r"NATS sent|codec can't decode"):
        feed([raw])
    with pytest.raises(ValueError, match=r"NATS sent|codec can't decode"):
        feed(raw[at : at + 1] for at in range(len(raw)))


@settings(max_examples=500)
@given(
    st.one_of(st.binary(), st.lists(st.sampled_from([*"MSGH 10\r\n\t", "MSG ", "\r\n", "PING"])).map("".join)),
    st.integers(0, 60),
)
@example("MSG a 1 999999999999\r\n", 5)
def test_any_bytes_are_frames_or_refused(raw: bytes | str, cut: int) -> None:
    """Whatever the server sends, the outcome is frames or ValueError, the same for any cut."""
    stream = raw if isinstance(raw, bytes) else raw.encode()

    def outcome(chunks: list[bytes]) -> object:
        try:
            return feed(chunks)
        except ValueError:
            return None

    assert outcome([stream]) == outcome([stream[:cut], stream[cut:]])


# -- messages --------------------------------------------------------------------------------------


def test_headers_are_found_by_their_exact_name() -> None:
    """A header's value without the white space around it; "" when there is none."""
    headers = b"NATS/1.0\r\nA:1\r\nBB:  two words \r\nX-A: 3\r\nEmpty:\r\nLink: a:b\r\n\r\n"
    values = {"A": "1", "BB": "two words", "X-A": "3", "Empty": "", "Link": "a:b", "a": "", "B": "", "C": ""}
    parsed = message(headers)
    assert {name: parsed.header(name) for name in values} == values
    assert message(b"").header("A") == ""
    assert message(b"NATS/1.0\r\nA: 12").header("A") == "12"


def test_the_stored_message_of_a_direct_get_is_told() -> None:
    """Its sequence and subject are in headers; other messages have none."""
    assert (message(STORED).sequence, message(STORED).stored_subject) == (42, "a.b")
    assert (message().sequence, message().stored_subject) == (0, "")
    with pytest.raises(ValueError, match="invalid literal"):
        _ = message(b"NATS/1.0\r\nNats-Sequence: x\r\n\r\n").sequence


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (MISSING, "404"),
        (b"NATS/1.0 503\r\n\r\n", "503"),
        (b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n", "408"),
        (STORED, ""),
        (b"NATS/1.0\r\n\r\n", ""),
        (b"NATS/1.0 40", ""),
        (b"", ""),
    ],
)
def test_the_inline_status_is_told(headers: bytes, status: str) -> None:
    """Three digits on the first line; "" when there are none."""
    assert message(headers, b"").status == status


@pytest.mark.parametrize(
    ("headers", "data", "is_live"),
    [
        (b"", b"x", True),
        (STORED, b"x", True),
        (b"", b"", False),
        (b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n", b"", False),
        (b"NATS/1.0\r\nKV-Operation: PURGE\r\n\r\n", b"x", False),
        (b"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\n\r\n", b"x", False),
    ],
)
def test_markers_of_deleted_keys_are_not_live(headers: bytes, data: bytes, is_live: bool) -> None:
    """A key that was deleted, purged or expired has no value."""
    assert message(headers, data).is_live is is_live


def test_a_message_nobody_parsed_does_not_crash() -> None:
    """Made by hand it holds None; its properties raise an ordinary error."""
    empty = WireMessage()
    for look in (
        lambda: empty.status,
        lambda: empty.is_live,
        lambda: empty.sequence,
        lambda: empty.token,
        lambda: empty.stored_subject,
        lambda: empty.header("A"),
    ):
        with pytest.raises((TypeError, AttributeError)):
            look()


# -- publishing ------------------------------------------------------------------------------------


@given(names, st.one_of(st.just(""), names), st.sampled_from([b"", STORED, b"NATS/1.0\r\n\r\n"]), st.binary())
def test_what_is_published_is_what_arrives(subject: str, reply: str, headers: bytes, payload: bytes) -> None:
    """With the subscription's number put in, as the server does, a PUB parses as the message it was."""
    frame = wire_publish(subject, reply, headers, payload)
    line, _, rest = frame.partition(b"\r\n")
    verb, name, *others = line.decode().split(" ")
    assert verb == ("HPUB" if headers else "PUB")
    words = [verb.replace("PUB", "MSG"), name, "7", *(word for word in others if word)]
    assert feed([" ".join(words).encode() + b"\r\n" + rest]) == [(subject, 7, reply, headers, payload)]


@given(names, st.integers(1, 10**18 - 1), st.sampled_from([b"", STORED]), st.binary())
def test_a_token_comes_back_in_the_answer(inbox: str, token: int, headers: bytes, payload: bytes) -> None:
    """The number appended to the reply subject is the one that a message to that subject carries."""
    frame = wire_publish("a", inbox, headers, payload, token)
    assert frame == wire_publish("a", f"{inbox}.{token}", headers, payload)
    [answer] = WireParser().feed(f"MSG {inbox}.{token} 1 0\r\n\r\n".encode())
    assert isinstance(answer, WireMessage)
    assert answer.token == token


@pytest.mark.parametrize("subject", ["12", "a.12x", "a.", "a.b", "a." + "1" * 30])
def test_a_subject_without_token_has_none(subject: str) -> None:
    """What is no number of at most 18 digits behind a dot is 0."""
    [answer] = WireParser().feed(f"MSG {subject} 1 0\r\n\r\n".encode())
    assert isinstance(answer, WireMessage)
    assert answer.token == 0


@pytest.mark.parametrize("value", [None, "x", bytearray(b"x"), 1])
def test_only_bytes_are_fed_and_published(value: Any) -> None:
    """Anything but bytes raises TypeError, None included, instead of crashing compiled code."""
    with pytest.raises(TypeError):
        WireParser().feed(value)
    with pytest.raises(TypeError):
        wire_publish("a", "", b"", value)
