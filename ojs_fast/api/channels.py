"""Channels of live events by name, for server-sent events and WebSocket alike (ojs-realtime sections 2 and 3.2)."""

from ojs_fast import _core
from ojs_fast.core.jobs import Jobs
from ojs_fast.core.live import ALL, LiveEvent, state_now
from ojs_fast.core.queue_admin import QueueAdmin
from ojs_fast.core.refusals import refused
from ojs_fast.errors import invalid_parameter

EXPECTED = "job:<id>, queue:<name> or all"


class Channels:
    """What can be listened to."""

    def __init__(self, jobs: Jobs, queue_admin: QueueAdmin) -> None:
        self._jobs = jobs
        self._queue_admin = queue_admin

    async def check(self, channel: object) -> str:
        """The channel, if what it names exists; "" stands for everything.

        Raises InvalidRequest, NotFound, Unavailable.
        """
        kind, _, name = channel.partition(":") if isinstance(channel, str) else ("", "", "")
        if kind == "job" and name:
            await self._jobs.load(name)
        elif kind == "queue" and name:
            try:
                _core.check_queue_name(name, "name")
            except ValueError as error:
                raise refused(error) from None
            await self._queue_admin.find(name)
        elif channel not in ("", ALL):
            raise invalid_parameter("channel", str(channel), EXPECTED)
        return str(channel) or ALL

    async def last_event(self, channel: str) -> LiveEvent | None:
        """The only thing that a job that has ended still tells. Raises NotFound, Unavailable."""
        kind, _, name = channel.partition(":")
        if kind != "job":
            return None
        record, _, _ = await self._jobs.load(name)
        return state_now(record) if _core.is_terminal(record.state) else None
