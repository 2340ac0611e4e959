"""Three-way numerics: no implementation is further from fp64 than plain torch in the same dtype."""

import pytest
import torch

from cce_core import LossConfig, linear_cross_entropy
from tests.cce_core.problems import Case, error, make, plain_loss

FEATURES = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 2.0},
    "scale": {"logit_scale": 0.25},
    "scale, bias and softcap": {"logit_scale": 0.5, "bias": True, "softcap": 5.0},
    "label smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-2},
    "everything": {
        "bias": True,
        "softcap": 4.0,
        "logit_scale": 1.5,
        "label_smoothing": 0.2,
        "z_loss": 1e-2,
    },
}
SIZES = {"odd": (33, 257, 17), "tall": (130, 5, 3), "wide": (3, 1031, 64), "one": (1, 2, 1)}
CONFIGS = {
    "reference": LossConfig(implementation="reference"),
    "blocked": LossConfig(implementation="blocked"),
    "blocked in small tiles": LossConfig(implementation="blocked", scratch_bytes=2000),
}
# How far plain torch is from fp64 at least, so that a lucky rounding of its is no bound on ours.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float64: 1e-14}


def truth(case: Case) -> tuple[torch.Tensor, list[torch.Tensor]]:
    exact = case.leaves(torch.float64)
    loss = plain_loss(exact)
    loss.backward()
    return loss.detach(), exact.grads


def errors(case: Case, loss: torch.Tensor) -> list[float]:
    expected, gradients = truth(case)
    loss.backward()
    pairs = zip([loss.detach(), *case.grads], [expected, *gradients], strict=True)
    return [error(got, right) for got, right in pairs]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_no_further_from_fp64_than_plain_torch(features, size, dtype, config) -> None:
    case = make(*size, dtype, ignored=0.2 if size[0] > 1 else 0.0, **features)
    ours, plain = case.leaves(), case.leaves()
    loss = linear_cross_entropy(
        ours.e, ours.c, ours.targets, ours.bias, **case.options, config=config
    )
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for got, theirs in zip(errors(ours, loss), errors(plain, plain_loss(plain)), strict=True):
        assert got <= max(1.1 * theirs, ROUNDING[dtype])
