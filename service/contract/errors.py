"""Every error that Headroom raises on purpose, as one tree.

    HeadroomError
    ├── RequestError            the caller can mend it
    │   ├── InvalidRequest      a field, a value or a file is wrong
    │   ├── Unauthenticated     no API key, or not one of ours
    │   ├── NotFound            no such object, or not the caller's
    │   ├── Conflict            right in itself, wrong in the object's present state
    │   └── TooLarge            over a documented limit
    ├── Unavailable             Redis or the storage does not answer; nothing was lost, try again
    ├── LostClaim               a write with an old fencing token: another attempt owns the job
    └── JobFailure              ends a job; its code is the job's `error.code`

Codes are stable: clients and dashboards match on them. Messages are for people.
"""

from typing import Any, ClassVar, Literal

JobFailureCode = Literal[
    "invalid_training_file",
    "invalid_validation_file",
    "unsupported_model",
    "model_unavailable",
    "loss_parity_failed",
    "training_diverged",
    "out_of_memory",
    "storage_unavailable",
    "trainer_crashed",
    "worker_lost",
    "device_unavailable",
]


class HeadroomError(Exception):
    """The root: a stable code, a message for people, and the parameter at fault.

    Attributes:
        code: Stable identifier, for example `model_not_found`.
        message: What was got and what is expected.
        param: The request field at fault, in dotted form, or None.
    """

    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.param = param


class RequestError(HeadroomError):
    """The caller can mend it."""

    default_code = "invalid_request"


class InvalidRequest(RequestError):
    """A field, a value or a file is wrong."""


class Unauthenticated(RequestError):
    """No API key was sent, or not one of ours."""

    default_code = "invalid_api_key"


class NotFound(RequestError):
    """No such object, or it belongs to another organization."""

    default_code = "not_found"


class Conflict(RequestError):
    """Right in itself, but wrong in the object's present state."""

    default_code = "conflict"


class TooLarge(RequestError):
    """Over a documented limit."""

    default_code = "too_large"


class Unavailable(HeadroomError):
    """Redis or the storage does not answer; nothing was lost, and a retry is right."""

    default_code = "storage_unavailable"


class LostClaim(HeadroomError):
    """A write came with an old fencing token: another attempt owns the job now."""

    default_code = "lost_claim"


class JobFailure(HeadroomError):
    """Ends a job with status `failed`; `code` is one of `JobFailureCode`.

    Attributes:
        data: What the job's event tells beside the message.
    """

    def __init__(
        self,
        code: JobFailureCode,
        message: str,
        *,
        param: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.data = data or {}
