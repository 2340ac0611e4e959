"""Tiles of the logits: how large they are, how one is made, and how its products add up.

    z[i, v] = cap(scale * (E[i] . C[v] + bias[v]))    for rows i and columns v of one tile

The vendor's matrix products run on all of the inputs' digits and accumulate in fp32 (fp64 for
fp64): 16-bit operands stay 16-bit where the device multiplies them into fp32 (CUDA), and are
widened tile by tile elsewhere. N rows, V vocabulary, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cce_core.problem import Problem
from cce_core.rows import CountedRows

CPU_SCRATCH_BYTES = 4 * 2**20
DEVICE_SCRATCH_BYTES = 64 * 2**20
NARROWEST = 256  # columns, where the scratch allows: narrower products waste the vendor's kernels


@dataclass(frozen=True)
class Grid:
    """The cut of N rows by V columns into tiles of at most `rows` x `columns`."""

    n: int
    v: int
    rows: int
    columns: int

    @classmethod
    def of(cls, n: int, v: int, scratch_numbers: int) -> "Grid":
        """Cut so that a tile has at most `scratch_numbers` entries; full height where it can."""
        narrowest = max(min(NARROWEST, scratch_numbers), 1)
        columns = min(max(scratch_numbers // max(n, 1), narrowest), v)
        rows = min(max(scratch_numbers // columns, 1), max(n, 1))
        return cls(n, v, rows, columns)

    def row_slices(self) -> Iterator[slice]:
        """The blocks of rows."""
        return _slices(self.n, self.rows)

    def column_slices(self) -> Iterator[slice]:
        """The blocks of columns."""
        return _slices(self.v, self.columns)


def _slices(size: int, step: int) -> Iterator[slice]:
    for first in range(0, size, step):
        yield slice(first, min(first + step, size))


def scratch_bytes(asked: int | None, device: torch.device) -> int:
    """The bound on a tile of logits, in bytes: what was asked, or the device's default."""
    if asked is not None:
        return asked
    return CPU_SCRATCH_BYTES if device.type == "cpu" else DEVICE_SCRATCH_BYTES


def operand_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which matrices are multiplied."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and device.type != "cuda" else dtype


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, fresh: bool) -> None:
    """Add a @ b to `out`, in the accumulator's dtype; or overwrite `out` if `fresh`."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=0 if fresh else 1, out=out)
    elif fresh:
        out.copy_(torch.mm(a, b, out_dtype=out.dtype))
    else:
        out.add_(torch.mm(a, b, out_dtype=out.dtype))


class Tiles:
    """The tiles of one problem, each made in the same buffer, which the next one overwrites.

    Attributes:
        grid: How the problem is cut.
        dtype: The accumulator's dtype, in which the logits come.
    """

    def __init__(self, problem: Problem, rows: CountedRows, bytes_: int) -> None:
        self.dtype = problem.accumulator
        self.grid = Grid.of(len(rows.targets), len(problem.c), bytes_ // self.dtype.itemsize)
        self._operand = operand_dtype(problem.e.dtype, problem.e.device)
        self._e = rows.take(problem.e).to(self._operand)
        self._c, self._bias, self._head = problem.c, problem.bias, problem.head
        self._buffer = self._e.new_empty(self.grid.rows * self.grid.columns, dtype=self.dtype)

    def e(self, rows: slice) -> torch.Tensor:
        """Rows of E, (rows, D), as an operand."""
        return self._e[rows]

    def c(self, columns: slice) -> torch.Tensor:
        """Rows of C, (columns, D), as an operand."""
        return self._c[columns].to(self._operand)

    def operand(self, dz: torch.Tensor) -> torch.Tensor:
        """A tile as an operand."""
        return dz.to(self._operand)

    def logits(self, rows: slice, columns: slice) -> torch.Tensor:
        """Return z, (rows, columns)."""
        e, c = self.e(rows), self.c(columns)
        z = self._buffer[: len(e) * len(c)].view(len(e), len(c))
        add_product(z, e, c.T, fresh=True)
        if self._bias is not None:
            z.add_(self._bias[columns])
        if self._head.scale != 1.0:
            z.mul_(self._head.scale)
        if self._head.softcap is not None:
            z.div_(self._head.softcap).tanh_().mul_(self._head.softcap)
        return z
