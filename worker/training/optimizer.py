"""AdamW that keeps bf16 weights to fp32's precision, and steps them a chunk at a time."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from service.contract.estimate.peak import CHUNK_NUMBERS
from worker.training.piece import Piece, pieces_of


class MasterAdamW(torch.optim.AdamW):
    """AdamW over fp32 master weights, which every step rounds into the model's own.

    A bf16 weight has 8 bits: at the usual learning rates most updates are below its last one and
    would be lost. What its master has beyond it is kept; the master itself exists only while its
    chunk is stepped, as do gradients in fp32. Memory beside the weights: 10 bytes for a bf16
    parameter, 8 for an fp32 one; gradients have the weights' dtype.

    Attributes:
        pieces: All weights, in their order.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        chunk: int = CHUNK_NUMBERS,
    ) -> None:
        """`chunk` is the most numbers that are stepped at once; a checkpoint needs the same."""
        self._held = list(parameters)
        self.pieces = [piece for weight in self._held for piece in pieces_of(weight, chunk)]
        self._chunks = _chunks(self.pieces, chunk)
        masters = [piece.master for piece in self.pieces]
        super().__init__(masters, lr=lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def apply_gradients(self, max_norm: float) -> torch.Tensor:
        """Move the weights by their gradients, clipped together to a norm; they are gone.

        Returns:
            The norm before, fp32, on the device.
        """
        norm = _norm([g for piece in self.pieces if (g := piece.gradient) is not None])
        for chunk in self._chunks:
            for piece in chunk:
                piece.take()
            nn.utils.clip_grads_with_norm_([piece.master for piece in chunk], max_norm, norm)
            self.step()  # of all, those of the chunk alone have gradients
            for piece in chunk:
                piece.give()
        return norm

    @torch.no_grad()
    def restart(self, lr: float) -> None:
        """Begin anew at a constant rate, from the model's weights as they are now."""
        self.state.clear()
        for group in self.param_groups:
            group["lr"] = lr
        for weight in self._held:
            weight.grad = None
        for piece in self.pieces:
            piece.restart()

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW, and what the masters have beyond the weights."""
        return {**super().state_dict(), "rests": self.rests}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the weights themselves are loaded apart."""
        state = dict(state_dict)
        for rest, saved in zip(self.rests, state.pop("rests"), strict=True):
            rest.copy_(saved)
        super().load_state_dict(state)

    @property
    def rests(self) -> list[torch.Tensor]:
        """What the masters have beyond the weights that are not fp32."""
        return [piece.rest for piece in self.pieces if piece.rest is not None]

    @property
    def scratch_bytes(self) -> int:
        """What `apply_gradients` takes at most, beside gradients and state."""
        return max(sum(piece.scratch_bytes for piece in chunk) for chunk in self._chunks)

    @property
    def unmade_bytes(self) -> int:
        """State that the first step has still to allocate: two moments a weight, in fp32."""
        return 0 if self.state else sum(8 * piece.size for piece in self.pieces)


def _chunks(pieces: list[Piece], most: int) -> list[list[Piece]]:
    """Neighbours together, as long as they are at most so many numbers."""
    chunks: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if piece.size > room:
            chunks.append([])
            room = most
        chunks[-1].append(piece)
        room -= piece.size
    return chunks


def _norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Of all together, summed up in fp32; torch's own `get_total_norm` rounds to their dtype."""
    norms = [torch.linalg.vector_norm(each, dtype=torch.float32) for each in gradients]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
