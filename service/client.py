"""A client of the public HTTP API: what the command line and the demo are allowed to know.

Errors of the API arrive as `ApiError`, all but those of files and keys in its own words; so does an
answer that is not the API's. A server that restarts is waited for.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from service.answers import Answer, Envelope, ErrorBody, Named, Page, StoredFile
from service.contract.job import TERMINAL, JobError, JobStatus, Progress, StoredEvent
from service.contract.memory import MemoryLedger, StepPhases
from service.contract.models import ModelFile
from service.contract.spec import ComparisonOptions, ResolvedOptions
from service.estimate_schemas import Estimate

_TIMEOUT_S = 60.0
_AWAY_S = 60.0
_START_S = 5.0
_RETRY_S = 1.0
_EVENTS_PAGE = 100
_TRANSIENT = frozenset({502, 503, 504})
_CHUNK_BYTES = 1 << 20


class ApiError(Exception):
    """The server refused a request, or cannot be reached.

    Attributes:
        code: The API's stable code, or None where there was no answer.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class Away(ApiError):
    """No answer, or one that says to try again: what was asked for may have been done."""


class Job(BaseModel):
    """What a follower needs of the job resource."""

    id: str
    created_at: int
    finished_at: int | None
    model: str
    status: JobStatus
    error: JobError | None = None
    fine_tuned_model: str | None
    trained_tokens: int | None
    queue_position: int | None = None
    attempt: int = 0
    progress: Progress | None = None
    memory: MemoryLedger | None = None
    phases: StepPhases | None = None
    resolved: ResolvedOptions | None = None
    result_files: list[str] = []
    comparison: ComparisonOptions | None = None

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL


