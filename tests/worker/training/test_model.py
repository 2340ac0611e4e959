"""What is loaded, what is refused and with which code, and where a model is split."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from cce_core.models import split
from service.contract.errors import JobFailure
from tests.worker.training.support import (
    FAMILIES,
    ask,
    chats,
    make_model,
    make_spec,
    resolved,
    train,
)
from worker.events import CheckpointWritten
from worker.training.batches import Batch
from worker.training.model import (
    check,
    check_packing,
    context_of,
    hidden_states,
    load_config,
    load_model,
    load_tokenizer,
    split_model,
)

CPU = torch.device("cpu")
# Which reads neither position ids nor an attention mask: its state runs through a row.
MAMBA = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}
# What a config may have a model give out beside its states, or how.
WISHES = [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}]
BLOOM = {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}
Variant = Callable[..., Path]


@pytest.fixture
def variant(tiny: Path, tmp_path: Path) -> Variant:
    """A copy of the tiny model with another config."""

    def variant(**config: object) -> Path:
        folder = tmp_path / "variant"
        shutil.copytree(tiny, folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return variant


def load(model: Path | str, folder: Path, dtype: str = "float32") -> torch.nn.Module:
    """All that the trainer loads of a model."""
    spec = make_spec(folder, model, chats(2))
    config = load_config(spec)
    load_tokenizer(spec)
    loaded = load_model(spec, config, resolved(dtype=dtype), CPU)
    split_model(loaded)
    return loaded


def refusal(model: Path | str, folder: Path) -> JobFailure:
    with pytest.raises(JobFailure) as failure:
        load(model, folder)
    assert failure.value.param == "model"
    return failure.value


# What is loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_comes_with_its_own_weights_in_the_resolved_dtype(
    tiny: Path, tmp_path: Path, dtype: str
) -> None:
    model = load(tiny, tmp_path, dtype)
    own = transformers.AutoModelForCausalLM.from_pretrained(tiny).to(getattr(torch, dtype))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, own.state_dict()[name]), name
    assert model.config.to_dict() == {**own.config.to_dict(), "dtype": dtype}


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_outputs_that_the_config_asks_for_do_not_keep_a_job_from_its_end(
    variant: Variant, tmp_path: Path, wish: dict[str, bool]
) -> None:
    outcome = train(make_spec(tmp_path / "job", variant(**wish), chats(8), checkpoint_every=1))
    folders = [outcome.result.model]
    folders += [line.path / "model" for line in outcome.of(CheckpointWritten)]
    for folder in folders:
        saved = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert saved(torch.ones(1, 4, dtype=torch.int64)).logits.shape == (1, 4, 384)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_training_holds_no_output_but_the_states(
    tmp_path: Path, family: str, wish: dict[str, bool]
) -> None:
    make_model(family).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wish))
    spec = make_spec(tmp_path / "job", path.parent, chats(2))
    parts = split_model(load_model(spec, load_config(spec), resolved(), CPU))
    output = parts.trunk(torch.ones(1, 4, dtype=torch.int64), use_cache=False)
    assert list(output) == ["last_hidden_state"]


def test_a_tokenizer_without_padding_pads_with_its_end(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    shutil.copy(tiny / "config.json", tmp_path / "model")
    loaded = load_tokenizer(make_spec(tmp_path, tmp_path / "model", chats(2)))
    assert loaded.pad_token_id == loaded.eos_token_id


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_trunk_and_head_are_the_model(family: str) -> None:
    model = make_model(family)
    parts = split_model(model)
    ids = torch.arange(12).view(2, 6)
    batch = Batch(ids, ids, torch.arange(6).expand(2, 6), torch.ones_like(ids))
    with torch.no_grad():
        ours = parts.head.logits(hidden_states(parts, batch))
        torch.testing.assert_close(ours, model(ids).logits, rtol=1e-4, atol=1e-4)


# What is refused


def test_states_come_in_the_dtype_of_the_head_where_a_family_keeps_them_in_fp32() -> None:
    parts = split_model(make_model("Mamba", **MAMBA).bfloat16())
    ids = torch.arange(12)[None]
    states = hidden_states(parts, Batch(ids, ids, ids, None))
    assert states.dtype == torch.bfloat16
    logits = parts.model(ids, use_cache=False).logits
    torch.testing.assert_close(parts.head.logits(states), logits.float())


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """The hub's own message names a web site, and not what was looked for there."""
    failure = refusal(tmp_path / "nothing", tmp_path)
    assert failure.code == "model_unavailable"
    assert failure.message.startswith("No config of tiny can be loaded: ")


def test_an_architecture_that_nobody_knows(variant: Variant, tmp_path: Path) -> None:
    failure = refusal(variant(model_type="martian", architectures=["Martian"]), tmp_path)
    assert failure.code == "unsupported_model"
    assert "martian" in failure.message


