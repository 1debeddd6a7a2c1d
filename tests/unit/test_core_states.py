"""The state machine of `_core`: what CONTRACT section 3 allows, and nothing else."""

import pickle
from itertools import product

import pytest

from ojs_fast._core import (
    STATES,
    TERMINAL_STATES,
    IllegalTransition,
    expected_states,
    is_terminal,
    transition,
)

# Flat on purpose: a second table of the same shape would hide the same slip.
LEGAL = {
    ("promote", "scheduled", "available"),
    ("promote", "retryable", "available"),
    ("activate", "pending", "available"),
    ("claim", "available", "active"),
    ("ack", "active", "completed"),
    ("retry", "active", "retryable"),
    ("discard", "active", "discarded"),
    ("requeue", "active", "available"),
    ("cancel", "scheduled", "cancelled"),
    ("cancel", "available", "cancelled"),
    ("cancel", "pending", "cancelled"),
    ("cancel", "active", "cancelled"),
    ("cancel", "retryable", "cancelled"),
    ("expire", "scheduled", "discarded"),
    ("expire", "available", "discarded"),
    ("expire", "retryable", "discarded"),
    ("dead_letter_retry", "discarded", "available"),
    ("reschedule", "available", "scheduled"),
    ("drop", "available", "discarded"),
}
OPERATIONS = sorted({operation for operation, _, _ in LEGAL})


def test_states_are_the_eight_of_the_spec() -> None:
    """The vocabulary is exactly the eight states of ojs-core section 6.1, three of them final."""
    assert set(STATES) == {state for _, before, after in LEGAL for state in (before, after)}
    assert len(STATES) == 8
    assert frozenset({"completed", "cancelled", "discarded"}) == TERMINAL_STATES


@pytest.mark.parametrize(("operation", "state", "target"), sorted(LEGAL))
def test_every_legal_transition_leads_where_the_contract_says(operation: str, state: str, target: str) -> None:
    """Each row of CONTRACT section 3 is accepted and gives its target state."""
    assert transition(operation, state) == target


@pytest.mark.parametrize(
    ("operation", "state"),
    [
        (operation, state)
        for operation, state in product(OPERATIONS, STATES)
        if not any((operation, state) == row[:2] for row in LEGAL)
    ],
)
def test_everything_else_is_refused_with_its_facts(operation: str, state: str) -> None:
    """A pair outside the table raises IllegalTransition naming the states that would have done."""
    with pytest.raises(IllegalTransition) as refusal:
        transition(operation, state)
    assert refusal.value.operation == operation
    assert refusal.value.state == state
    assert set(refusal.value.expected_states) == {before for name, before, _ in LEGAL if name == operation}


def test_terminal_states_have_no_way_out_but_the_dead_letter_retry() -> None:
    """Only an operator's dead-letter retry leaves a terminal state (ojs-core 6.3 invariant 2)."""
    ways_out = {(operation, state) for operation, state, _ in LEGAL if is_terminal(state)}
    assert ways_out == {("dead_letter_retry", "discarded")}


@pytest.mark.parametrize("state", [*STATES, "bogus", ""])
def test_is_terminal_agrees_with_the_set(state: str) -> None:
    """`is_terminal` is true for the terminal states only, unknown ones not among them."""
    assert is_terminal(state) is (state in TERMINAL_STATES)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_expected_states_come_in_the_order_of_states(operation: str) -> None:
    """`expected_states` lists an operation's states in one fixed order, for stable messages."""
    expected = expected_states(operation)
    assert list(expected) == sorted(expected, key=STATES.index)
    assert set(expected) == {before for name, before, _ in LEGAL if name == operation}


@pytest.mark.parametrize(
    ("operation", "state", "message"),
    [
        ("ack", "completed", "Cannot ack a job in state 'completed'; expected 'active'."),
        (
            "promote",
            "active",
            "Cannot promote a job in state 'active'; expected 'scheduled' or 'retryable'.",
        ),
        (
            "expire",
            "active",
            "Cannot expire a job in state 'active'; expected 'scheduled', 'available' or 'retryable'.",
        ),
        (
            "dead_letter_retry",
            "active",
            "Cannot dead letter retry a job in state 'active'; expected 'discarded'.",
        ),
    ],
)
def test_the_message_reads_as_a_sentence(operation: str, state: str, message: str) -> None:
    """The refusal can be shown to a client as it is, however many states would have done."""
    with pytest.raises(IllegalTransition) as refusal:
        transition(operation, state)
    assert str(refusal.value) == message


def test_unknown_names_are_mistakes_not_refusals() -> None:
    """An operation or state that does not exist raises ValueError, never a conflict."""
    with pytest.raises(ValueError, match="unknown operation 'fly'"):
        transition("fly", "active")
    with pytest.raises(ValueError, match="unknown operation 'fly'"):
        expected_states("fly")
    with pytest.raises(ValueError, match="unknown state 'bogus'"):
        transition("ack", "bogus")


@pytest.mark.parametrize("value", [None, 1, b"ack"])
def test_only_text_is_taken(value: object) -> None:
    """Anything but str raises TypeError, None included, instead of crashing compiled code."""
    with pytest.raises(TypeError):
        transition(value, "active")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        transition("ack", value)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        is_terminal(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        expected_states(value)  # type: ignore[arg-type]


def test_a_refusal_survives_pickling() -> None:
    """The error keeps its facts and its message across a process boundary."""
    copy = pickle.loads(pickle.dumps(IllegalTransition("ack", "completed", ("active",))))
    assert (copy.operation, copy.state, copy.expected_states) == ("ack", "completed", ("active",))
    assert str(copy) == "Cannot ack a job in state 'completed'; expected 'active'."
