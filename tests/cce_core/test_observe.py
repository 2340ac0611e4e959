"""What the filter leaves out, as an observer sees it; interpreted where there is no GPU."""

import pytest
import torch

from cce_core import LossConfig, linear_cross_entropy
from cce_core.kernels import filtering
from cce_core.observe import observed, wanted
from tests.cce_core.problems import Case, make

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
N, V, D = (600, 3000, 264) if DEVICE.type == "cuda" else (40, 152, 48)
KEEP_ALL = {
    "pair_bar": 0.0,
    "entry_bar": 0.0,
    "entries": 2 * V,
    "big_entries": V,
    "density": 1.0,
    "error_bar": float("inf"),
}


def case() -> Case:
    made = make(N, V, D, torch.bfloat16, ignored=0.2)
    return Case(made.e.to(DEVICE), made.c.to(DEVICE), made.targets.to(DEVICE)).leaves()


def run(case: Case, implementation: str = "triton") -> None:
    config = LossConfig(implementation=implementation)
    linear_cross_entropy(case.e, case.c, case.targets, config=config).backward()


def set_filter(monkeypatch: pytest.MonkeyPatch, **options: float) -> None:
    chosen = filtering.Filter(**KEEP_ALL | options)
    monkeypatch.setattr(filtering.Filter, "of", lambda _: chosen)


def test_a_filter_that_drops_all_but_the_labels_leaves_out_the_rest_of_each_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_filter(monkeypatch, pair_bar=1e3, entry_bar=1e3)
    problem = case()
    with observed() as seen:
        run(problem)
    assert (seen.passes, seen.fallbacks()) == (1, 0)
    kept = problem.targets >= 0
    p = torch.softmax(problem.e.double() @ problem.c.double().T, 1)[kept]
    left = 1 - p.gather(1, problem.targets[kept][:, None])[:, 0].detach().cpu()
    got = seen.quantiles(0.0, 0.5, 0.99)
    places = [0, round(0.5 * (len(left) - 1)), round(0.99 * (len(left) - 1))]
    assert got == pytest.approx([float(left.sort().values[i]) for i in places], abs=0.01)
    assert got[0] < got[1]


def test_a_filter_that_keeps_everything_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    set_filter(monkeypatch)
    with observed() as seen:
        run(case())
    assert seen.passes == 1
    assert seen.quantiles(0.5, 1.0) == [0.0, 0.0]


def test_a_fallback_is_counted_and_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    set_filter(monkeypatch, density=0.1)
    with observed() as seen:
        run(case())
        run(case())
    assert (seen.passes, seen.fallbacks()) == (2, 2)
    assert seen.quantiles(0.5) == [0.0]


def test_an_exact_implementation_has_nothing_to_report() -> None:
    with observed() as seen:
        run(case(), "blocked")
    assert seen.passes == 0


def test_what_happens_outside_the_block_is_not_seen() -> None:
    run(case())
    with observed() as outer:
        with observed() as inner:
            run(case())
        run(case())
    assert (outer.passes, inner.passes) == (2, 1)
    assert not wanted()
