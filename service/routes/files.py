"""/v1/files: training data in, results out."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from starlette.concurrency import run_in_threadpool

from service import artefacts
from service.contract.spec import Purpose
from service.deps import GuardedRoute, Organization, ServicesDep
from service.openapi import BINARY, links
from service.problems import ERROR_RESPONSES
from service.schemas import Deleted, File, Listing

PATH = "/v1/files"
router = APIRouter(prefix=PATH, tags=["Files"], responses=ERROR_RESPONSES, route_class=GuardedRoute)

_HOUR_S, _DAY_S = 3600, 86_400
_OF_FILE = ("get_file", "get_file_content", "delete_file")


class FileCreate(BaseModel):
    """The form of an upload."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(
        description="JSON lines in UTF-8, of one format: "
        '`{"messages": [...]}`, or `{"text": "..."}`.',
        examples=['{"text": "Any text, to be learned as it stands."}\n'],
    )
    purpose: Literal["fine-tune"]
    # A form has no null, although a field may be absent from it.
    anchor: Literal["created_at"] | SkipJsonSchema[None] = Field(
        None, alias="expires_after[anchor]"
    )
    seconds: Annotated[int, Field(ge=_HOUR_S, le=30 * _DAY_S)] | SkipJsonSchema[None] = Field(
        None, alias="expires_after[seconds]", description="From one hour to thirty days."
    )

    @field_validator("file", mode="before")
    @classmethod
    def _is_file(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("Expected a file: a part of the form that has a filename")  # noqa: TRY004 -- pydantic wants it
        return value

    @field_validator("file")
    @classmethod
    def _has_a_name_in_unicode(cls, value: UploadFile) -> UploadFile:
        """The charset of the form is the caller's choice: with some, half a character is one."""
        try:
            (value.filename or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"Expected a filename in Unicode; got {value.filename!a}") from error
        return value

    @model_validator(mode="after")
    def _anchor_with_seconds(self) -> "FileCreate":
        if (self.anchor is None) != (self.seconds is None):
            raise ValueError("expires_after needs both its anchor and its seconds")
        return self


@router.post("", responses={200: {"links": links("file_id", *_OF_FILE)}})
async def upload_file(
    form: Annotated[FileCreate, Form(media_type="multipart/form-data")],
    org: Organization,
    services: ServicesDep,
) -> File:
    """Upload a training file; every structural fault is found here, before any job.

    A faulty file is refused with the code `invalid_training_file`: `error.faults` lists the first
    100 faults with line, path and message, and `error.fault_count` says how many there are.
    """
    name = form.file.filename or "upload.jsonl"
    async with services.uploads:
        record = await run_in_threadpool(
            artefacts.upload, services, org, form.file.file, name, form.seconds
        )
    return File.of(record)


@router.get("")
def list_files(
    *,
    org: Organization,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Purpose | None = None,
    sha256: Annotated[
        str | None,
        Query(pattern="^[0-9a-f]{64}$", description="Extension: only files with these bytes."),
    ] = None,
) -> Listing[File]:
    """Files, in order of creation."""
    page = services.files.page(
        org,
        after=after,
        limit=limit,
        ascending=order == "asc",
        purpose=purpose,
        sha256=sha256,
    )
    return Listing.of([File.of(record) for record in page.items], has_more=page.has_more)


@router.get("/{file_id}")
def get_file(file_id: str, org: Organization, services: ServicesDep) -> File:
    """What is known of a file."""
    return File.of(services.files.get(org, file_id))


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=BINARY)
def get_file_content(file_id: str, org: Organization, services: ServicesDep) -> StreamingResponse:
    """The bytes of a file."""
    record = services.files.get(org, file_id)
    headers = {
        "Content-Length": str(record.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(record.filename, safe='')}",
    }
    stream = artefacts.stream_file(services, record)
    return StreamingResponse(stream, media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}")
def delete_file(file_id: str, org: Organization, services: ServicesDep) -> Deleted:
    """Delete a file that no unfinished job needs."""
    artefacts.delete_file(services, org, file_id)
    return Deleted(id=file_id, object="file")
