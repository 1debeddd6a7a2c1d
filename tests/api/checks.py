"""What must be true of answers and of the state behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from tests.support.api import Api

Body = dict[str, Any]

#: Errors by which the server tells about itself, and those by which Python does.
TROUBLE = ("unexpected error", "Traceback", "Unhandled", "never retrieved", "Exception")


class Reply(Protocol):
    """An answer of httpx or of `wire`."""

    @property
    def status_code(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Any:
        """The headers."""

    def json(self) -> Any:
        """Parse the body."""


def refusal(reply: Reply, status: int, *, code: str = "", field: str = "") -> Body:
    """Check an error answer in full (CONTRACT section 9) and return its `error`."""
    assert reply.status_code == status, reply.json()
    assert reply.headers["content-type"] in ("application/openjobspec+json", "application/json")
    assert reply.headers["ojs-version"] == "1.0"
    body = reply.json()
    assert set(body) == {"error"}
    error: Body = body["error"]
    assert isinstance(error["code"], str)
    assert error["code"]
    assert isinstance(error["message"], str)
    assert error["message"].endswith(".")
    assert error["retryable"] is (status in (429, 503))
    assert error["request_id"] == reply.headers["x-request-id"]
    if code:
        assert error["code"] == code, error
    if field:
        assert error["details"]["field"] == field, error
        assert f"'{field}'" in error["message"], error
        # What a client reads must stay short, however large the value was.
        assert len(error["message"]) < 600
    return error


def queue_total(api: Api) -> int:
    """How many queues there are."""
    total: int = api.call("GET", "/queues", params={"limit": 1})["pagination"]["total"]
    return total


def worker_ids(api: Api) -> set[str]:
    """Ids of the workers that sent a heartbeat lately."""
    return {worker["worker_id"] for worker in api.call("GET", "/admin/workers")["items"]}


@contextlib.contextmanager
def nothing_enqueued(api: Api, *queues: str) -> Iterator[None]:
    """Whatever happens inside, no queue appears, the named ones stay unknown and no event tells of a job."""
    before = queue_total(api)
    yield
    assert queue_total(api) == before
    for queue in queues:
        assert api.request("GET", f"/queues/{queue}").status_code == 404
        assert api.fetch(queue) == []
        assert api.events(queues=queue) == []


@contextlib.contextmanager
def job_untouched(api: Api, job_id: str) -> Iterator[None]:
    """Whatever happens inside, the job stays exactly as it is."""
    before = api.get(job_id)
    yield
    assert api.get(job_id) == before
