"""What one filtered backward knows: its options, what the forward left it, and its problem."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from cce_core.kernels.launch import Logit
from cce_core.kernels.rows import Rows
from cce_core.kernels.slices import Targets
from cce_core.kernels.upstream import Shares, Upstream


@dataclass(frozen=True)
class Filter:
    """What is kept, in units of a row's mean upstream gradient, and how much room there is."""

    pair_bar: float = 2.0**-11.3  # a block's share of its row's gradient
    finer: float = 0.61  # its factor where the shares that are left out pass `left_bar`
    left_bar: float = 3e-3  # a row's root of the sum of their squares, in the rows' square mean
    entry_bar: float = 2.0**-13  # an entry's share
    entries: int | None = None  # length of a row's list; None fills the budget
    big_entries: int = 192  # of these, slots for the large ones alone
    density: float = 0.25  # the listed part of all pairs above which exact takes over
    error_bar: float = 2.0**-7  # the estimated error of dE above which exact takes over, as for NaN
    hot: float = 0.35  # the share of the rows above which a block is taken whole
    pool: float = 0.5  # the part of its blocks' pairs that a round has room for, listed as they are
    parts: int = 4  # dE is made in up to so many parts, which bounds its tail's scratch
    ample: int = 1024  # entries of a row's list; where as many fit beside it, fewer parts do

    @classmethod
    def of(cls, eps: float) -> "Filter":
        """The bars for a threshold `eps` on an entry's probability; 2**-12 is the default."""
        return cls(pair_bar=eps * 2.0**0.7, entry_bar=eps / 2)


class Masses(NamedTuple):
    """What the forward leaves for one filtered backward; a later one is exact."""

    ref: torch.Tensor  # (N,) fp32: what the masses are relative to
    mass: torch.Tensor  # (B, N) bf16: the blocks' masses; once the pairs are listed, the tail's
    exact: torch.Tensor  # () int32: negative before; then 1 where exact has to serve, 0 if not

    @classmethod
    def of(cls, ref: torch.Tensor, mass: torch.Tensor) -> "Masses":
        """Unused ones."""
        return cls(ref, mass, torch.full((), -1, dtype=torch.int32, device=mass.device))


@dataclass(frozen=True)
class Job:
    """One filtered backward: what every step of it reads."""

    rows: Rows
    logit: Logit
    masses: Masses
    upstream: Upstream
    shares: Shares
    targets: Targets
    options: Filter

    @property
    def mass(self) -> torch.Tensor:
        """(B, N) bf16: the blocks' masses; once the pairs are listed, what they leave out."""
        return self.masses.mass
