"""The operators: what torch's own checker of custom operators says, and torch.compile, whole."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cce_core import LinearCrossEntropy, LossConfig, linear_cross_entropy, operators
from cce_core.operators import Options
from cce_core.problem import Head, Problem, Wanted
from tests.cce_core.problems import DEVICE, Case, error, make

CONFIGS = {
    "blocked": LossConfig(implementation="blocked"),
    "triton": LossConfig(implementation="triton"),
}
implementations = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
WANTED = {"the loss": Wanted(), "all": Wanted(e=True, c=True, bias=True, mean=True, entropy=True)}

# Torch's own, while it compiles and checks.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def posed(n=12, dtype=torch.bfloat16, **options) -> Case:
    return make(n, 40, 16, dtype, ignored=0.3, **options).to(DEVICE).leaves()


@implementations
@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED.keys())
def test_torchs_checker_of_operators_is_content(config, wanted) -> None:
    case = posed(bias=True)
    learning = [wanted.e, wanted.c, wanted.bias]
    for tensor, here in zip((case.e, case.c, case.bias), learning, strict=True):
        tensor.requires_grad_(here)
    rows = case.targets.masked_fill(case.targets < 0, -1)
    problem = Problem(case.e, case.c, case.bias, rows, Head(softcap=5.0), wanted)
    inputs = (problem.e, problem.c, problem.bias, problem.targets, learning)
    options = Options.of(problem, config)
    torch.library.opcheck(operators.row_statistics, (*inputs, *options))
    if wanted.gradients:
        (lse, *_), state = operators.row_statistics(*inputs, *options)
        fixed = [x.detach() if isinstance(x, torch.Tensor) else x for x in (*inputs, lse)]
        upstream = torch.rand(3, len(lse), device=DEVICE)
        torch.library.opcheck(operators.row_gradients, (*fixed, state, *upstream, *options))


class Compiled:
    """A function of a case's tensors, compiled whole, and how often it was."""

    def __init__(self, function, backend="aot_eager", **options) -> None:
        torch._dynamo.reset()
        self.function = function
        self._counter = CompileCounterWithBackend(backend)
        self._compiled = torch.compile(function, fullgraph=True, backend=self._counter, **options)

    @property
    def graphs(self) -> int:
        return self._counter.frame_count

    def check(self, case: Case, *rest) -> None:
        """Compare losses and gradients with those of the function as it is."""
        plain = case.leaves()
        got = self._compiled(case.e, case.c, case.targets, *rest)
        expected = self.function(plain.e, plain.c, plain.targets, *rest)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        got.backward()
        expected.backward()
        for ours, right in zip(case.grads, plain.grads, strict=True):
            assert error(ours, right) < 1e-2


@implementations
def test_one_graph_serves_every_number_of_rows(config) -> None:
    def loss(e, c, targets):
        return linear_cross_entropy(torch.tanh(e), c, targets, softcap=5.0, config=config)

    compiled = Compiled(loss, dynamic=True)
    compiled.check(posed(12))
    first = compiled.graphs
    for n in (7, 20):
        compiled.check(posed(n))
    assert compiled.graphs == first


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor needs a C compiler")
@implementations
def test_inductor_compiles_it_whole(config) -> None:
    def loss(e, c, targets):
        return linear_cross_entropy(
            torch.tanh(e), c, targets, shift=1, label_smoothing=0.1, z_loss=1e-2, config=config
        )

    Compiled(loss, "inductor").check(posed())


@implementations
def test_everything_that_is_returned_can_be_compiled(config) -> None:
    def loss(e, c, targets):
        out = linear_cross_entropy(
            e, c, targets, return_stats=True, entropy=True, num_items=torch.tensor(7), config=config
        )
        assert out.entropy is not None
        return out.loss + out.lse.square().sum() + (out.entropy * out.correct).sum() / out.count

    Compiled(loss).check(posed())


@implementations
@pytest.mark.parametrize("dynamic", [None, True])
def test_options_that_the_compiled_function_is_given(config, dynamic) -> None:
    def loss(e, c, targets, softcap, scale, count):
        options = {"softcap": softcap, "logit_scale": scale, "num_items": count}
        return linear_cross_entropy(e, c, targets, **options, config=config)

    compiled = Compiled(loss, dynamic=dynamic)
    compiled.check(posed(), 5.0, 0.5, 7)
    compiled.check(posed(), 4.0, 0.25, 9)


@implementations
@pytest.mark.parametrize("of_e", [torch.float32, torch.bfloat16])
def test_autocast_inside_of_the_graph(config, of_e) -> None:
    def loss(e, c, targets):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return linear_cross_entropy(e.to(of_e), c, targets, config=config)

    Compiled(loss).check(posed(dtype=torch.float32))


@implementations
def test_a_compiled_module_with_tied_weights(config) -> None:
    module = LinearCrossEntropy(softcap=5.0, config=config)

    def loss(e, c, targets):
        return module(torch.tanh(e + c[targets.clamp(min=0)]), c, targets)

    Compiled(loss).check(posed())


@implementations
def test_the_same_loss_twice_in_one_graph(config) -> None:
    """The compiler may run the forward once, whose state then serves two backwards."""

    def loss(e, c, targets):
        first = linear_cross_entropy(e, c, targets, config=config)
        return first + 2 * linear_cross_entropy(e, c, targets, config=config)

    Compiled(loss).check(posed())


@implementations
def test_a_function_transform_inside_of_the_graph(config) -> None:
    def gradients(e, c, targets):
        def loss(e, c):
            return linear_cross_entropy(e, c, targets, config=config)

        return torch.func.grad(loss, argnums=(0, 1))(e, c)

    case = posed()
    inputs = (case.e.detach(), case.c.detach(), case.targets)
    torch._dynamo.reset()
    compiled = torch.compile(gradients, fullgraph=True, backend="aot_eager")
    for ours, right in zip(compiled(*inputs), gradients(*inputs), strict=True):
        assert error(ours, right) < 1e-2


@implementations
def test_a_graph_without_gradients(config) -> None:
    def loss(e, c, targets):
        return linear_cross_entropy(e, c, targets, config=config)

    case = posed()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        inputs = (case.e, case.c, case.targets)
        torch.testing.assert_close(compiled(*inputs), loss(*inputs))


def test_a_target_out_of_range_makes_a_compiled_loss_nan() -> None:
    def loss(e, c, targets):
        return linear_cross_entropy(e, c, targets)

    case = posed(dtype=torch.float32)
    case.targets[0] = len(case.c)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert compiled(case.e, case.c, case.targets).isnan()


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(),
        LossConfig(filter_eps=2.0**-12),
        LossConfig(filter_eps=None),
        LossConfig(preset="exact"),
        LossConfig("blocked", deterministic=True, scratch_bytes=4096),
    ],
)
def test_an_operator_is_told_the_config_as_it_was_given(config) -> None:
    """The threshold "auto" is no number: the kernels decide by the problem's size what it means."""
    case = posed()
    problem = Problem(case.e, case.c, None, case.targets, Head(), Wanted(e=True))
    assert Options.of(problem, config).config == config
