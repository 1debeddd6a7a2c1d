"""The timer heap of `_core` against a dict and a sorted list."""

import gc
import random
import sys
import tracemalloc
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ojs_fast._core import TimerHeap


class SortedTimers:
    """The heap's contract with nothing clever: sort everything whenever asked."""

    def __init__(self) -> None:
        self.armed: dict[str, tuple[int, int]] = {}
        self.pushes = 0

    def push(self, key: str, due_ms: int) -> None:
        """Arm or re-arm `key` behind everything pushed before."""
        self.armed[key] = (due_ms, self.pushes)
        self.pushes += 1

    def remove(self, key: str) -> bool:
        """Disarm `key`."""
        return self.armed.pop(key, None) is not None

    def next_due_ms(self) -> int:
        """Return the earliest due time or -1."""
        return min(self.armed.values(), default=(-1, 0))[0]

    def pop_due(self, now_ms: int, limit: int) -> list[str]:
        """Disarm and return the first `limit` due keys."""
        due = sorted((k for k in self.armed if self.armed[k][0] <= now_ms), key=self.armed.get)  # type: ignore[arg-type]
        for key in due[:limit]:
            del self.armed[key]
        return due[:limit]

    def due_ms(self, key: str) -> int | None:
        """Return the due time of `key`."""
        return self.armed[key][0] if key in self.armed else None


def fresh(text: str) -> str:
    """Return a new string object of this text, unlike any literal."""
    return text.encode().decode()


keys = st.sampled_from([*"abcdefgh", "", "é", "🦊", "a" * 300])
instants = st.integers(0, 12)
steps = st.one_of(
    st.tuples(st.just("push"), keys, instants),
    st.tuples(st.just("push"), keys, st.sampled_from([0, 2**63 - 1])),
    st.tuples(st.just("remove"), keys),
    st.tuples(st.just("pop_due"), st.integers(-1, 12), st.integers(0, 4)),
    st.tuples(st.just("due_ms"), keys),
    st.tuples(st.just("next_due_ms")),
    st.tuples(st.just("clear")),
)


@given(st.lists(steps, max_size=60))
def test_any_history_matches_the_sorted_list(history: list[tuple[object, ...]]) -> None:
    """After every operation the heap answers as a plain sorted list would."""
    heap, model = TimerHeap(), SortedTimers()
    for operation, *arguments in history:
        if operation == "clear":
            heap.clear()
            model.armed.clear()
        else:
            answer = getattr(heap, str(operation))(*arguments)
            assert answer == getattr(model, str(operation))(*arguments)
        assert len(heap) == len(model.armed)
        assert all((key in heap) is (key in model.armed) for key in "abcdefgh")
        assert heap.next_due_ms() == model.next_due_ms()


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_keys_match_the_sorted_list(seed: int) -> None:
    """Growth, shrinking and long probe runs lose, double or reorder nothing."""
    dice = random.Random(seed)
    heap, model = TimerHeap(), SortedTimers()
    names = [str(uuid.UUID(int=dice.getrandbits(128))) for _ in range(4_000)]
    for phase in (0.9, 0.2, 0.7, 0.05):
        for _ in range(6_000):
            key = dice.choice(names)
            if dice.random() < phase:
                due_ms = dice.randrange(500)
                heap.push(key, due_ms)
                model.push(key, due_ms)
            else:
                assert heap.remove(key) is model.remove(key)
        assert {key: heap.due_ms(key) for key in names} == {key: model.due_ms(key) for key in names}
        now_ms = dice.randrange(100)
        assert heap.pop_due(now_ms, 700) == model.pop_due(now_ms, 700)
    assert heap.pop_due(10**6, 10**6) == model.pop_due(10**6, 10**6)
    assert len(heap) == 0


def test_equal_due_times_come_out_first_come_first_served() -> None:
    """Keys due at one instant leave in push order, however many there are."""
    heap = TimerHeap()
    names = [str(number) for number in range(1_000)]
    for name in names:
        heap.push(name, 7)
    heap.push("0", 7)
    assert heap.pop_due(7, 10_000) == [*names[1:], "0"]


