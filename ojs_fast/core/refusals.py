"""The answers to bodies that `_core` refuses."""

from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.errors import InvalidPayload, InvalidRequest, OJSError, ValidationFailed


def refused(error: Exception) -> OJSError:
    """The answer to a body that `_core` refused."""
    if isinstance(error, _core.EnvelopeError):
        kind = ValidationFailed if error.retry_policy else InvalidRequest
        return kind(
            str(error),
            details={"field": error.field, "received": error.received, "expected": error.expected},
        )
    if isinstance(error, _core.JsonError):
        return InvalidPayload(
            f"The request body is not valid JSON: {error}.",
            details={"position": error.position, "reason": error.reason},
        )
    return InvalidRequest("The request body must be a JSON object.", details={"expected": "object"})


def decode_field(raw: bytes, field: str) -> Any:
    """Decode one field of a scanned body. Raises InvalidRequest for a number that no double can hold."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        shown = raw[:60].decode("utf-8", "replace")
        raise InvalidRequest(
            f"Field '{field}' is {shown}; expected numbers within the range of a double.",
            details={"field": field, "received": shown, "expected": "numbers within the range of a double"},
        ) from None
