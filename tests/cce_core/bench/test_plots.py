"""The pictures hold the rows' figures as text, and the committed ones those on record."""

import re
from pathlib import Path

import pytest

from cce_core.bench import plots, report

RESULTS = Path(plots.__file__).parent / "results"


def row(**changes):
    return {
        "shape": "gemma-2-2b", "data": "realistic", "impl": "headroom", "preset": "default",
        "n": 8192, "v": 256000, "d": 2304, "fw_ms": 15.0, "fwbw_ms": 20.0, "matmul_ms": 10.0,
        "scratch_mib": 1480.4, "err_de": 5e-3, "err_dc": 3e-3,
    } | changes  # fmt: skip


def words(path: Path) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text()))


@pytest.mark.parametrize(("make", "name", "form"), [
    (plots.memory, "scratch_mib", plots.mebibytes), (plots.speed, "fwbw_x", "{:.1f}".format),
])  # fmt: skip
def test_the_committed_bars_show_what_is_on_record(make, name, form) -> None:
    rows = [row for row in report.read(RESULTS / "h200.json") if row["data"] == "realistic"]
    shown = words(RESULTS / f"{make.__name__}.svg")
    figures = {form(plots.value(row, name)) for row in rows if plots.label(row) in plots.COMPARED}
    assert len(figures) > 10
    assert figures <= shown


def test_the_same_rows_give_the_same_file_and_another_figure_another_bar(tmp_path) -> None:
    rows = [row(), row(impl="eager", preset="", scratch_mib=30839.0)]
    for name in ("one.svg", "two.svg"):
        plots.save(plots.memory, rows, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert {"1480", "30839", "eager", "Gemma 2 2B"} <= words(tmp_path / "one.svg")
    plots.save(plots.memory, [row(scratch_mib=0.45)], tmp_path / "other.svg")
    assert "0.5" in words(tmp_path / "other.svg")


def test_the_frontier_names_each_threshold(tmp_path) -> None:
    rows = [row(), row(preset="eps=2^-10", err_de=1e-2), row(impl="eager", preset="")]
    plots.save(plots.frontier, rows, tmp_path / "frontier.svg")
    assert {"default", "eps=2^-10", "Gemma 2 2B, realistic"} <= words(tmp_path / "frontier.svg")


def test_a_scaling_curve_leaves_out_what_differs_in_another_size(tmp_path) -> None:
    sizes = [(1024, 8, 8), (2048, 8, 8), (4096, 8, 8), (2048, 16, 8), (1024, 99, 99)]
    rows = [row(n=n, v=v, d=d) for n, v, d in sizes]
    drawing = plots.scaling(rows)
    curves = {axes.get_xlabel(): axes.lines[0].get_xdata() for axes in drawing.axes[:3]}
    assert list(curves["N"]) == [1024, 2048, 4096]
    assert list(curves["V"]) == [8, 16]


def test_the_folder_of_the_pictures_is_made(tmp_path, monkeypatch) -> None:
    out = tmp_path / "new" / "plots"
    monkeypatch.setattr("sys.argv", ["plots", str(RESULTS / "h200.json"), "--out", str(out)])
    plots.main()
    assert {path.name for path in out.iterdir()} == {"memory.svg", "speed.svg", "frontier.svg"}
