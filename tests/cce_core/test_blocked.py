"""The blocked implementation: statistics, hard cases by name, and what it holds in memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cce_core import LossConfig, blocked, linear_cross_entropy, reference
from cce_core.problem import Head, Problem, RowStats, Wanted
from cce_core.tiles import Grid
from tests.cce_core.problems import error, make, plain_loss

SMALL = LossConfig(implementation="blocked", scratch_bytes=2000)


class LargestAllocation(TorchDispatchMode):
    """Remembers the largest storage that any operation returned, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def statistics(case, config: LossConfig, head: Head) -> tuple[RowStats, RowStats]:
    rows = case.targets.masked_fill(case.targets < 0, -1)
    wanted = Wanted(mean=True, entropy=True)
    problem = Problem(case.e, case.c, case.bias, rows, head, wanted)
    return reference.row_statistics(problem), blocked.forward(problem, config)[0]


@pytest.mark.parametrize("head", [Head(), Head(softcap=3.0, scale=0.7)], ids=["plain", "capped"])
@pytest.mark.parametrize("bytes_", [1, 400, 2000, None])
def test_statistics_are_those_of_the_definition(head, bytes_) -> None:
    case = make(23, 301, 9, torch.float64, bias=True, ignored=0.3)
    expected, got = statistics(case, LossConfig(scratch_bytes=bytes_), head)
    for name, right, value in zip(RowStats._fields, expected, got, strict=True):
        torch.testing.assert_close(value, right, msg=lambda text, name=name: f"{name}: {text}")


def test_rising_logits_move_the_maximum_in_every_tile() -> None:
    case = make(3, 2048, 4, torch.float64)
    case.c[:] = torch.arange(2048.0)[:, None] * case.e[0] / case.e[0].square().sum()
    expected, got = statistics(case, LossConfig(scratch_bytes=300), Head())
    torch.testing.assert_close(got, expected)


def test_logits_beyond_the_range_of_exp() -> None:
    case = make(9, 400, 4)
    case.c *= 1e4
    expected, got = statistics(case, SMALL, Head())
    torch.testing.assert_close(got, expected)
    assert got.lse.isfinite().all()


def test_columns_that_a_bias_of_minus_infinity_masks() -> None:
    case = make(9, 700, 4, bias=True)
    case.bias[:600] = -torch.inf
    case.targets[:] = torch.arange(9) + 600
    ours, plain = case.leaves(), case.leaves()
    linear_cross_entropy(ours.e, ours.c, ours.targets, ours.bias, config=SMALL).backward()
    plain_loss(plain).backward()
    for got, expected in zip(ours.grads, plain.grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_label_counts_as_the_argmax_exactly_where_it_is() -> None:
    case = make(64, 300, 8, torch.bfloat16, bias=True)
    rows = (case.e.float() @ case.c.float().T + case.bias.float()).topk(2).indices
    case.targets[:32], case.targets[32:] = rows[:32, 0], rows[32:, 1]
    _, got = statistics(case, SMALL, Head(softcap=20.0))
    assert (got.label_logit == got.row_max).tolist() == [True] * 32 + [False] * 32


def test_an_ignored_row_of_nan_stays_out() -> None:
    case = make(20, 90, 6).leaves()
    with torch.no_grad():
        case.e[4] = torch.nan
    case.targets[4] = -100
    loss = linear_cross_entropy(case.e, case.c, case.targets, config=SMALL)
    loss.backward()
    assert loss.isfinite()
    assert case.c.grad.isfinite().all()
    assert case.e.grad[4].abs().max() == 0


@pytest.mark.parametrize("ignored", [0.0, 0.5])
def test_no_storage_grows_with_rows_times_vocabulary(ignored) -> None:
    n, v, d, scratch = 2048, 8192, 16, 2**18
    case = make(n, v, d, ignored=ignored).leaves()
    config = LossConfig(implementation="blocked", scratch_bytes=scratch)
    with LargestAllocation() as largest:
        options = {"softcap": 5.0, "label_smoothing": 0.1, "return_stats": True, "entropy": True}
        out = linear_cross_entropy(case.e, case.c, case.targets, config=config, **options)
        out.loss.backward()
    assert largest.bytes <= max(scratch, v * d * 4)
    with LargestAllocation() as full:
        plain_loss(case).backward()
    assert full.bytes == n * v * 4


@pytest.mark.parametrize(("n", "d"), [(2048, 8), (16, 256)])
def test_the_process_holds_no_more_than_documented(n, d) -> None:
    """Bytes that torch's own allocator reports, summed over time: not only each tensor's."""
    v, scratch = 16384, 2**20
    case = make(n, v, d).leaves()
    config = LossConfig(implementation="blocked", scratch_bytes=scratch)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        linear_cross_entropy(case.e, case.c, case.targets, config=config).backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    gradients = case.e.grad.nbytes + case.c.grad.nbytes
    assert gradients < peak < gradients + 2.5 * scratch + 32 * 4 * n


@pytest.mark.parametrize(
    ("n", "v", "numbers", "rows", "columns"),
    [
        (1000, 32768, 2**20, 1000, 1048),
        (10**6, 32768, 2**20, 4096, 256),
        (10, 50, 2**20, 10, 50),
        (10, 50, 1, 1, 1),
        (10, 50, 0, 1, 1),
        (0, 50, 2**20, 1, 50),
    ],
)
def test_tiles_fit_the_scratch(n, v, numbers, rows, columns) -> None:
    grid = Grid.of(n, v, numbers)
    assert (grid.rows, grid.columns) == (rows, columns)
    assert sum(part.stop - part.start for part in grid.row_slices()) == n
    assert sum(part.stop - part.start for part in grid.column_slices()) == v


def test_strided_inputs() -> None:
    case = make(12, 40, 6)
    wide = torch.randn(40, 12)
    row = torch.randn(1, 6)
    for e, c in [(case.e.T.contiguous().T, wide[:, ::2]), (row.expand(12, 6), wide.T[:6].T)]:
        ours, plain = case.leaves(), case.leaves()
        ours.e, ours.c = e.detach().requires_grad_(), c.detach().requires_grad_()
        plain.e, plain.c = e.clone().requires_grad_(), c.clone().requires_grad_()
        linear_cross_entropy(ours.e, ours.c, ours.targets, config=SMALL).backward()
        plain_loss(plain).backward()
        assert error(ours.e.grad, plain.e.grad) < 1e-6
        assert error(ours.c.grad, plain.c.grad) < 1e-6


def test_the_same_bits_on_each_run() -> None:
    def run() -> list[torch.Tensor]:
        case = make(50, 300, 16, torch.bfloat16, ignored=0.2).leaves()
        linear_cross_entropy(case.e, case.c, case.targets, config=SMALL).backward()
        return case.grads

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))
