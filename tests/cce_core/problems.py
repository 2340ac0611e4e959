"""Random problems for the loss, and the loss in plain torch that every test compares with."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the kernels run: on the GPU, or interpreted."""


@dataclass
class Case:
    """Tensors of one problem and the options it is posed with."""

    e: torch.Tensor
    c: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def leaves(self, dtype: torch.dtype | None = None) -> "Case":
        """A copy whose float tensors are fresh leaves that require gradients."""

        def leaf(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_()

        bias = None if self.bias is None else leaf(self.bias)
        return Case(leaf(self.e), leaf(self.c), self.targets, bias, self.options)

    def to(self, device: torch.device) -> "Case":
        """The same problem on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return Case(
            self.e.to(device), self.c.to(device), self.targets.to(device), bias, self.options
        )

    @property
    def grads(self) -> list[torch.Tensor]:
        tensors = [self.e, self.c] if self.bias is None else [self.e, self.c, self.bias]
        return [tensor.grad for tensor in tensors]


def make(
    n: int,
    v: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = False,
    ignored: float = 0.0,
    **options: Any,
) -> Case:
    """A problem whose softmax is neither flat nor a spike; a share of rows is ignored."""
    random = torch.Generator().manual_seed(1000 * n + 10 * v + d)
    e = torch.randn(n, d, generator=random).to(dtype)
    c = (3 * torch.randn(v, d, generator=random) / d**0.5).to(dtype)
    targets = torch.randint(0, v, (n,), generator=random)
    targets[torch.rand(n, generator=random) < ignored] = -100
    b = torch.randn(v, generator=random).to(dtype) if bias else None
    return Case(e, c, targets, b, options)


def plain_loss(case: Case) -> torch.Tensor:
    """What everybody writes: full logits in the inputs' dtype, torch's own cross-entropy."""
    options = dict(case.options)
    z = F.linear(case.e, case.c, case.bias) * options.pop("logit_scale", 1.0)
    if (softcap := options.pop("softcap", None)) is not None:
        z = softcap * torch.tanh(z / softcap)
    z_loss = options.pop("z_loss", 0.0)
    loss = F.cross_entropy(z, case.targets, **options)
    kept = case.targets != -100
    return loss + z_loss * (torch.logsumexp(z, 1).square() * kept).sum() / kept.sum()


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """||got - expected|| / ||expected||, in fp64."""
    expected = expected.double()
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))
