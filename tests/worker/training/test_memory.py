"""The ledger: figures that are counted, that say where they come from, and that leave no trace."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cce_core import LossConfig, baselines
from cce_core.models import Split, split
from service.contract.memory import LossMemory, LossName, MemoryLedger
from tests.worker.training.support import make_model
from worker.training import full_logits, memory
from worker.training.batches import Batch, collate
from worker.training.examples import Example
from worker.training.losses import Loss

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


def measured(
    parts: Split, held: Batch, config: LossConfig = CONFIG, passes: int = 500
) -> MemoryLedger:
    return memory.measure(parts, held, config, passes=passes)


def by_loss(ledger: MemoryLedger) -> dict[str, LossMemory]:
    return {entry.loss: entry for entry in ledger.losses}


@pytest.fixture(scope="module")
def ledger() -> MemoryLedger:
    return measured(model(), batch())


def test_the_ledger_says_what_was_measured_on(ledger: MemoryLedger) -> None:
    assert (ledger.micro_batch_size, ledger.seq_length) == (ROWS, LENGTH)
    assert ledger.tokens == ROWS * (LENGTH - 1)
    assert (ledger.vocab_size, ledger.hidden_size, ledger.dtype) == (VOCABULARY, WIDTH, "float32")
    assert ledger.method == "CPU allocator events"
    assert ledger.device == "cpu"


def test_every_figure_is_measured_and_says_so(ledger: MemoryLedger) -> None:
    assert [entry.loss for entry in ledger.losses] == ["full_logits", "chunked", "cce"]
    for entry in ledger.losses:
        for figure in (entry.loss_layer, entry.step):
            assert (figure.provenance, figure.formula) == ("measured", None)
            assert figure.bytes > 0
        assert entry.tokens_per_s > 0


def test_equal_losses_are_equally_fast_whichever_is_measured_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What counting takes, and what the first pass of all does, is in nobody's time."""
    own_s, not_to_be_timed_s, calls = 0.05, 0.5, []

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        counted = torch.autograd._profiler_enabled()
        time.sleep(not_to_be_timed_s if counted or not calls else own_s)
        calls.append(counted)
        return baselines.chunked(hidden, parts.head, labels)

    parts, held = model(), batch()
    names = ("full_logits", "chunked", "cce")
    monkeypatch.setattr(memory, "losses_of", lambda *_: dict.fromkeys(names, loss))
    speeds = [entry.tokens_per_s for entry in measured(parts, held).losses]
    assert {*calls} == {True, False}
    for speed in speeds:
        assert not_to_be_timed_s > held.input_ids.numel() / speed >= own_s


def test_full_logits_cost_several_times_their_size(ledger: MemoryLedger) -> None:
    """Log-probabilities, and the gradients that come to them and go on from them."""
    full = by_loss(ledger)["full_logits"].loss_layer.bytes
    assert 2.5 * LOGITS < full < 3.5 * LOGITS


def test_our_loss_costs_its_tiles_and_not_the_logits(ledger: MemoryLedger) -> None:
    assert CONFIG.scratch_bytes < by_loss(ledger)["cce"].loss_layer.bytes < LOGITS / 8


def test_more_scratch_is_counted() -> None:
    """One tile at least, two and a half at most."""
    sizes = 2**16, 2**20
    little, much = (
        by_loss(measured(model(), batch(), replace(CONFIG, scratch_bytes=size)))["cce"]
        for size in sizes
    )
    more = sizes[1] - sizes[0]
    assert more <= much.loss_layer.bytes - little.loss_layer.bytes < 2.5 * more


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
    ledger = measured(model(), batch())
    full = by_loss(ledger)["full_logits"]
    assert (full.loss_layer.provenance, full.loss_layer.formula) == ("modelled", "three_logits")
    assert full.loss_layer.bytes == 3 * LOGITS
    assert (full.step, full.tokens_per_s) == (None, None)
    saving = ledger.savings[0]
    assert saving.loss_layer_bytes == 3 * LOGITS - by_loss(ledger)["cce"].loss_layer.bytes
    assert (saving.baseline, saving.step_bytes, saving.step_ratio) == ("full_logits", None, None)
    others = [entry.loss_layer.provenance for entry in ledger.losses[1:]]
    assert others == ["measured", "measured"]


@pytest.mark.parametrize(("softcap", "copies"), [(None, 3), (20.0, 4)])
def test_the_formula_counts_the_tanh_that_a_softcap_keeps(
    softcap: float | None, copies: int
) -> None:
    family = "Llama" if softcap is None else "Gemma2"
    options = {} if softcap is None else {"final_logit_softcapping": softcap}
    parts = split(make_model(family, vocab_size=VOCABULARY, **options))
    assert parts.head.softcap == softcap
    figure = full_logits.modelled(ROWS * (LENGTH - 1), parts.head)
    assert figure.bytes == copies * LOGITS
    found = by_loss(measured(parts, batch()))["full_logits"].loss_layer
    assert found.provenance == "measured"
    assert found.bytes == pytest.approx(figure.bytes, rel=0.1)


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
    ledger = measured(parts, batch())
    assert ledger.dtype == str(dtype).removeprefix("torch.")
    assert tuned.training
    for name, parameter in tuned.named_parameters():
        assert torch.equal(parameter, before[name])
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, torch.full_like(parameter, 0.5))


