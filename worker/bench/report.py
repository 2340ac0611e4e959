"""Rows of the benchmark as JSON, and as a table that puts the losses beside each other."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from service.contract.memory import LossName
from worker.bench.measure import Row

_GIB = 2**30
_NAMES: dict[LossName, str] = {
    "full_logits": "full logits",
    "compiled_full_logits": "compiled logits",
    "chunked": "chunked",
    "cce": "cce",
}


def write(rows: Sequence[Row], path: Path) -> None:
    """A JSON list, one row a line."""
    lines = ",\n".join(json.dumps(row.as_json()) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def read(path: Path) -> list[Row]:
    """What `write` wrote."""
    return [
        Row(**{name: value for name, value in row.items() if name != "error"})
        for row in json.loads(path.read_text())
    ]


def table(rows: Sequence[Row], losses: Sequence[LossName]) -> str:
    """Markdown: a line for each case, tokens that fit and peaks with each loss."""
    cases: dict[tuple[str, str, bool], dict[LossName, Row]] = {}
    for row in rows:
        cases.setdefault((row.model, row.mode, row.checkpointing), {})[row.loss] = row
    head = ["model", "training", "checkpointing"]
    head += [f"tokens, {_NAMES[loss]}" for loss in losses]
    head += [f"multiple over {_NAMES[loss]}" for loss in losses if loss != "cce"]
    head += [f"peak, {_NAMES[loss]} (GiB)" for loss in losses]
    lines = [_line(head), _line(["---"] * len(head))]
    for (model, mode, checkpointing), found in cases.items():
        cells = [model, mode, "yes" if checkpointing else "no"]
        cells += [_tokens(found.get(loss)) for loss in losses]
        cells += [_multiple(found, loss) for loss in losses if loss != "cce"]
        cells += [_peak(found.get(loss)) for loss in losses]
        lines.append(_line(cells))
    return "\n".join([*lines, "", *_notes(rows)])


def summary(row: Row) -> str:
    """A row in a line, to watch a run by."""
    case = f"{row.model}, {row.mode}, checkpointing {'on' if row.checkpointing else 'off'}"
    return f"{case}, {_NAMES[row.loss]}: {row.status}, tokens {_tokens(row)}, GiB {_peak(row)}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tokens(row: Row | None) -> str:
    """What fits, and what was predicted to."""
    if row is None:
        return "-"
    if row.largest is None or row.largest_predicted is None:
        return row.status
    predicted = row.largest_predicted * row.seq_length
    return f"{row.largest * row.seq_length:,} ({predicted:,})"


def _multiple(found: dict[LossName, Row], baseline: LossName) -> str:
    sizes = [found[loss].largest if loss in found else None for loss in ("cce", baseline)]
    return f"{sizes[0] / sizes[1]:.1f}x" if sizes[0] and sizes[1] else "-"


def _peak(row: Row | None) -> str:
    """What was measured, and what was predicted and how far off that is."""
    if row is None or row.peak_predicted_bytes is None:
        return "-"
    predicted = f"{row.peak_predicted_bytes / _GIB:#.4g}"
    if row.peak_bytes is None:
        return f"does not fit ({predicted})"
    return f"{row.peak_bytes / _GIB:#.4g} ({predicted}, {row.error:+.1%})"


def _notes(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["Nothing was measured."]
    row = next((row for row in rows if row.reference), rows[0])
    where = "; ".join(dict.fromkeys(map(_where, rows)))
    commits = " and ".join(dict.fromkeys(row.commit for row in rows if row.commit))
    errors = [abs(row.error) for row in rows if row.error is not None]
    measured = f"{where}, commit {commits}" if commits else where
    notes = [
        f"{measured}, sequences of {row.seq_length:,} tokens; in parentheses what was predicted."
    ]
    if row.reference:
        tokens = row.reference * row.seq_length
        notes.append(f"Peaks are of a whole training step at {tokens:,} tokens.")
    if errors:
        notes.append(f"Largest error of a predicted peak: {max(errors):.1%}, of {len(errors)}.")
    return notes


def _where(row: Row) -> str:
    return f"{row.device}, torch {row.torch}, transformers {row.transformers}, {row.dtype}"
