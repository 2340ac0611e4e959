"""The regression gate: rows measured now against rows on record, figure by figure.

Times are compared as multiples of one matmul of the same run, and only on the device of the record;
memory and errors are compared everywhere. Better is never a fault.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cce_core.bench.report import Row

KEYS = ("shape", "data", "impl", "preset", "n")


@dataclass(frozen=True)
class Margin:
    """How far a figure may exceed its record: by a share of it, and by an amount on top."""

    share: float
    amount: float

    def allows(self, measured: float, recorded: float) -> bool:
        """Whether `measured` is within the margin; NaN is not."""
        return measured <= recorded * (1 + self.share) + self.amount


MARGINS = {
    "fw_x": Margin(0.05, 0.02),
    "fwbw_x": Margin(0.05, 0.02),
    "fw_peak_mib": Margin(0.02, 0.5),
    "scratch_mib": Margin(0.02, 2.0),
    "err_de": Margin(0.10, 1e-4),
    "err_dc": Margin(0.10, 1e-4),
    "dloss": Margin(1.0, 1e-3),
}
"""Per figure: times in matmuls, memory in MiB, relative errors, the loss's absolute one."""

TIMES = frozenset({"fw_x", "fwbw_x"})


def key(row: Row) -> tuple[object, ...]:
    """What a row measures: its implementation and case."""
    return tuple(row[name] for name in KEYS)


def figure(row: Row, name: str) -> float | None:
    """A figure of a row; None where it does not apply (the error of a frozen head's dC)."""
    if name in TIMES:
        return float(row[name.replace("_x", "_ms")] / row["matmul_ms"])
    value = row[name]
    return None if value is None else float(value)


def regressions(measured: Iterable[Row], recorded: Iterable[Row]) -> list[str]:
    """One line for each figure that is worse than the record allows, or missing.

    Rows on record without a measured one are faults too: pass only those that were asked for.
    """
    found = {key(row): row for row in measured}
    faults = []
    for row in recorded:
        name = " ".join(str(part) for part in key(row) if part != "")
        if key(row) not in found:
            faults.append(f"{name}: not measured")
            continue
        faults += [f"{name}: {fault}" for fault in _worse(found[key(row)], row)]
    return faults


def _worse(measured: Row, recorded: Row) -> Iterable[str]:
    same_device = measured["device"] == recorded["device"]
    for name, margin in MARGINS.items():
        if name in TIMES and not same_device:
            continue
        got, expected = figure(measured, name), figure(recorded, name)
        if expected is None:
            continue
        if got is None or not margin.allows(got, expected):
            shown = "missing" if got is None else f"{got:.4g}"
            allowed = expected * (1 + margin.share) + margin.amount
            yield f"{name} is {shown}, on record {expected:.4g}, at most {allowed:.4g}"
