"""What a member is told of those before it: `parent_results` (ojs-workflows section 7), spliced from bytes.

An array, as the conformance suite has it: of a chain's step the results of all steps before it, of a graph's
step those of the steps it depends on, of a callback those of all members; null for what has none. What the
workflow itself is nested in comes to the members that start it.

The arrays are bounded, or a chain of n steps would cost n² bytes: see `Budget`.
"""

from collections.abc import Iterable

from ojs_fast import _core
from ojs_fast.core.stores import Stores
from ojs_fast.core.workflows.model import CHAIN, GRAPH, Header, job_id, nested_id
from ojs_fast.core.workflows.store import Run, WorkflowStore

MAX_BYTES = 256 * 1024
HISTORY_BYTES = 64 * 1024  # of a chain's steps before the last one, which every later record carries along
REFERENCE_BYTES = 160
NULL = b"null"
READ_AT_ONCE = 500


class Budget:
    """Keeps as many of the latest results as a limit allows; offer them from the last to the first."""

    def __init__(self, count: int, limit_bytes: int) -> None:
        self._left = limit_bytes - (len(NULL) + 1) * count
        self._is_last = True

    def take(self, result: bytes, id_: str) -> bytes:
        """The result, or null when it is too large; for the very last a reference instead (section 7.5).

        `id_` is of the job to refer to, "" when null will do.
        """
        is_last, self._is_last = self._is_last, False
        if len(result) <= self._left:
            self._left -= len(result)
            return result
        if is_last and id_ and self._left >= REFERENCE_BYTES:
            self._left -= REFERENCE_BYTES
            return b'{"result_ref":"/ojs/v1/jobs/%s","result_size_bytes":%d}' % (id_.encode(), len(result))
        return NULL


def joined(results: list[bytes]) -> bytes:
    """The JSON array of these results."""
    return b"[" + b",".join(results) + b"]"


class Results:
    """Collects results from the records of jobs."""

    def __init__(self, stores: Stores, store: WorkflowStore) -> None:
        self._stores = stores
        self._store = store

    async def told_to(self, run: Run, index: int, limit_bytes: int) -> list[bytes]:
        """The elements of `parent_results` of a member or callback. Raises NotFound, Unavailable."""
        header = run.header
        await self._segments_for(run)
        if index >= header.count:
            indexes: Iterable[int] = range(header.count)
        elif header.type == CHAIN and index:
            return await self._history(run, index, limit_bytes)
        elif header.type == GRAPH and (needed := (await self._store.graph(header)).depends_on[index]):
            indexes = needed
        elif header.parent is not None:
            outer = await self._store.load(header.parent[0])
            return await self.told_to(outer, header.parent[1], limit_bytes)
        else:
            return []
        return await self._of(run, list(indexes), limit_bytes)

    async def _history(self, run: Run, index: int, limit_bytes: int) -> list[bytes]:
        """Results of all steps of a chain before this one: what the one before it was told, and its own."""
        [(_, before)] = await self._store.members(run.header, [index - 1])
        told: list[bytes] = []
        if before.nested:
            [own] = await self._of(run, [index - 1], limit_bytes)
            if index > 1:
                told = await self.told_to(run, index - 1, limit_bytes)
        else:
            id_ = job_id(run.header.id, index - 1, run.generation(index - 1))
            found = await self._stores.records.get(id_)
            record = _core.Record.parse(found[0]) if found else None
            own = Budget(1, limit_bytes).take(_result(record), id_)
            if index > 1:
                told = _parent_results(record.body) if record else [NULL] * (index - 1)
        budget = Budget(len(told), min(limit_bytes - len(own), HISTORY_BYTES))
        return [*reversed([budget.take(result, "") for result in reversed(told)]), own]

    async def _of(self, run: Run, indexes: list[int], limit_bytes: int) -> list[bytes]:
        """Results of these members, null for those that did not complete. Raises NotFound, Unavailable."""
        await self._segments_for(run)
        budget = Budget(len(indexes), limit_bytes)
        results: list[bytes] = []
        for start in range(len(indexes), 0, -READ_AT_ONCE):
            part = indexes[max(0, start - READ_AT_ONCE) : start]
            ids = {index: job_id(run.header.id, index, run.generation(index)) for index in part}
            found = await self._stores.records.get_many(ids.values())
            for index in reversed(part):
                if ids[index] in found:
                    result = _result(_core.Record.parse(found[ids[index]][0]))
                elif run.header.nested:
                    result = await self._of_nested(run.header, index, limit_bytes // 4)
                else:
                    result = NULL
                results.append(budget.take(result, ids[index]))
        return results[::-1]

    async def _of_nested(self, header: Header, index: int, limit_bytes: int) -> bytes:
        """The result of a member that is a workflow: a chain's last one, else an object by index (section 7.3)."""
        run = await self._store.find(nested_id(header.id, index))
        if run is None or run.header.state != "completed":
            return NULL
        count = run.header.count
        if run.header.type == CHAIN:
            return (await self._of(run, [count - 1], limit_bytes))[0]
        results = await self._of(run, list(range(count)), limit_bytes - 10 * count)
        return b"{" + b",".join(b'"%d":%s' % item for item in enumerate(results)) + b"}"

    async def _segments_for(self, run: Run) -> None:
        if run.header.generation:
            await self._store.read_segments(run)


def _result(record: _core.Record | None) -> bytes:
    return record.result if record and record.state == "completed" and record.result else NULL


def _parent_results(body: bytes) -> list[bytes]:
    data = b"{" + body[1:] + b"}"
    span = _core.scan_json_object(data, 1000).get("parent_results")
    if span is None:
        return []
    return [data[start:end] for start, end in _core.scan_json_array(data, span[0])]
