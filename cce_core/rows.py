"""Rows that count: bring them together before the work, and put what they gave back in place."""

from dataclasses import dataclass

import torch

from cce_core.problem import RowStats


@dataclass(frozen=True)
class CountedRows:
    """The n rows, of N, whose target is not negative.

    Attributes:
        index: (n,) int64, their places; None where all N count, and nothing is ever copied.
        targets: (n,) int64, theirs.
        total: N.
    """

    index: torch.Tensor | None
    targets: torch.Tensor
    total: int

    @classmethod
    def of(cls, targets: torch.Tensor) -> "CountedRows":
        """Find them. On CUDA the host waits for their number."""
        counted = targets >= 0
        if bool(counted.all()):
            return cls(None, targets, len(targets))
        index = counted.nonzero()[:, 0]
        return cls(index, targets[index], len(targets))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """(N, ...) to (n, ...), differentiably."""
        return values if self.index is None else values.index_select(0, self.index)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(n, ...) to (N, ...), differentiably; zero where a row does not count."""
        if self.index is None:
            return values
        zeros = values.new_zeros((self.total, *values.shape[1:]))
        return zeros.index_copy(0, self.index, values)

    def spread_stats(self, stats: RowStats) -> RowStats:
        """Spread each statistic."""
        mean, entropy = stats.mean_logit, stats.entropy
        return RowStats(
            lse=self.spread(stats.lse),
            label_logit=self.spread(stats.label_logit),
            row_max=self.spread(stats.row_max),
            mean_logit=None if mean is None else self.spread(mean),
            entropy=None if entropy is None else self.spread(entropy),
        )
