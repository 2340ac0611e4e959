"""Three-way: what a call can ask for, on each implementation, against the definition in fp64."""

import pytest
import torch

from cce_core import IGNORE_INDEX, LossConfig, linear_cross_entropy
from cce_core.registry import ImplementationUnavailable
from tests.cce_core.problems import DEVICE, Case, error, make

BATCH, LENGTH, V, D = 3, 7, 45, 40  # no multiple of a tile; several tiles deep and wide
N = BATCH * LENGTH
TRUTH = LossConfig(implementation="reference")
CONFIGS = {
    "reference": TRUTH,
    "blocked": LossConfig(implementation="blocked", scratch_bytes=2000),
    "triton": LossConfig(implementation="triton"),
}
implementations = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
ROUNDING = {torch.bfloat16: 8e-3, torch.float16: 1e-3}


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def sequences(dtype=torch.bfloat16, *, bias=False, ignored=0.3) -> Case:
    case = make(N, V, D, dtype, bias=bias, ignored=ignored).to(DEVICE)
    case.e, case.targets = case.e.view(BATCH, LENGTH, D), case.targets.view(BATCH, LENGTH)
    return case.leaves()


def loss(case: Case, config: LossConfig) -> torch.Tensor:
    """A scalar with a gradient of its own for each row, whatever the reduction."""
    found = linear_cross_entropy(
        case.e, case.c, case.targets, case.bias, **case.options, config=config
    )
    losses, lse = found if isinstance(found, tuple) else (found, torch.zeros(()).to(DEVICE))
    return (losses * (1 + random(*losses.shape))).sum() + (lse * random(*lse.shape)).sum()


def check(case: Case, config: LossConfig) -> None:
    """Compare loss and gradients with the definition's, in fp64 on the same numbers."""
    exact = case.leaves(torch.float64)
    rounding = ROUNDING[case.e.dtype]
    got, expected = loss(case, config), loss(exact, TRUTH)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    got.backward()
    expected.backward()
    for ours, right in zip(case.grads, exact.grads, strict=True):
        assert error(ours, right) < rounding


FEATURES = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "softcap": {"softcap": 3.0},
    "logit scale": {"logit_scale": -0.3},
    "scale and softcap": {"logit_scale": 2.0, "softcap": 3.0},
    "label smoothing": {"label_smoothing": 0.2},
    "z-loss": {"z_loss": 0.1},
    "log-sum-exp": {"return_lse": True},
    "shift": {"shift": 1, "reduction": "none"},
    "a long shift": {"shift": 5},
    "another ignored index": {"ignore_index": 3},
    "an int of items": {"num_items": 50},
    "a tensor of items": {"num_items": torch.tensor([50.0], device=DEVICE)},
    "row weights": {"weights": random(BATCH, LENGTH), "shift": 1},
    "everything": {
        "logit_scale": 1.5,
        "softcap": 4.0,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "shift": 2,
        "return_lse": True,
        "weights": random(BATCH, LENGTH),
        "num_items": 50,
    },
}


@implementations
@pytest.mark.parametrize("feature", FEATURES)
def test_features(feature, config) -> None:
    case = sequences()
    case.options = dict(FEATURES[feature])
    if "ignore_index" in case.options:
        case.targets = case.targets.where(case.targets != IGNORE_INDEX, 3)
    check(case, config)


@implementations
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("feature", ["mean", "everything"])
def test_a_bias_counts_once_however_deep_the_product(feature, dtype, config) -> None:
    case = sequences(dtype, bias=True)
    case.options = FEATURES[feature]
    check(case, config)


