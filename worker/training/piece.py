"""A piece of a weight as AdamW steps it, in fp32: of a bf16 weight only while it is stepped.

A bf16 number is the upper half of an fp32 one. With w the bits of the weight and r the 16 bits that
its master has beyond them,

    master = 2^16 w + r,    -2^15 <= r < 2^15,

as integers, so that w is the master rounded to the nearest (ties away from zero), and nothing of it
is lost between steps.
"""

from collections.abc import Iterator

import torch
from torch import nn

_HALF = 2**15


class Piece:
    """`size` numbers of a weight from the `start`-th on.

    Attributes:
        master: What AdamW knows: the numbers in fp32, (size,). Those of an fp32 weight themselves;
            of a bf16 weight empty, but from `take` to `give`.
        rest: The master's bits beyond a bf16 weight's, int16; None for an fp32 weight.
    """

    def __init__(self, owner: nn.Parameter, start: int, size: int) -> None:
        """Begin at the weight as it is.

        Raises:
            TypeError: It is neither bf16 nor fp32.
        """
        if owner.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"expected weights in float32 or bfloat16, got {owner.dtype}")
        self.size = size
        self._owner = owner
        self._range = slice(start, start + size)
        self._weight = owner.detach().view(-1)[self._range]
        self.rest: torch.Tensor | None = None
        if owner.dtype == torch.bfloat16:
            self.rest = torch.zeros_like(self._weight, dtype=torch.int16)
        self._between = self._weight if self.rest is None else self._weight.new_empty(0).float()
        self.master = nn.Parameter(self._between)

    @property
    def scratch_bytes(self) -> int:
        """Taken from `take` to `give`: the gradient and the master in fp32."""
        return 0 if self.rest is None else 8 * self.size

    @property
    def gradient(self) -> torch.Tensor | None:
        """Of the weight, as it holds it."""
        return None if self._owner.grad is None else self._owner.grad.view(-1)[self._range]

    def take(self) -> None:
        """Move the gradient to the master, in fp32; the last piece's takes the weight's with it."""
        gradient = self.gradient
        if gradient is None:
            return
        self.master.data = self.whole()
        self.master.grad = gradient.float()
        if self._range.stop == self._owner.numel():
            self._owner.grad = None

    def give(self) -> None:
        """Round the master, if there was a gradient, into the weight; the gradient is gone."""
        if self.master.grad is None:
            return
        self.master.grad = None
        if self.rest is not None:
            _split(self.master.data, self._weight, self.rest)
            self.master.data = self._between

    def restart(self) -> None:
        """Begin anew at the weight as it is, also where a step was cut short."""
        self.master.grad = None
        self.master.data = self._between
        if self.rest is not None:
            self.rest.zero_()

    def whole(self) -> torch.Tensor:
        """The numbers in fp32: a copy of a bf16 weight's."""
        return self._weight if self.rest is None else _joined(self._weight, self.rest)


def pieces_of(weight: nn.Parameter, most: int) -> Iterator[Piece]:
    """A weight in pieces of at most so many numbers, in order."""
    for start in range(0, weight.numel(), most):
        yield Piece(weight, start, min(most, weight.numel() - start))


def _joined(weight: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    bits = rest.int()
    _upper(bits).add_(weight.view(torch.int16))
    return bits.view(torch.float32)


def _split(master: torch.Tensor, weight: torch.Tensor, rest: torch.Tensor) -> None:
    """Into the two; `master` is used up."""
    master.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=-torch.inf)  # NaNs that can't carry
    bits = master.view(torch.int32)
    rest.copy_(bits.view(torch.int16)[0::2])
    bits.add_(_HALF)
    weight.view(torch.int16).copy_(_upper(bits))


def _upper(bits: torch.Tensor) -> torch.Tensor:
    """The upper halves of int32, on little-endian machines."""
    return bits.view(torch.int16)[1::2]
