"""Names of streams, buckets and subjects, and the tokens that outside names become."""

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ojs_fast.storage import names
from ojs_fast.storage.names import (
    bucket_stream,
    bucket_subject,
    consumer_name,
    decode_token,
    encode_token,
    parse_work_subject,
    work_subject,
)

# What NATS takes in a subject token, in a KV key (nats ADR-8) and in a consumer's name alike.
LEGAL = re.compile(r"[-_=A-Za-z0-9]+")
queue_names = st.from_regex(r"[a-z0-9][a-z0-9\-.]{0,127}", fullmatch=True)


@given(st.text(min_size=1))
@example("a.b")
@example("a_b")
@example("a=2Eb")
@example("*")
@example(">")
@example(" ")
@example("\x00")
@example("ünï")
def test_any_name_becomes_a_legal_token_and_comes_back(name: str) -> None:
    """No character that NATS forbids or gives a meaning is left, and nothing is lost."""
    token = encode_token(name)
    assert LEGAL.fullmatch(token)
    assert decode_token(token) == name


@given(st.text(), st.text())
@example("a.b", "a_b")
@example("a_b", "a=5Fb")
@example("a=5Fb", "a.b")
def test_different_names_never_meet(one: str, other: str) -> None:
    """Two names have one token only if they are the same name."""
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(queue_names)
def test_a_queue_name_keeps_its_length(name: str) -> None:
    """The longest queue name still fits where NATS limits names."""
    assert len(encode_token(name)) == len(name)


def test_usual_names_stay_readable() -> None:
    """Only dots change in a queue's name."""
    assert encode_token("default") == "default"
    assert encode_token("email.send-now") == "email_send-now"
    assert encode_token("a_b") == "a=5Fb"


@pytest.mark.parametrize("token", ["=", "=zz", "a=", "=FF", "=C3"])
def test_other_tokens_are_refused(token: str) -> None:
    """What the encoding never makes raises ValueError."""
    with pytest.raises(ValueError, match=r"invalid literal|codec can't decode"):
        decode_token(token)


@given(queue_names, st.integers(-100, 100))
def test_a_work_subject_tells_queue_and_priority(queue: str, priority: int) -> None:
    """It comes apart as it was put together, and lies within the stream's subjects."""
    subject = work_subject(queue, priority)
    assert parse_work_subject(subject) == (queue, priority)
    assert subject.startswith("ojs.queue.")
    assert names.WORK_SUBJECTS == ["ojs.queue.>"]


@given(queue_names, st.integers(-100, 100), queue_names, st.integers(-100, 100))
@example("a", 0, "a=L1", 0)
@example("a", 1, "a=L1", 0)
def test_every_level_of_every_queue_has_a_consumer_of_its_own(queue: str, level: int, other: str, lower: int) -> None:
    """Names of consumers are legal and never shared."""
    assume((queue, level) != (other, lower))
    assert LEGAL.fullmatch(consumer_name(queue, level))
    assert consumer_name(queue, level) != consumer_name(other, lower)
    assert work_subject(queue, level) != work_subject(other, lower)


@pytest.mark.parametrize(
    "subject", ["", "ojs", "ojs.queue.a", "ojs.queue.a.other", "ojs.queue.a.pri", "ojs.queue.a.pri.x", "x.queue.a.jobs"]
)
def test_other_subjects_are_refused(subject: str) -> None:
    """A foreign subject raises ValueError."""
    with pytest.raises(ValueError, match=r"not a work subject|invalid literal"):
        parse_work_subject(subject)


def test_buckets_are_where_other_tools_look() -> None:
    """The names of a KV bucket's stream and subjects are NATS's own."""
    assert bucket_stream(names.JOBS) == "KV_ojs-jobs"
    assert bucket_subject(names.JOBS, ">") == "$KV.ojs-jobs.>"
    assert len(set(names.BUCKETS)) == len(names.BUCKETS)
    assert all(LEGAL.fullmatch(bucket) for bucket in names.BUCKETS)


@given(st.from_regex(r"[a-z0-9][a-z0-9\-.]{0,40}", fullmatch=True), st.integers(0, 1000))
def test_an_index_key_tells_its_job(queue: str, attempt: int) -> None:
    """All kinds of keys start with the queue, so that one queue's can be counted, and name the job."""
    job_id = "01890000-0000-7000-8000-000000000000"
    for key in (
        names.scheduled_key(queue, job_id, attempt),
        names.retry_key(queue, job_id, attempt),
        names.expiry_key(queue, job_id),
    ):
        assert names.indexed_job(key) == job_id
        assert key.startswith(names.encode_token(queue) + ".")


def test_a_foreign_index_key_does_no_harm() -> None:
    """What somebody else wrote into an index names no job that exists."""
    assert names.indexed_job("foreign") == "foreign"
