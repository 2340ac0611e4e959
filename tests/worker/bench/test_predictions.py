"""The estimate against what a GPU showed of real models: no GPU is needed to hold it to that."""

import pytest

from service.contract.estimate.fit import largest_predicted, usable_bytes
from service.contract.estimate.model import shape_of
from service.contract.estimate.peak import step_bytes
from service.contract.estimate.workload import Workload
from worker.bench import report, tables
from worker.bench.measure import Case, Row
from worker.bench.models import SHAPES

H200_BYTES = 150_109_880_320
ROWS = report.read(tables.ROWS)


def workload(row: Row) -> Workload:
    return Workload(
        dtype=row.dtype,
        device="cuda",
        micro_batch=1,
        seq_length=row.seq_length,
        checkpointing=row.checkpointing,
        adapter=Case(row.model, row.mode, row.checkpointing).adapter,
        implementation="triton",
    )


def name(row: Row) -> str:
    return f"{row.model}-{row.mode}-{'checkpointing' if row.checkpointing else 'plain'}-{row.loss}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_step_on_an_h200_is_predicted_to_a_twentieth(row: Row) -> None:
    shape = shape_of(SHAPES[row.model])
    assert row.reference is not None
    predicted = step_bytes(shape, workload(row).of_size(row.reference), row.loss)
    assert predicted == pytest.approx(row.peak_bytes, rel=0.05)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_what_fits_on_an_h200_is_predicted_to_a_tenth_or_one(row: Row) -> None:
    shape = shape_of(SHAPES[row.model])
    predicted = largest_predicted(shape, workload(row), row.loss, usable_bytes(H200_BYTES, "cuda"))
    assert row.largest is not None
    assert predicted <= row.largest + row.largest // 16  # as fine as it was looked for
    assert predicted >= min(0.9 * row.largest, row.largest - 1)


def test_every_model_and_way_of_training_is_on_record() -> None:
    cases = {(row.model, row.mode, row.checkpointing, row.loss) for row in ROWS}
    assert len(cases) == len(ROWS) == 3 * 2 * 2 * 2
