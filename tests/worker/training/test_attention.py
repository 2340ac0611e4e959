"""Every model has the attention that its memory is predicted for, and computes what it should."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cce_core.models import Split
from service.contract.estimate.model import FAMILIES, attention_of
from tests.worker.training.support import chats, make_model, make_spec, resolved
from worker.bench import models as bench
from worker.training.batches import Batch
from worker.training.model import hidden_states, load_config, load_model, split_model

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WISHES = [{}, {"attn_implementation": "flash_attention_2"}, {"_attn_implementation": "eager"}]
CAPPED = ["gemma2", "vaultgemma"]
Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """A tiny model of any family, in a folder."""

    def saved(model_type: str, **options: Any) -> Path:
        family = type(AutoConfig.for_model(model_type)).__name__.removesuffix("Config")
        make_model(family, **SHAPE | options).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return saved


def load(folder: Path) -> Split:
    spec = make_spec(folder.parent / "job", folder, chats(2))
    return split_model(load_model(spec, load_config(spec), resolved(), CPU))


def logits(model: Split, ids: torch.Tensor) -> torch.Tensor:
    batch = Batch(ids, ids, torch.arange(ids.shape[1]).expand_as(ids), torch.ones_like(ids))
    with torch.no_grad():
        return model.head.logits(hidden_states(model, batch))


def eager(folder: Path, ids: torch.Tensor, **changes: Any) -> torch.Tensor:
    """Logits with all attention scores in memory."""
    config = AutoConfig.from_pretrained(folder, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager")
    with torch.no_grad():
        return model(ids).logits


def suppose_sdpa(monkeypatch: pytest.MonkeyPatch, model_type: str) -> None:
    """Hold a family to be capable of sdpa, as some releases do, 5.17 among them."""
    config = AutoConfig.for_model(model_type, **SHAPE)
    made = type(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    base = f"{made.__name__.removesuffix('ForCausalLM')}PreTrainedModel"
    monkeypatch.setattr(getattr(sys.modules[made.__module__], base), "_supports_sdpa", True)


@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("model_type", [*FAMILIES, "phi3"])
def test_the_attention_is_the_predicted_one_whatever_the_config_wishes(
    saved: Saved, model_type: str, wish: dict[str, str]
) -> None:
    path = saved(model_type) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | wish))
    expected = attention_of(config) or "sdpa"  # which transformers has for the last of them
    assert load(path.parent).model.config._attn_implementation == expected


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma"])
def test_what_the_benchmark_measures_has_the_predicted_attention(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    suppose_sdpa(monkeypatch, bench.SHAPES[name]["model_type"])
    subject = bench.build(name, None, CPU, torch.float32, checkpointing=False)
    assert subject.model.model.config._attn_implementation == subject.shape.family.attention


@pytest.mark.parametrize("model_type", CAPPED)
def test_sdpa_does_not_leave_capped_attention_scores_uncapped(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    folder, ids = saved(model_type, attn_logit_softcapping=0.5), torch.arange(24).view(2, 12)
    capped = eager(folder, ids)
    uncapped = eager(folder, ids, attn_logit_softcapping=None)
    assert not torch.allclose(capped, uncapped, rtol=1e-2, atol=1e-2)
    suppose_sdpa(monkeypatch, model_type)
    torch.testing.assert_close(logits(load(folder), ids), capped, rtol=1e-4, atol=1e-4)
