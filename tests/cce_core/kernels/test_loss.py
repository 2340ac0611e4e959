"""The Triton implementation against fp64, on the GPU where there is one, else interpreted."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cce_core.config import LossConfig
from cce_core.kernels import dense, filtering, loss, rounds, slices, statistics, tiling
from cce_core.kernels.tiling import tilings
from cce_core.observe import observed
from cce_core.problem import Gradients, Head, RowGrads, RowStats, State, Wanted
from cce_core.problem import Problem as Call

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Several blocks, rounds and slices under either set of tiles.
SIZE = (600, 3000, 264) if DEVICE.type == "cuda" else (40, 152, 48)
LIST = 8192 if DEVICE.type == "cuda" else 512
EVERYTHING = filtering.Filter(
    pair_bar=0.0,
    entry_bar=0.0,
    entries=LIST,
    big_entries=LIST // 2,
    density=1.0,
    error_bar=float("inf"),
    hot=1.0,
    pool=1.0,
)


@pytest.fixture(autouse=True)
def small_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small problems take several slices and rounds."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(slices, "STEP", 32)
        monkeypatch.setattr(slices, "LEAST", 32)
        monkeypatch.setattr(slices, "ENOUGH", 32)
        monkeypatch.setattr(statistics, "SIZE", 32)
        monkeypatch.setattr(rounds, "LAST_ROUND_PAIRS", 48)


@dataclass
class Problem:
    e: torch.Tensor
    c: torch.Tensor
    bias: torch.Tensor | None
    targets: torch.Tensor
    upstream: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    scale: float = 1.0
    softcap: float | None = None

    def call(self, **wanted) -> Call:
        asked = {"e": True, "c": True, "bias": self.bias is not None} | wanted
        head = Head(self.softcap, self.scale)
        return Call(self.e, self.c, self.bias, self.targets, head, Wanted(**asked))

    def run(self, eps=2.0**-12, *, deterministic=False, **wanted) -> tuple[RowStats, "Saved"]:
        config = LossConfig(filter_eps=eps, deterministic=deterministic)
        call = self.call(**wanted)
        outputs, state = loss.forward(call, config)
        return outputs, Saved(call, config, outputs.lse, state)

    def back(self, saved: "Saved") -> Gradients:
        lse, label, mean = self.upstream
        upstream = RowGrads(lse, label, mean if saved.call.wanted.mean else None)
        return loss.backward(saved.call, saved.config, saved.lse, saved.state, upstream)


def callers() -> Iterator[str]:
    frame = sys._getframe()
    while frame := frame.f_back:
        yield frame.f_code.co_filename


class Operations(TorchDispatchMode):
    """Counts what torch queues for the launchers, beside views and empty memory."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        free = function.is_view or "empty" in str(function)
        if not free and not any("interpreter" in path for path in callers()):
            self.count += 1
        return function(*args, **(kwargs or {}))


@dataclass
class Saved:
    """What a backward is given of its forward."""

    call: Call
    config: LossConfig
    lse: torch.Tensor
    state: State

    @property
    def filters(self) -> bool:
        return len(self.state) > 4

    @property
    def fell_back(self) -> bool:
        return bool(self.state[-1] == 1)


def problem(n, v, d, dtype=torch.bfloat16, *, bias=False, spread=3.0, **post) -> Problem:
    random = torch.Generator().manual_seed(n + v + d)
    e = torch.randn(n, d, generator=random).to(dtype)
    c = (torch.randn(v, d, generator=random) * spread / d**0.5).to(dtype)
    b = torch.randn(v, generator=random).to(DEVICE) if bias else None
    targets = torch.randint(0, v, (n,), generator=random)
    targets[torch.rand(n, generator=random) < 0.2] = -100
    up = torch.rand(3, n, generator=random).to(DEVICE) + 0.5
    upstream = (up[0], -up[1], up[2])
    return Problem(e.to(DEVICE), c.to(DEVICE), b, targets.to(DEVICE), upstream, **post)


def reference(p: Problem, *, with_mean: bool):
    e, c = p.e.double().requires_grad_(), p.c.double().requires_grad_()
    bias = p.bias.double().requires_grad_() if p.bias is not None else None
    z = e @ c.T if bias is None else e @ c.T + bias
    z = z * p.scale
    if p.softcap is not None:
        z = p.softcap * torch.tanh(z / p.softcap)
    kept = p.targets >= 0
    lse, q = torch.logsumexp(z, 1), torch.softmax(z, 1)
    label = z.gather(1, p.targets.clamp(min=0)[:, None])[:, 0]
    total = (lse * p.upstream[0] + label * p.upstream[1])[kept].sum()
    if with_mean:
        total = total + (z.mean(1) * p.upstream[2])[kept].sum()
    total.backward()
    rows = {
        "lse": lse,
        "label_logit": label,
        "row_max": z.max(1).values,
        "mean_logit": z.mean(1),
        "entropy": -(q * torch.log_softmax(z, 1)).sum(1),
    }
    rows = {name: torch.where(kept, value, 0.0).detach() for name, value in rows.items()}
    return rows, e.grad, c.grad, None if bias is None else bias.grad


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


