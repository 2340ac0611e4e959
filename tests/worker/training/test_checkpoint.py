"""A run that is put back to a checkpoint goes on as the one that wrote it, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, get_scheduler

from tests.worker.training.support import FAMILIES, make_model
from worker.training.checkpoint import (
    Position,
    Run,
    load_weights,
    resume,
    save,
    seed_everything,
    trainable,
)
from worker.training.optimizer import MasterAdamW

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
POSITION = Position(
    step=3, tokens=120, metrics=[{"step": 3, "train_loss": 0.5, "valid_loss": None}]
)
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tokenizer: PreTrainedTokenizerBase) -> MakeRun:
    def make_run(
        family: str = "Llama", dtype: torch.dtype = torch.float32, *, lora: bool = False
    ) -> Run:
        model: nn.Module = make_model(family).to(dtype)
        if lora:
            config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
            model = get_peft_model(model, config, autocast_adapter_dtype=False)
        optimizer = MasterAdamW(trainable(model), lr=1e-3, weight_decay=0.1)
        return Run(model, optimizer, get_scheduler("cosine", optimizer, 2, 20), tokenizer)

    return make_run


def steps(run: Run, count: int) -> list[float]:
    """Train on random tokens, drawn from what a checkpoint must bring back too."""
    losses = []
    for _ in range(count):
        ids = torch.randint(97, (2, 8))
        loss = run.model(input_ids=ids, labels=ids).loss
        loss.backward()
        run.optimizer.apply_gradients(1.0)
        run.scheduler.step()
        losses.append(float(loss.detach()))
    return losses


def same(run: Run, other: Run) -> bool:
    weights, others = run.model.state_dict(), other.model.state_dict()
    pieces = zip(run.optimizer.pieces, other.optimizer.pieces, strict=True)
    return all(torch.equal(weights[name], others[name]) for name in weights | others) and all(
        torch.equal(one.whole(), another.whole()) for one, another in pieces
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_of_any_family_is_resumed(make_run: MakeRun, tmp_path: Path, family: str) -> None:
    """Also one whose weights are saved in another form than it holds them, as experts are."""
    run, fresh = make_run(family), make_run(family)
    steps(run, 2)
    assert not same(run, fresh)
    save(run, POSITION, tmp_path / "checkpoint")
    resume(fresh, tmp_path / "checkpoint")
    assert same(run, fresh)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_bit_for_bit(
    make_run: MakeRun, tmp_path: Path, dtype: torch.dtype, lora: bool
) -> None:
    run = make_run(dtype=dtype, lora=lora)
    steps(run, 3)
    save(run, POSITION, tmp_path / "checkpoint")
    expected = steps(run, 4)
    resumed = make_run(dtype=dtype, lora=lora)
    steps(resumed, 1)  # whatever it did before
    assert resume(resumed, tmp_path / "checkpoint") == POSITION
    assert steps(resumed, 4) == expected
    assert same(run, resumed)
    assert resumed.scheduler.get_last_lr() == run.scheduler.get_last_lr()


def test_saving_disturbs_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    undisturbed, run = make_run(), make_run()
    torch.manual_seed(5)
    expected = steps(undisturbed, 4)
    torch.manual_seed(5)
    first = steps(run, 2)
    save(run, POSITION, tmp_path / "checkpoint")
    assert first + steps(run, 2) == expected


def test_a_checkpoint_is_a_model_too(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("Mixtral")
    save(run, POSITION, tmp_path / "checkpoint")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint" / "model")
    for name, weight in run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    names = {path.name for path in (tmp_path / "checkpoint" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_the_attention_of_a_saved_model_is_left_to_whoever_loads_it(
    make_run: MakeRun, tmp_path: Path, family: str
) -> None:
    save(make_run(family), POSITION, tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "model" / "config.json").read_text())
    assert config["model_type"] == family.lower()
    assert not [key for key in config if "attn_implementation" in key]


def test_weights_of_another_model_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    save(make_run(), POSITION, tmp_path / "checkpoint")
    other = make_model("Llama", hidden_size=16)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(other, tmp_path / "checkpoint" / "model")


@pytest.mark.parametrize("end", [OSError("disk full"), KeyboardInterrupt()])
def test_a_checkpoint_is_whole_or_not_there(
    make_run: MakeRun,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    end: BaseException,
) -> None:
    run, folder = make_run(), tmp_path / "checkpoint"

    def stop(path: Path) -> None:
        assert (path / "model.safetensors").is_file()  # half of it has been written
        raise end

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "save_pretrained", stop)
        with pytest.raises(type(end)):
            save(run, POSITION, folder)
    assert not folder.exists()
    save(run, POSITION, folder)  # whatever the first try left behind
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert resume(make_run(), folder) == POSITION


def test_a_seed_determines_all_that_is_drawn() -> None:
    def draws() -> tuple[float, float]:
        seed_everything(11)
        return float(torch.rand(())), float(nn.Linear(1, 1).weight.detach())

    assert draws() == draws()


def test_frozen_weights_are_not_trained(make_run: MakeRun) -> None:
    run = make_run(lora=True)
    assert trainable(run.model)
    assert all(parameter.requires_grad for parameter in trainable(run.model))
    assert len(trainable(run.model)) < len(list(run.model.parameters()))
