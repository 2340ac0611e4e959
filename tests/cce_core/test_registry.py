"""Which implementation serves a call, and what happens where Triton cannot."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cce_core import LossConfig, blocked, registry
from cce_core.problem import Head, Problem, Wanted
from cce_core.registry import ImplementationUnavailable

WITHOUT_TRITON = "import sys; sys.modules['triton'] = None\n"


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def problem(device="cpu") -> Problem:
    e, c = torch.zeros(2, 8, device=device), torch.zeros(5, 8, device=device)
    return Problem(e, c, None, torch.zeros(2, dtype=torch.long), Head(), Wanted())


def test_auto_takes_the_blocked_implementation_on_cpu() -> None:
    assert registry.choose(problem(), LossConfig()) is blocked


@pytest.mark.parametrize(
    ("rows", "gradients", "captured", "kernels"),
    [
        (64, False, False, False),
        (65, False, False, True),
        (2, True, False, True),
        (2, False, True, True),
    ],
)
def test_auto_leaves_the_loss_alone_of_few_rows_to_the_blocked_one(
    rows, gradients, captured, kernels, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    with FakeTensorMode():
        e = torch.empty(rows, 8, dtype=torch.bfloat16, device="cuda")
        targets = torch.empty(rows, dtype=torch.long, device="cuda")
        asked = Problem(e, e.new_empty(5, 8), None, targets, Head(), Wanted(e=gradients))
        assert (registry.choose(asked, LossConfig()) is not blocked) == kernels


def test_a_name_that_cannot_serve_raises_and_says_why() -> None:
    with pytest.raises(ImplementationUnavailable, match=r"implementation='triton' needs .*, got"):
        registry.choose(problem(), LossConfig(implementation="triton"))


def test_importing_the_loss_loads_neither_triton_nor_what_jobs_need() -> None:
    program = "import sys, cce_core; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = run(program).split()
    assert "torch" in loaded
    assert not {"transformers", "pydantic", "celery", "redis", "service", "worker"} & set(loaded)
    own = run("import sys, cce_core; print(*(n for n in sys.modules if n.startswith('cce_core')))")
    assert "cce_core.kernels" not in own.split()
    assert "cce_core.models" not in own.split()


def test_without_triton_the_loss_works_and_its_name_is_an_error() -> None:
    program = WITHOUT_TRITON + (
        "import torch\n"
        "from cce_core import LossConfig, linear_cross_entropy as loss\n"
        "from cce_core.registry import ImplementationUnavailable\n"
        "arguments = torch.zeros(2, 8), torch.zeros(5, 8), torch.tensor([1, 2])\n"
        "print(loss(*arguments).item())\n"
        "try:\n"
        "    loss(*arguments, config=LossConfig(implementation='triton'))\n"
        "except ImplementationUnavailable as error:\n"
        "    print(error)\n"
    )
    value, message = run(program).splitlines()
    assert abs(float(value) - 1.609438) < 1e-5
    assert "needs the package triton, which is not installed" in message
