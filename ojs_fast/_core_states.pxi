# The OJS job state machine as one table (ojs-core.md section 6.3; CONTRACT section 3).
#
# Owns which operation may move a job from which state to which. Must not know what a transition
# sets or clears, who asked for it, or which HTTP status a refusal becomes.

STATES = (
    "scheduled",
    "available",
    "pending",
    "active",
    "completed",
    "retryable",
    "cancelled",
    "discarded",
)

TERMINAL_STATES = frozenset(("completed", "cancelled", "discarded"))

# operation -> {state before: state after}; whatever is absent is illegal.
# Expiry leaves pending jobs alone: CONTRACT section 3 lets a TTL run out only for jobs that
# would otherwise start without anybody's further word.
cdef dict _states_table = {
    "promote": {"scheduled": "available", "retryable": "available"},
    "activate": {"pending": "available"},
    "claim": {"available": "active"},
    "ack": {"active": "completed"},
    "retry": {"active": "retryable"},
    "discard": {"active": "discarded"},
    "requeue": {"active": "available"},
    "cancel": {
        "scheduled": "cancelled",
        "available": "cancelled",
        "pending": "cancelled",
        "active": "cancelled",
        "retryable": "cancelled",
    },
    "expire": {"scheduled": "discarded", "available": "discarded", "retryable": "discarded"},
    "dead_letter_retry": {"discarded": "available"},
    # A limit refuses the start of a job whose on_limit says so (ojs-rate-limiting section 6.2).
    "reschedule": {"available": "scheduled"},
    "drop": {"available": "discarded"},
}

cdef dict _states_expected = {
    operation: tuple(row) for operation, row in _states_table.items()
}


class IllegalTransition(Exception):
    """An operation met a job in a state from which it is not allowed (ojs-core.md section 6.3).

    Attributes: `operation` (str), `state` (str, the state met), `expected_states` (tuple of str,
    the states from which the operation would have been legal).
    """

    def __init__(self, operation, state, expected_states):
        # All three go to Exception so that the error survives pickling between processes.
        super().__init__(operation, state, expected_states)
        self.operation = operation
        self.state = state
        self.expected_states = expected_states

    def __str__(self):
        quoted = ", ".join([f"'{state}'" for state in self.expected_states])
        expected = " or ".join(quoted.rsplit(", ", 1))
        verb = self.operation.replace("_", " ")
        return f"Cannot {verb} a job in state '{self.state}'; expected {expected}."


def transition(str operation not None, str state not None):
    """Return the state (str) that `operation` leads to from `state` (ojs-core.md section 6.3).

    Raises IllegalTransition where the table has no such row, and ValueError for an operation or
    a state that does not exist at all, which is a mistake of the caller or a corrupt record.
    """
    cdef object row = _states_table.get(operation)
    if row is None:
        raise ValueError(f"unknown operation {operation!r}")
    cdef object target = (<dict>row).get(state)
    if target is None:
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}")
        raise IllegalTransition(operation, state, _states_expected[operation])
    return target


def is_terminal(str state not None):
    """Return whether no automatic transition leaves `state` (ojs-core.md section 6.4 rule 3).

    An unknown state is not terminal: False.
    """
    return state in TERMINAL_STATES


def expected_states(str operation not None):
    """Return the states (tuple of str, in the order of STATES) that `operation` accepts.

    Raises ValueError for an unknown operation.
    """
    cdef object expected = _states_expected.get(operation)
    if expected is None:
        raise ValueError(f"unknown operation {operation!r}")
    return expected
