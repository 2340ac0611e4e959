import copy
import math

import pytest
import torch
from torch import nn

from worker.training.allocator import cpu_peak
from worker.training.optimizer import MasterAdamW

RATE = 1e-5
DTYPES = [torch.float32, torch.bfloat16]


def _model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)


def _gradients(model: nn.Module, step: int) -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    model(x.to(next(model.parameters()).dtype)).float().pow(2).mean().backward()


def _train(model: nn.Module, optimizer: MasterAdamW, steps: range) -> None:
    for step in steps:
        _gradients(model, step)
        optimizer.apply_gradients(math.inf)


def _flat(parameters) -> torch.Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in parameters])


def _masters(optimizer: MasterAdamW) -> torch.Tensor:
    return _flat(piece.whole() for piece in optimizer.pieces)


@pytest.mark.parametrize("chunk", [7, 2**26])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_move_as_fp32_ones_under_plain_adamw(dtype: torch.dtype, chunk: int) -> None:
    """Clipped together, in chunks that cut through weights too."""
    ours, plain = _model(dtype), _model(dtype).float()
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1)
    optimizer = MasterAdamW(ours.parameters(), lr=1e-2, weight_decay=0.1, chunk=chunk)
    for step in range(5):
        _gradients(ours, step)
        for weight, exact in zip(ours.parameters(), plain.parameters(), strict=True):
            exact.grad = weight.grad.float().clone()
        expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        theirs.step()
        norm = optimizer.apply_gradients(0.05)
        assert norm.dtype == torch.float32
        assert norm == pytest.approx(float(expected), rel=1e-6)
        assert norm > 0.05
    torch.testing.assert_close(_masters(optimizer), _flat(plain.parameters()))
    rounding = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(
        _flat(ours.parameters()), _flat(plain.parameters()), rtol=rounding + 1e-5, atol=1e-7
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_clipped_together_applied_and_gone(dtype: torch.dtype) -> None:
    model = _model(dtype)
    _gradients(model, 0)
    gradient, before = _flat(p.grad for p in model.parameters()), _flat(model.parameters())
    optimizer = MasterAdamW(model.parameters(), lr=1e-2, weight_decay=0.0, chunk=50)
    norm = optimizer.apply_gradients(1e-3)
    assert norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    masters = [piece.master for piece in optimizer.pieces]
    first = _flat(optimizer.state[master]["exp_avg"] for master in masters)
    assert first == pytest.approx(0.1 * 1e-3 * gradient / norm, rel=1e-3, abs=1e-9)
    assert not torch.equal(_flat(model.parameters()), before)
    assert all(p.grad is None for p in [*model.parameters(), *masters])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_without_a_gradient_stays(dtype: torch.dtype) -> None:
    model = _model(dtype)
    optimizer = MasterAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = [weight.clone() for weight in model.parameters()]
    _gradients(model, 0)
    next(model.parameters()).grad = None
    optimizer.apply_gradients(1.0)
    same = [torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True)]
    assert same == [True, False, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_is_not_finite_shows_in_the_weights(dtype: torch.dtype) -> None:
    model = _model(dtype)
    optimizer = MasterAdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    _gradients(model, 0)
    next(model.parameters()).grad[0, 0] = math.nan
    assert optimizer.apply_gradients(1.0).isnan()
    assert _flat(model.parameters()).isnan().all()


def test_updates_below_the_last_bit_of_a_bf16_weight_are_not_lost() -> None:
    exact, held = _model(torch.bfloat16).float(), _model(torch.bfloat16)
    start = _flat(exact.parameters())
    _train(exact, MasterAdamW(exact.parameters(), lr=RATE, weight_decay=0.0), range(60))
    optimizer = MasterAdamW(held.parameters(), lr=RATE, weight_decay=0.0)
    _train(held, optimizer, range(60))
    moved = _flat(exact.parameters()) - start
    assert torch.nn.functional.cosine_similarity(
        _masters(optimizer) - start, moved, dim=0
    ) == pytest.approx(1, abs=0.05)

    lossy = _model(torch.bfloat16)
    plain = torch.optim.AdamW(lossy.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(60):
        _gradients(lossy, step)
        plain.step()
        plain.zero_grad()
    assert (_flat(lossy.parameters()) - start).norm() < moved.norm() / 2


@pytest.mark.parametrize("dtype", DTYPES)
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
    assert torch.equal(_masters(again), _masters(optimizer))
    assert torch.equal(_flat(resumed.parameters()), _flat(model.parameters()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_restart_begins_at_the_weights_as_they_are(dtype: torch.dtype) -> None:
    model, fresh = _model(dtype), _model(dtype)
    optimizer = MasterAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    _train(model, optimizer, range(5))
    _gradients(model, 5)
    optimizer.pieces[-1].take()  # as a step does that then runs out of memory
    model.load_state_dict(fresh.state_dict())
    optimizer.restart(RATE)
    assert all(piece.master.grad is None for piece in optimizer.pieces)
    _train(model, optimizer, range(5))
    other = MasterAdamW(fresh.parameters(), lr=RATE, weight_decay=0.1)
    _train(fresh, other, range(5))
    assert torch.equal(_masters(optimizer), _masters(other))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_takes_a_chunk_beside_the_gradients(dtype: torch.dtype) -> None:
    weights = [nn.Parameter(torch.ones(size, dtype=dtype)) for size in (70_000, 9_000, 9_000)]
    optimizer = MasterAdamW(weights, lr=RATE, weight_decay=0.0, chunk=20_000)

    def step() -> list[torch.Tensor]:
        optimizer.apply_gradients(1.0)
        return []

    def gradients() -> None:
        for weight in weights:
            weight.grad = torch.ones_like(weight)

    gradients()
    assert optimizer.unmade_bytes == 8 * 88_000
    step()
    assert optimizer.unmade_bytes == 0
    gradients()
    taken = cpu_peak(step).bytes
    # The first chunk comes while every gradient is still there.
    assert optimizer.scratch_bytes == (8 * 20_000 if dtype == torch.bfloat16 else 0)
    assert optimizer.scratch_bytes <= taken <= optimizer.scratch_bytes + 1000
