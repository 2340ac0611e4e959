"""A client of the public HTTP API: what the command line and the demo are allowed to know.

Errors of the API arrive as `ApiError`, all but those of files and keys in its own words. A server
that restarts is waited for.
"""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import BaseModel

from service.contract.job import TERMINAL, JobError, JobStatus, Progress, StoredEvent
from service.contract.memory import MemoryLedger, StepPhases
from service.contract.models import ModelFile
from service.contract.spec import ComparisonOptions, ResolvedOptions
from service.datasets import Fault
from service.estimate_schemas import Estimate

_TIMEOUT_S = 60.0
_AWAY_S = 60.0
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
        """Speak to the server at `url`, which may end in `/v1` as the openai client's does."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1") + "/v1/"
        self._http = httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT_S)

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
            answer = self._send("POST", "files", data={"purpose": "fine-tune"}, files=files)
        file_id: str = answer["id"]
        return file_id

    def same_file(self, sha256: str) -> str | None:
        """The id of a training file that has these bytes and does not expire, if there is one."""
        page = self._get("files", purpose="fine-tune", sha256=sha256)
        found = (file["id"] for file in page["data"] if file["expires_at"] is None)
        return next(found, None)

    def sha256(self, file_id: str) -> str:
        """The hash of a file's bytes, in hex."""
        found: str = self._get(f"files/{file_id}")["sha256"]
        return found

    def delete_file(self, file_id: str) -> None:
        """Delete a file that no unfinished job needs."""
        self._send("DELETE", f"files/{file_id}")

    def create(self, body: dict[str, Any]) -> Job:
        """Create a fine-tuning job, also where the same body has just made another."""
        return self._created("fine_tuning/jobs", body)

    def compare(self, body: dict[str, Any]) -> Job:
        """Create a comparison; it is followed as any job is."""
        return self._created("fine_tuning/comparisons", body)

    def estimate(self, body: dict[str, Any]) -> Estimate:
        """What the job of the same body would need."""
        return Estimate.model_validate(self._send("POST", "fine_tuning/estimate", json=body))

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return Job.model_validate(self._get(f"fine_tuning/jobs/{job_id}"))

    def jobs(self, limit: int) -> list[Job]:
        """The newest jobs."""
        page = self._get("fine_tuning/jobs", limit=limit)
        return [Job.model_validate(job) for job in page["data"]]

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be cancelled."""
        return Job.model_validate(self._send("POST", f"fine_tuning/jobs/{job_id}/cancel"))

    def events_since(self, job_id: str, last: str | None) -> list[StoredEvent]:
        """The events after the one with id `last`, oldest first; all of them where it is None."""
        found: list[StoredEvent] = []
        after: dict[str, str] = {}
        while True:
            page = self._get(f"fine_tuning/jobs/{job_id}/events", limit=_EVENTS_PAGE, **after)
            for item in page["data"]:
                if item["id"] == last:
                    return found[::-1]
                found.append(StoredEvent.model_validate(item))
            if not page["has_more"]:
                return found[::-1]
            after = {"after": found[-1].id}

    def models(self) -> list[str]:
        """Names of the models that can be fine-tuned, and of the fine-tuned ones."""
        return [model["id"] for model in self._get("models")["data"]]

    def download(self, model: str, folder: Path) -> list[ModelFile]:
        """Download the files of a fine-tuned model into `folder`; what they are."""
        path = f"models/{quote(model, safe='')}"
        files = [ModelFile.model_validate(file) for file in self._get(path)["files"]]
        for file in files:
            target = folder / file.name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ApiError(f"The server names a file outside the folder: {file.name}.")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._save(f"{path}/files/{quote(file.name)}", target)
        return files

    def save_file(self, file_id: str, folder: Path) -> Path:
        """Download a file into `folder`, under its own name; where it is."""
        target = folder / Path(self._get(f"files/{file_id}")["filename"]).name
        self._save(f"files/{file_id}/content", target)
        return target

    def _created(self, path: str, body: dict[str, Any]) -> Job:
        # Without a key of its own, it would be taken for a repetition of the other.
        headers = {"Idempotency-Key": uuid4().hex}
        return Job.model_validate(self._send("POST", path, json=body, headers=headers))

    def _save(self, path: str, target: Path) -> None:
        with self._http.stream("GET", path) as response:
            if response.is_error:
                response.read()
            _check(response)
            with target.open("wb") as stream:
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    stream.write(chunk)

    def _get(self, path: str, **query: str | int) -> Any:
        """GET, patient with a server that restarts: asking again changes nothing."""
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                return self._send("GET", path, params=query)
            except Away:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)

    def _send(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._http.request(method, path, **content)
        except httpx.UnsupportedProtocol as error:
            raise ApiError(
                f"The server's URL is {self._http.base_url}; expected http:// or https://."
            ) from error
        except httpx.TransportError as error:
            raise Away(f"No answer from {self._http.base_url}: {error}.") from error
        _check(response)
        return response.json()


def _check(response: httpx.Response) -> None:
    """Raise what an error envelope says."""
    if response.is_success:
        return
    kind = Away if response.status_code in _TRANSIENT else ApiError
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        raise kind(f"The server answered {response.status_code} to {response.url}.") from None
    raise kind(_words(error, response), error.get("code"))


def _words(error: dict[str, Any], response: httpx.Response) -> str:
    """The message of an error; faults are a list, and a header is not what the caller gave."""
    if error.get("code") == "invalid_api_key":
        known = "Authorization" in response.request.headers
        return "The server does not know this API key." if known else "The server wants an API key."
    if "faults" not in error:
        return str(error["message"])
    faults, count = [Fault.model_validate(fault) for fault in error["faults"]], error["fault_count"]
    head = f"The file has {count:,} fault{'' if count == 1 else 's'}"
    first = f", of which the first {len(faults)} are" if count > len(faults) else ""
    return "\n  ".join([f"{head}{first}:", *map(str, faults)])
