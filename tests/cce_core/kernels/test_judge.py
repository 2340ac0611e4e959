"""The filter's estimate of its own error, against the error; interpreted where there is no GPU."""

from dataclasses import replace

import pytest
import torch

from cce_core.kernels import filtering
from cce_core.kernels.tiling import tilings
from cce_core.observe import observed
from tests.cce_core.kernels.test_loss import (
    DEVICE,
    EVERYTHING,
    Problem,
    error,
    problem,
    reference,
)

SIZE = (600, 3000, 264) if DEVICE.type == "cuda" else (48, 152, 48)
DROPPING = replace(EVERYTHING, pair_bar=0.1, entry_bar=0.02)
BAR = filtering.Filter.error_bar


def incoherent(**post) -> Problem:
    """Rows of C that have nothing to do with one another."""
    return problem(*SIZE, spread=1.0, **post)


def coherent(**post) -> Problem:
    """A block's columns have a part in common, and two clusters, to one of which a row goes."""
    p = problem(*SIZE, spread=0.3, **post)
    _, v, d = SIZE
    random = torch.Generator().manual_seed(5)
    block = torch.arange(v) // tilings(DEVICE).block
    common, apart = torch.randn(2, v, d, generator=random) / d**0.5
    side = torch.randint(0, 2, (v,), generator=random) * 2.0 - 1.0
    cluster = 2.0 * common[block] + 1.5 * apart[block] * side[:, None]
    return replace(p, c=(p.c + cluster.to(p.c)).bfloat16())


def concentrated(**post) -> Problem:
    """A few rows have nearly all that a block leaves out, so its profile is theirs."""
    n, v, d = SIZE
    return problem(4 * n, v, d, spread=6.0, **post)


def signed(p: Problem) -> Problem:
    """Upstream gradients of both signs and of very different sizes."""
    random = torch.Generator().manual_seed(7)
    size = torch.randn(len(p.e), generator=random).to(DEVICE)
    return replace(p, upstream=(p.upstream[0] * size, p.upstream[1] * size.flip(0), p.upstream[2]))


def estimate_and_error(p: Problem, options: filtering.Filter, monkeypatch) -> tuple[float, float]:
    """Of dE, where nothing but the filter computes it."""
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: options)
    _, saved = p.run()
    with observed() as seen:
        grads = p.back(saved)
    assert not saved.fell_back
    return seen.errors()[0], error(grads.e, reference(p, with_mean=False)[1])


CASES = {
    "incoherent": incoherent,
    "coherent": coherent,
    "softcap": lambda: coherent(softcap=1.5),
    "scale": lambda: coherent(scale=-0.7),
    "scale and softcap": lambda: incoherent(scale=1.5, softcap=2.0),
    "unequal gradients of both signs": lambda: signed(coherent()),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_the_estimate_agrees_with_the_error(make, monkeypatch) -> None:
    estimate, true = estimate_and_error(make(), DROPPING, monkeypatch)
    assert true > 2 * BAR
    assert true / 1.5 < estimate < true * 1.5


def test_the_sample_does_not_flatter_itself(monkeypatch) -> None:
    coarse = replace(EVERYTHING, pair_bar=0.3, entry_bar=0.3)
    estimate, true = estimate_and_error(concentrated(), coarse, monkeypatch)
    assert true / 1.5 < estimate < true * 1.5


def test_blocks_that_are_taken_whole_have_no_error(monkeypatch) -> None:
    listed, _ = estimate_and_error(coherent(), DROPPING, monkeypatch)
    estimate, true = estimate_and_error(coherent(), replace(DROPPING, hot=0.0), monkeypatch)
    assert estimate < 0.9 * listed
    assert true / 1.5 < estimate < true * 1.5


def test_nothing_left_out_is_no_error(monkeypatch) -> None:
    estimate, _ = estimate_and_error(coherent(), EVERYTHING, monkeypatch)
    assert estimate == 0.0


def test_an_error_over_the_bar_turns_exact(monkeypatch) -> None:
    p = coherent()
    judged = replace(DROPPING, error_bar=BAR)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: judged)
    _, saved = p.run()
    with observed() as seen:
        grads = p.back(saved)
    assert saved.fell_back
    assert seen.errors()[0] > BAR
    _, de, dc, _ = reference(p, with_mean=False)
    assert error(grads.e, de) < 8e-3
    assert error(grads.c, dc) < 8e-3


def test_an_error_under_the_bar_stays_filtered(monkeypatch) -> None:
    p = problem(*SIZE)
    judged = replace(EVERYTHING, pair_bar=2e-3, entry_bar=2e-4, error_bar=BAR)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: judged)
    _, saved = p.run()
    with observed() as seen:
        grads = p.back(saved)
    assert not saved.fell_back
    assert 0 < seen.errors()[0] < BAR
    assert error(grads.e, reference(p, with_mean=False)[1]) < 1e-2


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # the interpreter's own
def test_a_number_that_is_none_turns_exact(monkeypatch) -> None:
    p = incoherent()
    p.targets[0] = 3
    p.e[0] = float("nan")
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: EVERYTHING)
    _, saved = p.run()
    p.back(saved)
    assert saved.fell_back


def test_no_estimate_is_made_where_the_filter_has_no_room(monkeypatch) -> None:
    p = incoherent()
    tight = replace(EVERYTHING, density=0.1)
    monkeypatch.setattr(filtering.Filter, "of", lambda eps: tight)
    _, saved = p.run()
    with observed() as seen:
        p.back(saved)
    assert saved.fell_back
    assert seen.errors()[0] != seen.errors()[0]
