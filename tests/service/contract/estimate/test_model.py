"""Parameters and adapters from the config alone, against the real models."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.contract.errors import InvalidRequest
from service.contract.estimate.model import FAMILIES, attention_of, shape_of
from service.contract.estimate.peak import trained_parameters
from service.contract.estimate.workload import Workload
from service.contract.spec import LoraAdapter
from tests.service.contract.estimate import truth

WORK = Workload("float32", "cpu", 1, 8, checkpointing=False)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_parameters_are_those_of_the_real_model(model_type: str, tied: bool) -> None:
    model = truth.build(model_type, WORK, tie_word_embeddings=tied)
    assert truth.shape(model).parameters == model.num_parameters()


def test_the_parameters_are_known_from_the_file_alone(tmp_path: Path) -> None:
    model = truth.build("qwen2", WORK, tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    shape = shape_of(json.loads((tmp_path / "config.json").read_text()))
    assert shape.parameters == model.num_parameters()


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj"], ["self_attn.o_proj", "mlp.down_proj"]]
)
def test_the_parameters_of_an_adapter_are_those_of_the_real_one(targets: Any) -> None:
    adapter = LoraAdapter(rank=5, targets=targets)
    work = Workload("float32", "cpu", 1, 8, checkpointing=False, adapter=adapter)
    model = truth.build("llama", work)
    real = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained_parameters(truth.shape(model), work) == real


def test_what_a_config_leaves_out_has_the_familys_default() -> None:
    assert not shape_of(CONFIG).tied
    assert (shape_of(CONFIG).kv_heads, shape_of(CONFIG).head_dim) == (4, 16)
    gemma = shape_of({**CONFIG, "model_type": "gemma2"})
    assert gemma.tied
    assert (gemma.softcap, gemma.attention_softcap) == (30.0, 50.0)
    assert shape_of({**CONFIG, "model_type": "qwen2", "use_sliding_window": False}).window is None


def test_no_family_caps_its_attention_scores_with_sdpa() -> None:
    assert attention_of(CONFIG) == "sdpa"
    assert attention_of({**CONFIG, "model_type": "gemma2"}) == "eager"  # capped by default
    assert attention_of({"model_type": "vaultgemma", "attn_logit_softcapping": 50.0}) == "eager"
    assert attention_of({"model_type": "mixtral", "attn_logit_softcapping": None}) is None
    assert attention_of({"model_type": None}) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": None}, "None"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
    ],
)
def test_a_model_that_nothing_is_known_of_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as refusal:
        shape_of({**CONFIG, **change})
    assert (refusal.value.code, refusal.value.param) == ("unsupported_model", "model")


def test_targets_may_be_named_layer_by_layer() -> None:
    names = [
        f"model.layers.{layer}.self_attn.{part}"
        for layer in (0, 1)
        for part in ("q_proj", "v_proj")
    ]
    found = shape_of(CONFIG).adapted(LoraAdapter(targets=names))
    assert [linear.name for linear in found] == ["self_attn.q_proj", "self_attn.v_proj"]


@pytest.mark.parametrize("target", ["lm_head", "model.layers.1.self_attn.k_proj", "proj"])
def test_a_target_that_is_no_linear_layer_of_each_layer_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest, match="expected some of self_attn") as refusal:
        shape_of(CONFIG).adapted(LoraAdapter(targets=["q_proj", target]))
    assert refusal.value.param == "adapter.targets"
