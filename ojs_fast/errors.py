"""What the server answers when it cannot do what was asked: OJS error codes and details, no HTTP."""

from typing import Any


class OJSError(Exception):
    """Root of all answers that are errors. `code` is from ojs-http-binding section 16.3."""

    code = "backend_error"
    retryable = False

    def __init__(self, message: str, *, details: dict[str, Any] | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.hint = hint


class InvalidPayload(OJSError):
    """The body is not JSON."""

    code = "invalid_payload"


class InvalidRequest(OJSError):
    """A field breaks a rule."""

    code = "invalid_request"


class InvalidWorkflow(OJSError):
    """The shape of a workflow breaks a rule."""

    code = "invalid_workflow"


class ValidationFailed(OJSError):
    """The retry policy breaks a rule (422)."""

    code = "validation_error"


class PayloadTooLarge(OJSError):
    """The body is larger than the server takes (413)."""

    code = "payload_too_large"


class BatchTooLarge(OJSError):
    """A bulk request names too many jobs (ojs-bulk-operations section 9.1). `details`: max_batch_size."""

    code = "BATCH_SIZE_EXCEEDED"


class NotFound(OJSError):
    """There is no such resource."""

    code = "not_found"


class Conflict(OJSError):
    """The job is in another state than the operation needs."""

    code = "conflict"


class Duplicate(OJSError):
    """A job with this id exists."""

    code = "duplicate"


class QueueFull(OJSError):
    """The queue has reached its bound (ojs-backpressure section 7.1). `details`: queue, depth, bound, strategy."""

    code = "QUEUE_FULL"
    retryable = True


class JobTypeNotAllowed(OJSError):
    """The queue does not take this type of job (ojs-queue-config section 6.5)."""

    code = "job_type_not_allowed"


class Unauthorized(OJSError):
    """The API key is missing or wrong."""

    code = "unauthorized"


class Forbidden(OJSError):
    """The API key is known but lacks the scope that the endpoint needs."""

    code = "forbidden"


class Unsupported(OJSError):
    """The client asks for a version or feature that this server does not have."""

    code = "unsupported"


class MethodNotAllowed(OJSError):
    """The resource exists, but not with this method."""

    code = "invalid_request"


class BackendUnavailable(OJSError):
    """NATS does not answer; the client should come back."""

    code = "backend_error"
    retryable = True


def invalid_field(field: str, value: object, expected: str) -> InvalidRequest:
    """400 for a member of the body; `value` None means that it is missing."""
    shown = "missing" if value is None else repr(value)[:80]
    return InvalidRequest(
        f"Field '{field[:80]}' is {shown}; expected {expected}.",
        details={"field": field[:80], "received": shown, "expected": expected},
    )


def invalid_parameter(name: str, value: str, expected: str) -> InvalidRequest:
    """400 for a parameter of the query."""
    shown = value[:60]
    return InvalidRequest(
        f"Parameter '{name}' is '{shown}'; expected {expected}.",
        details={"field": name, "received": shown, "expected": expected},
    )


def job_not_found(job_id: str) -> NotFound:
    """404 for a job id."""
    return NotFound(
        f"Job '{job_id}' not found.",
        details={"resource_type": "job", "resource_id": job_id},
        hint="Check the id. Finished jobs leave the store when their retention time is over.",
    )


def illegal_transition(job_id: str, operation: str, state: str, expected: tuple[str, ...]) -> Conflict:
    """409 for an operation that the job's state does not allow."""
    return Conflict(
        f"Cannot {operation} job '{job_id}' in state '{state}'; expected {' or '.join(repr(s) for s in expected)}.",
        details={"job_id": job_id, "current_state": state, "expected_state": "|".join(expected)},
    )
