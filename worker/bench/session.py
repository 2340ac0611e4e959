"""A job's session on a model of the benchmark and random rows: what the trainer works with."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, get_scheduler

from cce_core import LossConfig
from service.contract.resolve import resolve
from service.contract.spec import Hyperparameters, JobSpec, TrainingOptions
from worker.bench.models import SHAPES, Subject, build
from worker.events import DataSource, RunSpec
from worker.training.checkpoint import Run
from worker.training.examples import Example
from worker.training.reporter import Reporter
from worker.training.session import Data, Session

_NOWHERE = Path("/dev/null")


@contextmanager
def full_fine_tuning(
    name: str, device: torch.device, *, sequences: int, seq_length: int, steps: int, rows: int
) -> Iterator[Session]:
    """A job that trains all of a model, its activations checkpointed; what it tells is dropped.

    Args:
        name: Of a model in `models.py`.
        device: Where it trains; bfloat16 on CUDA, float32 on CPU, as in a job.
        sequences: Of the batch, which is one micro-batch.
        seq_length: Tokens of each.
        steps: Of the job, as far as it is planned.
        rows: Sequences that differ.
    """
    ids = torch.randint(
        SHAPES[name]["vocab_size"],
        (rows, seq_length),
        generator=torch.Generator().manual_seed(0),
    )
    options = TrainingOptions(
        micro_batch_size=sequences, max_seq_length=seq_length, gradient_checkpointing=True
    )
    spec = RunSpec(
        mode="train",
        job_id="ftjob-bench",
        job=JobSpec(
            model=name,
            training_file="random",
            seed=0,
            hyperparameters=Hyperparameters(batch_size=sequences, n_epochs=1),
            options=options,
        ),
        model_source=name,
        training=DataSource(
            path=_NOWHERE, format="text", sha256=hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        ),
        workdir=_NOWHERE,
    )
    resolved = resolve(
        spec.job, len(ids), seq_length, cuda=device.type == "cuda", on_adapter=False
    ).model_copy(update={"total_steps": steps})
    subject = build(name, None, device, getattr(torch, resolved.dtype), checkpointing=True)
    with _NOWHERE.open("wb") as nobody:
        yield Session(
            spec,
            resolved,
            Data([[Example(row, row)] for row in ids.tolist()], [], 0, packed=False),
            _run(subject),
            subject.model,
            LossConfig(implementation=resolved.loss_implementation),
            Reporter(nobody.fileno()),
        )


def _run(subject: Subject) -> Run:
    """With a tokenizer that nobody asks."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))  # type: ignore[no-untyped-call]
    scheduler = get_scheduler("constant", subject.optimizer)
    return Run(subject.model.model, subject.optimizer, scheduler, tokenizer)
