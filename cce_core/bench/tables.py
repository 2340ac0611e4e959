"""Tables of results for documents, made from the rows on record: the figures cannot drift.

python -m cce_core.bench.tables cce_core/bench/results/h200.json      print both
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cce_core.bench import report
from cce_core.bench.check import figure
from cce_core.bench.report import Row

TITLES = {
    "gemma-2-2b": "Gemma 2 2B",
    "llama-3-8b": "Llama 3 8B",
    "qwen-2.5-7b": "Qwen 2.5 7B",
    "mistral-nemo": "Mistral NeMo",
    "phi-3.5": "Phi 3.5",
    "python-100m": "Python 100M",
}
ROWS = 8192


class Results:
    """Rows on record, found by what they measure."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {
            (row["shape"], row["data"], row["impl"], row["preset"]): row
            for row in rows
            if row["n"] == ROWS
        }
        self.cases = list(dict.fromkeys(key[:2] for key in self._rows))

    def shown(
        self, case: tuple[str, str], implementation: tuple[str, str], name: str, form: str
    ) -> str:
        """A figure as text; a dash where it was not measured."""
        row = self._rows.get((*case, *implementation))
        value = None if row is None else figure(row, name)
        return "-" if value is None else form.format(value).replace("e-0", "e-")


DEFAULT, EXACT, FROZEN = (("headroom", preset) for preset in ("default", "exact", "frozen head"))
COMPILE, EAGER = ("torch.compile", ""), ("eager", "")
APPLE = ("cut-cross-entropy", "cce")
QUACK = ("quack-kernels", "chunked")

KERNELS = (
    ("forward", DEFAULT, "fw_x", "{:.2f}"),
    ("default fw+bw", DEFAULT, "fwbw_x", "{:.2f}"),
    ("scratch", DEFAULT, "scratch_mib", "{:.0f}"),
    ("err dE", DEFAULT, "err_de", "{:.1e}"),
    ("err dC", DEFAULT, "err_dc", "{:.1e}"),
    ("exact fw+bw", EXACT, "fwbw_x", "{:.2f}"),
    ("frozen head fw+bw", FROZEN, "fwbw_x", "{:.2f}"),
    ("torch.compile", COMPILE, "fwbw_x", "{:.2f}"),
    ("quack-kernels", QUACK, "fwbw_x", "{:.2f}"),
    ("cut-cross-entropy", APPLE, "fwbw_x", "{:.2f}"),
)
"""The columns of cce_core/README.md's table: title, implementation, figure, format."""

SUMMARY = (
    ("scratch MiB: full logits", EAGER, "scratch_mib", "{:,.0f}"),
    ("compiled", COMPILE, "scratch_mib", "{:,.0f}"),
    ("**Headroom**", DEFAULT, "scratch_mib", "**{:,.0f}**"),
    ("time: full logits", EAGER, "fwbw_x", "{:.2f}"),
    ("compiled", COMPILE, "fwbw_x", "{:.2f}"),
    ("quack-kernels", QUACK, "fwbw_x", "{:.2f}"),
    ("cut-cross-entropy", APPLE, "fwbw_x", "{:.2f}"),
    ("**Headroom**", DEFAULT, "fwbw_x", "**{:.2f}**"),
)
"""The columns of the summary in the README at the top; times in matmuls."""

Column = tuple[str, tuple[str, str], str, str]


def table(
    results: Results,
    cases: Sequence[tuple[str, str]],
    columns: Sequence[Column],
    *,
    with_data: bool,
) -> str:
    """A Markdown table, a line a case; the shape is named where it changes."""
    head = ["shape", *(["data"] if with_data else []), *(column[0] for column in columns)]
    lines, last = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)], ""
    for case in cases:
        shape, data = case
        cells = ["" if shape == last else TITLES.get(shape, shape)]
        cells += [data] if with_data else []
        cells += [results.shown(case, *column[1:]) for column in columns]
        lines.append(("| " + " | ".join(cells) + " |").replace("|  |", "| |"))
        last = shape
    return "\n".join(lines)


def kernels_table(rows: Iterable[Row]) -> str:
    """The table of cce_core/README.md: every case on record."""
    results = Results(rows)
    return table(results, results.cases, KERNELS, with_data=True)


def summary_table(rows: Iterable[Row]) -> str:
    """The table for the top of the house: realistic data alone, ours beside full logits."""
    results = Results(rows)
    realistic = [case for case in results.cases if case[1] == "realistic"]
    return table(results, realistic, SUMMARY, with_data=False)


def main() -> None:
    """Print both tables from a file of results."""
    parser = argparse.ArgumentParser(
        prog="python -m cce_core.bench.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="a JSON file that the benchmark wrote")
    results = parser.parse_args().results
    if not results.is_file():
        parser.error(f"there is no file {results}")
    rows = report.read(results)
    sys.stdout.write(f"{kernels_table(rows)}\n\n{summary_table(rows)}\n")


if __name__ == "__main__":
    main()
