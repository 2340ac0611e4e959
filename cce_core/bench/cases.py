"""Run the cases that were asked for, every implementation on the same tensors, row by row."""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from cce_core.bench import data, ours, peers, report, trained
from cce_core.bench.measure import measure, median_ms, one_matmul, reference


@dataclass(frozen=True)
class Selection:
    """What to measure: shapes x data kinds x implementations, each on `rows` rows."""

    shapes: tuple[str, ...]
    kinds: tuple[str, ...]
    peers: tuple[str, ...]
    eps: tuple[float, ...]  # thresholds of the filter beside the default
    rows: int
    repeats: int
    training: trained.Training
    cache: Path

    def cases(self) -> Iterator[data.Case]:
        """Make the cases, one at a time: the trained head brings a shape of its own."""
        device = torch.device("cuda")
        for name in self.shapes:
            for kind in self.kinds:
                if kind != trained.KIND:
                    yield data.make(data.SHAPES[name], kind, self.rows, device)
        if trained.KIND in self.kinds:
            yield trained.case(self.training, self.cache, self.rows, device)

    def covers(self, row: report.Row) -> bool:
        """Whether measuring this selection gives such a row."""
        shapes = (self.training.name,) if row["data"] == trained.KIND else self.shapes
        own = row["impl"] == ours.NAME and row["preset"] in ours.presets(self.eps)
        return (
            (own or row["impl"] in self.peers)
            and row["shape"] in shapes
            and row["data"] in self.kinds
            and row["n"] == self.rows
        )


def run_case(case: data.Case, selection: Selection) -> list[report.Row]:
    """Measure every implementation on a case; the matmul is timed before each one."""
    truth = reference(case)
    others, absent = peers.implementations(case, selection.peers)
    for name in absent:
        sys.stdout.write(f"{name} is not installed\n")
    rows, matmuls = [], []
    for implementation in (*ours.implementations(case, selection.eps), *others):
        matmuls.append(_matmul_ms(case, selection.repeats))
        rows.append(measure(case, implementation, truth, selection.repeats))
    stamp = {
        "matmul_ms": statistics.median(matmuls),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "device": torch.cuda.get_device_name(),
    }
    return [row | stamp for row in rows]


def _matmul_ms(case: data.Case, repeats: int) -> float:
    elapsed = median_ms(one_matmul(case), repeats)
    torch.cuda.empty_cache()
    return elapsed


def run(selection: Selection, keep: Path | None = None) -> list[report.Row]:
    """Measure the selection, print a table a case, and write all rows to `keep` as they come."""
    rows = []
    for case in selection.cases():
        found = run_case(case, selection)
        lines = [report.head(found, case.statistics), *map(report.line, found)]
        sys.stdout.write("\n".join(lines) + "\n\n")
        sys.stdout.flush()
        rows += found
        if keep is not None:
            report.write(rows, keep)
    return rows
