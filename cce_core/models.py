"""Attach the loss to a causal LM of Hugging Face transformers, of any family.

A causal LM is a trunk, whose last hidden states go into a head. The head's weight, bias, scale and
softcap are read from the model and its config. Whether that is all that the family does to its
logits is not a matter of belief: `attach` compares with the model's own logits and refuses.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cce_core.config import LossConfig
from cce_core.head import Head

_ATTACHED = "_cut_cross_entropy"
# Where a config adds to the cross-entropy: a loss of its experts' router, one of the logits' size.
_FURTHER_LOSSES = ("output_router_logits", "z_loss_coefficient")
_CHECKED_ROWS = 16
# The check's largest logit: a fresh model's are so small that no softcap would show.
_CHECKED_LOGIT = 40.0
# By norm: rounding alone, also that of a softcap in the model's own dtype.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-5}


class UnsupportedModelError(ValueError):
    """The model is no trunk and linear head, or its logits are not what the head says."""


@dataclass(frozen=True, eq=False)
class Split:
    """A causal LM as trunk and head.

    Attributes:
        model: The causal LM itself, under adapters if there are any.
        trunk: Maps token ids (B, T) to an output with `last_hidden_state` (B, T, D).
        head: The head, with the model's own weight.
    """

    model: Any
    trunk: Any
    head: Head


def split(model: Any) -> Split:
    """Find trunk and head of a causal LM, also inside a peft model.

    Raises:
        UnsupportedModelError: It has no trunk, or its head is no plain linear layer.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear):
        raise UnsupportedModelError(
            f"The head of {type(core).__name__} is {type(head).__name__}; expected nn.Linear."
        )
    if core.base_model is core:
        raise UnsupportedModelError(f"{type(core).__name__} has no trunk below its head.")
    config = core.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return Split(core, core.base_model, Head(head.weight, head.bias, factor / divisor, softcap))


def attach(model: Any, config: LossConfig | None = None) -> None:
    """Make `model(..., labels=...)` compute its loss without logits, which are then None.

    Labels stand at the positions of their tokens, as transformers has it; `num_items_in_batch`
    and `shift_labels`, which its Trainer passes, are honoured. Without labels nothing changes.

    Args:
        model: A causal LM, also one inside a peft model; it is changed in place.
        config: Which implementation, and how exact.

    Raises:
        UnsupportedModelError: The model is no trunk and linear head, its logits of a few random
            tokens are not what the head says, its config adds to their cross-entropy, or it is
            attached already.
    """
    parts = split(model)
    if hasattr(parts.model, _ATTACHED):
        raise UnsupportedModelError("The loss is attached already; detach it first.")
    config = config if config is not None else LossConfig()
    check(parts)
    own = parts.model.forward
    setattr(parts.model, _ATTACHED, own)
    parts.model.forward = _replacement(parts, own, config)


def detach(model: Any) -> None:
    """Give a model that the loss is attached to its own forward back.

    Raises:
        ValueError: Nothing is attached.
    """
    core = split(model).model
    if not hasattr(core, _ATTACHED):
        raise ValueError("No loss is attached to this model.")
    core.forward = getattr(core, _ATTACHED)
    delattr(core, _ATTACHED)


def _replacement(parts: Split, own: Callable[..., Any], config: LossConfig) -> Callable[..., Any]:
    signature = inspect.signature(own)
    dropped = {"logits_to_keep", "return_dict", "labels"}

    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        given = {**bound, **bound.pop("kwargs", {})}
        shifted = given.pop("shift_labels", None)
        labels = given.get("labels") if shifted is None else shifted
        if labels is None:
            return own(*args, **kwargs)
        num_items = given.pop("num_items_in_batch", None)
        states = parts.trunk(**{name: v for name, v in given.items() if name not in dropped})
        head = _head(parts)
        loss = head.loss(
            as_taken(states.last_hidden_state, head),
            labels,
            config,
            shift=1 if shifted is None else 0,
            num_items=num_items,
        )
        return _output(loss.loss, states)

    return forward


