"""The ledger on the job's own batch; the losses are counted, not assumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cce_core import LossConfig, baselines
from cce_core.models import Split, split
from service.contract.memory import LossMemory, MemoryLedger
from tests.support.tiny_llama import VOCABULARY, make_tiny_llama
from worker.training import memory
from worker.training.batches import Batch, collate
from worker.training.examples import Example

ROWS, LENGTH = 4, 64
CONFIG = LossConfig(implementation="blocked", scratch_bytes=2**14)


@pytest.fixture
def model(tiny_model: Path) -> Split:
    return split(AutoModelForCausalLM.from_pretrained(tiny_model))


def batch(rows: int, length: int, device: str = "cpu") -> Batch:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (rows, length), generator=random).tolist()
    return collate([[Example(row, row)] for row in ids], 0, packed=False).to(torch.device(device))


def entry(ledger: MemoryLedger, loss: str) -> LossMemory:
    return next(entry for entry in ledger.losses if entry.loss == loss)


def test_the_loss_layer_and_the_step_are_measured_for_each_loss(model: Split) -> None:
    ledger = memory.measure(model, batch(ROWS, LENGTH), CONFIG)
    logits = 4 * ROWS * (LENGTH - 1) * VOCABULARY
    full, ours = entry(ledger, "full_logits"), entry(ledger, "cce")
    assert {e.loss for e in ledger.losses} == {"full_logits", "chunked", "cce"}
    for found in ledger.losses:
        assert found.loss_layer.provenance == found.step.provenance == "measured"
        assert found.tokens_per_s > 0
        assert found.largest_micro_batch is None  # the CPU's memory is not the job's alone
    assert 2 * logits < full.loss_layer.bytes < 5 * logits
    assert ours.loss_layer.bytes < logits / 2
    # Both steps hold the same activations; what they differ by is the loss layer's.
    assert full.step.bytes - ours.step.bytes > logits
    assert ours.step.bytes > ours.loss_layer.bytes
    savings = {saving.baseline: saving for saving in ledger.savings}
    ratio = full.loss_layer.bytes / ours.loss_layer.bytes
    assert savings["full_logits"].loss_layer_ratio == pytest.approx(ratio)
    assert savings["full_logits"].step_bytes == full.step.bytes - ours.step.bytes
    assert ledger.tokens == ROWS * (LENGTH - 1)


def test_a_step_grows_with_the_micro_batch(model: Split) -> None:
    small, large = (memory.measure(model, batch(rows, LENGTH), CONFIG) for rows in (2, 8))
    growth = entry(large, "cce").step.bytes / entry(small, "cce").step.bytes
    assert 2.5 < growth < 4.5


def test_activations_do_not_hide_behind_gradients_that_are_yet_to_come(model: Split) -> None:
    """Of a batch smaller than the weights, a first step's peak is that of the gradients."""
    for found in memory.measure(model, batch(1, 16), CONFIG).losses:
        assert found.step.bytes > found.loss_layer.bytes


# The name that every supported release of transformers knows.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_it_is_measured_as_it_is_trained(model: Split) -> None:
    """With checkpointing, which transformers does in training mode alone."""
    model.model.eval()
    plain = memory.measure(model, batch(8, LENGTH), CONFIG)
    model.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    checkpointed = memory.measure(model, batch(8, LENGTH), CONFIG)
    assert entry(checkpointed, "cce").step.bytes < 0.8 * entry(plain, "cce").step.bytes
    assert not model.model.training


def test_it_leaves_the_model_as_it_was(model: Split) -> None:
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    memory.measure(model, batch(2, 16), CONFIG)
    assert all(p.grad is None for p in model.model.parameters())
    after = model.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_baseline_that_does_not_fit_is_an_entry_and_the_others_are_measured(
    model: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    monkeypatch.setattr(baselines, "full_logits", refuse)
    ledger = memory.measure(model, batch(ROWS, LENGTH), CONFIG)
    full = entry(ledger, "full_logits")
    for figure in (full.loss_layer, full.step):
        assert (figure.provenance, figure.bytes) == ("out_of_memory", 2 << 30)
    assert full.tokens_per_s is None
    assert entry(ledger, "cce").step.provenance == "measured"
    assert [saving.baseline for saving in ledger.savings] == ["chunked"]
    assert all(p.grad is None for p in model.model.parameters())


def test_a_baseline_that_would_exhaust_the_machine_is_modelled(
    model: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.device_of, "free_cpu_bytes", lambda: 1000)
    full = entry(memory.measure(model, batch(2, 16), CONFIG), "full_logits")
    assert (full.loss_layer.provenance, full.loss_layer.formula) == ("modelled", "three_logits")
    assert full.loss_layer.bytes == 3 * 4 * 2 * 15 * VOCABULARY
    assert full.step is None


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
def test_a_real_out_of_memory_of_a_baseline_is_recovered_from(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "model", hidden_size=256, max_position_embeddings=2048)
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    causal.resize_token_embeddings(131_072)
    model = split(causal.to("cuda"))
    config = LossConfig(implementation="triton")
    free = memory.measure(model, batch(8, 1024, "cuda"), config)
    full = entry(free, "full_logits")
    assert full.loss_layer.bytes > 2 * 8 * 1023 * 131_072 * 4
    assert entry(free, "cce").largest_micro_batch.sequences > full.largest_micro_batch.sequences
    ratio = {saving.baseline: saving.micro_batch_ratio for saving in free.savings}
    assert ratio["full_logits"] > 2
    with capped(torch.cuda.memory_allocated() + full.loss_layer.bytes // 2):
        tight = memory.measure(model, batch(8, 1024, "cuda"), config)
    refused = entry(tight, "full_logits")
    assert refused.loss_layer.provenance == refused.step.provenance == "out_of_memory"
    assert refused.loss_layer.bytes >= 2 * 8 * 1023 * 131_072
    assert 1 <= refused.largest_micro_batch.sequences < 8
    ours = entry(tight, "cce")
    assert ours.step.provenance == "measured"
    assert ours.step.bytes == pytest.approx(entry(free, "cce").step.bytes, rel=0.2)
