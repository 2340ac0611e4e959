"""The ledger and the receipt, as they are stored."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.contract.memory import Figure, MemoryLedger
from service.contract.receipt import FilteredMass, NumericsReceipt
from tests.support.measured import LEDGER, RECEIPT


@pytest.mark.parametrize("told", [LEDGER, RECEIPT])
def test_what_is_told_comes_back_as_it_went_in_and_does_not_change(told: BaseModel) -> None:
    assert type(told).model_validate_json(told.model_dump_json()) == told
    with pytest.raises(ValidationError, match="frozen"):
        setattr(told, next(iter(type(told).model_fields)), "other")


@pytest.mark.parametrize(
    "figure",
    [
        {"bytes": 1},
        {"bytes": 1, "provenance": "guessed"},
        {"bytes": None, "provenance": "measured"},
        {"bytes": 1, "provenance": "measured", "note": "roughly"},
    ],
)
def test_no_figure_is_without_a_provenance_that_is_known(figure: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Figure.model_validate(figure)


def test_no_saving_is_without_a_baseline_that_has_a_name() -> None:
    for baseline in ("the usual", None):
        body = LEDGER.model_dump()
        body["savings"][0]["baseline"] = baseline
        with pytest.raises(ValidationError, match="baseline"):
            MemoryLedger.model_validate(body)


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_an_error_of_the_filter_is_a_number_or_none(error: float) -> None:
    body = RECEIPT.filtered[0].model_dump()
    with pytest.raises(ValidationError, match="finite"):
        FilteredMass.model_validate(body | {"error_max": error})


def test_no_receipt_is_without_a_tolerance() -> None:
    body = RECEIPT.model_dump()
    del body["tolerance"]
    with pytest.raises(ValidationError, match="tolerance"):
        NumericsReceipt.model_validate(body)
