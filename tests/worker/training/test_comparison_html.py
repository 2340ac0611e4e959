"""The page of a comparison: whole in one file, with every figure, and a mark for each."""

import re
from html.parser import HTMLParser

import pytest

from service.contract.comparison import ComparisonReport
from tests.support.comparison import PEAKS, report
from worker.training import comparison_html
from worker.training.comparison_html import STYLES

# What would make a browser ask for something.
LOADING = {"src", "href", "xlink:href", "data", "srcset", "action", "poster"}


class Page(HTMLParser):
    """The elements and texts of a page whose elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.titles: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["td"]:
            self.cells[-1].append(data)
        if self._open[-1:] == ["title"]:
            self.titles.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made() -> ComparisonReport:
    return report()


@pytest.fixture(scope="module")
def text(made: ComparisonReport) -> str:
    return comparison_html.page(made)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_loaded_and_nothing_runs(page: Page, text: str) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object"}
    assert not [each for _, each in page.elements if LOADING & each.keys()]
    assert not re.search(r"url\(|@import|https?://", text)


def test_names_are_text_and_no_markup(page: Page, text: str) -> None:
    assert "gemma &lt;2b&gt;" in text
    assert "It asked for &lt;16 GiB&gt;." in text
    assert page.titles[0] == "Losses compared on gemma <2b>"


def test_the_table_has_every_figure_of_every_cell(page: Page, made: ComparisonReport) -> None:
    rows = page.cells[1:]
    assert len(rows) == len(made.cells)
    units = {"GiB": 2**30, "": 1}
    for row, cell in zip(rows, made.cells, strict=True):
        size, name, outcome, *figures = row
        assert (int(size), name) == (cell.batch_size, STYLES[cell.loss].name)
        assert outcome == cell.outcome.replace("_", " ")
        for shown, (figure, value) in zip(figures, cell.figures.items(), strict=True):
            if value is None:
                assert shown == "-", figure
                continue
            number, _, unit = shown.replace(",", "").partition(" ")
            assert float(number) * units[unit] == pytest.approx(value, rel=1e-3), figure


def test_bars_stand_in_proportion_and_a_missing_one_says_why(page: Page, text: str) -> None:
    """Heights of the memory plot against the figures; bars of both plots but for the legend's."""
    bars = [each for each in page.of("rect") if "x" in each]
    assert len(bars) == 2 * 11
    memory = bars[:11]
    peaks = [cell.peak_bytes for cell in report().cells if cell.peak_bytes is not None]
    heights = [float(bar["height"]) for bar in memory]
    for height, peak in zip(heights, peaks, strict=True):
        assert height / heights[-1] == pytest.approx(peak / peaks[-1], rel=0.02)
    assert len(re.findall(r"<text[^>]*rotate[^>]*>out of memory</text>", text)) == 2


def test_curves_lie_on_top_of_each_other_the_thinnest_last(page: Page) -> None:
    lines = page.of("polyline")
    assert len(lines) == 11
    first = lines[:4]
    assert [line["stroke"] for line in first] == [STYLES[name].colour for name in PEAKS]
    widths = [float(line["stroke-width"]) for line in first]
    assert widths == sorted(widths, reverse=True)
    for line in lines:
        heights = [float(point.split(",")[1]) for point in line["points"].split()]
        assert len(heights) == 20
        assert heights[0] < heights[-1]  # SVG counts downwards; the loss falls


def test_every_plot_says_what_it_shows(page: Page) -> None:
    labels = [each["aria-label"] for each in page.of("svg") if each.get("role") == "img"]
    assert labels == [
        "Peak memory by batch size",
        "Tokens a second by batch size",
        *(f"Loss at batch size {size}" for size in (1, 4, 16)),
    ]
    assert sum(title.startswith("CCE: ") for title in page.titles) == 9


def test_the_conditions_are_named(text: str, made: ComparisonReport) -> None:
    for name, value in made.conditions:
        if name not in {"options", "model"}:
            assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert "<dt>dtype</dt><dd>bfloat16</dd>" in text


def test_a_batch_size_where_nothing_came_to_its_end_has_no_curve() -> None:
    made = report()
    only = made.model_copy(update={"cells": [made.cells[8]]})
    page = Page(comparison_html.page(only))
    assert page.of("polyline") == []
    assert len(page.cells) == 2


def test_without_a_validation_file_there_are_no_columns_for_it() -> None:
    shown = comparison_html.page(report(validation_file_sha256=None))
    assert "validation loss" not in shown
    assert {len(row) for row in Page(shown).cells if row} == {9}
    assert {len(row) for row in Page(comparison_html.page(report())).cells if row} == {11}