@implementations
def test_statistics_of_each_row(config) -> None:
    case = sequences(bias=True)
    z = case.e.double() @ case.c.double().T + case.bias.double()
    case.targets[0] = z.argmax(-1)[0]
    options = {"return_stats": True, "entropy": True, "shift": 1}
    out, right = (
        linear_cross_entropy(*x, case.targets, b, **options, config=how)
        for x, b, how in (
            ((case.e, case.c), case.bias, config),
            ((case.e.double(), case.c.double()), case.bias.double(), TRUTH),
        )
    )
    for name in ("loss", "lse", "label_logit", "row_max", "entropy"):
        got, expected = getattr(out, name).double(), getattr(right, name)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4, msg=name)
    assert torch.equal(out.correct, right.correct)
    assert out.correct.any()
    assert torch.equal(out.count, right.count)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, every other one of a wider tensor."""
    wide = torch.stack((tensor, torch.full_like(tensor, 7)), -1)
    return wide.detach()[..., 0]


LAYOUTS = {
    "transposed e": lambda case: {"e": case.e.detach().mT.contiguous().mT},
    "e with gaps": lambda case: {"e": strided(case.e)},
    "one row of e for all": lambda case: {"e": case.e.detach()[:1, :1].expand(BATCH, LENGTH, D)},
    "e that begins anywhere": lambda case: {
        "e": torch.cat((case.e.detach().view(-1)[:1], case.e.detach().view(-1)))[1:].view(
            BATCH, LENGTH, D
        )
    },
    "targets with gaps": lambda case: {"targets": strided(case.targets)},
    "bias with gaps": lambda case: {"bias": strided(case.bias)},
    "weights for all rows": lambda case: {"weights": random(1).expand(BATCH, LENGTH)},
}


@implementations
@pytest.mark.parametrize("learning", [True, False], ids=["gradients", "the loss alone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, learning, config) -> None:
    case = sequences(bias=True)
    changed = LAYOUTS[layout](case)
    assert not all(x.is_contiguous() and x.storage_offset() == 0 for x in changed.values())
    case.options = {k: v for k, v in changed.items() if k == "weights"}
    for name in changed.keys() - case.options.keys():
        tensor = changed[name]
        setattr(case, name, tensor.requires_grad_() if tensor.is_floating_point() else tensor)
    if learning:
        check(case, config)
        return
    with torch.no_grad():
        got, expected = loss(case, config), loss(case.leaves(torch.float64), TRUTH)
    assert float(got) == pytest.approx(float(expected), rel=1e-4)


def test_a_head_that_the_kernels_cannot_read_is_refused_by_name_and_served_otherwise() -> None:
    case = sequences()
    for c in (strided(case.c), torch.cat((case.c[:1, :1], case.c.view(1, -1)), 1)[0, 1:]):
        c = c.detach().view(V, D) if c.dim() == 1 else c  # noqa: PLW2901  one name for both
        with pytest.raises(ImplementationUnavailable, match="needs a contiguous c that begins at"):
            linear_cross_entropy(case.e, c, case.targets, config=CONFIGS["triton"])
        got = linear_cross_entropy(case.e, c, case.targets, config=CONFIGS["blocked"])
        expected = linear_cross_entropy(case.e, case.c, case.targets, config=TRUTH)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)


@implementations
@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "sum"}, {"num_items": 0}, {"label_smoothing": 0.1, "z_loss": 0.1}],
    ids=str,
)
def test_no_target_counts(options, config) -> None:
    case = sequences(ignored=1.1, bias=True)
    out = linear_cross_entropy(case.e, case.c, case.targets, case.bias, **options, config=config)
    out.backward()
    assert out.item() == 0
    assert all(gradient.eq(0).all() for gradient in case.grads)


@implementations
def test_an_empty_batch(config) -> None:
    case = sequences(bias=True)
    e = case.e.detach()[:0].requires_grad_()
    out = linear_cross_entropy(e, case.c, case.targets[:0], case.bias, shift=1, config=config)
    out.backward()
    assert out.item() == 0
    assert e.grad.shape == e.shape
    assert case.c.grad.eq(0).all()
    assert case.bias.grad.eq(0).all()


@implementations
@pytest.mark.parametrize("wanted", range(1, 8))
def test_gradients_of_any_subset(wanted, config) -> None:
    case, exact = sequences(bias=True), sequences(bias=True).leaves(torch.float64)
    inputs = [case.e, case.c, case.bias]
    for bit, tensor in enumerate(inputs):
        tensor.requires_grad_(bool(wanted >> bit & 1))
    loss(case, config).backward()
    loss(exact, TRUTH).backward()
    for tensor, expected in zip(inputs, exact.grads, strict=True):
        assert (tensor.grad is None) is (not tensor.requires_grad)
        assert tensor.grad is None or error(tensor.grad, expected) < ROUNDING[torch.bfloat16]


@implementations
def test_tied_weights_add_up(config) -> None:
    case = sequences()
    leaves = [case.c, case.leaves(torch.float64).c]
    for c, how in zip(leaves, (config, TRUTH), strict=True):
        hidden = torch.tanh(c[case.targets.clamp(min=0)])
        linear_cross_entropy(hidden, c, case.targets, shift=1, config=how).backward()
    assert error(leaves[0].grad, leaves[1].grad) < ROUNDING[torch.bfloat16]


@implementations
def test_a_function_transform_takes_the_gradients(config) -> None:
    case = sequences()

    def mean(e, c):
        return linear_cross_entropy(e, c, case.targets, softcap=3.0, config=config)

    found = torch.func.grad(mean, argnums=(0, 1))(case.e.detach(), case.c.detach())
    mean(case.e, case.c).backward()
    for got, expected in zip(found, case.grads, strict=True):
        assert error(got, expected) < 1e-3


@implementations
@pytest.mark.parametrize(
    "kinds",
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_mixed_dtypes_under_autocast(kinds, config) -> None:
    """As a linear layer: both operands are rounded, gradients come back in their own dtypes."""
    case = sequences(torch.float32, bias=True)
    case.e, case.c = (
        x.detach().to(kind).requires_grad_()
        for x, kind in zip((case.e, case.c), kinds, strict=True)
    )
    rounded = Case(case.e.bfloat16(), case.c.bfloat16(), case.targets, case.bias).leaves()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        got = loss(case, config)
    expected = loss(rounded, config)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    got.backward()
    expected.backward()
    for tensor, kind, right in zip(case.grads, (*kinds, torch.float32), rounded.grads, strict=True):
        assert tensor.dtype == kind
        assert error(tensor, right) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_not_the_kernels_but_served_elsewhere(dtype) -> None:
    case = sequences(dtype)
    with pytest.raises(ImplementationUnavailable, match=f"needs bfloat16 or float16, got {dtype}"):
        loss(case, CONFIGS["triton"])
    torch.testing.assert_close(loss(case, LossConfig()), loss(case, TRUTH))
