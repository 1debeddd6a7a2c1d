"""What clients do with workflows: create, read, list, cancel, retry."""

import base64
import binascii
import logging
from dataclasses import dataclass
from typing import Any

from ojs_fast import _core
from ojs_fast.core.clock import NowMs
from ojs_fast.core.workflows.creator import Creator
from ojs_fast.core.workflows.driver import Driver
from ojs_fast.core.workflows.model import TYPES
from ojs_fast.core.workflows.store import Run, WorkflowStore, workflow_not_found
from ojs_fast.core.workflows.view import View
from ojs_fast.errors import BackendUnavailable, Conflict, InvalidRequest, NotFound
from ojs_fast.storage.errors import Unavailable

log = logging.getLogger(__name__)

PAGE = 500
SCANNED = 20_000
RESTARTED_S = 1.0
STATES = ("running", "completed", "failed", "cancelled")

# Without its steps, and with them; JSON objects.
Shown = tuple[bytes, bytes]


@dataclass(slots=True, frozen=True)
class Page:
    """One page of a listing; `next_cursor` is "" on the last one."""

    workflows: list[dict[str, Any]]
    total: int
    next_cursor: str


class Workflows:
    """The operations of `/workflows`."""

    def __init__(self, store: WorkflowStore, creator: Creator, driver: Driver, view: View, clock: NowMs) -> None:
        self._store = store
        self._creator = creator
        self._driver = driver
        self._view = view
        self._clock = clock
        self._ids = _core.UuidV7Generator()

    async def create(self, body: bytes, steps_shown: int) -> tuple[str, Shown]:
        """Store a workflow and start it: `(id, what to show)`. Raises OJSError, Unavailable.

        Once its header is stored it runs, also when this node dies before it answers.
        """
        draft = self._creator.draft(body)
        run = await self._creator.create(self._ids.next(self._clock()), draft, None)
        try:
            await self._begin(run)
            return run.header.id, await self._view.whole(run, 0, steps_shown)
        except NotFound:
            # A NATS server that has just begun to lead may not have applied yet what was acknowledged before.
            self._driver.look(run.header.id)
            raise BackendUnavailable(f"Workflow '{run.header.id}' is stored, but NATS does not show it yet.") from None

    async def _begin(self, run: Run) -> None:
        try:
            await self._driver.begin(run)
        except (Unavailable, BackendUnavailable) as error:
            log.warning("workflow starts late: %s", error, extra={"ojs.workflow_id": run.header.id})
            self._driver.look(run.header.id)

    async def get(self, workflow_id: str, offset: int, limit: int) -> Shown:
        """A workflow with `limit` of its steps from `offset` on. Raises NotFound, Unavailable."""
        return await self._view.whole(await self._load(workflow_id), offset, limit)

    async def _load(self, workflow_id: str) -> Run:
        if not _core.is_uuid7(workflow_id):
            raise workflow_not_found(workflow_id[:100])
        await self._driver.settled(workflow_id)
        return await self._store.load(workflow_id)

    async def cancel(self, workflow_id: str, steps_shown: int) -> Shown:
        """Running → cancelled: what waits is cancelled, what is active may finish. Raises OJSError, Unavailable."""
        run = await self._load(workflow_id)
        if not await self._driver.cancel(run):
            raise _conflict(run, "cancel", "running")
        return await self._view.whole(await self._store.load(workflow_id), 0, steps_shown)

    async def retry(self, workflow_id: str, steps_shown: int) -> Shown:
        """Failed → running: what did not complete runs again, as new jobs. Raises OJSError, Unavailable."""
        run = await self._load(workflow_id)
        if run.header.parent is not None:
            raise Conflict(
                f"Workflow '{workflow_id}' is nested; expected its outer workflow '{run.header.parent[0]}'.",
                details={"workflow_id": workflow_id, "parent_id": run.header.parent[0]},
            )
        if not await self._driver.restart(run):
            raise _conflict(run, "retry", "failed")
        await self._driver.settled(workflow_id, RESTARTED_S)
        return await self._view.whole(await self._store.load(workflow_id), 0, steps_shown)

    # -- list ------------------------------------------------------------------------------------

    async def page(self, *, state: str, type_: str, limit: int, cursor: str, offset: int) -> Page:
        """Workflows by the time of their last change, oldest first; "" matches all. Raises OJSError, Unavailable."""
        for name, value, allowed in (("state", state, STATES), ("type", type_, TYPES)):
            if value and value not in allowed:
                raise InvalidRequest(
                    f"Parameter '{name}' is '{value[:60]}'; expected one of {', '.join(allowed)}.",
                    details={"field": name, "received": value[:60], "expected": list(allowed)},
                )
        after = _decode_cursor(cursor)
        found: list[Run] = []
        for _ in range(SCANNED // PAGE):
            page, after = await self._store.page(after, PAGE)
            found += [
                run
                for run in page
                if (not state or run.header.state == state) and (not type_ or run.header.type == type_)
            ]
            if not after or (len(found) > offset + limit):
                break
        shown = found[offset : offset + limit]
        has_more = len(found) > offset + limit or bool(after)
        next_cursor = _encode_cursor(shown[-1].revision if shown else after) if has_more else ""
        total = len(found) if state or type_ else await self._store.count()
        return Page(await self._view.summaries(shown), total, next_cursor)


def _conflict(run: Run, operation: str, expected: str) -> Conflict:
    header = run.header
    return Conflict(
        f"Cannot {operation} workflow '{header.id}' in state '{header.state}'; expected '{expected}'.",
        details={"workflow_id": header.id, "current_state": header.state, "expected_state": expected},
    )


def _encode_cursor(revision: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % revision).decode().rstrip("=")


def _decode_cursor(text: str) -> int:
    if not text:
        return 0
    try:
        revision = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if not (revision.isdigit() and len(revision) < 19):
            raise ValueError(text)  # noqa: TRY301 - joins the decoder's own errors
        return int(revision)
    except (ValueError, binascii.Error):
        raise InvalidRequest(
            f"Parameter 'cursor' is '{text[:60]}'; expected the 'next_cursor' of an earlier answer.",
            details={"field": "cursor", "received": text[:60]},
        ) from None
