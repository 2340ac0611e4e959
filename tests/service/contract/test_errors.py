"""The tree of errors, and what the API makes of each."""

import inspect

import pytest

from service import problems
from service.contract import errors
from service.contract.errors import HeadroomError, JobFailure, RequestError, Unavailable

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__ and kind is not HeadroomError
]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_of_the_one_tree_and_drawn_in_it(kind: type[Exception]) -> None:
    assert issubclass(kind, HeadroomError)
    assert f" {kind.__name__} " in str(errors.__doc__)


@pytest.mark.parametrize("kind", [each for each in TREE if each is not JobFailure])
def test_a_code_is_the_kinds_own_unless_one_is_given(kind: type[HeadroomError]) -> None:
    plain = kind("What was got.")
    assert (plain.code, plain.param, str(plain)) == (kind.default_code, None, "What was got.")
    assert plain.code != HeadroomError.default_code
    given = kind("What was got.", code="model_not_found", param="model")
    assert (given.code, given.param) == ("model_not_found", "model")


def test_what_a_caller_can_cause_has_a_status_of_its_own() -> None:
    caused = [kind for kind in TREE if issubclass(kind, RequestError) and kind is not RequestError]
    statuses = [problems._STATUS[kind] for kind in caused]
    assert len({*statuses}) == len(statuses)
    assert all(400 <= status < 500 for status in statuses)
    assert problems._STATUS[Unavailable] == 503
