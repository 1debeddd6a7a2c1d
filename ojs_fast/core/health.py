"""Health: does NATS answer, how fast."""

import time
from typing import Any

from ojs_fast import __version__
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable


class Health:
    """The report of `GET /health`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._started = time.monotonic()

    async def check(self) -> dict[str, Any]:
        """`status` is ok or degraded (ojs-http-binding section 8.1)."""
        report: dict[str, Any] = {
            "status": "ok",
            "version": __version__,
            "uptime_seconds": int(time.monotonic() - self._started),
        }
        asked = time.perf_counter()
        try:
            await self._connection.api("INFO")
        except Unavailable as error:
            backend = {"type": "nats", "status": "unhealthy", "error": str(error)}
            return report | {"status": "degraded", "backend": backend}
        latency_ms = round((time.perf_counter() - asked) * 1000, 3)
        return report | {"backend": {"type": "nats", "status": "healthy", "latency_ms": latency_ms}}
