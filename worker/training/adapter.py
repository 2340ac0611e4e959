"""LoRA adapters: put one on a model, or go on with the one that it comes with."""

from typing import Any

import torch

from service.contract.errors import JobFailure
from service.contract.spec import LoraAdapter
from worker.events import RunSpec


def is_adapted(model: Any) -> bool:
    """Whether a model has adapters, which alone are trained and saved then."""
    return hasattr(model, "peft_config")


def adapted(model: Any, spec: RunSpec) -> Any:
    """The model to train: with the adapter it comes with, with a new one, or as it is.

    Raises:
        JobFailure: The new adapter's targets are not the model's, or are its head.
    """
    if spec.base_model is not None:
        from peft import PeftModel

        return PeftModel.from_pretrained(
            model, spec.model_source, is_trainable=True, autocast_adapter_dtype=False
        )
    adapter = spec.job.options.adapter
    if adapter is None:
        return model
    return with_lora(model, adapter, seed=spec.job.seed, name=spec.job.model)


def with_lora(model: Any, adapter: LoraAdapter, *, seed: int, name: str) -> Any:
    """A model with a new adapter, which tells the model's name to whoever gets it.

    Raises:
        JobFailure: The adapter's targets are not the model's, or are its head.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
    )
    model.enable_input_require_grads()
    try:
        tuned: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise JobFailure("unsupported_model", str(error), param="adapter.targets") from error
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        message = "The head takes no adapter: the loss computes with its weight as it is."
        raise JobFailure("unsupported_model", message, param="adapter.targets")
    _check_targets(adapter, tuned.base_model.targeted_module_names)
    # Whoever gets the adapter knows the model by its name, not by where it lies here.
    tuned.active_peft_config.base_model_name_or_path = name
    return tuned


def _check_targets(adapter: LoraAdapter, adapted: list[str]) -> None:
    """Every target must name a module: peft is content if any does."""
    if adapter.targets == "all-linear":
        return
    for target in adapter.targets:
        if not any(f".{name}".endswith(f".{target}") for name in adapted):
            message = f"The model has no module {target!r} to adapt."
            raise JobFailure("unsupported_model", message, param="adapter.targets")
