"""NATS headers: written as bytes, read back from what JetStream tells of a stored message."""

import base64
import re
from typing import Any

HEADERS_BEGIN = b"NATS/1.0\r\n"
_FIELD = re.compile(r"\r\n([^:\r\n]+): *([^\r\n]*)")


def headers(**fields: str | int) -> bytes:
    """Headers as bytes; `Nats_TTL="5s"` becomes `Nats-TTL: 5s`."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def headers_of(message: dict[str, Any]) -> dict[str, str]:
    """The headers of a message as `Connection.stored` gives it."""
    return dict(_FIELD.findall(base64.b64decode(message.get("hdrs", "")).decode("latin-1")))
