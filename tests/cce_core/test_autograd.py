"""The differentiable step: gradients to the last digit, the state's life, and what is refused."""

import gc
import weakref

import pytest
import torch

from cce_core import LossConfig, linear_cross_entropy, reference
from cce_core.autograd import row_statistics
from cce_core.problem import Head, Problem, RowStats, Wanted
from tests.cce_core.problems import DEVICE, Case, error, make

SMALL = LossConfig(implementation="blocked", scratch_bytes=400)
KERNELS = LossConfig(implementation="triton")
ALL = Wanted(e=True, c=True, bias=True, mean=True, entropy=True)
HEAD = Head(softcap=3.0, scale=0.7)


def small_case(**options):
    return make(7, 11, 4, torch.float64, bias=True, **options).leaves()


def by_reference(problem: Problem) -> RowStats:
    return reference.row_statistics(problem)


def by_blocks(problem: Problem) -> RowStats:
    return row_statistics(problem, SMALL)


def statistics(e, c, bias, targets, compute=by_blocks) -> RowStats:
    return compute(Problem(e, c, bias, targets.masked_fill(targets < 0, -1), HEAD, ALL))


@pytest.mark.parametrize("compute", [by_reference, by_blocks])
def test_gradients_of_every_statistic(compute) -> None:
    case = small_case(ignored=0.3)

    def differentiable(e, c, bias):
        stats = statistics(e, c, bias, case.targets, compute)
        return stats.lse, stats.label_logit, stats.mean_logit

    assert torch.autograd.gradcheck(differentiable, (case.e, case.c, case.bias))


def test_the_reference_has_second_derivatives() -> None:
    case = small_case()

    def loss(e, c):
        config = LossConfig(implementation="reference")
        return linear_cross_entropy(e, c, case.targets, softcap=3.0, z_loss=0.1, config=config)

    assert torch.autograd.gradgradcheck(loss, (case.e, case.c))


def test_second_derivatives_are_refused_with_the_way_out() -> None:
    case = small_case()
    loss = linear_cross_entropy(case.e, case.c, case.targets, config=SMALL)
    (gradient,) = torch.autograd.grad(loss, case.e, create_graph=True)
    with pytest.raises(NotImplementedError, match="implementation='reference'"):
        gradient.sum().backward()


def test_a_vmap_over_the_targets_too_is_refused() -> None:
    case = small_case()

    def loss(e, target):
        return linear_cross_entropy(e[None], case.c, target[None], config=SMALL)

    with pytest.raises(NotImplementedError, match="takes no vmap"):
        torch.vmap(torch.func.grad(loss))(case.e.detach(), case.targets)


def test_many_upstreams_at_once_are_refused() -> None:
    case = small_case()
    losses = linear_cross_entropy(case.e, case.c, case.targets, reduction="none", config=SMALL)
    rows = torch.eye(len(losses), dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="takes no vmap"):
        torch.autograd.grad(losses, case.e, rows, is_grads_batched=True)


def test_the_reference_has_a_gradient_for_each_row() -> None:
    case = small_case()

    def loss(e, target, c):
        config = LossConfig(implementation="reference")
        return linear_cross_entropy(e[None], c, target[None], config=config)

    each = torch.vmap(torch.func.grad(loss, argnums=2), in_dims=(0, 0, None))
    found = each(case.e.detach(), case.targets, case.c.detach())
    linear_cross_entropy(case.e, case.c, case.targets, reduction="sum").backward()
    torch.testing.assert_close(found.sum(0), case.c.grad)


def test_maximum_and_entropy_carry_no_gradient() -> None:
    case = small_case()
    stats = statistics(case.e, case.c, case.bias, case.targets)
    assert not stats.row_max.requires_grad
    assert not stats.entropy.requires_grad


@pytest.mark.parametrize("wanted", range(1, 8))
def test_gradients_of_any_subset(wanted) -> None:
    case, whole = small_case(ignored=0.3), small_case(ignored=0.3)
    linear_cross_entropy(whole.e, whole.c, whole.targets, whole.bias, config=SMALL).backward()
    inputs = [case.e, case.c, case.bias]
    for bit, tensor in enumerate(inputs):
        tensor.requires_grad_(bool(wanted >> bit & 1))
    linear_cross_entropy(*inputs[:2], case.targets, case.bias, config=SMALL).backward()
    for tensor, expected in zip(inputs, whole.grads, strict=True):
        assert (tensor.grad is None) is (not tensor.requires_grad)
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, expected)


def test_without_gradients_nothing_is_kept() -> None:
    case = small_case()
    with torch.no_grad():
        assert linear_cross_entropy(case.e, case.c, case.targets, config=SMALL).grad_fn is None
    e, c = case.e.detach(), case.c.detach()
    assert linear_cross_entropy(e, c, case.targets, config=SMALL).grad_fn is None


