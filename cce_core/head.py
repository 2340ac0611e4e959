"""The head of a language model, as the loss sees it: one linear layer and what follows it."""

from dataclasses import dataclass
from typing import Any

import torch

from cce_core.api import LossOutput, linear_cross_entropy
from cce_core.config import LossConfig


@dataclass(frozen=True, eq=False)
class Head:
    """Logits are softcap(scale * (e weight^T + bias)).

    Attributes:
        weight: (V, D).
        bias: (V,) or None.
        scale: Factor on the logits.
        softcap: z becomes softcap * tanh(z / softcap); None for none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def parameters(self) -> list[torch.Tensor]:
        """Weight and bias, as far as they are trained."""
        tensors = [self.weight] if self.bias is None else [self.weight, self.bias]
        return [tensor for tensor in tensors if tensor.requires_grad]

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, V) fp32 logits of (N, D) rows, upcast as transformers does: what the loss avoids."""
        logits = torch.nn.functional.linear(rows, self.weight, self.bias).float() * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def loss(
        self, hidden: torch.Tensor, labels: torch.Tensor, config: LossConfig, **options: Any
    ) -> LossOutput:
        """Cut cross-entropy of hidden states (..., D); `options` are `linear_cross_entropy`'s."""
        output = linear_cross_entropy(
            hidden,
            self.weight,
            labels,
            self.bias,
            softcap=self.softcap,
            logit_scale=self.scale,
            return_stats=True,
            config=config,
            **options,
        )
        assert isinstance(output, LossOutput)
        return output
