"""The loss within bounded memory on any device: tiles of logits through the vendor's products.

Forward, one sweep over the tiles, the log-sum-exp carried along (Milakov and Gimelshein,
arXiv:1805.02867), m the running maximum and s the running sum:

    m' = max(m, max_v z)    s' = s exp(m - m') + sum_v exp(z - m')    lse = m + log s

Backward, the same sweep by columns, each tile of logits made again, in place of which

    dz = (g_lse exp(z - lse) + g_label [v = y] + g_mean / V) * scale * (1 - (z / softcap)^2)
    dE += dz C[columns]                     accumulated over the whole vocabulary in fp32
    dC[columns] = sum over rows dz^T E      fp32; of a 16-bit head in a slice, written once
    dbias[columns] = sum over rows dz

No filter: the gradients are exact. Four products instead of the three of full logits, but a tile
of `LossConfig.scratch_bytes` stays in the cache where N x V logits travel through memory. Held at
most: two and a half tiles and, while it runs, (N, D) in fp32; for a 16-bit head (columns, D) too.
N rows, V vocabulary, D width.
"""

import torch

from cce_core.config import LossConfig
from cce_core.problem import Gradients, Problem, RowGrads, RowStats, State
from cce_core.rows import CountedRows
from cce_core.tiles import Tiles, add_product, scratch_bytes


def refuses(problem: Problem, config: LossConfig) -> str | None:  # noqa: ARG001  the seam's shape
    """Return None: every problem is served."""
    return None


def forward(problem: Problem, config: LossConfig) -> tuple[RowStats, State]:
    """Sweep over the tiles, a block of rows at a time; see `Implementation.forward`."""
    rows = CountedRows.of(problem.targets)
    room = scratch_bytes(config.scratch_bytes, problem.e.device)
    tiles = Tiles(problem, rows, room)
    online = _OnlineStatistics(problem, rows)
    for block in tiles.grid.row_slices():
        for columns in tiles.grid.column_slices():
            online.see(tiles.logits(block, columns), block, columns)
    return rows.spread_stats(online.finish()), ()


def new_state(problem: Problem, config: LossConfig) -> State:  # noqa: ARG001  the seam's shape
    """Return an empty state: the log-sum-exp is all that the backward needs."""
    return ()


class _OnlineStatistics:
    """Row statistics of the tiles seen so far, (n,) each."""

    def __init__(self, problem: Problem, rows: CountedRows) -> None:
        self._targets, self._wanted, self._v = rows.targets, problem.wanted, len(problem.c)
        new, n, kind = problem.e.new_zeros, len(rows.targets), problem.accumulator
        self._sum, self._label, self._logit_sum, self._spread, self._max = (
            new(n, dtype=kind) for _ in range(5)
        )
        self._max.fill_(torch.finfo(kind).min)

    def see(self, z: torch.Tensor, block: slice, columns: slice) -> None:
        """Take in the tile `z`, and overwrite it with exp(z - m)."""
        inside, column = label_columns(self._targets[block], columns)
        label = self._label[block]
        label.copy_(torch.where(inside, z.gather(1, column)[:, 0], label))
        if self._wanted.mean:
            self._logit_sum[block] += z.sum(1)
        old, total = self._max[block], self._sum[block]
        new = torch.maximum(old, z.amax(1))
        shrink = torch.exp(old - new)
        weight = z.sub_(new[:, None]).exp_()
        if self._wanted.entropy:
            self._add_spread(weight, block, shrink, old - new)
        total.mul_(shrink).add_(weight.sum(1))
        old.copy_(new)

    def _add_spread(
        self, weight: torch.Tensor, block: slice, shrink: torch.Tensor, step: torch.Tensor
    ) -> None:
        """Carry sum_v exp(z - m) (m - z) along: what is held moves with m first."""
        held = self._spread[block]
        held.sub_(step * self._sum[block]).mul_(shrink).add_(torch.special.entr(weight).sum(1))

    def finish(self) -> RowStats:
        """The statistics of the rows, whose every tile was seen."""
        log_sum = self._sum.log()
        return RowStats(
            lse=self._max + log_sum,
            label_logit=self._label,
            row_max=self._max,
            mean_logit=self._logit_sum / self._v if self._wanted.mean else None,
            entropy=log_sum + self._spread / self._sum if self._wanted.entropy else None,
        )


