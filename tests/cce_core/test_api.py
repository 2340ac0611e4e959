"""The public function: reductions, options, shapes and the errors a caller can cause."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import cce_core
from cce_core import IGNORE_INDEX, LinearCrossEntropy, LossConfig, linear_cross_entropy
from tests.cce_core.problems import make

BLOCKED = LossConfig(implementation="blocked", scratch_bytes=1000)
REFERENCE = LossConfig(implementation="reference")
both = pytest.mark.parametrize("config", [REFERENCE, BLOCKED], ids=["reference", "blocked"])


def sequences(batch=3, length=7, v=31, d=5, *, ignored=0.3):
    case = make(batch * length, v, d, ignored=ignored)
    return case.e.view(batch, length, d), case.c, case.targets.view(batch, length)


def test_the_exported_names() -> None:
    assert cce_core.__all__ == [
        "IGNORE_INDEX",
        "LinearCrossEntropy",
        "LossConfig",
        "VocabularyShard",
        "linear_cross_entropy",
        "reference",
    ]


@both
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_reductions_are_torchs(reduction, smoothing, config) -> None:
    e, c, targets = sequences()
    expected = F.cross_entropy(
        (e @ c.T).transpose(1, 2), targets, reduction=reduction, label_smoothing=smoothing
    )
    got = linear_cross_entropy(
        e, c, targets, reduction=reduction, label_smoothing=smoothing, config=config
    )
    torch.testing.assert_close(got, expected)


@both
@pytest.mark.parametrize("shift", [0, 1, 3, 7, 9, True])
def test_a_shift_is_a_slice_of_both(shift, config) -> None:
    e, c, targets = sequences()
    k = min(int(shift), e.shape[1])
    sliced = linear_cross_entropy(
        e[:, : e.shape[1] - k], c, targets[:, k:], reduction="none", config=config
    )
    got = linear_cross_entropy(e, c, targets, reduction="none", shift=shift, config=config)
    assert got.shape == targets.shape
    torch.testing.assert_close(got[:, k:], sliced)
    assert got[:, :k].eq(0).all()
    mean = linear_cross_entropy(e, c, targets, shift=shift, config=config)
    torch.testing.assert_close(mean, sliced.sum() / max((targets[:, k:] != -100).sum(), 1))


def test_a_shift_copies_nothing_of_e() -> None:
    e, c, targets = sequences(ignored=0.0)
    inputs = cce_core.api.check(
        e,
        c,
        targets,
        None,
        weights=None,
        objective=cce_core.api.Objective(shift=1),
        entropy=False,
    )
    assert inputs.problem.e.data_ptr() == e.data_ptr()


def test_another_ignore_index() -> None:
    e, c, targets = sequences()
    other = torch.where(targets == IGNORE_INDEX, 0, targets)
    torch.testing.assert_close(
        linear_cross_entropy(e, c, other, ignore_index=0),
        F.cross_entropy((e @ c.T).transpose(1, 2), other, ignore_index=0),
    )


def test_a_label_that_the_ignored_index_would_be_in_eight_bits_counts() -> None:
    """-100 in uint8 is 156."""
    case = make(6, 200, 5)
    case.targets[2] = 156
    got = linear_cross_entropy(case.e, case.c, case.targets.to(torch.uint8), reduction="none")
    expected = linear_cross_entropy(case.e, case.c, case.targets, reduction="none")
    assert got[2] > 0
    assert torch.equal(got, expected)


@both
def test_row_weights_stand_at_their_targets(config) -> None:
    e, c, targets = sequences()
    weights = torch.rand(targets.shape)
    losses = linear_cross_entropy(e, c, targets, reduction="none", shift=1, config=config)
    kept = (targets != IGNORE_INDEX) & (torch.arange(targets.shape[1]) >= 1)
    options = {"shift": 1, "weights": weights, "config": config}
    total = (losses * weights).sum()
    torch.testing.assert_close(
        linear_cross_entropy(e, c, targets, reduction="sum", **options), total
    )
    torch.testing.assert_close(
        linear_cross_entropy(e, c, targets, **options), total / (weights * kept).sum()
    )


def test_row_weights_of_16_bits_are_added_up_in_32() -> None:
    e, c, targets = sequences(batch=40, ignored=0.0)
    weights = torch.rand(targets.shape).bfloat16()
    torch.testing.assert_close(
        linear_cross_entropy(e, c, targets, weights=weights),
        linear_cross_entropy(e, c, targets, weights=weights.float()),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_the_weight_of_a_target_that_does_not_count_is_no_matter(weight, reduction) -> None:
    """As 1 / length is for a sequence of which nothing counts."""
    e, c, targets = sequences()
    targets[0] = IGNORE_INDEX
    weights = torch.ones(targets.shape)
    expected = linear_cross_entropy(e, c, targets, weights=weights, reduction=reduction)
    weights[0] = weight
    got = linear_cross_entropy(e, c, targets, weights=weights, reduction=reduction)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("num_items", [40, torch.tensor(40), torch.tensor([40.0])])
def test_a_denominator_of_the_caller(num_items) -> None:
    e, c, targets = sequences()
    total = linear_cross_entropy(e, c, targets, reduction="sum")
    got = linear_cross_entropy(e, c, targets, num_items=num_items)
    assert got.shape == ()
    torch.testing.assert_close(got, total / 40)


def test_micro_batches_with_one_denominator_add_up_to_the_batch() -> None:
    e, c, targets = sequences(batch=4)
    count = (targets != IGNORE_INDEX).sum()
    parts = [
        linear_cross_entropy(*pair, num_items=count)
        for pair in zip(e.split(1), [c] * 4, targets.split(1), strict=True)
    ]
    torch.testing.assert_close(sum(parts), linear_cross_entropy(e, c, targets))


@both
def test_the_log_sum_exp_is_differentiable(config) -> None:
    e, c, targets = sequences()
    c = c.requires_grad_()
    loss, lse = linear_cross_entropy(e, c, targets, return_lse=True, config=config)
    kept = targets != IGNORE_INDEX
    (got,) = torch.autograd.grad(loss + lse.square().sum(), c)
    z = e @ c.T
    expected = F.cross_entropy(z.transpose(1, 2), targets)
    expected = expected + (torch.logsumexp(z, -1).square() * kept).sum()
    torch.testing.assert_close(got, torch.autograd.grad(expected, c)[0])


@both
def test_statistics_of_each_row(config) -> None:
    e, c, targets = sequences()
    z = e @ c.T
    best = z.argmax(-1)
    targets[0] = best[0]
    out = linear_cross_entropy(e, c, targets, return_stats=True, entropy=True, config=config)
    kept = targets != IGNORE_INDEX
    assert torch.equal(out.correct, (targets == best) & kept)
    assert int(out.count) == int(kept.sum())
    torch.testing.assert_close(out.row_max, z.amax(-1) * kept)
    entropy = torch.distributions.Categorical(logits=z).entropy()
    torch.testing.assert_close(out.entropy, entropy * kept)


@both
def test_no_target_counts(config) -> None:
    e, c, targets = sequences(ignored=1.1)
    assert targets.max() == IGNORE_INDEX
    for options in ({}, {"reduction": "sum"}, {"num_items": 0}, {"z_loss": 0.1}):
        e, c = e.detach().requires_grad_(), c.detach().requires_grad_()
        loss = linear_cross_entropy(e, c, targets, config=config, **options)
        loss.backward()
        assert loss.item() == 0
        assert e.grad.eq(0).all()
        assert c.grad.eq(0).all()


@both
def test_an_empty_batch(config) -> None:
    e, c = torch.zeros(0, 4, 5, requires_grad=True), torch.zeros(9, 5, requires_grad=True)
    targets = torch.zeros(0, 4, dtype=torch.long)
    loss = linear_cross_entropy(e, c, targets, shift=1, config=config)
    loss.backward()
    assert loss.item() == 0
    assert e.grad.shape == e.shape
    assert c.grad.eq(0).all()


def test_a_single_row() -> None:
    case = make(1, 9, 4)
    expected = F.cross_entropy(case.e @ case.c.T, case.targets)
    got = linear_cross_entropy(case.e[0], case.c, case.targets[0])
    torch.testing.assert_close(got, expected)
    assert got.shape == ()


@both
@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)]
)
def test_autocast_casts_as_a_linear_layer(dtypes, config) -> None:
    e, c, targets = sequences()
    e, c = (x.to(kind).requires_grad_() for x, kind in zip((e, c), dtypes, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(e, c, targets, config=config)
    loss.backward()
    rounded = [x.detach().bfloat16().requires_grad_() for x in (e, c)]
    expected = linear_cross_entropy(*rounded, targets, config=config)
    expected.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert c.grad.dtype == torch.float32
    assert torch.equal(c.grad, rounded[1].grad.float())


def test_integer_targets_of_any_width() -> None:
    e, c, targets = sequences()
    assert torch.equal(
        linear_cross_entropy(e, c, targets.to(torch.int16)), linear_cross_entropy(e, c, targets)
    )


@both
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_are_found_without_data(kind, config) -> None:
    context = FakeTensorMode() if kind == "fake" else nullcontext()
    with context:
        place = {"device": "meta" if kind == "meta" else "cpu"}
        e, c = (torch.empty(shape, **place).requires_grad_() for shape in ((3, 7, 5), (31, 5)))
        targets = torch.empty(3, 7, dtype=torch.long, **place)
        losses = linear_cross_entropy(e, c, targets, shift=1, reduction="none", config=config)
        losses.sum().backward()
    assert losses.shape == targets.shape
    assert (e.grad.shape, c.grad.shape) == (e.shape, c.shape)


def test_the_module_is_the_function() -> None:
    e, c, targets = sequences()
    bias = torch.randn(len(c))
    module = LinearCrossEntropy(softcap=2.0, shift=1, return_lse=True, config=BLOCKED)
    got = module(e, c, targets, bias, num_items=9)
    expected = linear_cross_entropy(
        e, c, targets, bias, softcap=2.0, shift=1, return_lse=True, num_items=9, config=BLOCKED
    )
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert "softcap=2.0" in repr(module)


def call(**changes):
    arguments = {
        "e": torch.zeros(2, 3, 4),
        "c": torch.zeros(9, 4),
        "targets": torch.zeros(2, 3, dtype=torch.long),
    }
    return linear_cross_entropy(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"e": torch.zeros(2, 3, 4, dtype=torch.long)}, TypeError, "e must have a floating-point"),
        (
            {"c": torch.zeros(9, 4).half()},
            TypeError,
            "one dtype; got torch.float32 and torch.float16: .* call under torch.autocast$",
        ),
        ({"c": torch.zeros(9, 4).double()}, TypeError, "torch.float64: convert one of them$"),
        ({"targets": torch.zeros(2, 3)}, TypeError, "targets must have an integer dtype; got"),
        ({"c": torch.zeros(9, 5)}, ValueError, r"got \(2, 3, 4\) and \(9, 5\)"),
        ({"c": torch.zeros(0, 4)}, ValueError, r"at least one row and column; got \(0, 4\)"),
        ({"targets": torch.zeros(3, 2, dtype=torch.long)}, ValueError, r"must be \(2, 3\) here"),
        (
            {"e": torch.zeros(2, 3, 4).to(torch.float8_e4m3fn)},
            TypeError,
            "e must have .* of 16 bits or more; got torch.float8_e4m3fn",
        ),
        ({"c": torch.nn.Linear(4, 9)}, TypeError, "c must be a tensor; got Linear Linear"),
        ({"targets": [0, 1]}, TypeError, r"targets must be a tensor; got list \[0, 1\]"),
        ({"bias": -100}, TypeError, "bias must be a tensor or None; got int -100"),
        (
            {"bias": torch.zeros(9, dtype=torch.long)},
            TypeError,
            "bias must have a floating-point dtype; got torch.int64",
        ),
        (
            {"weights": torch.zeros(2, 3, dtype=torch.complex64)},
            TypeError,
            "weights must have a real dtype; got torch.complex64",
        ),
        ({"bias": torch.zeros(8)}, ValueError, r"bias must be \(9,\) here; got \(8,\)"),
        ({"weights": torch.zeros(2)}, ValueError, r"weights must be \(2, 3\) here; got \(2,\)"),
        (
            {"c": torch.zeros(9, 4, device="meta")},
            ValueError,
            "c must be on e's device cpu; got meta",
        ),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none'"),
        ({"ignore_index": 30.0}, TypeError, "ignore_index must be an int; got 30.0"),
        ({"shift": 1e-3}, TypeError, "shift must be an int; got 0.001"),
        ({"softcap": "mean"}, TypeError, "softcap must be a number or None; got 'mean'"),
        (
            {"logit_scale": torch.nn.Parameter(torch.tensor(2.0))},
            TypeError,
            "logit_scale must be a number; got Parameter",
        ),
        ({"z_loss": None}, TypeError, "z_loss must be a number; got None"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive or None; got 0.0"),
        ({"logit_scale": 0.0}, ValueError, "logit_scale must be finite and not zero; got 0.0"),
        ({"shift": -1}, ValueError, "shift must not be negative; got -1"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\]; got 1.5"),
        ({"z_loss": -1.0}, ValueError, "z_loss must not be negative; got -1.0"),
        ({"num_items": 3, "reduction": "sum"}, ValueError, "num_items is what reduction='mean'"),
        ({"num_items": 3.5}, TypeError, "num_items must be an int or a tensor of .*; got 3.5"),
        (
            {"num_items": torch.ones(2)},
            ValueError,
            r"num_items must be one number; got shape \(2,\)",
        ),
        ({"config": "triton"}, TypeError, "config must be a LossConfig or None; got 'triton'"),
        ({"filter_eps": 2.0}, ValueError, r"filter_eps must be 'auto', None or in \[0, 1\)"),
        ({"impl": "cce_exact"}, ValueError, r"config=LossConfig\(preset='exact'\)"),
        ({"impl": "mystery"}, ValueError, "impl is not an argument here"),
    ],
)
def test_errors_say_what_was_got_and_what_is_expected(changes, kind, message) -> None:
    with pytest.raises(kind, match=message):
        call(**changes)


def test_the_module_refuses_the_names_of_cut_cross_entropy_too() -> None:
    with pytest.raises(ValueError, match=r"config=LossConfig\(preset='exact'\)"):
        LinearCrossEntropy(impl="cce_exact")


@pytest.mark.parametrize("target", [9, -1, -99])
def test_a_target_out_of_range_is_named_with_its_place(target) -> None:
    targets = torch.tensor([[0, 8, -100], [3, target, -2]])
    with pytest.raises(ValueError, match=rf"in \[0, 9\) .* got {target} at position \[1, 1\]"):
        call(targets=targets)