def _head(parts: Split) -> Head:
    """The head as it is now: adapters and dtype casts may have replaced its weight."""
    return split(parts.model).head


def as_taken(states: torch.Tensor, head: Head) -> torch.Tensor:
    """States (..., D) in the head's dtype; some families keep them in fp32 as far as there.

    Under autocast as they are: it casts both itself.
    """
    autocast = torch.is_autocast_enabled(states.device.type)
    return states if autocast else states.to(head.weight.dtype)


def _output(loss: torch.Tensor, states: Any) -> Any:
    """The base model's output with the loss; transformers renames its fields between releases."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    shared = {field.name for field in fields(CausalLMOutputWithPast)} & set(states)
    return CausalLMOutputWithPast(loss=loss, **{name: states[name] for name in shared})


@torch.no_grad()
def check(parts: Split) -> None:
    """Make sure that the model's own loss is the cross-entropy of the logits that the head says.

    Raises:
        UnsupportedModelError: The config adds to that loss; or, of a few random tokens, what goes
            into the head is not what the trunk gives, or what comes out is changed by more than
            weight, bias, scale and softcap.
    """
    _insist_on_cross_entropy(parts.model)
    training = parts.model.training
    parts.model.eval()  # dropout would differ between two passes
    try:
        states, taken, logits = _own_logits(parts)
    finally:
        parts.model.train(training)
    name, tolerance = type(parts.model).__name__, _TOLERANCE[parts.head.weight.dtype]
    error = _difference(taken, states)
    if not error <= tolerance:  # NaN fails too
        raise UnsupportedModelError(
            f"What the head of {name} takes of random tokens differs by {error:.1e} from the "
            f"states of its trunk; expected at most {tolerance:.0e}."
        )
    error = _difference(logits, parts.head.logits(_loud(taken, parts.head)))
    if not error <= tolerance:
        raise UnsupportedModelError(
            f"The logits of {name} on random tokens differ by {error:.1e} from those of its head; "
            f"expected at most {tolerance:.0e}. "
            "It does something to its logits beyond weight, bias, scale and softcap."
        )


def _insist_on_cross_entropy(model: Any) -> None:
    config = model.config.get_text_config()
    for field in _FURTHER_LOSSES:
        if asked := getattr(config, field, None):
            raise UnsupportedModelError(
                f"The config of {type(model).__name__} adds to the loss by {field}: {asked}; "
                "expected none, since only the cross-entropy is computed."
            )


def _own_logits(parts: Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The trunk's states, what the head takes, and the model's logits of that, made loud."""
    taken: list[torch.Tensor] = []

    def turn_up(_head: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        taken.append(inputs[0])
        return _loud(inputs[0], parts.head)

    tokens = _tokens(parts)
    states: torch.Tensor = parts.trunk(input_ids=tokens, use_cache=False).last_hidden_state
    # At the head, since some families call parts of their trunk.
    hook = parts.model.get_output_embeddings().register_forward_pre_hook(turn_up)
    try:
        logits: torch.Tensor = parts.model(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
    if not taken:
        raise UnsupportedModelError(f"{type(parts.model).__name__} does not call its head.")
    return states, taken[0], logits


def _tokens(parts: Split) -> torch.Tensor:
    vocabulary, device = parts.head.weight.shape[0], parts.head.weight.device
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, _CHECKED_ROWS), generator=generator).to(device)


def _loud(states: torch.Tensor, head: Head) -> torch.Tensor:
    """States whose logits a softcap bends."""
    if states.shape[-1] != head.weight.shape[-1]:
        return states
    plain = functional.linear(states, head.weight, head.bias).float() * head.scale
    return (states * (_CHECKED_LOGIT / plain.abs().amax().clamp_min(1e-6))).to(states.dtype)


def _difference(found: torch.Tensor, truth: torch.Tensor) -> float:
    """||found - truth|| / ||truth||; infinite between shapes."""
    if found.shape != truth.shape:
        return math.inf
    norm = torch.linalg.vector_norm
    return float(norm(found.float() - truth.float()) / norm(truth.float()).clamp_min(1e-12))