def label_columns(targets: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each label lies in `columns`, (n,), and its place there, (n, 1), clamped to it."""
    place = targets - columns.start
    inside = (place >= 0) & (targets < columns.stop)
    return inside, place.clamp(0, columns.stop - columns.start - 1)[:, None]


def backward(
    problem: Problem,
    config: LossConfig,
    lse: torch.Tensor,
    state: State,  # noqa: ARG001  the seam's shape
    upstream: RowGrads,
) -> Gradients:
    """Sweep over the tiles, a block of columns at a time; see `Implementation.backward`."""
    rows = CountedRows.of(problem.targets)
    tiles = Tiles(problem, rows, scratch_bytes(config.scratch_bytes, problem.e.device))
    make_dz = _LogitGradient(problem, rows, lse, upstream, tiles)
    sums = _GradientSums(problem, tiles)
    for columns in tiles.grid.column_slices():
        for block in tiles.grid.row_slices():
            sums.add(make_dz(block, columns), block, columns)
        sums.close(columns)
    return sums.finish(rows)


class _LogitGradient:
    """Makes tiles of dz, the gradient of the dot products."""

    def __init__(
        self,
        problem: Problem,
        rows: CountedRows,
        lse: torch.Tensor,
        upstream: RowGrads,
        tiles: Tiles,
    ) -> None:
        scale, v = problem.head.scale, len(problem.c)

        def scaled(g: torch.Tensor, factor: float) -> torch.Tensor:
            return rows.take(g).to(tiles.dtype)[:, None] * factor

        self._lse, self._targets = rows.take(lse)[:, None], rows.targets
        self._g_lse, self._g_label = (scaled(g, scale) for g in upstream[:2])
        g_mean = upstream.mean_logit
        self._g_mean = None if g_mean is None else scaled(g_mean, scale / v)
        self._tiles, self._softcap = tiles, problem.head.softcap

    def __call__(self, block: slice, columns: slice) -> torch.Tensor:
        z = self._tiles.logits(block, columns)
        slope = None if self._softcap is None else 1 - (z / self._softcap).square_()
        dz = z.sub_(self._lse[block]).exp_().mul_(self._g_lse[block])
        inside, column = label_columns(self._targets[block], columns)
        dz.scatter_add_(1, column, self._g_label[block] * inside[:, None])
        if self._g_mean is not None:
            dz.add_(self._g_mean[block])
        return dz if slope is None else dz.mul_(slope)


class _GradientSums:
    """Sums the products of the tiles of dz into the gradients that are wanted."""

    def __init__(self, problem: Problem, tiles: Tiles) -> None:
        self._problem, self._tiles = problem, tiles
        self._wanted = wanted = problem.wanted
        grid, d = tiles.grid, problem.c.shape[1]
        new = problem.e.new_zeros
        self._de = new((grid.n, d), dtype=tiles.dtype) if wanted.e else None
        self._dc = problem.c.new_zeros(problem.c.shape) if wanted.c else None
        self._dbias = new(grid.v, dtype=tiles.dtype) if wanted.bias else None
        apart = wanted.c and problem.c.dtype != tiles.dtype
        self._slice = new((grid.columns, d), dtype=tiles.dtype) if apart else None

    def add(self, dz: torch.Tensor, block: slice, columns: slice) -> None:
        """Add one tile's share."""
        operand = self._tiles.operand(dz)
        if self._de is not None:
            add_product(self._de[block], operand, self._tiles.c(columns), fresh=False)
        if self._dc is not None:
            part = self._dc[columns] if self._slice is None else self._slice[: dz.shape[1]]
            add_product(part, operand.T, self._tiles.e(block), fresh=block.start == 0)
        if self._dbias is not None:
            self._dbias[columns] += dz.sum(0)

    def close(self, columns: slice) -> None:
        """Write the slice of dC: no tile of these columns follows."""
        if self._dc is not None and self._slice is not None and self._tiles.grid.n > 0:
            self._dc[columns] = self._slice[: columns.stop - columns.start]

    def finish(self, rows: CountedRows) -> Gradients:
        """The gradients in their inputs' dtypes and places."""
        problem = self._problem
        return Gradients(
            e=None if self._de is None else rows.spread(self._de.to(problem.e.dtype)),
            c=self._dc,
            bias=None
            if self._dbias is None or problem.bias is None
            else self._dbias.to(problem.bias.dtype),
        )
