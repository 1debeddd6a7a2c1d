"""Names of operations, for spans and metrics."""

from __future__ import annotations

from typing import Any

import pytest

from ojs_fast.api.http import V1, Reply
from ojs_fast.api.routes import OPERATIONS, Route


async def handler(_: Any) -> Reply:
    """Answer nothing."""
    return Reply(200, b"")


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("POST", "/jobs", "enqueue"),
        ("POST", "/workers/fetch", "fetch"),
        ("POST", "/jobs/{id}/ack", "ack"),
        ("GET", "/jobs/{id}", "get_job"),
        ("POST", "/jobs/bulk/cancel", "jobs.bulk.cancel"),
        ("POST", "/queues", "queues"),
        ("GET", "/queues/{name}", "queues.get"),
        ("PUT", "/admin/queues/{name}/rate-limit", "admin.queues.rate-limit.put"),
        ("GET", "/metrics", "metrics.get"),
    ],
)
def test_an_operation_is_named_as_specified_or_after_its_path(method: str, path: str, operation: str) -> None:
    """No id, queue or other value of a path is part of the name."""
    assert Route(method, V1 + path, handler).operation == operation


def test_the_specified_names_are_those_of_the_specification() -> None:
    """ojs-distributed-tracing section 4.1, and the heartbeat."""
    specified = {"enqueue", "enqueue_batch", "fetch", "ack", "nack", "cancel", "get_job", "heartbeat"}
    assert set(OPERATIONS.values()) == specified
