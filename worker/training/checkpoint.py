"""Checkpoints: `model/` that loads as a model, `state/` that a resume needs; both or neither."""

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from worker.training.adapter import is_adapted
from worker.training.optimizer import MasterAdamW

_STATE = "state"
_MODEL = "model"


@dataclass
class Position:
    """How far a run is; with the seed, it determines all data that follows.

    Attributes:
        step: Optimizer steps done.
        tokens: Tokens processed, without padding.
        metrics: The rows of the metrics table so far.
        outliers: The rows with the highest loss, by epoch, so far.
    """

    step: int = 0
    tokens: int = 0
    metrics: list[dict[str, float | None]] = field(default_factory=list)
    outliers: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """All that changes while training."""

    model: Any
    optimizer: MasterAdamW
    scheduler: Any
    tokenizer: PreTrainedTokenizerBase


def save(run: Run, position: Position, folder: Path) -> None:
    """Write a checkpoint aside, make it durable, and rename it to `folder`."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / _STATE).mkdir(parents=True)
    save_model(run, aside / _MODEL)
    state = {
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, aside / _STATE / "training.pt")
    (aside / _STATE / "position.json").write_text(json.dumps(asdict(position)))
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    aside.rename(folder)
    _sync(folder.parent)


def save_model(run: Run, folder: Path) -> None:
    """Weights as safetensors (an adapter's alone, where there is one), tokenizer and config."""
    if is_adapted(run.model):
        # Embeddings never change their size here; peft would ask the hub whether they have.
        run.model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink()  # a form to fill in, with a path of this machine
    else:
        run.model.save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)


def resume(run: Run, folder: Path) -> Position:
    """Put a run back to where a checkpoint was written."""
    load_weights(run.model, folder / _MODEL)
    state = torch.load(folder / _STATE / "training.pt", weights_only=True, map_location="cpu")
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["torch_rng"])
    if torch.cuda.is_available() and state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Position(**json.loads((folder / _STATE / "position.json").read_text()))


def load_weights(model: Any, folder: Path) -> None:
    """Load what `save_model` wrote into the same model."""
    if is_adapted(model):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return
    # Not tensor by tensor: transformers saves some weights in another form than it holds them. By
    # the folder's own config, so that another model's are told; the copy never runs.
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def seed_everything(seed: int) -> None:
    """Seed what a run draws from."""
    random.seed(seed)
    torch.manual_seed(seed)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the optimizer moves."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
