"""Load a causal LM, put an adapter on it, and split it into trunk and head for the loss.

What a family does to its logits beyond what the split knows shows in the numerics receipt, which
compares with the unmodified model's own logits.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from cce_core.models import Split, UnsupportedModelError, split
from service.contract.errors import JobFailure
from service.contract.spec import LoraAdapter, ResolvedOptions
from worker.events import RunSpec
from worker.training.batches import Batch


def pick_device() -> torch.device:
    """CUDA where torch was built for it and has a device, else CPU.

    Raises:
        JobFailure: There is a GPU driver, but torch can't use it: no silent fall to the CPU.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.version.cuda is not None and torch.cuda.device_count() > 0:
        message = "A GPU is there, but CUDA does not start; see the worker's log."
        raise JobFailure("device_unavailable", message)
    return torch.device("cpu")


def load_tokenizer(spec: RunSpec) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model.

    Raises:
        JobFailure: It can't be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.model_source)
    except (OSError, ValueError) as error:
        raise JobFailure("model_unavailable", f"No tokenizer: {error}", param="model") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_config(spec: RunSpec) -> Any:
    """The config of the full model, under an adapter too.

    Raises:
        JobFailure: It can't be loaded.
    """
    try:
        return AutoConfig.from_pretrained(spec.base_model or spec.model_source)
    except (OSError, ValueError) as error:
        raise JobFailure("model_unavailable", str(error), param="model") from error


def load_model(spec: RunSpec, resolved: ResolvedOptions, device: torch.device) -> nn.Module:
    """The model, ready to train: weights of the resolved dtype, adapters where asked.

    Raises:
        JobFailure: The weights can't be loaded, or transformers doesn't know the architecture.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            spec.base_model or spec.model_source,
            dtype=getattr(torch, resolved.dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except ValueError as error:
        raise JobFailure("unsupported_model", str(error), param="model") from error
    except OSError as error:
        raise JobFailure("model_unavailable", str(error), param="model") from error
    model.to(device)
    model.config.use_cache = False
    tuned: nn.Module = _adapted(model, spec)
    if resolved.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return tuned


def _adapted(model: Any, spec: RunSpec) -> Any:
    adapter = spec.job.options.adapter
    if spec.base_model is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            model, spec.model_source, is_trainable=adapter is None, autocast_adapter_dtype=False
        )
        if adapter is None:
            return model
        model = model.merge_and_unload()
    return model if adapter is None else _with_lora(model, adapter, spec.job.seed)


def _with_lora(model: Any, adapter: LoraAdapter, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
    )
    model.enable_input_require_grads()
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def split_model(model: Any) -> Split:
    """Trunk and head of the model.

    Raises:
        JobFailure: The head is no plain linear layer.
    """
    try:
        return split(model)
    except UnsupportedModelError as error:
        raise JobFailure("unsupported_model", str(error), param="model") from error


def hidden_states(model: Split, batch: Batch) -> torch.Tensor:
    """What the head sees of a batch: (B, T, D), in the weights' dtype."""
    output = model.trunk(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    states: torch.Tensor = output.last_hidden_state
    return states