def test_a_frozen_head_is_measured_without_its_gradient(ledger: MemoryLedger) -> None:
    frozen = model()
    frozen.head.weight.requires_grad_(False)
    found = by_loss(measured(frozen, batch()))["cce"]
    assert found.loss_layer.provenance == "measured"
    assert 0 < found.loss_layer.bytes <= by_loss(ledger)["cce"].loss_layer.bytes


def rows_of(count: int, length: int, vocabulary: int = VOCABULARY) -> Batch:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (count, length), generator=random).tolist()
    return collate([[Example(row, row)] for row in ids], 0, packed=False)


def test_a_step_grows_with_the_micro_batch() -> None:
    small, large = (
        by_loss(measured(model(), rows_of(rows, LENGTH)))["cce"].step.bytes for rows in (2, 8)
    )
    assert 2.5 < large / small < 4.5


def test_activations_do_not_hide_behind_gradients_that_are_yet_to_come() -> None:
    """Of a batch smaller than the weights, a first step's peak is that of the gradients."""
    for found in measured(model(), rows_of(1, 16)).losses:
        assert found.step.bytes > found.loss_layer.bytes


def test_the_step_is_measured_as_in_training_whatever_mode_the_model_is_in() -> None:
    """With checkpointing, which transformers does in training mode alone."""
    parts = model()
    parts.model.eval()
    plain = by_loss(measured(parts, rows_of(8, LENGTH)))["cce"].step.bytes
    parts.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    found = by_loss(measured(parts, rows_of(8, LENGTH)))["cce"].step.bytes
    assert found < 0.9 * plain
    assert not parts.model.training


def test_a_baseline_that_does_not_fit_is_an_entry_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    monkeypatch.setattr(baselines, "full_logits", refuse)
    parts = model()
    ledger = measured(parts, batch())
    full = by_loss(ledger)["full_logits"]
    for figure in (full.loss_layer, full.step):
        assert (figure.provenance, figure.bytes) == ("out_of_memory", 2 << 30)
    assert full.tokens_per_s is None
    assert by_loss(ledger)["cce"].step.provenance == "measured"
    assert [saving.baseline for saving in ledger.savings] == ["chunked"]
    assert all(parameter.grad is None for parameter in parts.model.parameters())


def test_no_micro_batch_is_modelled_on_cpu(ledger: MemoryLedger) -> None:
    """Its memory is not the job's alone."""
    assert ledger.room_bytes is None
    assert [entry.largest_micro_batch for entry in ledger.losses] == [None] * 3


@pytest.mark.parametrize(("passes", "provenance"), [(2, "modelled"), (10**9, "measured")])
def test_compiled_logits_are_measured_where_compiling_is_a_small_part_of_the_job(
    monkeypatch: pytest.MonkeyPatch, passes: int, provenance: str
) -> None:
    compiled = []

    def losses_of(parts: Split, config: LossConfig) -> dict[LossName, Loss]:
        """Those of a GPU, where nothing need be compiled to see what would be run."""

        def run(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            compiled.append(hidden.shape)
            return baselines.chunked(hidden, parts.head, labels)

        found = real(parts, config)
        return {"full_logits": found.pop("full_logits"), "compiled_full_logits": run, **found}

    real = memory.losses_of
    monkeypatch.setattr(memory, "losses_of", losses_of)
    ledger = measured(model(), batch(), passes=passes)
    assert [entry.loss for entry in ledger.losses] == list(get_args(LossName))
    others = by_loss(ledger)
    entry = others.pop("compiled_full_logits")
    assert entry.loss_layer.provenance == provenance
    assert {other.step.provenance for other in others.values()} == {"measured"}
    if provenance == "modelled":
        assert not compiled
        assert (entry.loss_layer.bytes, entry.loss_layer.formula) == (LOGITS, "one_logits")
        assert (entry.step, entry.tokens_per_s) == (None, None)
    else:
        assert compiled
    saving = next(s for s in ledger.savings if s.baseline == "compiled_full_logits")
    assert (saving.step_ratio is None) == (provenance == "modelled")


@contextmanager
def capped(size: int) -> Iterator[None]:
    """A device whose allocator may take no more than so many bytes."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(size / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_a_real_out_of_memory_of_a_baseline_is_recovered_from() -> None:
    vocabulary, rows, length = 131_072, 8, 1024
    options = {"vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 512}
    causal = make_model("Llama", **options, max_position_embeddings=2048)
    parts = split(causal.bfloat16().to("cuda"))
    held = rows_of(rows, length, vocabulary).to(torch.device("cuda"))
    config, logits = LossConfig(implementation="triton"), rows * (length - 1) * vocabulary
    free = measured(parts, held, config)
    full, ours = by_loss(free)["full_logits"], by_loss(free)["cce"]
    assert full.loss_layer.bytes > 8 * logits
    assert ours.largest_micro_batch.sequences > full.largest_micro_batch.sequences >= rows
    ratios = {saving.baseline: saving.micro_batch_ratio for saving in free.savings}
    assert ratios["full_logits"] > 2
    with capped(torch.cuda.memory_allocated() + full.loss_layer.bytes // 2):
        tight = measured(parts, held, config)
    refused = by_loss(tight)["full_logits"]
    assert refused.loss_layer.provenance == refused.step.provenance == "out_of_memory"
    assert refused.loss_layer.bytes >= 2 * logits
    assert 1 <= refused.largest_micro_batch.sequences < rows
    again = by_loss(tight)["cce"].step
    assert again.provenance == "measured"
    assert again.bytes == pytest.approx(ours.step.bytes, rel=0.2)
