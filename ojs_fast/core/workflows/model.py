"""What a workflow is made of: header, members, segments of outcomes, and the ids derived from it. Pure.

A workflow of n members has the indexes 0 … n-1; its callbacks follow as n, n+1, … in the order of CALLBACKS.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from ojs_fast import _core

CHAIN, GROUP, BATCH, GRAPH = "chain", "group", "batch", "dag"
TYPES = (CHAIN, GROUP, BATCH, GRAPH)
CALLBACKS = ("on_complete", "on_success", "on_failure")

# Outcomes of a member, one letter each.
OPEN, COMPLETED, FAILED, CANCELLED = ".", "c", "f", "x"
OUTCOMES = {"completed": COMPLETED, "discarded": FAILED, "cancelled": CANCELLED}
STATES = {COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled"}

SEGMENT = 512  # members whose outcomes share a key: bounds what one completion rewrites
FEATURE = "wf"  # key of `Record.extra`: [workflow id, index, generation]


@dataclass(slots=True)
class Header:
    """The part of a workflow that changes with its state. Times in epoch ms, 0 = not set."""

    id: str
    type: str
    name: str
    count: int
    """Members, callbacks not counted."""
    jobs: int
    """Jobs, those of nested workflows included, callbacks not counted."""
    nested: int
    """Members that are workflows themselves."""
    created_ms: int
    chunks: list[int]
    """Index of the first member in each chunk of the definition."""
    callbacks: list[str] = field(default_factory=list)
    parent: list[Any] | None = None
    """[workflow id, index, generation] of the member that this workflow is."""
    state: str = "running"
    generation: int = 0
    """How often it was retried."""
    resetting: bool = False
    """A retry has begun and not yet reopened all members."""
    fired: list[str] | None = None
    """The callbacks that the outcome calls for; None until it is known."""
    ended_ms: int = 0
    trace: str = ""
    """The `traceparent` of whoever created it; "" when nothing was traced."""

    @property
    def segments(self) -> int:
        """How many segments hold the members' outcomes; the callbacks' are in the next one."""
        return (self.count + SEGMENT - 1) // SEGMENT

    @property
    def has_edges(self) -> bool:
        """Whether members wait for others."""
        return self.type in (CHAIN, GRAPH)

    def runs(self, generation: int) -> bool:
        """True while this generation runs; what was decided about an earlier one must not end a retry."""
        return self.state == "running" and self.generation == generation

    def place(self, index: int) -> tuple[int, int]:
        """`(segment, offset)` of a member's or callback's outcome."""
        return divmod(index, SEGMENT) if index < self.count else (self.segments, index - self.count)

    def size(self, segment: int) -> int:
        """How many outcomes a segment has."""
        if segment == self.segments:
            return len(self.callbacks)
        return min(SEGMENT, self.count - segment * SEGMENT)

    def chunk_of(self, index: int) -> int:
        """The chunk of the definition that has this member."""
        low, high = 0, len(self.chunks)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.chunks[middle] <= index else (low, middle)
        return low

    def encode(self) -> bytes:
        """The value to store."""
        # Without a trace as nodes of 0.1 wrote it, which refuse members that they do not know.
        left_out = ("id",) if self.trace else ("id", "trace")
        return orjson.dumps({name: value for name, value in asdict(self).items() if name not in left_out})

    @staticmethod
    def decode(workflow_id: str, data: bytes) -> "Header":
        """Read a stored value."""
        return Header(id=workflow_id, **orjson.loads(data))


@dataclass(slots=True)
class Segment:
    """Outcomes of up to 512 neighbours, and in which generation each runs when that is not 0."""

    outcomes: str
    generations: dict[int, int] = field(default_factory=dict)

    def mark(self, offset: int, generation: int, outcome: str) -> bool:
        """Note the outcome of an open member; False when that changes nothing. The first one counts."""
        if self.outcomes[offset] != OPEN or self.generations.get(offset, 0) != generation:
            return False
        self.outcomes = self.outcomes[:offset] + outcome + self.outcomes[offset + 1 :]
        return True

    def reopen(self, generation: int) -> bool:
        """Open what did not complete, for another run; False when there is nothing left to open."""
        offsets = [
            offset
            for offset, outcome in enumerate(self.outcomes)
            if outcome in (FAILED, CANCELLED) and self.generations.get(offset, 0) < generation
        ]
        for offset in offsets:
            self.generations[offset] = generation
            self.outcomes = self.outcomes[:offset] + OPEN + self.outcomes[offset + 1 :]
        return bool(offsets)

    @property
    def is_full(self) -> bool:
        """True when every member has an outcome."""
        return OPEN not in self.outcomes

    def encode(self) -> bytes:
        """The value to store."""
        return orjson.dumps([self.outcomes, list(self.generations.items())])

    @staticmethod
    def decode(data: bytes) -> "Segment":
        """Read a stored value."""
        outcomes, generations = orjson.loads(data)
        return Segment(outcomes, dict(generations))


@dataclass(slots=True, frozen=True)
class Member:
    """One step, job or callback as defined. `raw` is its enqueue request or nested workflow, without its id."""

    id: str
    type: str
    raw: bytes
    depends_on: tuple[int, ...] = ()
    nested: bool = False


def encode_chunk(members: list[Member]) -> bytes:
    """Neighbouring members as bytes: a JSON line about all, then the raw parts."""
    head = [(m.id, m.type, m.depends_on, m.nested, len(m.raw)) for m in members]
    return orjson.dumps(head) + b"\n" + b"".join(m.raw for m in members)


def decode_chunk(data: bytes) -> list[Member]:
    """Undo encode_chunk."""
    at = data.index(b"\n")
    members = []
    heads = orjson.loads(data[:at])
    at += 1
    for id_, type_, depends_on, nested, size in heads:
        members.append(Member(id_, type_, data[at : at + size], tuple(depends_on), nested))
        at += size
    return members


def job_id(workflow_id: str, index: int, generation: int) -> str:
    """The id of a member's job: derived, so that whoever creates it again finds it there."""
    return _derived(f"{workflow_id}/{index}/{generation}", workflow_id)


def nested_id(workflow_id: str, index: int) -> str:
    """The id of a member that is a workflow: a retry goes on with the same one."""
    return _derived(f"{workflow_id}/{index}/workflow", workflow_id)


def _derived(text: str, workflow_id: str) -> str:
    return _core.uuid7(_core.uuid7_ms(workflow_id), hashlib.sha256(text.encode()).digest()[:10])
