"""Run specs, rows, and the lines that a trainer answers with."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import transformers

from service.contract.spec import JobSpec, ResolvedOptions, TrainingOptions
from worker.events import LINE, DataSource, Line, Metrics, Result, RunSpec
from worker.training import comparison, trainer
from worker.training.attention import attention
from worker.training.reporter import Reporter

T = TypeVar("T")
_TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_TINY, "intermediate_size": 48, "num_key_value_heads": 2}
# Rotary and learned positions, sliding windows, softcaps, experts, biases.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": _LLAMA,
    "Gemma2": {**_LLAMA, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4},
    "Mixtral": {**_LLAMA, "num_local_experts": 4},
    "GPTNeoX": {**_TINY, "intermediate_size": 48},
    "GPT2": {
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    },
}


def make_model(family: str, **options: Any) -> transformers.PreTrainedModel:
    """A model with weights large enough that all that it does shows in its logits."""
    transformers.set_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES.get(family, {}), **options})
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention(config)
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    return model


def ask(question: str, answer: str, **fields: Any) -> dict:
    """A conversation of one question."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **fields},
        ]
    }


def chats(count: int) -> list[dict]:
    """Conversations of different lengths."""
    return [ask(f"What is {n} plus one?", f"It is {n + 1}. " * (1 + n % 3)) for n in range(count)]


LONG = [ask("a", "b"), ask("a", "b" * 300)]


def source(path: Path, rows: list[dict]) -> DataSource:
    """A file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = "chat" if "messages" in rows[0] else "text"
    return DataSource(path=path, format=kind, sha256="0" * 64)


def make_spec(
    folder: Path,
    model: Path | str,
    rows: list[dict],
    *,
    validation: list[dict] | None = None,
    hyperparameters: dict[str, Any] | None = None,
    seed: int = 7,
    **options: Any,
) -> RunSpec:
    """What the supervisor hands to the trainer; `options` are the job's, or the run spec's own."""
    own = {name: options.pop(name) for name in RunSpec.model_fields if name in options}
    compared = options.pop("comparison", None)
    job = JobSpec(
        model="tiny",
        training_file="file-training",
        seed=seed,
        comparison=compared,
        hyperparameters={"n_epochs": 1, "batch_size": 4, **(hyperparameters or {})},
        options=TrainingOptions(**{"memory_ledger": False, "learning_rate": 1e-2, **options}),
    )
    return RunSpec(
        **{
            "mode": "train",
            "job_id": "ftjob-test",
            "job": job,
            "model_source": str(model),
            "training": source(folder / "training.jsonl", rows),
            "validation": source(folder / "validation.jsonl", validation) if validation else None,
            "workdir": folder,
            # Bits and bytes of the CPU are compared, whatever the machine has.
            "device": "cpu",
            **own,
        }
    )


def resolved(**changes: Any) -> ResolvedOptions:
    """Options of a small job on CPU."""
    return ResolvedOptions(
        **{
            "device": "cpu",
            "trained": "full",
            "batch_size": 4,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "n_epochs": 1,
            "learning_rate_multiplier": 1.0,
            "learning_rate": 1e-2,
            "max_seq_length": 128,
            "gradient_checkpointing": False,
            "dtype": "float32",
            "loss_implementation": "blocked",
            "checkpoint_every": 100,
            "total_steps": 10,
            **changes,
        }
    )


@dataclass(frozen=True)
class Outcome:
    """All that a trainer said."""

    spec: RunSpec
    lines: list[Line]

    def of(self, kind: type[T]) -> list[T]:
        return [line for line in self.lines if isinstance(line, kind)]

    def one(self, kind: type[T]) -> T:
        (line,) = self.of(kind)
        return line

    @property
    def losses(self) -> dict[int, float]:
        """The training loss of each step."""
        return {m.step: m.train_loss for m in self.of(Metrics) if m.train_loss is not None}

    @property
    def valid_losses(self) -> dict[int, float]:
        return {m.step: m.valid_loss for m in self.of(Metrics) if m.valid_loss is not None}

    @property
    def result(self) -> Result:
        return self.one(Result)


def train(spec: RunSpec) -> Outcome:
    """Do a job in this process."""
    return _said(spec, lambda reporter: trainer.train(spec, reporter))


def compare(spec: RunSpec) -> Outcome:
    """Do a comparison in this process."""
    return _said(spec, lambda reporter: comparison.compare(spec, reporter))


def validate(spec: RunSpec) -> Outcome:
    """Check a job's data in this process."""
    return _said(spec, lambda reporter: trainer.validate(spec, reporter))


def _said(spec: RunSpec, work: Callable[[Reporter], None]) -> Outcome:
    path = spec.workdir / f"{spec.mode}.events"
    events = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        work(Reporter(events))
    finally:
        os.close(events)
    lines = [LINE.validate_json(line) for line in path.read_bytes().splitlines()]
    return Outcome(spec, lines)
