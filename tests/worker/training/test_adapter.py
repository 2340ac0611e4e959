"""LoRA: which layers it is put on, what is trained, and what a user can do with the result."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from service.contract.errors import JobFailure
from service.contract.spec import LoraAdapter
from tests.worker.training.support import Outcome, chats, make_model, make_spec, train, validate
from worker.events import Resolved
from worker.training.adapter import adapted, is_adapted

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
)
LORA = LoraAdapter(rank=4, alpha=8.0)
IDS = torch.arange(20).view(2, 10)


def with_lora(folder: Path, **options: object) -> PeftModel:
    spec = make_spec(folder, "nowhere", chats(2), adapter=LoraAdapter(rank=4, **options))
    return adapted(make_model("Llama"), spec)


def targets(model: PeftModel) -> set[str]:
    return {name.rpartition(".")[2] for name in model.base_model.targeted_module_names}


def tuned_weights(outcome: Outcome, tiny: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(tiny)
    return PeftModel.from_pretrained(base, outcome.result.model)


@pytest.fixture
def tuned(tiny: Path, tmp_path: Path) -> Outcome:
    """A job that has put an adapter on the tiny model."""
    return train(make_spec(tmp_path / "first", tiny, chats(8), adapter=LORA))


def test_every_linear_layer_but_the_head_is_adapted(tmp_path: Path) -> None:
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    model = with_lora(tmp_path)
    assert targets(model) == linear
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * len(linear)
    assert all("lora_" in name for name in trained)


def test_named_targets_alone_are_adapted(tmp_path: Path) -> None:
    assert targets(with_lora(tmp_path, targets=["q_proj", "self_attn.v_proj"])) == {
        "q_proj",
        "v_proj",
    }


def test_a_new_adapter_changes_nothing_yet(tmp_path: Path) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            with_lora(tmp_path)(IDS).logits, make_model("Llama")(IDS).logits, rtol=0, atol=0
        )


def test_an_adapter_begins_by_the_seed_alone(tmp_path: Path) -> None:
    def begun(seed: int, drawn: int) -> dict[str, torch.Tensor]:
        model = make_model("Llama")
        torch.rand(drawn)
        spec = make_spec(tmp_path, "nowhere", chats(2), adapter=LORA, seed=seed)
        return dict(adapted(model, spec).named_parameters())

    first, again, other = begun(1, drawn=0), begun(1, drawn=5), begun(2, drawn=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["nothing"], "not found"),
        (["q_proj", "nothing"], "no module 'nothing'"),
        (["input_layernorm"], "not supported"),
        (["lm_head"], "head takes no adapter"),
    ],
)
def test_targets_that_cannot_be_adapted_are_named(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    with pytest.raises(JobFailure, match=reason) as failure:
        with_lora(tmp_path, targets=names)
    assert (failure.value.code, failure.value.param) == ("unsupported_model", "adapter.targets")


def test_the_result_is_an_adapter_that_peft_loads(tuned: Outcome, tiny: Path) -> None:
    assert tuned.result.model_kind == "lora"
    names = {path.name for path in tuned.result.model.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    model = tuned_weights(tuned, tiny)
    assert model.active_peft_config.r == 4
    base = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        assert not torch.equal(model(IDS).logits, base(IDS).logits)
        merged = model.merge_and_unload()(IDS).logits
        torch.testing.assert_close(merged, tuned_weights(tuned, tiny)(IDS).logits)


def test_an_adapter_tells_its_base_by_name_and_nothing_of_this_machine(tuned: Outcome) -> None:
    config = json.loads((tuned.result.model / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    workdir = str(tuned.spec.workdir.parent)
    for path in tuned.result.model.iterdir():
        assert workdir.encode() not in path.read_bytes(), path
        assert str(tuned.spec.model_source).encode() not in path.read_bytes(), path


def test_a_job_on_an_adapter_goes_on_training_it(
    tuned: Outcome, tiny: Path, tmp_path: Path
) -> None:
    spec = make_spec(tmp_path / "second", tuned.result.model, chats(8), base_model=str(tiny))
    again = train(spec)
    assert again.result.model_kind == "lora"
    assert again.one(Resolved).options.trained == "lora"
    assert again.losses[1] < tuned.losses[1]
    first = tuned_weights(tuned, tiny).state_dict()
    second = tuned_weights(again, tiny).state_dict()
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_an_adapter_on_an_adapter_is_refused_before_anything_is_loaded(
    tuned: Outcome, tiny: Path, tmp_path: Path
) -> None:
    """Whoever got the second one could not use it: what lies under it is nowhere as a model."""
    spec = make_spec(
        tmp_path / "second", tuned.result.model, chats(8), base_model=str(tiny), adapter=LORA
    )
    with pytest.raises(JobFailure, match="leave `adapter` out") as failure:
        validate(spec)
    assert (failure.value.code, failure.value.param) == ("unsupported_model", "adapter")


def test_only_a_model_with_adapters_is_adapted(tmp_path: Path) -> None:
    assert is_adapted(with_lora(tmp_path))
    assert not is_adapted(make_model("Llama"))
