"""What the client reads of the API's answers: of each no more than it needs."""

from typing import Generic, TypeVar

from pydantic import BaseModel

from service.datasets import Fault

Answer = TypeVar("Answer", bound=BaseModel)


class Page(BaseModel, Generic[Answer]):
    """A page of a list, or all of it."""

    data: list[Answer]
    has_more: bool = False


class Named(BaseModel):
    """All that is needed of most objects."""

    id: str


class StoredFile(Named):
    """An uploaded or a result file."""

    filename: str
    sha256: str
    expires_at: int | None


class ErrorBody(BaseModel):
    """What the envelope of an error holds."""

    message: str
    code: str | None = None
    faults: list[Fault] | None = None
    fault_count: int = 0


class Envelope(BaseModel):
    """The body of an error."""

    error: ErrorBody
