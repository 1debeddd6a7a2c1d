"""What lies in `ojs-workflows`: segments, chunks, headers and derived ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ojs_fast import _core
from ojs_fast.core.workflows.model import (
    SEGMENT,
    Header,
    Member,
    Segment,
    decode_chunk,
    encode_chunk,
    job_id,
    nested_id,
)
from ojs_fast.core.workflows.results import Budget

ID = _core.uuid7(1_800_000_000_000, b"0123456789")


def header(count: int = 3, **more: object) -> Header:
    """A header of `count` members."""
    fields: dict[str, object] = {"id": ID, "type": "batch", "name": "n", "count": count, "jobs": count, "nested": 0}
    return Header(**(fields | {"created_ms": 1, "chunks": [0]} | more))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.sampled_from("cfx"))))
def test_the_first_outcome_counts_and_marks_may_repeat(marks: list[tuple[int, int, str]]) -> None:
    """Marking is idempotent and monotonic within a generation; another generation's marks change nothing."""
    segment = Segment("." * 10)
    first: dict[int, str] = {}
    for offset, generation, outcome in marks:
        changed = segment.mark(offset, generation, outcome)
        assert changed == (generation == 0 and offset not in first)
        if generation == 0:
            first.setdefault(offset, outcome)
        assert Segment.decode(segment.encode()) == segment
    assert segment.outcomes == "".join(first.get(offset, ".") for offset in range(10))


def test_a_retry_opens_what_did_not_complete_once() -> None:
    """Repeating it changes nothing, and late outcomes of the earlier run are not taken for the new one's."""
    segment = Segment("cfx.")
    assert segment.reopen(1)
    assert (segment.outcomes, segment.generations) == ("c...", {1: 1, 2: 1})
    assert not segment.mark(1, 0, "c")
    assert segment.mark(1, 1, "f")
    assert not segment.reopen(1), "it failed in this very generation"
    assert segment.reopen(2)
    assert segment.generations == {1: 2, 2: 1}


@given(st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=40), st.booleans()), min_size=1, max_size=9))
def test_a_chunk_gives_back_its_members(parts: list[tuple[str, bytes, bool]]) -> None:
    """Raw bytes come back as they were, newlines included."""
    members = [Member(id_, "t", raw, (0, 1), nested=nested) for id_, raw, nested in parts]
    assert decode_chunk(encode_chunk(members)) == members


def test_a_header_knows_where_everything_lies() -> None:
    """Outcomes of callbacks lie in the segment behind the members'; the chunk of a member is found by its first."""
    big = header(SEGMENT + 1, chunks=[0, 10, 500], callbacks=["on_success"])
    assert Header.decode(ID, big.encode()) == big
    assert (big.segments, big.size(0), big.size(1), big.size(2)) == (2, SEGMENT, 1, 1)
    assert [big.place(i) for i in (0, SEGMENT - 1, SEGMENT, SEGMENT + 1)] == [
        (0, 0), (0, SEGMENT - 1), (1, 0), (2, 0),
    ]  # fmt: skip
    assert [big.chunk_of(i) for i in (0, 9, 10, 499, 500, SEGMENT)] == [0, 0, 1, 1, 2, 2]


def test_ids_are_derived_and_differ() -> None:
    """The same member has the same id everywhere; another index, generation or kind has another."""
    ids = {job_id(ID, 0, 0), job_id(ID, 1, 0), job_id(ID, 0, 1), nested_id(ID, 0)}
    assert len(ids) == 4
    assert all(_core.is_uuid7(one) and _core.uuid7_ms(one) == 1_800_000_000_000 for one in ids)
    assert job_id(ID, 0, 0) == job_id(ID, 0, 0)


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=12), st.integers(0, 600))
def test_results_keep_within_their_budget(results: list[bytes], limit: int) -> None:
    """The latest that fit are kept, the very last at least by reference when there is room for one."""
    budget = Budget(len(results), limit)
    kept = [budget.take(result, ID) for result in reversed(results)][::-1]
    if limit >= 5 * len(results):
        assert sum(len(one) for one in kept if one != b"null") <= limit - 5 * len(results)
    for result, one in zip(results, kept, strict=True):
        assert one in (result, b"null") or one.startswith(b'{"result_ref"')
    if results and limit >= 160 + 5 * len(results):
        assert kept[-1] != b"null" or results[-1] == b"null"
