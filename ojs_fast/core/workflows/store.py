"""Workflows in `ojs-workflows`: every key of one, and compare-and-set on the two kinds that change.

ID           header       state, times, which callbacks fired
ID.open      marker       somebody still has to do something: what the audit looks for
ID.d.N       definition   members in chunks, immutable
ID.s.N       segment      outcomes of 512 members; missing = all open
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ojs_fast.core.stores import Stores
from ojs_fast.core.workflows.graph import Graph, graph_of
from ojs_fast.core.workflows.model import OPEN, Header, Member, Segment, decode_chunk, encode_chunk
from ojs_fast.errors import NotFound, PayloadTooLarge
from ojs_fast.storage import names
from ojs_fast.storage.blobs import Blobs
from ojs_fast.storage.errors import RevisionConflict, Unavailable

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 1024
CHUNKS_KEPT = 256
SEGMENTS_KEPT = 2048
GRAPHS_KEPT = 64


def workflow_not_found(workflow_id: str) -> NotFound:
    """404 for a workflow id."""
    return NotFound(
        f"Workflow '{workflow_id}' not found.",
        details={"resource_type": "workflow", "resource_id": workflow_id},
        hint="Check the id. Finished workflows leave the store when their retention time is over.",
    )


K = TypeVar("K")
V = TypeVar("V")


class _Lru(Generic[K, V]):
    """The values used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def pop(self, key: K) -> None:
        self._values.pop(key, None)

    def clear(self) -> None:
        self._values.clear()


@dataclass(slots=True)
class Run:
    """What is known of one workflow at a moment: its header and the segments read so far."""

    header: Header
    revision: int
    segments: dict[int, Segment] = field(default_factory=dict)

    @property
    def outcomes(self) -> str:
        """The outcomes of all members; their segments must have been read."""
        return "".join(self.segments[number].outcomes for number in range(self.header.segments))

    def generation(self, index: int) -> int:
        """The generation that a member or callback runs in; its segment must have been read if there was a retry."""
        if not self.header.generation:
            return 0
        number, offset = self.header.place(index)
        return self.segments[number].generations.get(offset, 0)

    def outcome(self, index: int) -> str:
        """The outcome of a member or callback; its segment must have been read."""
        number, offset = self.header.place(index)
        return self.segments[number].outcomes[offset]

    @property
    def is_over(self) -> bool:
        """True when every member has an outcome; all segments must have been read."""
        return all(self.segments[number].is_full for number in range(self.header.segments))