def test_a_model_that_is_no_causal_lm(variant: Variant, tmp_path: Path) -> None:
    folder = variant(model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert refusal(folder, tmp_path).code == "unsupported_model"


def test_the_code_of_a_model_is_never_run(variant: Variant, tmp_path: Path) -> None:
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    folder = variant(model_type="martian", auto_map=classes)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert refusal(folder, tmp_path).code == "unsupported_model"
    load_tokenizer(make_spec(tmp_path, folder, chats(2)))  # the library's own class does
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_never_loaded(variant: Variant, tmp_path: Path) -> None:
    folder = variant()
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    failure = refusal(folder, tmp_path)
    assert failure.code == "model_unavailable"
    assert "safetensors" in failure.message


def test_weights_that_are_cut_off(variant: Variant, tmp_path: Path) -> None:
    weights = variant() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refusal(weights.parent, tmp_path).code == "model_unavailable"


@pytest.mark.parametrize(
    ("config", "named"),
    [({"num_hidden_layers": 3}, "model.layers.2."), ({"vocab_size": 400}, "model.embed_tokens")],
    ids=["missing", "of another shape"],
)
def test_weights_that_are_not_all_there_are_not_made_up(
    variant: Variant, tmp_path: Path, config: dict, named: str
) -> None:
    failure = refusal(variant(**config), tmp_path)
    assert failure.code == "unsupported_model"
    assert named in failure.message


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gemma2", "gpt2"])
def test_a_model_without_a_tokenizer(variant: Variant, tmp_path: Path, model_type: str) -> None:
    """For some families transformers makes one up, which knows no words."""
    folder = variant(model_type=model_type)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    failure = refusal(folder, tmp_path)
    assert failure.code == "model_unavailable"
    assert "No tokenizer" in failure.message


def test_a_head_that_is_more_than_a_linear_layer() -> None:
    model = make_model("Llama")
    model.set_output_embeddings(torch.nn.Sequential(torch.nn.Linear(32, 97)))
    with pytest.raises(JobFailure, match=r"expected nn\.Linear") as failure:
        split_model(model)
    assert (failure.value.code, failure.value.param) == ("unsupported_model", "model")


def test_a_factor_on_logits_that_a_fresh_model_hides_is_refused_before_training() -> None:
    """Untrained, its loss is the logarithm of the vocabulary by any factor."""
    model = transformers.FalconMambaForCausalLM(
        transformers.FalconMambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1)
    )
    split_model(model)
    model.config.logit_scale = 0.5  # which this family does not read
    with pytest.raises(JobFailure, match="It does something to its logits") as failure:
        split_model(model)
    assert (failure.value.code, failure.value.param) == ("unsupported_model", "model")


def test_a_loss_of_the_router_is_not_left_out_silently() -> None:
    with pytest.raises(JobFailure, match="adds to the loss by output_router_logits") as failure:
        split_model(make_model("Mixtral", output_router_logits=True))
    assert (failure.value.code, failure.value.param) == ("unsupported_model", "model")


# What the data asks of a tokenizer


@pytest.mark.parametrize("which", ["training", "validation"])
def test_chats_need_a_chat_template(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, which: str
) -> None:
    text = [{"text": "Words."}]
    rows, validation = (chats(2), text) if which == "training" else (text, chats(2))
    spec = make_spec(tmp_path, tiny, rows, validation=validation)
    check(spec, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(JobFailure, match="no chat template") as failure:
        check(spec, tokenizer)
    assert (failure.value.code, failure.value.param) == ("unsupported_model", "model")
    check(make_spec(tmp_path, tiny, text), tokenizer)


def test_chats_need_to_know_where_a_token_is(tiny: Path, tmp_path: Path) -> None:
    slow = ByT5Tokenizer()
    slow.chat_template = "{{ messages[0].content }}"
    with pytest.raises(JobFailure, match="not a fast one"):
        check(make_spec(tmp_path, tiny, [ask("a", "b")]), slow)
    check(make_spec(tmp_path, tiny, [{"text": "Words."}]), slow)


# Packing


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_read_position_ids_may_pack(family: str, dtype: torch.dtype) -> None:
    model = make_model(family).to(dtype).train()
    check_packing(split(model))
    assert model.training


@pytest.mark.parametrize(("family", "shape"), [("Bloom", BLOOM), ("Mamba", MAMBA)])
def test_models_that_would_mix_packed_examples_are_refused(family: str, shape: dict) -> None:
    with pytest.raises(JobFailure, match="does not keep packed examples apart") as failure:
        check_packing(split(make_model(family, **shape)))
    assert (failure.value.code, failure.value.param) == ("unsupported_model", "packing")


def test_the_context_is_known_by_whatever_name_the_family_gives_it() -> None:
    assert context_of(transformers.LlamaConfig(max_position_embeddings=77)) == 77
    assert context_of(transformers.GPT2Config(n_positions=77)) == 77
    assert context_of(transformers.MambaConfig()) is None
