"""Traces as services see them: where background work and new jobs tell what they do.

What stands here tells nobody and costs nothing; with OJS_OTEL_ENABLED its place is taken by `ojs_fast.otel`.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from ojs_fast import _core

#: attributes of a span, by their names in ojs-distributed-tracing section 5
Facts = Mapping[str, str | int]

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class Tracing:
    """Tells nobody."""

    def __init__(self) -> None:
        #: How the record of a new job becomes bytes; the moment to write the trace context into its `meta`.
        self.to_bytes: Callable[[_core.Record], bytes] = _core.Record.serialize

    def act(self, name: str, facts: Facts) -> AbstractContextManager[object]:  # noqa: ARG002 - nobody is told
        """A span around something that no request asked for (ojs-distributed-tracing section 4.2)."""
        return _NOTHING

    def context(self) -> str:
        """The `traceparent` of what goes on here, "" when nothing is traced."""
        return ""

    def carry(self, record: _core.Record, origin: str) -> None:
        """Write the trace context into the `meta` of a new job, and `origin`, that of its workflow (section 6.3)."""

    async def close(self) -> None:
        """Send what is left, for a short time at most."""


def about(record: _core.Record) -> Facts:
    """What a span tells of a job (sections 5.1 and 5.2)."""
    return {
        "ojs.job.id": record.id,
        "ojs.job.type": record.type,
        "ojs.job.queue": record.queue,
        "ojs.job.attempt": record.attempt,
        "ojs.job.priority": record.priority,
        "ojs.worker.id": record.worker_id,
    }