ROUNDING = {torch.bfloat16: 8e-3, torch.float16: 1e-3}
TWICE = 1.2e-2  # dE of a wide head's hot blocks and lists; and the interpreter cuts off
CASES = {
    "plain": {},
    "fp16": {"dtype": torch.float16},
    "softcap": {"softcap": 3.0},
    "bias, scale and softcap": {"bias": True, "scale": 0.7, "softcap": 5.0},
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_rows_and_exact_gradients_agree_with_fp64(options, deterministic) -> None:
    p = problem(37, 90, 40, **options)
    outputs, saved = p.run(mean=True, entropy=True, eps=None, deterministic=deterministic)
    rows, de, dc, dbias = reference(p, with_mean=True)
    for name, expected in rows.items():
        torch.testing.assert_close(
            getattr(outputs, name).double(), expected, atol=2e-5, rtol=2e-5, msg=name
        )
    grads = p.back(saved)
    bound = ROUNDING[p.e.dtype]
    assert error(grads.e, de) < bound
    assert error(grads.c, dc) < bound
    assert dbias is None or error(grads.bias, dbias) < bound


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("hot", "fine"), [(1.0, 0), (0.0, 10**6), (0.0, 0)], ids=["listed", "hot", "hot, wide head"]
)
def test_a_filter_that_keeps_everything_is_exact(hot, fine, frozen, softcap, monkeypatch) -> None:
    p = problem(*SIZE, softcap=softcap)
    monkeypatch.setattr(dense, "FINE", fine)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: replace(EVERYTHING, hot=hot))
    _, saved = p.run(c=not frozen)
    grads = p.back(saved)
    _, de, dc, _ = reference(p, with_mean=False)
    assert not saved.fell_back
    assert error(grads.e, de) < (8e-3 if fine or hot == 1.0 else TWICE)
    assert frozen or error(grads.c, dc) < 8e-3


@pytest.mark.parametrize("fine", [0, 10**6], ids=["16 bits", "24 bits"])
@pytest.mark.parametrize("halves", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
def test_hot_blocks_are_exact_whatever_the_bars(halves, fine, monkeypatch) -> None:
    """With bars that keep nothing else: their rows of dC, and dE where C is zero elsewhere."""
    p = problem(*SIZE, spread=1.0)
    n, v, d = SIZE
    tiles = tilings(DEVICE)
    block, pairs = tiles.block, tiles.pairs.block_n
    monkeypatch.setattr(rounds, "LAST_ROUND_PAIRS", pairs)
    second = -(-v // block) * d // (-(-n // pairs) * pairs + d)  # the second round's first
    blocks = [half * second for half in halves]
    hot = torch.isin(
        torch.arange(len(p.c), device=DEVICE) // block, torch.tensor(blocks).to(DEVICE)
    )
    p.c[hot] *= 2.0
    p.c[~hot] = 0.0
    columns = hot.nonzero()[:, 0]
    p.targets[p.targets >= 0] = columns[p.targets[p.targets >= 0] % len(columns)]
    monkeypatch.setattr(dense, "FINE", fine)
    listed = replace(EVERYTHING, pair_bar=0.9 / len(p.c) * block, entry_bar=10.0, hot=0.2)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: listed)
    _, saved = p.run()
    grads = p.back(saved)
    _, de, dc, _ = reference(p, with_mean=False)
    assert not saved.fell_back
    assert error(grads.e, de) < (8e-3 if fine else TWICE)
    assert error(grads.c[hot], dc[hot]) < 8e-3


def test_the_bar_is_finer_where_it_leaves_out_much(monkeypatch) -> None:
    p = problem(*SIZE, spread=1.0)
    bar = 2.0 / len(p.c) * tilings(DEVICE).block

    def left_out(**options: float) -> tuple[float, torch.Tensor]:
        chosen = replace(EVERYTHING, **options)
        monkeypatch.setattr(filtering.Filter, "of", lambda eps: chosen)
        _, saved = p.run()
        with observed() as seen:
            grads = p.back(saved)
        assert not saved.fell_back
        return seen.quantiles(0.5)[0], grads.e

    coarse, _ = left_out(pair_bar=bar, finer=0.25, left_bar=10.0)
    asked, _ = left_out(pair_bar=bar / 4, left_bar=10.0)
    found, de = left_out(pair_bar=bar, finer=0.25, left_bar=0.01)
    assert found == asked < coarse
    assert error(de, reference(p, with_mean=False)[1]) < 0.1


def test_the_host_queues_few_operations_beside_the_kernels(monkeypatch) -> None:
    """Each takes the host longer than the device: ninety of them bound small heads."""
    p = problem(*SIZE)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: EVERYTHING)
    with Operations() as queued:
        _, saved = p.run()
        p.back(saved)
    assert saved.filters
    assert 0 < queued.count <= 25


