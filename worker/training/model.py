"""Load a causal LM, put an adapter on it, and split it into trunk and head for the loss.

Any family: base model -> hidden states -> head weight, bias, logit scale and softcap, read from
the model and its config. What a family does beyond that shows in the numerics receipt, which
compares with the unmodified model's own logits.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from service.contract.errors import JobFailure
from service.contract.spec import LoraAdapter, ResolvedOptions
from worker.events import RunSpec
from worker.training.data import Batch


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
    """The model, ready to train: fp32 weights, adapters where asked.

    Raises:
        JobFailure: The weights can't be loaded, or transformers doesn't know the architecture.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            spec.base_model or spec.model_source,
            dtype=torch.float32,
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

        model = PeftModel.from_pretrained(model, spec.model_source, is_trainable=adapter is None)
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
    return get_peft_model(model, config)


@dataclass(frozen=True)
class Split:
    """A causal LM as trunk and head; the head's numbers are the model's own.

    Attributes:
        full: The model as loaded, for its own logits.
        trunk: Maps token ids to hidden states (B, T, D).
        weight: (V, D).
        bias: (V,) or None.
        scale: Factor on the logits.
        softcap: Of the final logits, or None.
        dtype: Compute dtype; the weights are fp32, autocast does the rest.
    """

    full: nn.Module
    trunk: nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype

    def autocast(self) -> Any:
        """The context of every forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.weight.device.type, dtype=self.dtype)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Hidden states (B, T, D) of a batch."""
        output = self.trunk(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )
        states: torch.Tensor = output.last_hidden_state
        return states


def split(model: Any, dtype: torch.dtype) -> Split:
    """Find trunk and head.

    Raises:
        JobFailure: The head is no plain linear layer.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = core.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        message = f"The head is a {type(head).__name__}; expected a plain linear layer."
        raise JobFailure("unsupported_model", message, param="model")
    config = core.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None) or 1.0
    factor = getattr(config, "logit_scale", None) or 1.0
    return Split(
        full=core,
        trunk=core.base_model,
        weight=head.weight,
        bias=head.bias,
        scale=factor / divisor,
        softcap=getattr(config, "final_logit_softcapping", None),
        dtype=dtype,
    )
