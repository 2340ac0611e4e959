"""Pictures of the results as SVG: memory, speed, error over time, scaling.

python -m cce_core.bench.plots RESULTS [SWEEP] --out FOLDER       needs the extra `bench`
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cce_core.bench import report
from cce_core.bench.check import figure
from cce_core.bench.report import Row
from cce_core.bench.tables import TITLES

STYLE: dict[Any, Any] = {"svg.hashsalt": "headroom", "svg.fonttype": "none", "font.size": 9}
"""Text stays text, and the same rows give the same file."""

COLOURS = {
    "headroom default": "#0b7a75",
    "headroom exact": "#7fb7b4",
    "headroom blocked": "#b9a44c",
    "eager": "#8d99ae",
    "torch.compile": "#4a5568",
    "torch.linear_cross_entropy": "#2f6690",
    "cut-cross-entropy": "#c8553d",
    "liger-kernel": "#e09f3e",
    "quack-kernels": "#7b4b94",
}
COMPARED = tuple(name for name in COLOURS if name != "headroom blocked")


def label(row: Row) -> str:
    """How a row's implementation is called in a legend."""
    return f"headroom {row['preset']}" if row["impl"] == "headroom" else str(row["impl"])


def value(row: Row, name: str) -> float:
    """A figure to draw; NaN, which leaves a gap, where it does not apply."""
    found = figure(row, name)
    return float("nan") if found is None else found


