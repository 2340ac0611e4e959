"""Sessions of a small model with a large vocabulary, on random rows; nothing is read from disk."""

import os
from pathlib import Path
from typing import Any

import torch

from cce_core import LossConfig
from cce_core.models import split
from service.contract.estimate.record import MicroBatch
from service.contract.spec import LoraAdapter
from tests.worker.training.support import make_model, make_spec, resolved
from worker.events import LINE, Line
from worker.training.adapter import adapted
from worker.training.checkpoint import Run, trainable
from worker.training.examples import Example
from worker.training.optimizer import MasterAdamW
from worker.training.reporter import Reporter
from worker.training.session import Data, Session

VOCABULARY = 8192
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 160}


def make_session(
    folder: Path,
    *,
    lengths: list[int],
    family: str = "Llama",
    device: str = "cpu",
    dtype: str = "float32",
    adapter: LoraAdapter | None = None,
    batch_size: int = 16,
    hyperparameters: dict[str, Any] | None = None,
    max_micro_batch_size: int | None = None,
    settled: MicroBatch | None = None,
    loss: str = "blocked",
    checkpointing: bool = False,
    sizes: dict[str, int] | None = None,
    **options: Any,
) -> Session:
    """A session whose training rows have these lengths."""
    spec = make_spec(
        folder,
        "nowhere",
        [{"text": "unused"}],
        hyperparameters={"batch_size": batch_size, **(hyperparameters or {})},
        adapter=adapter,
        max_micro_batch_size=max_micro_batch_size,
        settled=settled,
        **options,
    )
    model = make_model(family, **SIZES | (sizes or {})).to(getattr(torch, dtype)).to(device)
    model = adapted(model, spec)
    parts = split(model)
    if checkpointing:
        parts.model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = MasterAdamW(trainable(model), lr=1e-3, weight_decay=0.0)
    micro = min(batch_size, max_micro_batch_size or batch_size)
    if "micro_batch_size" in options:
        micro = options["micro_batch_size"]
    settled = resolved(
        batch_size=batch_size,
        micro_batch_size=micro,
        gradient_accumulation_steps=-(-batch_size // micro),
        total_steps=2 * -(-len(lengths) // batch_size),
        dtype=dtype,
        gradient_checkpointing=checkpointing,
        loss_implementation=loss,
    )
    data = Data([[_example(length)] for length in lengths], [], 0, packed=False)
    events = os.open(folder / "events", os.O_WRONLY | os.O_CREAT)
    return Session(
        spec,
        settled,
        data,
        Run(model, optimizer, None, None),
        parts,
        LossConfig(implementation=loss),
        Reporter(events),
    )


def told(folder: Path) -> list[Line]:
    """What the session's reporter has been told."""
    return [LINE.validate_json(line) for line in (folder / "events").read_bytes().splitlines()]


def _example(length: int) -> Example:
    ids = torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
    return Example(ids.tolist(), ids.tolist())
