"""The trainer in this process: a run spec in, its lines out."""

import hashlib
import os
from pathlib import Path
from typing import Any, TypeVar

from service.contract.spec import Hyperparameters, JobSpec, LossOptions, TrainingOptions
from tests.support.tiny_llama import dataset, essays
from worker.events import LINE, DataSource, Line, RunSpec
from worker.training.reporter import Reporter
from worker.training.trainer import train

Kind = TypeVar("Kind")


def run_spec(folder: Path, model: Path, texts: list[str] | None = None, **given: Any) -> RunSpec:
    """What the supervisor would write: two epochs of `texts`, a row each."""
    folder.mkdir(exist_ok=True)
    data = folder / "train.jsonl"
    data.write_bytes(dataset(essays(8, length=120) if texts is None else texts))
    source = DataSource(
        path=data, format="text", sha256=hashlib.sha256(data.read_bytes()).hexdigest()
    )
    options = {
        "learning_rate": 1e-3,
        "max_seq_length": 128,
        "memory_ledger": False,
        "dtype": "float32",
    }
    hyperparameters = {"n_epochs": 2, "batch_size": 2}
    return RunSpec(
        mode="train",
        job_id="ftjob-1",
        job=JobSpec(
            model="tiny",
            training_file="file-1",
            seed=3,
            hyperparameters=Hyperparameters(**{**hyperparameters, **given.pop("hyper", {})}),
            options=TrainingOptions(
                loss=LossOptions(**given.pop("loss", {})), **{**options, **given.pop("options", {})}
            ),
        ),
        model_source=str(model),
        training=source,
        workdir=folder,
        **given,
    )


def lines_of(spec: RunSpec) -> list[Line]:
    """Train, and return what the trainer wrote."""
    path = spec.workdir / "events.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        train(spec, Reporter(descriptor))
    finally:
        os.close(descriptor)
    return [LINE.validate_json(line) for line in path.read_bytes().splitlines()]


def of_kind(kind: type[Kind], lines: list[Line]) -> list[Kind]:
    """The lines of one kind."""
    return [line for line in lines if isinstance(line, kind)]