def test_a_vocabulary_smaller_than_a_block(monkeypatch) -> None:
    p = problem(20, 13, 40)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: EVERYTHING)
    _, saved = p.run()
    grads = p.back(saved)
    _, de, dc, _ = reference(p, with_mean=False)
    assert not saved.fell_back
    assert error(grads.e, de) < 8e-3
    assert error(grads.c, dc) < 8e-3


@pytest.mark.parametrize(
    "tight",
    [{"density": 0.1}, {"entries": 16, "big_entries": 8}],
    ids=["pairs outgrow the list", "a row's large entries outgrow theirs"],
)
def test_a_filter_without_room_turns_exact(tight, monkeypatch) -> None:
    p = problem(*SIZE)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: replace(EVERYTHING, **tight))
    _, saved = p.run()
    grads = p.back(saved)
    _, de, dc, _ = reference(p, with_mean=False)
    assert saved.fell_back
    assert error(grads.e, de) < 8e-3
    assert error(grads.c, dc) < 8e-3


def test_small_entries_without_a_slot_join_the_tail(monkeypatch) -> None:
    p = problem(*SIZE, spread=1.0)
    crowded = replace(EVERYTHING, entry_bar=2.0**-9, entries=24, big_entries=16)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: crowded)
    _, saved = p.run()
    grads = p.back(saved)
    _, de, dc, _ = reference(p, with_mean=False)
    assert not saved.fell_back
    assert 8e-3 < error(grads.e, de) < 0.12  # spread as the small entries are, if not as they were
    assert error(grads.c, dc) < 8e-3


def test_the_tail_keeps_the_mass_that_the_filter_drops(monkeypatch) -> None:
    """Column sums of dC and row sums of dE, seen through constant inputs, survive the filter."""
    p = problem(*SIZE, spread=1.0)
    p.e[:, 0] = 1.0
    nothing = replace(EVERYTHING, pair_bar=10.0, entry_bar=10.0)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: nothing)
    _, saved = p.run()
    grads = p.back(saved)
    _, _, dc, _ = reference(p, with_mean=False)
    block = tilings(DEVICE).block
    got, expected = (
        torch.stack([part.double().sum() for part in column.split(block)])
        for column in (grads.c[:, 0], dc[:, 0])
    )
    torch.testing.assert_close(got, expected, atol=2e-2 * len(p.e) ** 0.5, rtol=2e-2)


def test_a_second_backward_is_exact(monkeypatch) -> None:
    p = problem(*SIZE)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: EVERYTHING)
    _, saved = p.run()
    p.back(saved)
    assert not saved.fell_back
    again = p.back(saved)
    _, de, dc, _ = reference(p, with_mean=False)
    assert saved.fell_back
    assert error(again.e, de) < 8e-3
    assert error(again.c, dc) < 8e-3


def test_subsets_of_the_gradients() -> None:
    p = problem(*SIZE)
    _, de, dc, _ = reference(p, with_mean=False)
    for eps in (None, 2.0**-20):
        only_e = p.back(p.run(eps=eps, c=False)[1])
        only_c = p.back(p.run(eps=eps, e=False)[1])
        assert only_e.c is None
        assert only_c.e is None
        assert error(only_e.e, de) < 8e-3
        assert error(only_c.c, dc) < 8e-3


