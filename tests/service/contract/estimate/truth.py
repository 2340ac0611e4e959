"""What torch and transformers really take of a CPU's memory: what predictions answer to."""

import warnings
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cce_core import LossConfig, baselines
from cce_core.models import split
from service.contract.estimate.model import ModelShape, shape_of
from service.contract.estimate.workload import Workload
from service.contract.memory import LossName
from service.contract.spec import LoraAdapter
from worker.training.allocator import Peak, peak_of
from worker.training.attention import attention
from worker.training.held import Held
from worker.training.optimizer import MasterAdamW

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(model_type: str, work: Workload, **sizes: Any) -> Any:
    """A model with random weights, set up as the trainer does; the causal LM under any adapter."""
    config = AutoConfig.for_model(model_type, **SIZES | sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention(config))
    model.to(getattr(torch, work.dtype))
    with warnings.catch_warnings():  # old names that the oldest supported release knows alone
        warnings.simplefilter("ignore", FutureWarning)
        if work.adapter is not None:
            _adapt(model, work.adapter)
        if work.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _adapt(model: Any, adapter: LoraAdapter) -> None:
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
    )
    get_peft_model(model, lora, autocast_adapter_dtype=False)


def shape(model: Any) -> ModelShape:
    """Its shape."""
    return shape_of(model.config.to_dict())


def saved(model: Any, work: Workload) -> int:
    """Bytes of all tensors that autograd saves in the trunk's forward, and of its output."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = _trunk(model, _batch(model, work), work)
    found[states.untyped_storage().data_ptr()] = states
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def step(model: Any, work: Workload, loss: LossName) -> int:
    """The peak of a forward and backward pass above weights and optimizer, gradients included."""

    def run() -> list[torch.Tensor]:
        batch = _batch(model, work)
        _loss(_trunk(model, batch, work), split(model).head, batch, loss).backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    peak = peak_of(run, CPU)
    assert isinstance(peak, Peak)
    return peak.bytes + sum(w.grad.nbytes for w in model.parameters() if w.grad is not None)


def training_step(model: Any, optimizer: MasterAdamW, work: Workload, loss: LossName) -> int:
    """The peak of a pass with the optimizer's step after it, with all that is held."""

    def run() -> list[torch.Tensor]:
        batch = _batch(model, work)
        _loss(_trunk(model, batch, work), split(model).head, batch, loss).backward()
        optimizer.apply_gradients(1.0)
        return []

    run()  # which makes the moments
    peak = peak_of(run, CPU)
    assert isinstance(peak, Peak)
    return Held.by(model, optimizer).total + peak.bytes


def loss_layer(shape: ModelShape, work: Workload, loss: LossName) -> int:
    """The peak of a loss alone on random hidden states, its gradients included."""
    from cce_core.head import Head

    dtype = getattr(torch, work.dtype)
    size = (work.micro_batch, work.seq_length)
    hidden = torch.randn(*size, shape.hidden_size, dtype=dtype).requires_grad_()
    weight = torch.randn(shape.vocab_size, shape.hidden_size, dtype=dtype)
    head = Head(weight.requires_grad_(work.full), softcap=shape.softcap)
    labels = torch.randint(0, shape.vocab_size, size)
    leaves = [hidden, *head.parameters()]

    def run() -> list[torch.Tensor]:
        value = _loss(hidden, head, (labels, labels), loss)
        return list(torch.autograd.grad(value, leaves))

    peak = peak_of(run, CPU)
    assert isinstance(peak, Peak)
    return peak.bytes + sum(leaf.nbytes for leaf in leaves)


def _batch(model: Any, work: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, model.config.vocab_size, (work.micro_batch, work.seq_length))
    return ids, ids.clone()


def _trunk(model: Any, batch: tuple[torch.Tensor, torch.Tensor], work: Workload) -> torch.Tensor:
    mask = torch.ones_like(batch[0])
    if work.padded:
        mask[0, -3:] = 0
    positions = torch.arange(work.seq_length).repeat(work.micro_batch, 1)
    output = split(model).trunk(
        input_ids=batch[0], attention_mask=mask, position_ids=positions, use_cache=False
    )
    states: torch.Tensor = output.last_hidden_state
    return states


def _loss(
    hidden: torch.Tensor, head: Any, batch: tuple[torch.Tensor, torch.Tensor], loss: LossName
) -> torch.Tensor:
    labels = batch[1]
    if loss == "full_logits":
        return baselines.full_logits(hidden, head, labels)
    if loss == "chunked":
        return baselines.chunked(hidden, head, labels)
    blocked = LossConfig(implementation="blocked")
    total: torch.Tensor = head.loss(hidden, labels, blocked, shift=1, reduction="sum").loss
    return total
