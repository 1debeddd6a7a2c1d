"""A line for each request (OJS_ACCESS_LOG), in the fields of OpenTelemetry's conventions.

Query strings are left out: they may hold secrets.
"""

from functools import lru_cache
from json.encoder import encode_basestring as quoted  # takes what no UTF-8 is, too: paths may hold anything
from typing import Any

from ojs_fast.api.http import Reply, Request
from ojs_fast.logs import Lines

# Whatever a client asks for ends up in the log.
MOST_PATH = 500


class AccessLog:
    """Tells of requests that were answered."""

    def __init__(self, log_format: str) -> None:
        """`log_format` is a value of OJS_LOG_FORMAT."""
        self._lines = Lines("ojs_fast.access", log_format)

    def tell(self, scope: dict[str, Any], request: Request, reply: Reply, took_s: float) -> None:
        """Log one; `took_s` is the time from its headers to its answer, of a stream to its beginning."""
        method, path, status = scope["method"], scope["path"][:MOST_PATH], reply.status
        client, request_id = scope.get("client"), request.request_id.decode("ascii")
        address = client[0] if client else ""
        if not self._lines.is_text:
            # By hand: a dictionary and a serializer take three times as long.
            self._lines.json(
                f'{_about(method, path, status)},"http.request.body.size":{len(request.body)},'
                f'"http.response.body.size":{len(reply.body)},"duration_ms":{took_s * 1000:.3f},'
                f'"client.address":"{address}","request_id":{quoted(request_id)}'
            )
            return
        self._lines.text(
            _message(method, path, status),
            {
                "http.request.method": method,
                "url.path": path,
                "http.response.status_code": status,
                "http.request.body.size": len(request.body),
                "http.response.body.size": len(reply.body),
                "duration_ms": round(took_s * 1000, 3),
                "client.address": address,
                "request_id": request_id,
            },
        )

    def flush(self) -> None:
        """Write what was gathered."""
        self._lines.flush()


def _message(method: str, path: str, status: int) -> str:
    return f"{method} {path if path.isprintable() else repr(path)[1:-1]} {status}"


@lru_cache(maxsize=256)
def _about(method: str, path: str, status: int) -> str:
    return (
        f'"message":{quoted(_message(method, path, status))},"http.request.method":{quoted(method)},'
        f'"url.path":{quoted(path)},"http.response.status_code":{status}'
    )
