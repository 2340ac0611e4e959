"""The models that are measured: the shapes of published ones, and tiny ones to test with.

Weights are random: memory is the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cce_core.models import Split, split
from service.contract.estimate.model import ModelShape, shape_of
from service.contract.spec import LoraAdapter
from worker.training.adapter import with_lora
from worker.training.attention import attention
from worker.training.checkpoint import trainable
from worker.training.optimizer import MasterAdamW

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-2b": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
    "tiny-llama": {"model_type": "llama", **_TINY},
    "tiny-gemma": {"model_type": "gemma2", **_TINY},
}
PUBLISHED = tuple(name for name in SHAPES if not name.startswith("tiny"))


@dataclass(frozen=True)
class Subject:
    """A model on its device, ready to be trained."""

    shape: ModelShape
    model: Split
    optimizer: MasterAdamW


def build(
    name: str,
    adapter: LoraAdapter | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    checkpointing: bool,
) -> Subject:
    """The model of this name, as the trainer sets one up."""
    options = dict(SHAPES[name])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    config.use_cache = False
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=attention(config)
        )
    tuned = model if adapter is None else with_lora(model, adapter, seed=0, name=name)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = MasterAdamW(trainable(tuned), lr=1e-6, weight_decay=0.0)
    return Subject(shape_of(config.to_dict()), split(tuned), optimizer)
