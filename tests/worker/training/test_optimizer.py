import copy

import pytest
import torch
from torch import nn

from worker.training.optimizer import MasterAdamW

RATE = 1e-5


def _model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)


def _gradients(model: nn.Module, step: int) -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    model(x.to(next(model.parameters()).dtype)).float().pow(2).mean().backward()


def _train(model: nn.Module, optimizer: MasterAdamW, steps: range) -> None:
    for step in steps:
        _gradients(model, step)
        optimizer.take_gradients()
        optimizer.step()
        optimizer.zero_grad()


def _flat(parameters) -> torch.Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in parameters])


def test_fp32_weights_move_as_under_plain_adamw() -> None:
    ours, plain = _model(torch.float32), _model(torch.float32)
    _train(ours, MasterAdamW(ours.parameters(), lr=RATE, weight_decay=0.1), range(5))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        _gradients(plain, step)
        optimizer.step()
    assert torch.equal(_flat(ours.parameters()), _flat(plain.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_clipped_together_applied_and_gone(dtype: torch.dtype) -> None:
    model = _model(dtype)
    _gradients(model, 0)
    gradient, before = _flat(p.grad for p in model.parameters()), _flat(model.parameters())
    optimizer = MasterAdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    norm = optimizer.apply_gradients(1e-3)
    assert norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    first = _flat(optimizer.state[master]["exp_avg"] for master in optimizer.masters)
    assert first == pytest.approx(0.1 * 1e-3 * gradient / norm, rel=1e-3, abs=1e-9)
    assert not torch.equal(_flat(model.parameters()), before)
    assert all(p.grad is None for p in [*model.parameters(), *optimizer.masters])


def test_updates_below_the_last_bit_of_a_bf16_weight_are_not_lost() -> None:
    exact, held = _model(torch.bfloat16).float(), _model(torch.bfloat16)
    start = _flat(exact.parameters())
    _train(exact, MasterAdamW(exact.parameters(), lr=RATE, weight_decay=0.0), range(60))
    optimizer = MasterAdamW(held.parameters(), lr=RATE, weight_decay=0.0)
    _train(held, optimizer, range(60))
    moved = _flat(exact.parameters()) - start
    assert torch.nn.functional.cosine_similarity(
        _flat(optimizer.masters) - start, moved, dim=0
    ) == pytest.approx(1, abs=0.05)
    assert torch.equal(_flat(held.parameters()), _flat(optimizer.masters).bfloat16().float())

    lossy = _model(torch.bfloat16)
    plain = torch.optim.AdamW(lossy.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(60):
        _gradients(lossy, step)
        plain.step()
        plain.zero_grad()
    assert (_flat(lossy.parameters()) - start).norm() < moved.norm() / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_optimizer_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    model = _model(dtype)
    optimizer = MasterAdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    _train(model, optimizer, range(10))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    _train(model, optimizer, range(10, 20))

    resumed = _model(dtype)
    resumed.load_state_dict(weights)
    again = MasterAdamW(resumed.parameters(), lr=RATE, weight_decay=0.1)
    again.load_state_dict(state)
    _train(resumed, again, range(10, 20))
    assert torch.equal(_flat(again.masters), _flat(optimizer.masters))
    assert torch.equal(_flat(resumed.parameters()), _flat(model.parameters()))


def test_gradients_are_taken_once_and_in_fp32() -> None:
    model = _model(torch.bfloat16)
    optimizer = MasterAdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    _gradients(model, 0)
    expected = [parameter.grad.float() for parameter in model.parameters()]
    optimizer.take_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
    for master, gradient in zip(optimizer.masters, expected, strict=True):
        assert master.grad.dtype == torch.float32
        assert torch.equal(master.grad, gradient)