class Client:
    """Requests to one server."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Speak to the server at `url`, which may end in `/v1` as the openai client's does.

        Raises:
            ApiError: No server can have such a URL, or know such a key.
        """
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ApiError("The API key has characters that fit into no header; expected ASCII.")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1") + "/v1/"
        try:
            self._http = httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT_S)
        except httpx.InvalidURL as error:
            raise ApiError(f"The server's URL is {url}: {error}.") from error
        self._met = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def upload(self, path: Path) -> str:
        """Upload a training or validation file; its id."""
        with path.open("rb") as stream:
            files = {"file": (path.name, stream, "application/jsonl")}
            form = {"purpose": "fine-tune"}
            return self._send(Named, "POST", "files", data=form, files=files).id

    def same_file(self, sha256: str) -> str | None:
        """The id of a training file that has these bytes and does not expire, if there is one."""
        page = self._get(Page[StoredFile], "files", purpose="fine-tune", sha256=sha256)
        found = (file.id for file in page.data if file.expires_at is None)
        return next(found, None)

    def sha256(self, file_id: str) -> str:
        """The hash of a file's bytes, in hex."""
        return self._get(StoredFile, f"files/{_part(file_id)}").sha256

    def delete_file(self, file_id: str) -> None:
        """Delete a file that no unfinished job needs."""
        self._send(Named, "DELETE", f"files/{_part(file_id)}")

    def create(self, body: dict[str, Any]) -> Job:
        """Create a fine-tuning job, also where the same body has just made another."""
        return self._created("fine_tuning/jobs", body)

    def compare(self, body: dict[str, Any]) -> Job:
        """Create a comparison; it is followed as any job is."""
        return self._created("fine_tuning/comparisons", body)

    def estimate(self, body: dict[str, Any]) -> Estimate:
        """What the job of the same body would need."""
        return self._send(Estimate, "POST", "fine_tuning/estimate", json=body)

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return self._get(Job, f"fine_tuning/jobs/{_part(job_id)}")

    def jobs(self, limit: int) -> list[Job]:
        """The newest jobs."""
        return self._get(Page[Job], "fine_tuning/jobs", limit=limit).data

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be cancelled."""
        return self._send(Job, "POST", f"fine_tuning/jobs/{_part(job_id)}/cancel")

    def events_since(self, job_id: str, last: str | None) -> list[StoredEvent]:
        """The events after the one with id `last`, oldest first; all of them where it is None."""
        path = f"fine_tuning/jobs/{_part(job_id)}/events"
        found: list[StoredEvent] = []
        after: dict[str, str] = {}
        while True:
            page = self._get(Page[StoredEvent], path, limit=_EVENTS_PAGE, **after)
            for event in page.data:
                if event.id == last:
                    return found[::-1]
                found.append(event)
            if not page.has_more:
                return found[::-1]
            after = {"after": found[-1].id}

    def models(self) -> list[str]:
        """Names of the models that can be fine-tuned, and of the fine-tuned ones."""
        return [model.id for model in self._get(Page[Named], "models").data]

    def download(self, model: str, folder: Path) -> list[ModelFile]:
        """Download the files of a fine-tuned model into `folder`; what they are."""
        path = f"models/{_part(model)}/files"
        files = self._get(Page[ModelFile], path).data
        for file in files:
            target = folder / file.name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ApiError(f"The server names a file outside the folder: {file.name}.")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._save(f"{path}/{quote(file.name)}", target)
        return files

    def save_file(self, file_id: str, folder: Path) -> Path:
        """Download a file into `folder`, under its own name; where it is."""
        path = f"files/{_part(file_id)}"
        target = folder / Path(self._get(StoredFile, path).filename).name
        self._save(f"{path}/content", target)
        return target

    def _created(self, path: str, body: dict[str, Any]) -> Job:
        # Without a key of its own, it would be taken for a repetition of the other.
        headers = {"Idempotency-Key": uuid4().hex}
        return self._send(Job, "POST", path, json=body, headers=headers)

    def _save(self, path: str, target: Path) -> None:
        """Download aside first: what has the file's name is whole."""
        aside = target.with_name(f"{target.name}.part")
        try:
            with self._answered(), self._http.stream("GET", path) as response:
                if response.is_error:
                    response.read()
                _check(response)
                with aside.open("wb") as stream:
                    for chunk in response.iter_bytes(_CHUNK_BYTES):
                        stream.write(chunk)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    def _get(self, kind: type[Answer], path: str, **query: str | int) -> Answer:
        """GET, patient with a server that restarts: asking again changes nothing.

        One that has never answered is starting, or else the URL is wrong.
        """
        began = time.monotonic()
        while True:
            try:
                return self._send(kind, "GET", path, params=query)
            except Away:
                if time.monotonic() > began + (_AWAY_S if self._met else _START_S):
                    raise
                time.sleep(_RETRY_S)

    def _send(self, kind: type[Answer], method: str, path: str, **content: Any) -> Answer:
        with self._answered():
            response = self._http.request(method, path, **content)
        self._met = True
        _check(response)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise ApiError(f"{response.url} does not answer as Headroom does.") from error

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Raise what it means for the caller that no answer came, or not all of it."""
        try:
            yield
        except httpx.UnsupportedProtocol as error:
            raise ApiError(
                f"The server's URL is {self._http.base_url}; expected http:// or https://."
            ) from error
        except httpx.TransportError as error:
            raise Away(f"No answer from {self._http.base_url}: {error}.") from error


def _part(text: str) -> str:
    """What a caller gave, as one part of a path."""
    return quote(text, safe="")


def _check(response: httpx.Response) -> None:
    """Raise what an error envelope says."""
    if response.is_success:
        return
    kind = Away if response.status_code in _TRANSIENT else ApiError
    try:
        error = Envelope.model_validate_json(response.content).error
    except ValidationError:
        raise kind(f"The server answered {response.status_code} to {response.url}.") from None
    raise kind(_words(error, response), error.code)


def _words(error: ErrorBody, response: httpx.Response) -> str:
    """The message of an error; faults are a list, and a header is not what the caller gave."""
    if error.code == "invalid_api_key":
        known = "Authorization" in response.request.headers
        return "The server does not know this API key." if known else "The server wants an API key."
    if error.faults is None:
        return error.message
    count, listed = error.fault_count, len(error.faults)
    head = f"The file has {count:,} fault{'' if count == 1 else 's'}"
    first = f", of which the first {listed} are" if count > listed else ""
    return "\n  ".join([f"{head}{first}:", *map(str, error.faults)])
