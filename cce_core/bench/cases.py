"""Run the cases that were asked for, every implementation on the same tensors, row by row."""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from cce_core.bench import data, ours, peers, report, trained
from cce_core.bench.measure import measure, median_ms, one_matmul, reference

Size = tuple[data.Shape, str, int]
"""A case before it is made: shape, data kind, rows."""


def sweep() -> list[Size]:
    """Each of N, V and D over its range, the others 8192, 131072 and 2048; one past 2**31."""
    n, v, d = 8192, 131072, 2048
    rows = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    points = [
        *((rows, v, d) for rows in rows),
        *((n, 2**k, d) for k in (15, 16, 18, 19)),
        *((n, v, 2**k) for k in (9, 10, 12, 13)),
        (1024, 2**19, 2**13),
    ]
    return [(data.Shape(f"v{v}-d{d}", v, d), "realistic", n) for n, v, d in points]


@dataclass(frozen=True)
class Selection:
    """What to measure: sizes x implementations; the trained head brings a shape of its own."""

    sizes: tuple[Size, ...]
    peers: tuple[str, ...]
    eps: tuple[float, ...]  # thresholds of the filter beside the default
    repeats: int
    training: trained.Training
    cache: Path

    def case(self, size: Size) -> data.Case:
        """Make a case on the device."""
        device = torch.device("cuda")
        shape, kind, n = size
        if kind == trained.KIND:
            return trained.case(self.training, self.cache, n, device)
        return data.make(shape, kind, n, device)

    def covers(self, row: report.Row) -> bool:
        """Whether measuring this selection gives such a row."""
        asked = {(shape.name, kind, n) for shape, kind, n in self.sizes}
        own = row["impl"] == ours.NAME and row["preset"] in ours.presets(self.eps)
        case = row["shape"], row["data"], row["n"]
        return (own or row["impl"] in self.peers) and case in asked


def run_case(case: data.Case, selection: Selection) -> list[report.Row]:
    """Measure every implementation on a case; the matmul is timed before each one."""
    truth = reference(case)
    others, reasons = peers.implementations(case, selection.peers)
    for reason in reasons:
        sys.stdout.write(f"{reason}\n")
    rows, matmuls = [], []
    for implementation in (*ours.implementations(case, selection.eps), *others):
        matmuls.append(_matmul_ms(case, selection.repeats))
        try:
            rows.append(measure(case, implementation, truth, selection.repeats))
        except torch.OutOfMemoryError:
            sys.stdout.write(f"{implementation.name} {implementation.preset} is out of memory\n")
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
    for size in selection.sizes:
        case = selection.case(size)
        found = run_case(case, selection)
        lines = [report.head(found, case.statistics), *map(report.line, found)]
        sys.stdout.write("\n".join(lines) + "\n\n")
        sys.stdout.flush()
        rows += found
        del case
        torch.cuda.empty_cache()
        if keep is not None:
            report.write(rows, keep)
    return rows
