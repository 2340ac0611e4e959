"""The report of a comparison as one HTML file that needs no other; no torch here."""

from xml.etree import ElementTree as ET

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from service.contract.comparison import Cell, ComparisonReport
from service.contract.memory import LossName
from worker.training import svg
from worker.training.svg import Bar, Style

# Colours that the colour-blind tell apart. Curves that agree lie on each other: each is thinner
# than the one under it.
STYLES: dict[LossName, Style] = {
    "full_logits": Style("full logits", "#d55e00", 7.0),
    "compiled_full_logits": Style("compiled full logits", "#e69f00", 5.0),
    "chunked": Style("chunked", "#56b4e9", 3.5),
    "cce": Style("CCE", "#00463f", 1.5),
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def page(report: ComparisonReport) -> str:
    """The page: what was compared, three kinds of plots, and every figure in a table."""
    environment = Environment(
        loader=PackageLoader("worker.training", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    by_size: dict[int, list[Cell]] = {}
    for cell in report.cells:
        by_size.setdefault(cell.batch_size, []).append(cell)
    curves = {size: _curves(size, cells) for size, cells in by_size.items()}
    return environment.get_template("comparison.html").render(
        report=report,
        validated=report.conditions.validation_file_sha256 is not None,
        styles={name: STYLES[name] for name in {cell.loss: None for cell in report.cells}},
        rows=[(cell, _texts(cell)) for cell in report.cells],
        memory=_bars("Peak memory by batch size", by_size, "peak_bytes"),
        speed=_bars("Tokens a second by batch size", by_size, "tokens_per_s"),
        curves={size: plot for size, plot in curves.items() if plot is not None},
    )


def size(count: float) -> str:
    """A number of bytes in the unit that keeps it short."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.4g} {_UNITS[unit]}"


def _plain(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _texts(cell: Cell) -> dict[str, str]:
    """The figures of a cell as they are shown."""
    tellers = {"peak_bytes": size, "tokens_per_s": _plain}
    return {
        name: "-" if value is None else tellers.get(name, _short)(value)
        for name, value in cell.figures.items()
    }


def _bars(label: str, by_size: dict[int, list[Cell]], figure: str) -> Markup:
    groups = {
        f"batch size {count}": [
            Bar(STYLES[cell.loss], cell.figures[figure], cell.outcome.replace("_", " "))
            for cell in cells
        ]
        for count, cells in by_size.items()
    }
    if figure == "peak_bytes":
        return _markup(svg.bars(label, groups, size, base=1024))
    return _markup(svg.bars(label, groups, _plain))


def _curves(count: int, cells: list[Cell]) -> Markup | None:
    """The loss curves of a batch size; None where no loss came to its end."""
    done = [(STYLES[cell.loss], cell.train_losses) for cell in cells if cell.train_losses]
    done.sort(key=lambda pair: -pair[0].thickness)
    return _markup(svg.curves(f"Loss at batch size {count}", done, _short)) if done else None


def _markup(plot: ET.Element) -> Markup:
    return Markup(ET.tostring(plot, encoding="unicode"))  # noqa: S704 -- it has escaped the texts
