"""The regression gate names each figure that got worse, and nothing else."""

import pytest

from cce_core.bench import check


def row(**changes):
    return {
        "shape": "gemma-2-2b", "data": "realistic", "impl": "headroom", "preset": "default",
        "n": 8192, "fw_ms": 15.0, "fwbw_ms": 20.0, "matmul_ms": 15.0, "fw_peak_mib": 0.4,
        "scratch_mib": 148.0, "err_de": 5e-3, "err_dc": 3e-3, "dloss": 1e-5, "device": "H200",
    } | changes  # fmt: skip


def test_the_same_figures_pass() -> None:
    assert check.regressions([row()], [row()]) == []


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"fw_ms": 17.0}, "fw_x is 1.133, on record 1, at most 1.07"),
        ({"fwbw_ms": 22.0}, "fwbw_x is 1.467"),
        ({"fw_peak_mib": 24000.0}, "fw_peak_mib is"),
        ({"scratch_mib": 160.0}, "scratch_mib is 160, on record 148, at most 153"),
        ({"err_de": 5.8e-3}, "err_de is 0.0058"),
        ({"err_dc": float("nan")}, "err_dc is nan"),
        ({"err_dc": None}, "err_dc is missing"),
        ({"dloss": 2e-3}, "dloss is"),
    ],
)
def test_a_worse_figure_is_named(changes, figure) -> None:
    (fault,) = check.regressions([row(**changes)], [row()])
    assert fault.startswith(f"gemma-2-2b realistic headroom default 8192: {figure}")


def test_every_worse_figure_has_a_line_of_its_own() -> None:
    worse = row(fwbw_ms=25.0, err_de=1.0, err_dc=1.0)
    assert len(check.regressions([worse, row(preset="exact")], [row(), row(preset="exact")])) == 3


def test_better_and_within_the_margin_pass() -> None:
    assert check.regressions([row(fwbw_ms=15.0, scratch_mib=1.0, err_de=1e-4)], [row()]) == []
    assert check.regressions([row(fwbw_ms=21.0, scratch_mib=150.0, err_de=5.4e-3)], [row()]) == []


def test_times_count_in_matmuls_of_the_same_run() -> None:
    slow_clock = row(fw_ms=30.0, fwbw_ms=40.0, matmul_ms=30.0)
    assert check.regressions([slow_clock], [row()]) == []


def test_another_device_is_held_to_memory_and_errors_alone() -> None:
    other = row(device="A100", fwbw_ms=90.0)
    assert check.regressions([other], [row()]) == []
    (fault,) = check.regressions([other | {"scratch_mib": 999.0}], [row()])
    assert "scratch_mib" in fault


def test_a_row_that_was_not_measured_is_a_fault() -> None:
    (fault,) = check.regressions([row(preset="exact")], [row()])
    assert fault == "gemma-2-2b realistic headroom default 8192: not measured"


def test_a_figure_that_the_record_lacks_is_no_fault() -> None:
    frozen = row(preset="frozen head", err_dc=None)
    assert check.regressions([frozen], [frozen]) == []
