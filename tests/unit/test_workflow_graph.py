"""The rules of workflows, against a reference model that thinks in sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ojs_fast.core.workflows.graph import Graph, due_callbacks, final_state
from ojs_fast.core.workflows.model import CANCELLED, COMPLETED, FAILED, OPEN

Edges = list[tuple[int, ...]]


@st.composite
def acyclic(draw: st.DrawFn, most: int = 12) -> Edges:
    """Dependencies of up to `most` members, in an order that hides that they form no cycle."""
    count = draw(st.integers(1, most))
    order = draw(st.permutations(range(count)))
    edges: Edges = [()] * count
    for place, index in enumerate(order):
        earlier = order[:place]
        edges[index] = tuple(draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else ())
    return edges


@st.composite
def plays(draw: st.DrawFn) -> tuple[Edges, list[str], list[int]]:
    """A graph, how each member would end, and in which order running members end."""
    edges = draw(acyclic())
    ends = draw(
        st.lists(st.sampled_from([COMPLETED] * 4 + [FAILED, CANCELLED]), min_size=len(edges), max_size=len(edges))
    )
    return edges, ends, draw(st.lists(st.integers(0, 100), min_size=len(edges), max_size=len(edges)))


def model(edges: Edges, outcomes: str) -> tuple[set[int], set[int]]:
    """`(may start, never will)` by definition: a fixed point over sets."""
    done = {i for i, o in enumerate(outcomes) if o == COMPLETED}
    dead = {i for i, o in enumerate(outcomes) if o in (FAILED, CANCELLED)}
    never: set[int] = set()
    while True:
        more = {i for i, needed in enumerate(edges) if outcomes[i] == OPEN and set(needed) & (dead | never)}
        if more == never:
            break
        never = more
    return {i for i, needed in enumerate(edges) if outcomes[i] == OPEN and set(needed) <= done}, never


@given(plays())
def test_a_graph_starts_each_member_once_and_comes_to_an_end(play: tuple[Edges, list[str], list[int]]) -> None:
    """Driven from end to end: what starts and what is given up agree with the model after every outcome."""
    edges, ends, order = play
    graph = Graph(edges)
    outcomes = [OPEN] * len(edges)
    running = graph.ready("".join(outcomes))
    started = list(running)
    for choice in order:
        if not running:
            break
        ended = running.pop(choice % len(running))
        outcomes[ended] = ends[ended]
        text = "".join(outcomes)
        for blocked in graph.blocked(text):
            outcomes[blocked] = CANCELLED
        now = "".join(outcomes)
        may_start, never = model(edges, text)
        assert set(graph.blocked(text)) == never
        assert set(graph.ready(text)) == may_start
        more = graph.ready(now, [ended])
        assert set(more) == may_start - set(running), "the dependents of what ended are all that is new"
        running += more
        started += more
    assert OPEN not in outcomes
    assert len(started) == len(set(started))
    assert set(started) == {i for i, needed in enumerate(edges) if all(outcomes[one] == COMPLETED for one in needed)}


@given(acyclic(), st.data())
def test_a_cycle_is_found_exactly_when_there_is_one(edges: Edges, data: st.DataObject) -> None:
    """No acyclic graph is refused; closing a path is noticed and the members named form a cycle."""
    assert Graph(edges).cycle() == []
    start = data.draw(st.sampled_from(range(len(edges))))
    at, path = start, [start]
    while edges[at]:
        at = data.draw(st.sampled_from(edges[at]))
        path.append(at)
    if len(path) == 1:
        return
    edges[at] = (*edges[at], start)
    cycle = Graph(edges).cycle()
    assert cycle
    for place, index in enumerate(cycle):
        assert cycle[place - 1] in edges[index]


def test_a_chain_waits_for_the_step_before() -> None:
    """Only the first starts; a failure gives up all behind it."""
    chain = Graph.chain(4)
    assert chain.ready("....") == [0]
    assert chain.ready("c...", [0]) == [1]
    assert chain.ready("cc..", [0]) == []
    assert chain.blocked("cf..") == [2, 3]
    assert chain.blocked("cccc") == []


@pytest.mark.parametrize(
    ("all_completed", "expected"),
    [(True, ["on_complete", "on_success"]), (False, ["on_complete", "on_failure"])],
)
def test_the_callbacks_follow_the_matrix_of_the_specification(all_completed: bool, expected: list[str]) -> None:
    """ojs-workflows section 6.5."""
    assert due_callbacks(["on_complete", "on_success", "on_failure"], all_completed=all_completed) == expected
    assert due_callbacks(["on_success"], all_completed=all_completed) == (["on_success"] if all_completed else [])


@pytest.mark.parametrize(
    ("outcomes", "fired", "state"),
    [
        ("ccc", {}, "completed"),
        ("cfc", {}, "failed"),
        ("cxc", {}, "failed"),
        ("cfc", {"on_failure": COMPLETED}, "completed"),
        ("ccc", {"on_complete": COMPLETED, "on_success": FAILED}, "failed"),
        ("ccc", {"on_success": CANCELLED}, "failed"),
    ],
)
def test_the_end_is_decided_by_callbacks_first(outcomes: str, fired: dict[str, str], state: str) -> None:
    """ojs-workflows sections 6.4 and 8.3; a failure that no callback was told of is a failure."""
    assert final_state(outcomes, fired) == state
