"""The README's tables of the benchmarks, made from the figures on record: they cannot drift.

python -m worker.bench.tables                           print them
python -m worker.bench.tables rows.json ledger.json     those of other files
"""

import argparse
import sys
from pathlib import Path

from worker.bench import ledger_report, report

RESULTS = Path(__file__).parent / "results"
ROWS, LEDGER = RESULTS / "h200.json", RESULTS / "h200-ledger.json"


def batches(path: Path = ROWS) -> str:
    """What fits, from a file of `python -m worker.bench`."""
    rows = report.read(path)
    return report.table(rows, list(dict.fromkeys(row.loss for row in rows)))


def ledger(path: Path = LEDGER) -> str:
    """What the loss takes and the bars, from a file of `python -m worker.bench.ledger`."""
    return ledger_report.tables(*ledger_report.read(path))


def main(arguments: list[str]) -> int:
    """Print the tables of both files."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.bench.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "rows", type=Path, nargs="?", default=ROWS, help="written by python -m worker.bench"
    )
    parser.add_argument(
        "ledger", type=Path, nargs="?", default=LEDGER, help="by python -m worker.bench.ledger"
    )
    options = parser.parse_args(arguments)
    for path in (options.rows, options.ledger):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    sys.stdout.write(f"{batches(options.rows)}\n\n{ledger(options.ledger)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
