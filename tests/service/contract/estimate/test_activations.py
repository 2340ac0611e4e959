"""Saved activations as predicted, against what autograd's own hooks see."""

from dataclasses import replace

import pytest

from service.contract.estimate.activations import kernel, saved_bytes
from service.contract.estimate.model import shape_of
from service.contract.estimate.workload import Workload
from service.contract.spec import DtypeName, LoraAdapter
from tests.service.contract.estimate import truth

NARROW = LoraAdapter(rank=4, targets=["q_proj", "v_proj"])
DROPPING = LoraAdapter(rank=4, dropout=0.1)
SMALL = {"num_hidden_layers": 2, "vocab_size": 256}


def agrees(model_type: str, *works: Workload, **sizes: int | None) -> None:
    model = truth.build(model_type, works[0], **SMALL | sizes)
    for work in works:
        predicted = saved_bytes(truth.shape(model), work)
        assert predicted == pytest.approx(truth.saved(model, work), rel=0.02)


@pytest.mark.parametrize("adapter", [None, LoraAdapter(rank=8), NARROW, DROPPING])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma", "gemma2"])
def test_what_is_saved_is_predicted(
    model_type: str, dtype: DtypeName, adapter: LoraAdapter | None
) -> None:
    work = Workload(dtype, "cpu", 3, 40, checkpointing=False, adapter=adapter)
    agrees(model_type, work, replace(work, seq_length=96, padded=True))


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_key_value_heads": 8},
        {"hidden_size": 96, "intermediate_size": 512, "head_dim": 32},
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64},
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_other_shapes_are_predicted_too(model_type: str, sizes: dict[str, int]) -> None:
    work = Workload("bfloat16", "cpu", 1, 160, checkpointing=False)
    padded = Workload("bfloat16", "cpu", 2, 50, checkpointing=False, padded=True)
    agrees(model_type, work, padded, **sizes)


@pytest.mark.parametrize("adapter", [None, LoraAdapter(rank=8)])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_a_checkpointed_layer_keeps_its_input(model_type: str, adapter: LoraAdapter | None) -> None:
    work = Workload("bfloat16", "cpu", 3, 64, checkpointing=True, adapter=adapter)
    model = truth.build(model_type, work, **SMALL)
    shape = truth.shape(model)
    # Masks travel in closures, where hooks do not see them; the peaks of steps do.
    masks = 2 * work.item * work.micro_batch * work.seq_length**2 if model_type == "gemma2" else 0
    predicted = saved_bytes(shape, work) - masks
    # What is kept for the rotation is given to every layer in a closure, likewise unseen.
    rotary = 2 * work.item * work.tokens * shape.head_dim
    assert predicted - rotary == pytest.approx(truth.saved(model, work), rel=0.02)


def test_a_sliding_window_needs_a_mask_once_sequences_are_longer() -> None:
    work = Workload("bfloat16", "cpu", 2, 32, checkpointing=False)
    agrees("mistral", work, replace(work, seq_length=100), sliding_window=64)


def test_attention_scores_that_are_not_capped_keep_no_tanh() -> None:
    work = Workload("bfloat16", "cpu", 2, 96, checkpointing=False)
    agrees("gemma2", work, attn_logit_softcapping=None)


def test_attention_runs_unfused_where_no_kernel_serves() -> None:
    shape = shape_of(truth.SIZES | {"model_type": "llama"})
    work = Workload("bfloat16", "cuda", 2, 64, checkpointing=False)
    assert kernel(shape, work) == "fused"
    assert kernel(shape, replace(work, dtype="float32")) == "math"
    assert kernel(shape, replace(work, dtype="float32", padded=True)) == "fused"
