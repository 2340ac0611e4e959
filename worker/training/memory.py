"""The memory ledger: what each loss costs on the job's own first batch, counted by the allocator.

The loss layer is measured on the batch's hidden states: peak of its forward and backward above the
inputs and the gradients themselves. The step is a whole forward and backward pass of the model,
peak above what was allocated before. A baseline that is too large to try on this CPU is modelled:
`three_logits`, 3 N V float32 (logits, log-probabilities, their gradient).
"""

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from service.contract.memory import Figure, LossMemory, LossName, MemoryLedger, Saving
from worker.training.data import Batch
from worker.training.losses import BASELINES, SumLoss
from worker.training.model import Split

_CPU_SHARE = 0.5
_MODELLED_COPIES = 3


@dataclass(frozen=True)
class Measured:
    """Peak bytes and seconds of one run."""

    peak: int
    seconds: float


def measure(model: Split, batch: Batch, ours: SumLoss) -> MemoryLedger:
    """Run every loss on `batch`, and say what ours saves against each baseline."""
    losses: list[LossMemory] = []
    for name, loss in [*((n, make(model)) for n, make in BASELINES.items()), ("cce", ours)]:
        losses.append(_entry(name, loss, model, batch))
    return MemoryLedger(
        device=_device_name(model.weight.device),
        method="CUDA allocator peak" if model.weight.is_cuda else "CPU allocator events",
        micro_batch_size=batch.input_ids.shape[0],
        seq_length=batch.input_ids.shape[1],
        tokens=batch.supervised,
        vocab_size=model.weight.shape[0],
        hidden_size=model.weight.shape[1],
        dtype=str(model.dtype).removeprefix("torch."),
        losses=losses,
        savings=_savings(losses),
    )


def _entry(name: LossName, loss: SumLoss, model: Split, batch: Batch) -> LossMemory:
    modelled = _MODELLED_COPIES * 4 * batch.labels[:, 1:].numel() * model.weight.shape[0]
    if name == "full_logits" and not model.weight.is_cuda and modelled > _free_bytes():
        figure = Figure(bytes=modelled, provenance="modelled", formula="three_logits")
        return LossMemory(loss=name, loss_layer=figure)
    try:
        layer = _loss_layer(loss, model, batch)
        step = _step(loss, model, batch)
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        asked = Figure(bytes=_asked_for(str(error)), provenance="out_of_memory")
        return LossMemory(loss=name, loss_layer=asked)
    return LossMemory(
        loss=name,
        loss_layer=Figure(bytes=layer.peak, provenance="measured"),
        step=Figure(bytes=step.peak, provenance="measured"),
        tokens_per_s=batch.input_ids.numel() / step.seconds,
    )


def _loss_layer(loss: SumLoss, model: Split, batch: Batch) -> Measured:
    with torch.no_grad(), model.autocast():
        states = model.hidden(batch)
    hidden = states.detach().requires_grad_()
    leaves = [hidden, *(p for p in (model.weight, model.bias) if p is not None and p.requires_grad)]

    def run() -> list[torch.Tensor]:
        with model.autocast():
            total = _total(loss(hidden, batch.labels))
        return list(torch.autograd.grad(total, leaves))

    return _peak(run, model.weight.device)


def _step(loss: SumLoss, model: Split, batch: Batch) -> Measured:
    parameters = [p for p in model.full.parameters() if p.requires_grad]

    def run() -> list[torch.Tensor]:
        with model.autocast():
            total = _total(loss(model.hidden(batch), batch.labels))
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    return _peak(run, model.weight.device)


def _total(output: object) -> torch.Tensor:
    total = getattr(output, "loss", output)
    assert isinstance(total, torch.Tensor)
    return total


def _peak(run: Callable[[], list[torch.Tensor]], device: torch.device) -> Measured:
    """Peak above what was there before and above the gradients that `run` returns."""
    return _cuda_peak(run) if device.type == "cuda" else _cpu_peak(run)


def _cuda_peak(run: Callable[[], list[torch.Tensor]]) -> Measured:
    del_me = run()  # first launches compile and allocate work space
    del del_me
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    gradients = run()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    kept = torch.cuda.memory_allocated() - before
    del gradients
    return Measured(max(0, torch.cuda.max_memory_allocated() - before - kept), seconds)


def _cpu_peak(run: Callable[[], list[torch.Tensor]]) -> Measured:
    """From the CPU allocator's own events; the gradients' allocations are those that stay."""
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        gradients = run()
    seconds = time.perf_counter() - start
    sizes = [gradient.untyped_storage().nbytes() for gradient in gradients]
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    deltas = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    for size in sizes:
        last = max((i for i, delta in enumerate(deltas) if delta == size), default=None)
        if last is not None:
            deltas[last] = 0
    current = peak = 0
    for delta in deltas:
        current += delta
        peak = max(peak, current)
    return Measured(peak, seconds)


def _savings(losses: list[LossMemory]) -> list[Saving]:
    ours = next(entry for entry in losses if entry.loss == "cce")
    return [_saving(ours, entry) for entry in losses if entry.loss != "cce"]


def _saving(ours: LossMemory, baseline: LossMemory) -> Saving:
    layers = baseline.loss_layer.bytes, max(1, ours.loss_layer.bytes)
    steps = None
    if baseline.step is not None and ours.step is not None:
        steps = baseline.step.bytes, max(1, ours.step.bytes)
    return Saving(
        baseline=baseline.loss,
        loss_layer_bytes=layers[0] - layers[1],
        loss_layer_ratio=layers[0] / layers[1],
        step_bytes=steps[0] - steps[1] if steps else None,
        step_ratio=steps[0] / steps[1] if steps else None,
    )


def _free_bytes() -> float:
    return _CPU_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _asked_for(message: str) -> int:
    """The bytes that a failed allocation asked for, from torch's message; 0 where it says none."""
    match = re.search(r"Tried to allocate ([\d.]+) ([KMGT]i)?B", message)
    units = {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}
    return 0 if match is None else int(float(match[1]) * 2 ** units[match[2]])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