def test_the_same_bits_on_each_run() -> None:
    p = problem(*SIZE)
    runs = []
    for _ in range(3):
        outputs, saved = p.run(deterministic=True, mean=True, entropy=True)
        assert not saved.filters
        runs.append([*outputs, *p.back(saved)[:2]])
    for again in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], again, strict=True))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="one GPU takes one of both; the interpreter all")
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(
    ("eps", "hot"), [(None, 1.0), (2.0**-12, 1.0), (2.0**-12, 0.0)], ids=["exact", "listed", "hot"]
)
def test_matrices_described_by_the_kernel_give_the_same_bits(
    options, eps, hot, monkeypatch
) -> None:
    """As on Ampere, where no copy engine takes the host's descriptors."""
    p = problem(*SIZE, **options)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: replace(EVERYTHING, hot=hot))
    runs = []
    for by_host in (True, False):
        monkeypatch.setattr(tiling, "host_described", lambda device, by_host=by_host: by_host)
        outputs, saved = p.run(eps=eps, entropy=True)
        grads = p.back(saved)
        runs.append([outputs.lse, outputs.label_logit, outputs.row_max, outputs.entropy, *grads])
    for one, other in zip(*runs, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_label_far_below_the_peak_is_counted_again(deterministic) -> None:
    p = problem(20, 90, 40)
    p.targets[0] = 3
    p.c[5] = (p.e[0].float() * 120.0 / p.e[0].float().norm() ** 2).bfloat16()
    outputs, saved = p.run(eps=None, deterministic=deterministic, mean=True, entropy=True)
    rows, de, dc, _ = reference(p, with_mean=True)
    for name in ("lse", "mean_logit", "entropy"):
        got = getattr(outputs, name).double()
        torch.testing.assert_close(got, rows[name], atol=1e-3, rtol=1e-5, msg=name)
    grads = p.back(saved)
    assert error(grads.e, de) < 8e-3
    assert error(grads.c, dc) < 8e-3


def test_a_word_masked_by_its_bias_has_no_part_in_the_entropy() -> None:
    p = problem(9, 90, 40, bias=True)
    p.bias[[3, 70]] = -float("inf")
    p.targets[p.targets == 3] = 4
    p.targets[p.targets == 70] = 4
    outputs, _ = p.run(eps=None, entropy=True)
    z = p.e.double() @ p.c.double().T + p.bias
    expected = torch.distributions.Categorical(logits=z.float()).entropy().double()
    kept = p.targets >= 0
    torch.testing.assert_close(outputs.entropy.double()[kept], expected[kept], atol=2e-4, rtol=2e-4)


def test_no_labelled_row_gives_zero_gradients() -> None:
    p = problem(20, 90, 40)
    p.targets[:] = -100
    for eps in (None, 2.0**-12):
        outputs, saved = p.run(eps=eps)
        grads = p.back(saved)
        assert outputs.lse.abs().max() == 0
        assert grads.e.abs().max() == 0
        assert grads.c.abs().max() == 0


def test_an_ignored_row_of_nan_stays_out() -> None:
    p = problem(20, 90, 40)
    p.targets[4] = -100
    p.e[4] = float("nan")
    _, saved = p.run(eps=None)
    grads = p.back(saved)
    assert grads.c.isfinite().all()
    assert grads.e.isfinite().all()


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # the interpreter's own
@pytest.mark.parametrize("eps", [None, 2.0**-12])
def test_a_counted_row_of_nan_is_nan_in_its_gradient(eps) -> None:
    """Also where dE is kept in 24 bits between slices: a NaN's bits must not wrap to a number."""
    p = problem(20, 90, 40)
    p.targets[4] = 7
    p.e[4] = float("nan")
    _, saved = p.run(eps=eps)
    grads = p.back(saved)
    assert grads.e[4].isnan().all()


def test_loss_alone_copies_nothing() -> None:
    p = problem(20, 90, 40)
    outputs, saved = p.run(e=False, c=False)
    rows, *_ = reference(p, with_mean=False)
    assert len(saved.state) == 0
    torch.testing.assert_close(outputs.lse.double(), rows["lse"], atol=2e-5, rtol=2e-5)


def test_the_label_is_the_row_maximum_exactly_where_it_is_the_argmax() -> None:
    p = problem(*SIZE, spread=6.0)
    outputs, _ = p.run(e=False, c=False)
    best = (p.e.double() @ p.c.double().T).argmax(1)
    kept = p.targets >= 0
    p.targets[kept & (torch.arange(len(best), device=DEVICE) % 2 == 0)] = -100
    p.targets[:7] = best[:7]
    outputs, _ = p.run(e=False, c=False)
    right = (p.targets == best)[p.targets >= 0]
    assert right.any()
    assert torch.equal((outputs.label_logit == outputs.row_max)[p.targets >= 0], right)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": torch.float32}, "bfloat16 or float16"),
        ({"d": 44}, "multiple of 8"),
        ({"softcap": 1e5}, "a softcap up to 16384, got 100000"),
        ({"softcap": 2.0**14}, None),
        ({}, None),
    ],
)
def test_what_is_not_served_is_named(change, said) -> None:
    p = problem(8, 32, **({"d": 40} | change))
    reason = loss.refuses(p.call(), LossConfig())
    assert reason is None if said is None else said in reason


def test_a_small_problem_is_exact_unless_a_threshold_is_asked_for(monkeypatch) -> None:
    """As on the device: the interpreter, whose problems are all small, filters them."""
    monkeypatch.setattr(loss, "interpreted", lambda: False)
    call = problem(*SIZE).call()
    for config, filters in ((LossConfig(), False), (LossConfig(filter_eps=2.0**-12), True)):
        assert (len(loss.new_state(call, config)) > 4) == filters
    monkeypatch.setattr(loss, "WORTH", 1)
    assert len(loss.new_state(call, LossConfig())) > 4
