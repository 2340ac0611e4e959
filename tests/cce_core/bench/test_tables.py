"""The documents' tables are those of the rows on record."""

from pathlib import Path

from cce_core.bench import report, tables

CORE = Path(tables.__file__).parents[1]
RESULTS = CORE / "bench" / "results" / "h200.json"


def row(**changes):
    return {
        "shape": "gemma-2-2b", "data": "realistic", "impl": "headroom", "preset": "default",
        "n": 8192, "fw_ms": 15.0, "fwbw_ms": 20.0, "matmul_ms": 10.0, "fw_peak_mib": 0.4,
        "scratch_mib": 1480.4, "err_de": 5e-3, "err_dc": 3e-3, "dloss": 1e-5,
    } | changes  # fmt: skip


def test_the_kernels_table_is_in_their_readme() -> None:
    assert tables.kernels_table(report.read(RESULTS)) in (CORE / "README.md").read_text()


def test_the_summary_is_in_the_readme() -> None:
    assert tables.summary_table(report.read(RESULTS)) in (CORE.parent / "README.md").read_text()


def test_a_case_is_a_line_and_what_was_not_measured_a_dash() -> None:
    rows = [row(), row(data="flat", fwbw_ms=42.0), row(data="flat", n=1024, fwbw_ms=1.0)]
    _, _, first, second = tables.kernels_table(rows).splitlines()
    assert first.startswith("| Gemma 2 2B | realistic | 1.50 | 2.00 | 1480 | 5.0e-3 | 3.0e-3 | - |")
    assert second.startswith("| | flat | 1.50 | 4.20 |")


def test_the_summary_sets_ours_beside_full_logits() -> None:
    rows = [row(), row(impl="eager", preset="", scratch_mib=30839.0), row(data="flat")]
    (line,) = tables.summary_table(rows).splitlines()[2:]
    assert line == "| Gemma 2 2B | 30,839 | - | **1,480** | 2.00 | - | - | - | **2.00** |"
