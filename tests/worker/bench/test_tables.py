"""The README's tables of what fits and of the ledger are those of the figures on record."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from worker.bench import ledger_report, report, tables

README = (Path(tables.__file__).parents[2] / "README.md").read_text()


def test_what_fits_is_in_the_readme() -> None:
    assert f"\n\n{tables.batches()}\n\n" in README


def test_the_ledger_and_its_bars_are_in_the_readme() -> None:
    assert f"\n\n{tables.ledger()}\n\n" in README


def test_the_readme_begins_with_what_the_ledger_shows() -> None:
    rows, _ = ledger_report.read(tables.LEDGER)
    taken = {row.loss: row.loss_layer_bytes for row in rows}
    full, ours = (taken[loss] or 0 for loss in ("full_logits", "cce"))
    assert f"take {full / 2**30:.1f} GiB on an H200; ours takes {ours / 2**20:.0f} MiB" in README
    sizes = {
        row.loss: row.largest or 0
        for row in report.read(tables.ROWS)
        if (row.model, row.mode, row.checkpointing) == ("gemma-2-2b", "full", True)
    }
    assert f"{sizes['cce'] / sizes['full_logits']:.1f} times as many tokens" in README


def test_what_is_on_record_was_measured_and_says_where() -> None:
    rows = report.read(tables.ROWS)
    assert {row.status for row in rows} == {"measured"}
    assert all(row.largest and row.peak_bytes for row in rows)
    losses, _ = ledger_report.read(tables.LEDGER)
    for row in losses:
        compiled = row.loss == "compiled_full_logits"  # too long to compile for a job of 500 steps
        expected = ("modelled", None) if compiled else ("measured", "measured")
        assert (row.loss_layer, row.step, row.training) == (*expected, "completed")
    for row in [*rows, *losses]:
        assert row.device == "NVIDIA H200"
        assert all((row.commit, row.torch, row.transformers))


def test_what_follows_from_the_figures_on_record_is_in_their_files(tmp_path: Path) -> None:
    again = tmp_path / "rows.json"
    report.write(report.read(tables.ROWS), again)
    assert again.read_text() == tables.ROWS.read_text()
    conditions = json.loads(tables.LEDGER.read_text())["conditions"]
    ledger_report.write(conditions, *ledger_report.read(tables.LEDGER), again)
    assert again.read_text() == tables.LEDGER.read_text()


def test_the_bars_on_record_hold() -> None:
    found = ledger_report.bars(*ledger_report.read(tables.LEDGER))
    assert [bar.holds for bar in found] == [True] * 4


def test_the_tables_of_other_files_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in report.read(tables.ROWS) if row.loss == "cce"]
    report.write(rows, tmp_path / "rows.json")
    assert tables.main([str(tmp_path / "rows.json"), str(tables.LEDGER)]) == 0
    told = capsys.readouterr().out
    assert "tokens, cce" in told
    assert "full logits (GiB)" not in told
    assert tables.ledger() in told


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        tables.main([str(tmp_path / "rows.json")])
    assert end.value.code == 2
    assert f"there is no file {tmp_path / 'rows.json'}\n" in capsys.readouterr().err


def test_rows_of_different_commits_say_so() -> None:
    first, *rest = report.read(tables.ROWS)
    other = report.table([replace(first, commit="1234567"), *rest], ["cce"])
    assert "commit 1234567 and f6a2978 and 9bbd42a, sequences" in other
