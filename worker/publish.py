"""Publish what a trainer made: files into the storage first, then the records that name them.

Storage paths carry the fencing token, so that two attempts never write the same one; records
appear in the same transaction as the change that names them, which an old token cannot make.
"""

import hashlib
import re
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.contract import comparison
from service.contract.commands import Pipe
from service.contract.files import FileRecord, Files
from service.contract.job import Checkpoint, Event, JobRecord, JobStatus, new_id
from service.contract.models import ModelFile, ModelRecord, Models, tuned_model_id
from service.contract.spec import Trained
from service.contract.storage import Storage
from service.contract.store import Store
from worker.events import CheckpointWritten, Compared, Result
from worker.lease import Lease

METRICS_NAME, REPORT_NAME = "step_metrics.csv", "report.json"
OUTLIERS_NAME = "loss_outliers.csv"


@dataclass(frozen=True)
class Publisher:
    """Publishes for one attempt.

    Attributes:
        base: Name of the model that a result, if it is an adapter, needs under it.
        keep_checkpoints: How many checkpoints stay; older ones go, files and all.
    """

    store: Store
    storage: Storage
    lease: Lease
    record: JobRecord
    base: str
    keep_checkpoints: int

    def remove_leftovers(self) -> None:
        """Delete what earlier attempts stored but died too early to record.

        Raises:
            LostClaim: Another attempt has the job.
            JobFailure: The storage does not answer.
        """
        recorded = {old.path for old in self.lease.insist(self._checkpoints)}
        for folder in (f"checkpoints/{self.record.id}", f"models/{self.record.id}"):
            for path in self.lease.during(partial(self.storage.children, folder)):
                # Never a later attempt's, should this one have lost its claim unawares.
                if path not in recorded and _token(path) < self.lease.claim.token:
                    self.lease.during(partial(self.storage.delete, path))

    def checkpoint(self, line: CheckpointWritten) -> None:
        """Publish a checkpoint's folder, record it with its model, and drop the oldest.

        Raises:
            LostClaim: Another attempt has the job; nothing names the folder then.
            JobFailure: The storage does not answer.
        """
        kind: Trained = (
            "lora" if (line.path / "model" / "adapter_config.json").is_file() else "full"
        )
        path = f"checkpoints/{self.record.id}/{self.lease.claim.token}-{line.step}"
        model = self._model(line.path / "model", f"{path}/model", kind, line.step)
        checkpoint = Checkpoint(
            id=new_id("ftckpt_"),
            created_at=model.created_at,
            step=line.step,
            path=path,
            model=model.id,
            metrics=line.metrics,
        )
        self.lease.during(lambda: self.storage.put_tree(line.path, path))
        dropped = self.lease.insist(
            lambda: self.store.add_checkpoint(
                self.lease.claim, checkpoint, model, keep=self.keep_checkpoints
            )
        )
        for old in dropped:
            self.lease.during(partial(self.storage.delete, old.path))

    def result(self, line: Result) -> None:
        """Publish the model, the metrics and the report, and end the job as succeeded.

        Raises:
            LostClaim: Another attempt has the job; nothing names what was stored then.
            JobFailure: The storage does not answer.
        """
        path = f"models/{self.record.id}/{self.lease.claim.token}"
        model = self._model(line.model, path, line.model_kind, step=None)
        files = [
            self._file(line.metrics_csv, METRICS_NAME),
            self._file(line.report, REPORT_NAME),
            self._file(line.outliers_csv, OUTLIERS_NAME),
        ]
        self.lease.during(lambda: self.storage.put_tree(line.model, path))

        def name_them(pipe: Pipe) -> None:
            Models.write(pipe, model)
            for file in files:
                Files.write(pipe, file)

        self.lease.insist(
            lambda: self.store.transition(
                self.record.id,
                JobStatus.SUCCEEDED,
                Event(message=f"The job succeeded. New model: {model.id}"),
                token=self.lease.claim.token,
                also=name_them,
                fine_tuned_model=model.id,
                result_files=[file.id for file in files],
                trained_tokens=line.trained_tokens,
                receipt=line.receipt,
            )
        )

    def comparison(self, line: Compared) -> None:
        """Publish the reports of a comparison, and end the job as succeeded.

        Raises:
            LostClaim: Another attempt has the job; nothing names what was stored then.
            JobFailure: The storage does not answer.
        """
        files = [
            self._file(line.json_report, comparison.JSON_NAME),
            self._file(line.csv_table, comparison.CSV_NAME),
            self._file(line.html_report, comparison.HTML_NAME),
        ]

        def name_them(pipe: Pipe) -> None:
            for file in files:
                Files.write(pipe, file)

        self.lease.insist(
            lambda: self.store.transition(
                self.record.id,
                JobStatus.SUCCEEDED,
                Event(message="The comparison succeeded; its reports are the result files."),
                token=self.lease.claim.token,
                also=name_them,
                result_files=[file.id for file in files],
            )
        )

    def _model(self, folder: Path, path: str, kind: Trained, step: int | None) -> ModelRecord:
        """The record of a model that is still in a local folder."""
        spec = self.record.spec
        return ModelRecord(
            id=tuned_model_id(spec.model, self.record.org, spec.suffix, self.record.id, step),
            org=self.record.org,
            created_at=int(time.time()),
            base=self.base,
            job_id=self.record.id,
            kind=kind,
            path=path,
            step=step,
            files=[
                ModelFile(name=str(file.relative_to(folder)), bytes=file.stat().st_size)
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ],
        )

    def _checkpoints(self) -> list[Checkpoint]:
        return self.store.checkpoints(self.record.id)

    def _file(self, source: Path, name: str) -> FileRecord:
        """Store a result file; its record is still to be written."""
        with source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        file = FileRecord(
            id=new_id("file-"),
            org=self.record.org,
            bytes=source.stat().st_size,
            created_at=int(time.time()),
            filename=name,
            purpose="fine-tune-results",
            sha256=digest,
        )
        self.lease.during(lambda: _copy(source, self.storage, file.path))
        return file


def _copy(source: Path, storage: Storage, path: str) -> None:
    with source.open("rb") as stream, storage.write(path) as target:
        shutil.copyfileobj(stream, target)


def _token(path: str) -> int:
    """The fencing token of the attempt that stored `path`, which its last part begins with."""
    digits = re.match(r"\d+", path.rpartition("/")[2])
    assert digits is not None, path
    return int(digits[0])
