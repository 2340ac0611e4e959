"""The memory ledger: what each loss costs on the job's own first batch.

The loss layer is measured on the batch's hidden states: peak of its forward and backward above the
inputs and the gradients themselves. The step is a whole forward and backward pass of the model,
counted likewise. A baseline that is too large to try on this CPU is modelled: `three_logits`,
3 N V float32 (logits, log-probabilities, their gradient) for N positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cce_core import LossConfig, baselines
from cce_core.models import Split
from service.contract.memory import Figure, LossMemory, LossName, MemoryLedger, Saving
from worker.training import device as device_of
from worker.training.allocator import OutOfMemory, Peak, peak_of
from worker.training.batches import Batch
from worker.training.model import hidden_states

_CPU_SHARE = 0.5
_MODELLED_COPIES = 3
# Hidden states (B, T, D) and labels (B, T) to the summed loss, a scalar.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """What every loss is measured on."""

    model: Split
    batch: Batch

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device


def measure(model: Split, batch: Batch, config: LossConfig) -> MemoryLedger:
    """Run every loss on `batch`, and say what ours saves against each baseline.

    Nothing of it stays: no gradient, no weight changes.
    """
    bench = Bench(model, batch)
    losses = [_entry(bench, name, loss) for name, loss in _losses(model, config).items()]
    weight = model.head.weight
    return MemoryLedger(
        device=device_of.name(weight.device),
        method="CUDA allocator peak" if weight.is_cuda else "CPU allocator events",
        micro_batch_size=batch.input_ids.shape[0],
        seq_length=batch.input_ids.shape[1],
        tokens=batch.supervised,
        vocab_size=weight.shape[0],
        hidden_size=weight.shape[1],
        dtype=str(weight.dtype).removeprefix("torch."),
        losses=losses,
        savings=_savings(losses),
    )


def _losses(model: Split, config: LossConfig) -> dict[LossName, Loss]:
    head = model.head
    losses: dict[LossName, Loss] = {
        "full_logits": lambda hidden, labels: baselines.full_logits(hidden, head, labels),
        "chunked": lambda hidden, labels: baselines.chunked(hidden, head, labels),
        "cce": lambda hidden, labels: (
            head.loss(hidden, labels, config, shift=1, reduction="sum").loss
        ),
    }
    if head.weight.is_cuda:  # elsewhere nobody compiles for the sake of the loss
        losses["compiled_full_logits"] = lambda hidden, labels: baselines.compiled_full_logits(
            hidden, head, labels
        )
    order: tuple[LossName, ...] = ("full_logits", "compiled_full_logits", "chunked", "cce")
    return {name: losses[name] for name in order if name in losses}


def _entry(bench: Bench, name: LossName, loss: Loss) -> LossMemory:
    modelled = _modelled(bench) if name == "full_logits" else None
    if modelled is not None:
        return LossMemory(loss=name, loss_layer=modelled)
    step = _step(bench, loss)
    return LossMemory(
        loss=name,
        loss_layer=_figure(_loss_layer(bench, loss)),
        step=_figure(step),
        tokens_per_s=(
            bench.batch.input_ids.numel() / step.seconds if isinstance(step, Peak) else None
        ),
    )


def _modelled(bench: Bench) -> Figure | None:
    """The formula's figure where trying might exhaust this machine; None elsewhere."""
    rows = bench.batch.labels[:, 1:].numel()
    size = _MODELLED_COPIES * 4 * rows * bench.model.head.weight.shape[0]
    if bench.device.type == "cuda" or size <= _CPU_SHARE * device_of.free_cpu_bytes():
        return None
    return Figure(bytes=size, provenance="modelled", formula="three_logits")


def _loss_layer(bench: Bench, loss: Loss) -> Peak | OutOfMemory:
    with torch.no_grad():
        hidden = hidden_states(bench.model, bench.batch)
    hidden.requires_grad_()
    leaves = [hidden, *bench.model.head.parameters()]

    def run() -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss(hidden, bench.batch.labels), leaves))

    return peak_of(run, bench.device)


def _step(bench: Bench, loss: Loss) -> Peak | OutOfMemory:
    parameters = [p for p in bench.model.model.parameters() if p.requires_grad]

    def run() -> list[torch.Tensor]:
        total = loss(hidden_states(bench.model, bench.batch), bench.batch.labels)
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    return peak_of(run, bench.device)


def _figure(result: Peak | OutOfMemory) -> Figure:
    if isinstance(result, OutOfMemory):
        return Figure(bytes=result.asked_bytes or 0, provenance="out_of_memory")
    return Figure(bytes=result.bytes, provenance="measured")


def _savings(losses: list[LossMemory]) -> list[Saving]:
    """Ours against each baseline that has a figure to compare with."""
    ours = next(entry for entry in losses if entry.loss == "cce")
    if ours.loss_layer.provenance == "out_of_memory":
        return []
    return [
        _saving(ours, entry)
        for entry in losses
        if entry is not ours and entry.loss_layer.provenance != "out_of_memory"
    ]


def _saving(ours: LossMemory, baseline: LossMemory) -> Saving:
    layers = baseline.loss_layer.bytes, max(1, ours.loss_layer.bytes)
    whole = _measured(baseline.step), _measured(ours.step)
    steps = (whole[0], max(1, whole[1])) if whole[0] is not None and whole[1] is not None else None
    return Saving(
        baseline=baseline.loss,
        loss_layer_bytes=layers[0] - layers[1],
        loss_layer_ratio=layers[0] / layers[1],
        step_bytes=steps[0] - steps[1] if steps else None,
        step_ratio=steps[0] / steps[1] if steps else None,
    )


def _measured(figure: Figure | None) -> int | None:
    return figure.bytes if figure is not None and figure.provenance == "measured" else None
