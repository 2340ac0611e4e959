"""The ledger: figures that are counted, that say where they come from, and that leave no trace."""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cce_core import LossConfig
from cce_core.models import Split, split
from service.contract.memory import LossMemory, MemoryLedger
from tests.worker.training.support import make_model
from worker.training import memory
from worker.training.batches import Batch

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
CONFIG = LossConfig(implementation="blocked", scratch_bytes=2**16)
ROWS, LENGTH, VOCABULARY, WIDTH = 2, 65, 4096, 32
LOGITS = 4 * ROWS * (LENGTH - 1) * VOCABULARY


def batch() -> Batch:
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    return Batch(ids, ids.clone(), positions, torch.ones_like(ids))


def model(**options: Any) -> Split:
    return split(make_model("Llama", vocab_size=VOCABULARY, **options))


def by_loss(ledger: MemoryLedger) -> dict[str, LossMemory]:
    return {entry.loss: entry for entry in ledger.losses}


@pytest.fixture(scope="module")
def ledger() -> MemoryLedger:
    return memory.measure(model(), batch(), CONFIG)


def test_the_ledger_says_what_was_measured_on(ledger: MemoryLedger) -> None:
    assert (ledger.micro_batch_size, ledger.seq_length) == (ROWS, LENGTH)
    assert ledger.tokens == ROWS * (LENGTH - 1)
    assert (ledger.vocab_size, ledger.hidden_size, ledger.dtype) == (VOCABULARY, WIDTH, "float32")
    assert ledger.method == "CPU allocator events"
    assert ledger.device


def test_every_figure_is_measured_and_says_so(ledger: MemoryLedger) -> None:
    assert [entry.loss for entry in ledger.losses] == ["full_logits", "chunked", "cce"]
    for entry in ledger.losses:
        for figure in (entry.loss_layer, entry.step):
            assert (figure.provenance, figure.formula) == ("measured", None)
            assert figure.bytes > 0
        assert entry.tokens_per_s > 0


def test_full_logits_cost_several_times_their_size(ledger: MemoryLedger) -> None:
    """Logits, log-probabilities, and the gradients of one or two of them."""
    full = by_loss(ledger)["full_logits"].loss_layer.bytes
    assert 2.5 * LOGITS < full < 3.5 * LOGITS


def test_our_loss_costs_its_tiles_and_not_the_logits(ledger: MemoryLedger) -> None:
    assert CONFIG.scratch_bytes < by_loss(ledger)["cce"].loss_layer.bytes < LOGITS / 8


def test_more_scratch_is_counted() -> None:
    """Two and a half tiles are held at most."""
    sizes = 2**16, 2**20
    little, much = (
        by_loss(memory.measure(model(), batch(), replace(CONFIG, scratch_bytes=size)))["cce"]
        for size in sizes
    )
    more = sizes[1] - sizes[0]
    assert more < much.loss_layer.bytes - little.loss_layer.bytes < 2.5 * more


def test_savings_are_against_named_baselines(ledger: MemoryLedger) -> None:
    entries = by_loss(ledger)
    ours = entries["cce"]
    assert [saving.baseline for saving in ledger.savings] == ["full_logits", "chunked"]
    for saving in ledger.savings:
        baseline = entries[saving.baseline]
        layers = baseline.loss_layer.bytes, ours.loss_layer.bytes
        steps = baseline.step.bytes, ours.step.bytes
        assert saving.loss_layer_bytes == layers[0] - layers[1]
        assert saving.loss_layer_ratio == pytest.approx(layers[0] / layers[1])
        assert saving.step_bytes == steps[0] - steps[1]
        assert saving.step_ratio == pytest.approx(steps[0] / steps[1])
    assert ledger.savings[0].loss_layer_ratio > 10


def test_a_baseline_too_large_to_try_is_modelled_by_a_named_formula(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_AVPHYS_PAGES" else own(name))
    ledger = memory.measure(model(), batch(), CONFIG)
    full = by_loss(ledger)["full_logits"]
    assert (full.loss_layer.provenance, full.loss_layer.formula) == ("modelled", "three_logits")
    assert full.loss_layer.bytes == 3 * LOGITS
    assert (full.step, full.tokens_per_s) == (None, None)
    saving = ledger.savings[0]
    assert saving.loss_layer_bytes == 3 * LOGITS - by_loss(ledger)["cce"].loss_layer.bytes
    assert (saving.baseline, saving.step_bytes, saving.step_ratio) == ("full_logits", None, None)
    others = [entry.loss_layer.provenance for entry in ledger.losses[1:]]
    assert others == ["measured", "measured"]


def test_the_formula_is_near_what_is_measured(ledger: MemoryLedger) -> None:
    assert by_loss(ledger)["full_logits"].loss_layer.bytes == pytest.approx(3 * LOGITS, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_measuring_leaves_weights_and_gradients_as_they_were(
    dtype: torch.dtype, lora: bool
) -> None:
    tuned = make_model("Llama", vocab_size=VOCABULARY, attention_dropout=0.1).to(dtype).train()
    if lora:
        options = {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
        config = LoraConfig(task_type="CAUSAL_LM", **options)
        tuned = get_peft_model(tuned, config, autocast_adapter_dtype=False)
    parts = split(tuned)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    before = {name: parameter.clone() for name, parameter in tuned.named_parameters()}
    ledger = memory.measure(parts, batch(), CONFIG)
    assert ledger.dtype == str(dtype).removeprefix("torch.")
    assert tuned.training
    for name, parameter in tuned.named_parameters():
        assert torch.equal(parameter, before[name])
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, torch.full_like(parameter, 0.5))


def test_a_frozen_head_is_measured_without_its_gradient(ledger: MemoryLedger) -> None:
    frozen = model()
    frozen.head.weight.requires_grad_(False)
    found = by_loss(memory.measure(frozen, batch(), CONFIG))["cce"]
    assert found.loss_layer.provenance == "measured"
    assert 0 < found.loss_layer.bytes <= by_loss(ledger)["cce"].loss_layer.bytes