class WorkflowStore:
    """Reads and writes of workflows."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._blobs = Blobs(stores.connection, names.WORKFLOWS)
        self._foreign: set[str] = set()  # keys that hold no header of ours, told once
        # Immutable, or checked by compare-and-set when written: a stale value costs a round trip.
        self._chunks: _Lru[str, list[Member]] = _Lru(CHUNKS_KEPT)
        self._graphs: _Lru[str, Graph] = _Lru(GRAPHS_KEPT)
        self._segments: _Lru[str, tuple[bytes, int]] = _Lru(SEGMENTS_KEPT)

    def forget(self) -> None:
        """Drop what is remembered (after a reset)."""
        self._chunks.clear()
        self._graphs.clear()
        self._segments.clear()

    # -- header ----------------------------------------------------------------------------------

    async def find(self, workflow_id: str) -> Run | None:
        """The workflow as the stream's leader has it, or None. Raises Unavailable."""
        found = await self._blobs.get(workflow_id)
        return self._run(workflow_id, *found) if found else None

    def _run(self, workflow_id: str, data: bytes, revision: int) -> Run | None:
        try:
            return Run(Header.decode(workflow_id, data), revision)
        except (ValueError, TypeError) as error:
            if workflow_id not in self._foreign:
                self._foreign.add(workflow_id)
                log.error(
                    "a foreign entry in ojs-workflows is left alone: %s", error, extra={"ojs.workflow_id": workflow_id}
                )
            return None

    async def load(self, workflow_id: str) -> Run:
        """As `find`, but raises NotFound."""
        run = await self.find(workflow_id)
        if run is None:
            raise workflow_not_found(workflow_id)
        return run

    async def find_many(self, workflow_ids: Iterable[str]) -> dict[str, Run]:
        """Those that exist. Raises Unavailable."""
        found = await self._blobs.get_all(workflow_ids)
        return {id_: run for id_, one in found.items() if (run := self._run(id_, *one)) is not None}

    async def update(self, run: Run, apply: Callable[[Header], bool], ttl_s: int = 0) -> bool:
        """Change the header by compare-and-set; `apply` returns False when there is nothing to change.

        True when this call wrote. Raises NotFound, Unavailable, and what `apply` raises.
        """
        while True:
            if not apply(run.header):
                return False
            try:
                run.revision = await self._blobs.put(run.header.id, run.header.encode(), run.revision, ttl_s)
            except RevisionConflict:
                now = await self.load(run.header.id)
                run.header, run.revision = now.header, now.revision
                continue
            return True

    # -- birth and death -------------------------------------------------------------------------

    async def define(self, header: Header, members: list[Member]) -> Run:
        """Store a new workflow, members and callbacks. Raises PayloadTooLarge, Unavailable.

        The marker goes first and the header last: what a crash leaves behind has a marker and no header.
        """
        chunks = _chunks(members)
        header.chunks = [first for first, _ in chunks]
        parts = {f"{header.id}.d.{number}": encode_chunk(part) for number, (_, part) in enumerate(chunks)}
        self._refuse_oversize(max(len(data) for data in parts.values()))
        await self.mark_open(header.id)
        await asyncio.gather(*(self._blobs.put(key, data) for key, data in parts.items()))
        try:
            return Run(header, await self._blobs.put(header.id, header.encode(), 0))
        except RevisionConflict:
            # Another node has just created this nested workflow, of the same definition; or our own write
            # was applied though its acknowledgement got lost.
            return await self.load(header.id)

    def _refuse_oversize(self, chunk_bytes: int) -> None:
        limit = self._stores.connection.max_record_bytes
        if chunk_bytes > limit:
            raise PayloadTooLarge(
                f"A member of the workflow takes {chunk_bytes} bytes; the NATS server takes {limit}.",
                details={"max_bytes": limit},
                hint="Make a nested workflow smaller, or raise max_payload of the NATS server.",
            )

    async def erase(self, workflow_id: str) -> None:
        """Remove what is left of a workflow. Raises Unavailable."""
        await self._blobs.erase(f"{workflow_id}.>")
        await self._blobs.erase(workflow_id)

    async def mark_open(self, workflow_id: str) -> None:
        """Have the audit look after this workflow. Raises Unavailable."""
        await self._blobs.put(f"{workflow_id}.open", b"1")

    def mark_done(self, workflow_id: str) -> None:
        """Nothing is left to do for this workflow."""
        self._stores.outbox.delete(names.WORKFLOWS, f"{workflow_id}.open")

    async def opened(self, after: int) -> tuple[list[str], int]:
        """Ids of workflows marked open behind revision `after`, and the last revision seen. Raises Unavailable."""
        ids: list[str] = []
        while True:
            page, more = await self._blobs.page("*.open", after, 500)
            ids.extend(key.partition(".")[0] for key, _, _ in page)
            after = page[-1][2] if page else after
            if not more:
                return ids, after

    async def still_open(self, workflow_ids: Iterable[str]) -> set[str]:
        """Which of these are marked open. Raises Unavailable."""
        found = await self._blobs.get_all(f"{workflow_id}.open" for workflow_id in workflow_ids)
        return {key.partition(".")[0] for key in found}

    async def page(self, after: int, limit: int) -> tuple[list[Run], int]:
        """Workflows by their header's revision, and the cursor of the next page, 0 at the end."""
        page, cursor = await self._blobs.page("*", after, limit)
        return [run for one in page if (run := self._run(*one)) is not None], cursor

    async def count(self) -> int:
        """How many workflows there are. Raises Unavailable."""
        return await self._blobs.count()

    async def keep(self, run: Run, ttl_s: int) -> bool:
        """Let the whole workflow leave the store in `ttl_s` seconds, 0 = never; False when it runs again.

        The header is written last and so leaves last. Raises RevisionConflict, NotFound, Unavailable.
        """
        keys = [f"{run.header.id}.d.{number}" for number in range(len(run.header.chunks))]
        keys += [f"{run.header.id}.s.{number}" for number in range(run.header.segments + 1)]
        for key, (data, revision) in (await self._blobs.get_all(keys)).items():
            written = await self._blobs.put(key, data, revision, ttl_s)
            self._segments.put(key, (data, written))
        return await self.update(run, lambda header: not ttl_s or header.state != "running", ttl_s)

    # -- definition ------------------------------------------------------------------------------

    async def chunk(self, header: Header, number: int) -> list[Member]:
        """One chunk of members. Raises NotFound, Unavailable."""
        key = f"{header.id}.d.{number}"
        members = self._chunks.get(key)
        if members is None:
            found = await self._blobs.get(key)
            if found is None:
                raise workflow_not_found(header.id)
            members = decode_chunk(found[0])
            self._chunks.put(key, members)
        return members

    async def members(self, header: Header, indexes: Iterable[int]) -> list[tuple[int, Member]]:
        """These members or callbacks, as defined. Raises NotFound, Unavailable."""
        found = []
        for index in indexes:
            number = header.chunk_of(index)
            members = await self.chunk(header, number)
            found.append((index, members[index - header.chunks[number]]))
        return found

    async def graph(self, header: Header) -> Graph:
        """Who waits for whom. Raises NotFound, Unavailable."""
        graph = self._graphs.get(header.id)
        if graph is None:
            members = await self.members(header, range(header.count)) if header.type != "chain" else []
            graph = graph_of(header, [member.depends_on for _, member in members])
            self._graphs.put(header.id, graph)
        return graph

    # -- segments --------------------------------------------------------------------------------

    async def read_segments(self, run: Run, numbers: Iterable[int] | None = None) -> None:
        """Read segments as the stream's leader has them, all but the callbacks' by default. Raises Unavailable."""
        wanted = [n for n in (range(run.header.segments) if numbers is None else numbers) if n not in run.segments]
        found = await self._blobs.get_all(f"{run.header.id}.s.{number}" for number in wanted)
        for number in wanted:
            key = f"{run.header.id}.s.{number}"
            data, revision = found.get(key, (b"", 0))
            run.segments[number] = self._take(run, number, key, data, revision)

    async def refresh(self, run: Run) -> None:
        """Read all members' segments anew. Raises Unavailable.

        A decision over several segments must look at each after the last write of its own: of two nodes that
        write two segments at once, one then sees both.
        """
        if run.header.segments > 1:
            run.segments.clear()
        await self.read_segments(run)

    def _take(self, run: Run, number: int, key: str, data: bytes, revision: int) -> Segment:
        self._segments.put(key, (data, revision))
        return Segment.decode(data) if data else Segment(OPEN * run.header.size(number))

    async def change(self, run: Run, number: int, apply: Callable[[Segment], bool]) -> bool:
        """Change one segment by compare-and-set, starting from what this node remembers of it.

        `apply` returns False when there is nothing to change; it may be called again on a newer value. True
        when this call wrote. Raises Unavailable: the outcome is unknown.
        """
        key = f"{run.header.id}.s.{number}"
        known = self._segments.get(key)
        is_remembered = known is not None
        while True:
            if known is None:
                known = await self._blobs.get(key) or (b"", 0)
            segment = run.segments[number] = self._take(run, number, key, *known)
            if not apply(segment):
                if not is_remembered:
                    return False
                known, is_remembered = None, False  # what this node remembers may be out of date
                continue
            data = segment.encode()
            try:
                revision = await self._blobs.put(key, data, known[1])
            except RevisionConflict:
                known, is_remembered = None, False
                continue
            except Unavailable:
                self._segments.pop(key)
                raise
            self._segments.put(key, (data, revision))
            return True


def _chunks(members: list[Member]) -> list[tuple[int, list[Member]]]:
    chunks: list[tuple[int, list[Member]]] = []
    size = CHUNK_BYTES
    for index, member in enumerate(members):
        more = len(member.raw) + 8 * len(member.depends_on)
        if size + more > CHUNK_BYTES:
            chunks.append((index, []))
            size = 0
        chunks[-1][1].append(member)
        size += more
    return chunks
