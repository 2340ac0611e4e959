"""AdamW for weights of any float dtype: what is held in less than fp32 moves by an fp32 copy."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MasterAdamW(torch.optim.AdamW):
    """AdamW over fp32 master weights, which every step rounds into the model's own.

    A bf16 weight has 8 bits: at the usual learning rates most updates are below its last one and
    would be lost. Parameters that are fp32 already are their own masters. Memory beside the
    weights: 12 bytes for a bf16 parameter, 8 for an fp32 one; gradients keep the weights' dtype
    until `take_gradients`.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float
    ) -> None:
        self._held = list(parameters)
        self.masters = [_master(parameter) for parameter in self._held]
        super().__init__(self.masters, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the gradients from the model's weights to the masters, in fp32."""
        for held, master in self._copies():
            master.grad = None if held.grad is None else held.grad.float()
            held.grad = None

    @torch.no_grad()
    def restart(self, lr: float) -> None:
        """Begin anew at a constant rate, from the model's weights as they are now."""
        self.state.clear()
        self.zero_grad(set_to_none=True)
        for group in self.param_groups:
            group["lr"] = lr
        for held, master in self._copies():
            held.grad = None
            master.copy_(held)

    def apply_gradients(self, max_norm: float) -> torch.Tensor:
        """Move the weights by the model's gradients, clipped together to a norm; they are gone.

        Returns:
            The norm before, on the device.
        """
        self.take_gradients()
        norm = nn.utils.clip_grad_norm_(self.masters, max_norm)
        self.step()
        self.zero_grad(set_to_none=True)
        return norm

    # The base class declares overloads for closures, which nobody here passes.
    def step(self) -> None:  # type: ignore[override]
        """Update the masters by their gradients, and the model's weights from them."""
        super().step()
        with torch.no_grad():
            for held, master in self._copies():
                held.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW, and the masters, whose last bits the weights don't have."""
        return {**super().state_dict(), "masters": [master for _, master in self._copies()]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the weights themselves are loaded apart."""
        rest = dict(state_dict)
        for (_, master), saved in zip(self._copies(), rest.pop("masters"), strict=True):
            master.copy_(saved)
        super().load_state_dict(rest)

    @property
    def unmade_bytes(self) -> int:
        """State that the first step has still to allocate: two moments a weight, in fp32."""
        return 0 if self.state else sum(8 * master.numel() for master in self.masters)

    def _copies(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """The weights that are not their own masters, each with its master."""
        pairs = zip(self._held, self.masters, strict=True)
        return [(held, master) for held, master in pairs if held is not master]


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())
