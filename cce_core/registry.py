"""Which implementation serves a call: the documented rule, and the lookup by name.

"auto" is the Triton implementation where E is on CUDA, Triton is installed and the kernels serve
the problem, and the blocked one elsewhere; also, unless a CUDA graph is being captured, for the
loss alone of up to FEW_ROWS rows, whose products take less time than the kernels' launches. A name
is never replaced by another: if it cannot serve the problem, the caller hears why. Only an empty
batch, for which no kernel is launched, is the blocked implementation's under any name.
"""

import importlib.util
from functools import lru_cache

import torch

from cce_core import blocked
from cce_core.config import LossConfig
from cce_core.problem import Implementation, Problem

FEW_ROWS = 64
"""On one H200, V 131072, D 2048: 16 rows take 0.46 ms blocked, 0.74 by kernels; 64 rows 0.66 and
0.74; 256 rows 2.4 and 0.7. With gradients the kernels are faster from 16 rows on."""


class ImplementationUnavailable(RuntimeError):
    """The implementation that was named cannot run here, or does not serve these inputs."""


@lru_cache
def triton_installed() -> bool:
    """Whether the kernels can be imported."""
    return importlib.util.find_spec("triton") is not None


def load_triton() -> Implementation:
    """Import the kernels, which need Triton; their module is the implementation."""
    if not triton_installed():
        raise ImplementationUnavailable(
            "implementation='triton' needs the package triton, which is not installed; "
            "'blocked' runs everywhere"
        )
    from cce_core import kernels

    implementation: Implementation = kernels.load()
    return implementation


def choose(problem: Problem, config: LossConfig) -> Implementation:
    """The implementation that `config` asks for, by the rule above.

    Raises:
        ImplementationUnavailable: It was named and cannot serve the problem.
    """
    if config.implementation == "blocked" or problem.e.shape[0] == 0:
        return blocked
    if config.implementation == "triton":
        implementation = load_triton()
        reason = implementation.refuses(problem, config)
        if reason is not None:
            raise ImplementationUnavailable(f"implementation='triton' {reason}")
        return implementation
    if problem.e.is_cuda and triton_installed() and not _brief(problem):
        implementation = load_triton()
        if implementation.refuses(problem, config) is None:
            return implementation
    return blocked


def _brief(problem: Problem) -> bool:
    """Whether launches would take longer than the work; a graph has none, and may not wait."""
    few = not problem.wanted.gradients and problem.e.shape[0] <= FEW_ROWS
    return few and not torch.cuda.is_current_stream_capturing()
