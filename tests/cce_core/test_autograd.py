"""The differentiable step: gradients to the last digit, the state's life, and what is refused."""

import gc
import weakref

import pytest
import torch

from cce_core import LossConfig, blocked, linear_cross_entropy, reference
from cce_core.autograd import row_statistics
from cce_core.problem import Head, Problem, RowStats, Wanted
from tests.cce_core.problems import make

SMALL = LossConfig(implementation="blocked", scratch_bytes=400)
ALL = Wanted(e=True, c=True, bias=True, mean=True, entropy=True)
HEAD = Head(softcap=3.0, scale=0.7)


def small_case(**options):
    return make(7, 11, 4, torch.float64, bias=True, **options).leaves()


def statistics(e, c, bias, targets, implementation=blocked) -> RowStats:
    rows = targets.masked_fill(targets < 0, -1)
    problem = Problem(e, c, bias, rows, HEAD, ALL)
    if implementation is reference:
        return reference.row_statistics(problem)
    return row_statistics(problem, implementation, SMALL)


@pytest.mark.parametrize("implementation", [reference, blocked], ids=["reference", "blocked"])
def test_gradients_of_every_statistic(implementation) -> None:
    case = small_case(ignored=0.3)

    def differentiable(e, c, bias):
        stats = statistics(e, c, bias, case.targets, implementation)
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


def step(graph_node):
    """The step's node under the graph of a loss."""
    if hasattr(graph_node, "call"):
        return graph_node
    return next(filter(None, (step(node) for node, _ in graph_node.next_functions if node)), None)


def test_a_kept_loss_keeps_no_state() -> None:
    case = small_case()
    loss = linear_cross_entropy(case.e, case.c, case.targets, config=SMALL)
    call = step(loss.grad_fn).call
    assert call.state is not None
    loss.backward()
    assert call.state is None


def test_a_dropped_loss_is_freed_without_the_garbage_collector() -> None:
    case = small_case()
    loss = linear_cross_entropy(case.e, case.c, case.targets, config=SMALL)
    state = weakref.ref(step(loss.grad_fn).call.state)
    gc.disable()
    try:
        del loss
        assert state() is None
    finally:
        gc.enable()


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


# Dynamo itself looks at the .grad of the tensors that it hands over a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_caller_gets_the_same_loss() -> None:
    case, other = small_case(), small_case()

    @torch.compile(backend="eager")
    def loss(e, c):
        return linear_cross_entropy(torch.tanh(e), c, case.targets, config=SMALL)

    loss(case.e, case.c).backward()
    linear_cross_entropy(torch.tanh(other.e), other.c, other.targets, config=SMALL).backward()
    torch.testing.assert_close(case.e.grad, other.e.grad)