def test_upstream_of_stride_zero() -> None:
    case, other = small_case(ignored=0.3), small_case(ignored=0.3)
    losses = linear_cross_entropy(case.e, case.c, case.targets, reduction="none", config=SMALL)
    losses.backward(torch.tensor(0.5, dtype=torch.float64).expand(len(losses)))
    linear_cross_entropy(other.e, other.c, other.targets, reduction="sum", config=SMALL).backward()
    torch.testing.assert_close(case.e.grad, other.e.grad / 2)
    torch.testing.assert_close(case.c.grad, other.c.grad / 2)


def test_a_second_backward_through_a_retained_graph() -> None:
    case = small_case(ignored=0.3)
    loss = linear_cross_entropy(case.e, case.c, case.targets, config=SMALL)
    loss.backward(retain_graph=True)
    once = case.c.grad.clone()
    loss.backward()
    torch.testing.assert_close(case.c.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_an_input_changed_in_place_is_noticed() -> None:
    case = small_case()
    loss = linear_cross_entropy(case.e, case.c, case.targets, config=SMALL)
    with torch.no_grad():
        case.c.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def kernels_loss() -> tuple[Case, torch.Tensor, list[weakref.ref]]:
    """A loss by the kernels, and all that its graph holds beside the inputs."""
    case = make(16, 64, 16, torch.bfloat16, ignored=0.3).to(DEVICE).leaves()
    loss = linear_cross_entropy(case.e, case.c, case.targets, config=KERNELS)
    held = step(loss.grad_fn).saved_tensors[5:]  # behind e, c, bias, targets and lse
    return case, loss, [weakref.ref(tensor) for tensor in held]


def step(graph_node):
    """The step's node under the graph of a loss."""
    if "Statistics" in graph_node.name():
        return graph_node
    return next(filter(None, (step(node) for node, _ in graph_node.next_functions if node)), None)


def test_a_kept_loss_keeps_no_scratch() -> None:
    _, loss, scratch = kernels_loss()
    assert all(reference() is not None for reference in scratch)
    loss.backward()
    assert all(reference() is None for reference in scratch)


def test_a_dropped_loss_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        _, loss, scratch = kernels_loss()
        assert all(reference() is not None for reference in scratch)
        del loss
        assert all(reference() is None for reference in scratch)
    finally:
        gc.enable()


def test_a_second_backward_of_the_kernels() -> None:
    case, loss, _ = kernels_loss()
    loss.backward(retain_graph=True)
    once = [gradient.clone() for gradient in case.grads]
    loss.backward()
    for twice, first in zip(case.grads, once, strict=True):
        assert error(twice, 2 * first) < 2e-2


def test_tied_weights_add_up() -> None:
    tokens = torch.tensor([1, 5, 2, 5, 9, 0, 3])
    case, other = small_case(), small_case()
    linear_cross_entropy(torch.tanh(case.c[tokens]), case.c, case.targets, config=SMALL).backward()
    z = torch.tanh(other.c[tokens]) @ other.c.T
    torch.nn.functional.cross_entropy(z, other.targets).backward()
    torch.testing.assert_close(case.c.grad, other.c.grad)


def test_a_function_transform_takes_the_gradient() -> None:
    case, other = small_case(), small_case()

    def loss(e, c):
        return linear_cross_entropy(e, c, case.targets, softcap=3.0, config=SMALL)

    de, dc = torch.func.grad(loss, argnums=(0, 1))(case.e.detach(), case.c.detach())
    loss(other.e, other.c).backward()
    torch.testing.assert_close(de, other.e.grad)
    torch.testing.assert_close(dc, other.c.grad)


def test_what_a_function_transform_leaves_to_the_level_below() -> None:
    case, other = small_case(), small_case()

    def loss(e):
        return linear_cross_entropy(e, 2 * case.c, case.targets, config=SMALL)

    _, value = torch.func.grad_and_value(loss)(case.e.detach())
    value.backward()
    linear_cross_entropy(other.e, 2 * other.c, other.targets, config=SMALL).backward()
    torch.testing.assert_close(case.c.grad, other.c.grad)


# torch scripts its own decompositions when these transforms are first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda f, e: torch.func.hessian(f)(e), "takes no vmap: its rows are a batch already"),
        (lambda f, e: torch.vmap(f)(e[None]), "takes no vmap: its rows are a batch already"),
        (lambda f, e: torch.func.grad(lambda e: torch.func.grad(f)(e).sum())(e), "'reference'"),
        (lambda f, e: torch.func.jvp(f, (e,), (e,)), "first derivatives, in reverse mode"),
    ],
    ids=["hessian", "vmap", "grad of grad", "jvp"],
)
def test_a_function_transform_that_is_not_served_is_refused(transform, message) -> None:
    case = small_case()

    def loss(e):
        return linear_cross_entropy(e, case.c, case.targets, config=SMALL)

    with pytest.raises(NotImplementedError, match=message):
        transform(loss, case.e.detach())
