"""Turns a request, or a nested definition, into a stored workflow."""

from typing import Any

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.core import unique
from ojs_fast.core.clock import NowMs
from ojs_fast.core.jobs import GROWTH_BYTES
from ojs_fast.core.queues import Queues
from ojs_fast.core.stores import Stores
from ojs_fast.core.tracing import Tracing
from ojs_fast.core.workflows.members import RESULTS_ROOM_BYTES
from ojs_fast.core.workflows.model import Header
from ojs_fast.core.workflows.parse import Draft, parse_workflow
from ojs_fast.core.workflows.store import Run, WorkflowStore
from ojs_fast.errors import PayloadTooLarge


class Creator:
    """Validates and stores definitions."""

    def __init__(
        self, stores: Stores, settings: Settings, queues: Queues, store: WorkflowStore, tracing: Tracing, clock: NowMs
    ) -> None:
        self._stores = stores
        self._queues = queues
        self._max_depth = settings.max_depth
        self._store = store
        self._tracing = tracing
        self._clock = clock

    def draft(self, body: bytes, *, is_accepted: bool = False) -> Draft:
        """Validate a definition. Raises OJSError.

        One that is accepted stays so, whatever its queues take by now.
        """
        limit = self._stores.connection.max_record_bytes - GROWTH_BYTES - RESULTS_ROOM_BYTES

        def check(record: _core.Record, at: str) -> None:
            if not is_accepted:
                self._queues.check_type(record, at + ".")
                unique.check(record, at + ".")  # it counts for no step, but jobs show it
            if len(record.body) > limit:
                raise PayloadTooLarge(
                    f"Field '{at}' is a job of {len(record.body)} bytes; the NATS server takes {limit} in a workflow.",
                    details={"field": at, "max_bytes": limit},
                    hint="Pass a reference instead of the payload, or raise max_payload of the NATS server.",
                )

        return parse_workflow(body, self._clock(), self._max_depth, check)

    async def create(self, workflow_id: str, draft: Draft, parent: list[Any] | None, trace: str = "") -> Run:
        """Store a workflow; from then on it runs, whatever dies. Raises PayloadTooLarge, Unavailable.

        `trace` is the trace context that its jobs tell as their origin, "" for the one of this request.
        """
        header = Header(
            id=workflow_id,
            type=draft.type,
            name=draft.name,
            count=len(draft.members),
            jobs=draft.jobs,
            nested=draft.nested,
            created_ms=self._clock(),
            chunks=[],
            callbacks=list(draft.callbacks),
            parent=parent,
            trace=trace or self._tracing.context(),
        )
        return await self._store.define(header, [*draft.members, *draft.callbacks.values()])