def _bars(axes: Axes, rows: list[Row], name: str, form: Callable[[float], str]) -> None:
    """A group of bars a shape, a bar an implementation, its figure above it."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    measured = {label(row) for row in rows}
    compared = [name for name in COMPARED if name in measured]
    width = 0.8 / len(compared)
    for i, implementation in enumerate(compared):
        found = {row["shape"]: value(row, name) for row in rows if label(row) == implementation}
        held = [(k, found[shape]) for k, shape in enumerate(shapes) if shape in found]
        bars = axes.bar(
            [k + (i - (len(compared) - 1) / 2) * width for k, _ in held],
            [height for _, height in held],
            width,
            label=implementation,
            color=COLOURS[implementation],
        )
        axes.bar_label(bars, fmt=form, fontsize=5, padding=1)
    axes.set_xticks(range(len(shapes)), [TITLES.get(shape, shape) for shape in shapes])
    axes.figure.legend(loc="outside upper center", ncols=len(compared), fontsize=7, frameon=False)


def mebibytes(amount: float) -> str:
    """Whole ones, but for what is less than one."""
    return f"{amount:.0f}" if amount >= 1 else f"{amount:.1f}"


def memory(rows: Iterable[Row]) -> Figure:
    """Scratch of forward and backward, above inputs and gradients, on realistic data."""
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    axes = drawing.subplots()
    _bars(axes, _realistic(rows), "scratch_mib", mebibytes)
    axes.set_yscale("log")
    axes.set_ylabel("MiB above inputs and gradients")
    return drawing


def speed(rows: Iterable[Row]) -> Figure:
    """Forward and backward in matmuls, on realistic data."""
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    axes = drawing.subplots()
    _bars(axes, _realistic(rows), "fwbw_x", "{:.1f}".format)
    axes.set_ylabel("forward + backward, in matmuls")
    return drawing


def _realistic(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["data"] == "realistic"]


def frontier(rows: Iterable[Row]) -> Figure:
    """Error of dE over time, the filter's threshold as the parameter; a panel a case."""
    rows = list(rows)
    filtered = [row for row in rows if row["preset"].startswith("eps=")]
    cases = list(dict.fromkeys((row["shape"], row["data"]) for row in filtered))
    drawing = Figure(figsize=(4.5 * len(cases), 3.6), layout="constrained")
    for axes, case in zip(drawing.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        held = [row for row in rows if (row["shape"], row["data"]) == case]
        _frontier(axes, held)
        axes.set_title(f"{TITLES.get(case[0], case[0])}, {case[1]}")
    return drawing


def _frontier(axes: Axes, rows: list[Row]) -> None:
    curve = [row for row in rows if row["preset"].startswith(("eps=", "default", "exact"))]
    curve.sort(key=lambda row: value(row, "fwbw_x"))
    axes.plot(*_points(curve), "o-", color=COLOURS["headroom default"], label="headroom")
    for names, point in _named(curve):
        axes.annotate(names, point, fontsize=6, xytext=(3, 3), textcoords="offset points")
    for row in rows:
        if row["impl"] != "headroom":
            axes.plot(*_points([row]), "s", color=COLOURS[row["impl"]], label=row["impl"])
    axes.set_yscale("log")
    axes.set_xlabel("forward + backward, in matmuls")
    axes.set_ylabel("relative error of dE")
    axes.legend(fontsize=7, frameon=False)


def _named(curve: list[Row]) -> list[tuple[str, tuple[float, float]]]:
    """The presets by point, one line for those that lie on one: what turned exact does."""
    found: dict[str, list[Row]] = {}
    for row in curve:
        found.setdefault(f"{row['err_de']:.2g}", []).append(row)
    return [
        (
            "\n".join(str(row["preset"]) for row in rows),
            (value(rows[0], "fwbw_x"), rows[0]["err_de"]),
        )
        for rows in found.values()
    ]


def _points(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [value(row, "fwbw_x") for row in rows], [row["err_de"] for row in rows]


def scaling(rows: Iterable[Row]) -> Figure:
    """Time and scratch over N, V and D, the other two fixed."""
    rows = list(rows)
    drawing = Figure(figsize=(9, 5), layout="constrained")
    panels = drawing.subplots(2, 3, squeeze=False)
    for column, axis in enumerate(("n", "v", "d")):
        held = _along(rows, axis)
        for line, name in enumerate(("fwbw_ms", "scratch_mib")):
            _curves(panels[line][column], held, axis, name)
    panels[0][0].legend(fontsize=6, frameon=False)
    return drawing


def _along(rows: list[Row], axis: str) -> list[Row]:
    """The rows whose other sizes are the most frequent ones."""
    others = [name for name in ("n", "v", "d") if name != axis]
    fixed = [tuple(row[name] for name in others) for row in rows]
    usual = max(fixed, key=fixed.count)
    return [row for row, sizes in zip(rows, fixed, strict=True) if sizes == usual]


def _curves(axes: Axes, rows: list[Row], axis: str, name: str) -> None:
    for implementation, colour in COLOURS.items():
        held = sorted((row[axis], row[name]) for row in rows if label(row) == implementation)
        if held:
            sizes, values = zip(*held, strict=True)
            axes.plot(sizes, values, "o-", ms=3, color=colour, label=implementation)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(axis.upper())
    axes.set_ylabel({"fwbw_ms": "forward + backward, ms", "scratch_mib": "scratch, MiB"}[name])


def save(make: Callable[[Iterable[Row]], Figure], rows: Iterable[Row], path: Path) -> None:
    """Draw and write one picture."""
    with mpl.rc_context(STYLE):
        make(rows).savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Write the pictures that the given files have rows for."""
    parser = argparse.ArgumentParser(
        prog="python -m cce_core.bench.plots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="rows of the shapes")
    parser.add_argument("sweep", type=Path, nargs="?", help="rows of the sweep")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    arguments = parser.parse_args()
    rows = report.read(arguments.results)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for make in (memory, speed):
        save(make, rows, arguments.out / f"{make.__name__}.svg")
    if any(row["preset"].startswith("eps=") for row in rows):
        save(frontier, rows, arguments.out / "frontier.svg")
    if arguments.sweep is not None:
        save(scaling, report.read(arguments.sweep), arguments.out / "scaling.svg")


if __name__ == "__main__":
    main()
