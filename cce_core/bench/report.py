"""Rows of results as a table and as JSON."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One implementation on one case; the keys are the columns of h200.json."""

COLUMNS = (
    ("impl", "{}"),
    ("preset", "{}"),
    ("fw_ms", "{:.2f}"),
    ("fw_x", "{:.2f}"),
    ("fwbw_ms", "{:.2f}"),
    ("fwbw_x", "{:.2f}"),
    ("fw_peak_mib", "{:.1f}"),
    ("scratch_mib", "{:.0f}"),
    ("err_de", "{:.1e}"),
    ("err_dc", "{:.1e}"),
    ("dloss", "{:.1e}"),
)


def line(row: Row) -> str:
    """One row as a line of the table; times also as multiples of one matmul."""
    full = row | {name + "_x": row[name + "_ms"] / row["matmul_ms"] for name in ("fw", "fwbw")}
    cells = ("-" if full[name] is None else form.format(full[name]) for name, form in COLUMNS)
    return "| " + " | ".join(cells) + " |"


def head(rows: list[Row], statistics: dict[str, float]) -> str:
    """A case's title, its data's statistics and the table's head."""
    first = rows[0]
    title = f"{first['shape']} (V {first['v']}, D {first['d']}), N {first['n']}, {first['data']}"
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in statistics.items())
    names = "| " + " | ".join(name for name, _ in COLUMNS) + " |"
    rule = "|" + "---|" * len(COLUMNS)
    return f"{title}: one matmul {first['matmul_ms']:.2f} ms; {numbers}\n{names}\n{rule}"


def write(rows: list[Row], path: Path) -> None:
    """The rows as a JSON list, one row a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def read(path: Path) -> list[Row]:
    """The rows that `write` wrote."""
    rows: list[Row] = json.loads(path.read_text())
    return rows
