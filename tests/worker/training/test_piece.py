import math

import pytest
import torch
from torch import nn

from worker.training.piece import Piece, pieces_of


def _stepped(weight: torch.Tensor, master: torch.Tensor) -> tuple[torch.Tensor, Piece]:
    """A bf16 weight whose master a step has set."""
    owner = nn.Parameter(weight)
    piece = Piece(owner, 0, owner.numel())
    owner.grad = torch.zeros_like(owner)
    piece.take()
    piece.master.data.copy_(master)
    piece.give()
    return owner.detach(), piece


def test_every_bit_of_the_master_is_kept_and_the_weight_is_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=generator).int()
    master = bits.view(torch.float32)
    master = master[master.isfinite()]
    weight, piece = _stepped(torch.zeros(len(master), dtype=torch.bfloat16), master)
    assert torch.equal(piece.whole().view(torch.int32), master.view(torch.int32))
    half = torch.tensor(0x8000)
    tie = (master.view(torch.int32) & 0xFFFF) == half
    assert torch.equal(weight[~tie], master[~tie].bfloat16())


@pytest.mark.parametrize(
    ("bits", "value"),
    [
        (0x3F808000, 1.0078125),  # ties go away from zero
        (-0x407F8000, -1.0078125),
        (0x3F807FFF, 1.0),
        (0x7F7FFFFF, math.inf),
        (-0x80000000, -0.0),
        (0x7F800000, math.inf),
        (0x7FFFFFFF, math.nan),
        (-1, math.nan),
        (0x00008000, 2.0**-133),  # subnormal
    ],
)
def test_edges_are_rounded(bits: int, value: float) -> None:
    master = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    weight, piece = _stepped(torch.zeros(1, dtype=torch.bfloat16), master)
    assert weight.float() == pytest.approx(value, nan_ok=True, rel=0, abs=0)
    assert math.copysign(1, weight.item()) == math.copysign(1, value) or math.isnan(value)
    if not math.isnan(value):
        assert torch.equal(piece.whole().view(torch.int32), master.view(torch.int32))


def test_a_weight_is_cut_into_pieces_and_an_fp32_one_is_its_own_master() -> None:
    weight = nn.Parameter(torch.arange(12.0).view(3, 4))
    weight.grad = torch.arange(12.0).view(3, 4)
    pieces = list(pieces_of(weight, 5))
    assert [piece.size for piece in pieces] == [5, 5, 2]
    for piece in pieces:
        assert weight.grad is not None
        piece.take()
    assert weight.grad is None
    assert pieces[1].master.grad.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    with torch.no_grad():
        pieces[2].master.zero_()
    assert weight[2].tolist() == [8.0, 9.0, 0.0, 0.0]
    assert all(piece.rest is None for piece in pieces)


def test_a_bf16_master_is_there_only_for_a_step() -> None:
    weight = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
    (piece,) = pieces_of(weight, 6)
    assert piece.master.numel() == 0
    piece.take()
    piece.give()
    assert piece.master.numel() == 0  # no gradient, no step
    weight.grad = torch.ones_like(weight)
    piece.take()
    assert piece.master.dtype == piece.master.grad.dtype == torch.float32
    assert piece.master.tolist() == [1.0] * 6
    piece.give()
    assert (piece.master.numel(), piece.master.grad) == (0, None)


def test_weights_of_another_dtype_are_refused() -> None:
    with pytest.raises(TypeError, match=r"float32 or bfloat16, got torch\.float16"):
        Piece(nn.Parameter(torch.ones(2).half()), 0, 2)
