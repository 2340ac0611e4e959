"""Measure ours and the peers on the same tensors: python -m cce_core.bench --help."""

import argparse
import statistics
import sys
from pathlib import Path

import torch
import triton

from cce_core.bench import data, ours, peers, report
from cce_core.bench.measure import measure, median_ms, one_matmul, reference


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cce_core.bench", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=data.SHAPES, default=list(data.SHAPES))
    parser.add_argument("--data", nargs="+", choices=data.KINDS, default=list(data.KINDS))
    parser.add_argument("--peers", nargs="*", choices=peers.NAMES, default=peers.NAMES)
    parser.add_argument("--rows", type=int, default=8192, help="rows of hidden states")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def _matmul_ms(case: data.Case, repeats: int) -> float:
    elapsed = median_ms(one_matmul(case), repeats)
    torch.cuda.empty_cache()
    return elapsed


def run_case(case: data.Case, names: list[str], repeats: int) -> list[report.Row]:
    """Measure every implementation on a case; the matmul is timed before each one."""
    truth = reference(case)
    others, absent = peers.implementations(case, names)
    for name in absent:
        sys.stdout.write(f"{name} is not installed\n")
    rows, matmuls = [], []
    for implementation in (*ours.implementations(case), *others):
        matmuls.append(_matmul_ms(case, repeats))
        rows.append(measure(case, implementation, truth, repeats))
    stamp = {
        "matmul_ms": statistics.median(matmuls),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "device": torch.cuda.get_device_name(),
    }
    return [row | stamp for row in rows]


def main() -> None:
    """Run the cases, print a table each, write JSON where asked."""
    arguments = _arguments()
    rows = []
    for name in arguments.shapes:
        for kind in arguments.data:
            case = data.make(data.SHAPES[name], kind, arguments.rows, torch.device("cuda"))
            found = run_case(case, arguments.peers, arguments.repeats)
            lines = [report.head(found, case.statistics), *map(report.line, found)]
            sys.stdout.write("\n".join(lines) + "\n\n")
            sys.stdout.flush()
            rows += found
            if arguments.json is not None:
                report.write(rows, arguments.json)
            del case
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
