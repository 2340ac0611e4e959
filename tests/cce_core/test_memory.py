"""That no N x V matrix is held: peak bytes by the CPU allocator's own events."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from cce_core import LossConfig, baselines
from cce_core.head import Head

N, V, D = 512, 8192, 32
FULL = 4 * N * V
SCRATCH = 2**18


def peak_bytes(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    del kept
    return peak


def case() -> tuple[torch.Tensor, Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, N + 1, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    return hidden, Head(weight), torch.randint(V, (1, N + 1), generator=generator)


def test_the_blocked_loss_and_its_gradients_stay_within_their_scratch() -> None:
    hidden, head, labels = case()
    config = LossConfig(implementation="blocked", scratch_bytes=SCRATCH)

    def run() -> object:
        loss = head.loss(hidden, labels, config, shift=1, reduction="sum").loss
        return torch.autograd.grad(loss, [hidden, head.weight])

    gradients = 4 * D * (N + 1 + V)
    assert peak_bytes(run) < FULL / 4
    # Beside the tile: a copy of what shift cuts from the hidden states, and vectors over rows.
    assert peak_bytes(run) - gradients < 4 * SCRATCH


def test_the_count_sees_full_logits() -> None:
    hidden, head, labels = case()

    def run() -> object:
        loss = baselines.full_logits(hidden, head, labels)
        return torch.autograd.grad(loss, [hidden, head.weight])

    assert peak_bytes(run) > 2 * FULL
