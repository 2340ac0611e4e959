"""Turn a job record into the trainer's run spec: find the model, fetch the data and checkpoint."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from service.contract.errors import JobFailure, JobFailureCode, NotFound
from service.contract.files import Files
from service.contract.job import JobRecord
from service.contract.models import BaseModels, Models
from service.contract.storage import Storage
from service.contract.store import Store
from worker.events import DataSource, DeviceChoice, Mode, RunSpec
from worker.lease import Lease

_FileField = Literal["training_file", "validation_file"]
_FILE_FAILURES: dict[_FileField, JobFailureCode] = {
    "training_file": "invalid_training_file",
    "validation_file": "invalid_validation_file",
}


@dataclass(frozen=True)
class ModelSource:
    """The model that a job tunes.

    Attributes:
        load: What `from_pretrained` loads: a folder, or a hub id.
        under: What to load under `load`, where that is an adapter.
        base: Name of the model that an adapter trained from here needs under it.
    """

    load: str
    under: str | None
    base: str


@dataclass(frozen=True)
class Preparation:
    """Finds the parts of a run spec, under an attempt's lease."""

    store: Store
    storage: Storage
    files: Files
    models: Models
    base_models: BaseModels
    device: DeviceChoice

    def run_spec(
        self, record: JobRecord, mode: Mode, model: ModelSource, workdir: Path, lease: Lease
    ) -> RunSpec:
        """All that a trainer needs, on the local disk.

        Raises:
            JobFailure: A file is gone, or the storage does not answer.
        """
        spec, reduced = record.spec, record.reduced_batch
        data = partial(self._data, org=record.org, workdir=workdir, lease=lease)
        return RunSpec(
            mode=mode,
            job_id=record.id,
            job=spec,
            model_source=model.load,
            base_model=model.under,
            training=data(spec.training_file, "training_file"),
            validation=data(spec.validation_file, "validation_file")
            if spec.validation_file
            else None,
            workdir=workdir,
            resume_from=self._checkpoint(record, workdir, lease) if mode == "train" else None,
            device=self.device,
            max_micro_batch_size=reduced.micro_batch_size if reduced else None,
            settled=record.micro_batch,
            ledger=record.memory,
        )

    def model(self, record: JobRecord, workdir: Path, lease: Lease) -> ModelSource:
        """Find the job's model: one of the allow-list, or one that a job of the caller made.

        Raises:
            JobFailure: It is not there or can't be read, or the storage does not answer.
        """
        name = record.spec.model
        if source := self._base(name):
            return ModelSource(source, None, name)
        try:
            return self._tuned(record.org, name, workdir, lease)
        except NotFound as error:
            message = f"Model {name} is not on this worker, or was deleted."
            raise JobFailure("model_unavailable", message, param="model") from error

    def _base(self, name: str) -> str | None:
        """What to load for a model of the allow-list: a folder that can be read, or a hub id.

        Raises:
            JobFailure: The worker can't read the folder.
        """
        source = self.base_models.source(name)
        if source is not None and Path(source).is_absolute():
            _check_readable(Path(source))
        return source

    def _tuned(self, org: str, name: str, workdir: Path, lease: Lease) -> ModelSource:
        """A model that a job made, with what it needs under it."""
        tuned = lease.insist(lambda: self.models.get(org, name))
        load = self._fetch(tuned.path, workdir, lease)
        if tuned.kind == "full":
            return ModelSource(load, None, name)
        under = self._base(tuned.base)
        if under is None:
            full = lease.insist(lambda: self.models.get(org, tuned.base))
            under = self._fetch(full.path, workdir, lease)
        return ModelSource(load, under, tuned.base)

    def _data(
        self, file_id: str, field: _FileField, *, org: str, workdir: Path, lease: Lease
    ) -> DataSource:
        code = _FILE_FAILURES[field]
        try:
            file = lease.insist(lambda: self.files.get(org, file_id))
            path = Path(self._fetch(file.path, workdir, lease))
        except NotFound as error:
            raise JobFailure(code, f"File {file_id} was deleted.", param=field) from error
        if file.format is None:
            raise JobFailure(code, f"File {file_id} is not a checked dataset.", param=field)
        return DataSource(path=path, format=file.format, sha256=file.sha256)

    def _checkpoint(self, record: JobRecord, workdir: Path, lease: Lease) -> Path | None:
        """The newest checkpoint of the job that is still whole."""
        for checkpoint in lease.insist(lambda: self.store.checkpoints(record.id)):
            with suppress(NotFound):
                return Path(self._fetch(checkpoint.path, workdir, lease))
        return None

    def _fetch(self, path: str, workdir: Path, lease: Lease) -> str:
        return str(lease.during(lambda: self.storage.fetch(path, workdir)))


def _check_readable(folder: Path) -> None:
    """Name the file that can't be read: the library that opens weights calls it missing."""
    for path in _with_files(folder):
        if not os.access(path, os.R_OK):
            message = (
                f"The worker can't read {path}: it is another user's (chmod -R a+rX opens it),"
                " or a link that leads nowhere on this machine."
            )
            raise JobFailure("model_unavailable", message, param="model")


def _with_files(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (path for path in folder.iterdir() if not path.is_dir())