def test_equal_strings_are_one_key() -> None:
    """A key is known by its text, not by its identity."""
    heap = TimerHeap()
    heap.push(fresh("job"), 5)
    heap.push(fresh("job"), 3)
    assert len(heap) == 1
    assert heap.due_ms("job") == 3


def test_nothing_is_due_before_its_instant_and_everything_at_it() -> None:
    """`now_ms` is inclusive, and a limit leaves the rest armed."""
    heap = TimerHeap()
    for key, due_ms in (("b", 20), ("a", 10), ("c", 20)):
        heap.push(key, due_ms)
    assert heap.pop_due(9, 10) == []
    assert heap.pop_due(20, 0) == []
    assert heap.pop_due(20, 2) == ["a", "b"]
    assert heap.next_due_ms() == 20
    assert heap.pop_due(20, 2) == ["c"]
    assert heap.next_due_ms() == -1


def test_impossible_input_is_refused_and_changes_nothing() -> None:
    """Negative or endless due times, negative limits and keys that are no text raise."""
    heap = TimerHeap()
    heap.push("a", 1)
    with pytest.raises(ValueError, match="due_ms"):
        heap.push("a", -1)
    with pytest.raises(OverflowError):
        heap.push("a", 2**63)
    with pytest.raises(ValueError, match="limit"):
        heap.pop_due(10, -1)
    for key in (None, 1, b"a"):
        with pytest.raises(TypeError):
            heap.push(key, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            heap.remove(key)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            heap.due_ms(key)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            key in heap  # type: ignore[operator]  # noqa: B015
    assert (len(heap), heap.due_ms("a")) == (1, 1)


def traced_bytes() -> int:
    """Memory that Python's allocators hold for code under trace."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("count", [10_000, 22_000, 50_000])
def test_an_entry_costs_at_most_200_bytes(count: int) -> None:
    """Heap, table, growth slack and the id text together stay within 200 bytes a job."""
    tracemalloc.start()
    try:
        before = traced_bytes()
        heap = TimerHeap()
        for number in range(count):
            heap.push(f"01890a5d-ac96-774b-bcce-{number:012d}", number)
        assert (traced_bytes() - before) / count <= 200
    finally:
        tracemalloc.stop()


def test_timers_that_never_fire_leave_nothing_behind() -> None:
    """A million cancelled or moved deadlines cost no memory: removal is real, not lazy."""
    heap = TimerHeap()
    for number in range(100):
        heap.push(f"live-{number}", 10**12)
    tracemalloc.start()
    try:
        before = traced_bytes()
        for number in range(200_000):
            heap.push(f"gone-{number}", 10**9 + number)
            heap.push("live-0", 10**12 + number)
            heap.remove(f"gone-{number}")
        assert traced_bytes() - before < 10_000
    finally:
        tracemalloc.stop()
    assert len(heap) == 100


@pytest.mark.parametrize("way", ["pop", "remove", "clear", "drop"])
def test_memory_of_a_burst_is_given_back(way: str) -> None:
    """After 50 000 timers are gone, by whatever way, so is nearly all of their memory."""
    tracemalloc.start()
    try:
        before = traced_bytes()
        heap = TimerHeap()
        for number in range(50_000):
            heap.push(f"job-{number}", number)
        if way == "pop":
            while heap.pop_due(10**9, 1_000):
                pass
        elif way == "remove":
            for number in range(50_000):
                heap.remove(f"job-{number}")
        elif way == "clear":
            heap.clear()
        else:
            heap = TimerHeap()
        assert traced_bytes() - before < 20_000
    finally:
        tracemalloc.stop()


def test_keys_are_held_exactly_as_long_as_they_are_armed() -> None:
    """Each way out of the heap drops its one reference to the key, and re-arming takes none."""
    heap = TimerHeap()
    key = fresh("job")
    idle = sys.getrefcount(key)
    for _ in range(3):
        heap.push(key, 5)
        heap.push(key, 6)
        assert sys.getrefcount(key) == idle + 1
        heap.remove(key)
        assert sys.getrefcount(key) == idle
    heap.push(key, 5)
    heap.pop_due(5, 1)
    assert sys.getrefcount(key) == idle
    heap.push(key, 5)
    heap.clear()
    assert sys.getrefcount(key) == idle
    heap.push(key, 5)
    del heap
    assert sys.getrefcount(key) == idle
