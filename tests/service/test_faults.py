import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from service.faults import FieldFault, field_faults, path_text


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int | list[int] = 1


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: list[_Inner] = []


def _faults(value: object) -> list[FieldFault]:
    try:
        _Outer.model_validate(value)
    except ValidationError as error:
        return field_faults(error.errors(), value)
    return []


def _told(value: object) -> list[tuple[str, str]]:
    return [(fault.path, fault.message) for fault in _faults(value)]


def test_a_missing_field_is_named_although_it_is_not_there() -> None:
    assert _told({}) == [("name", "Field required")]


def test_an_unknown_field_is_named_with_its_place() -> None:
    value = {"name": "a", "inner": [{}, {"siez": 1}]}
    assert _told(value) == [("inner[1].siez", "Unknown field")]


def test_alternatives_are_one_fault_without_marks_of_the_union() -> None:
    assert _told({"name": "a", "inner": [{"size": None}]}) == [
        ("inner[0].size", "Input should be a valid integer or a valid list; got None")
    ]


def test_the_deepest_place_says_more_than_those_around_it() -> None:
    assert [path for path, _ in _told({"name": "a", "inner": [{"size": [1, "x"]}]})] == [
        "inner[0].size[1]"
    ]


def test_a_long_value_is_not_repeated() -> None:
    [(_, message)] = _told({"name": "a", "inner": [{"size": "big" * 500}]})
    assert message.endswith("; got 1,500 characters")
    assert "big" not in message


@pytest.mark.parametrize(("value", "shown"), [({"a": 1}, "an object"), (["a"], "an array")])
def test_a_value_of_parts_is_told_by_its_kind(value: object, shown: str) -> None:
    assert _told({"name": value}) == [("name", f"Input should be a valid string; got {shown}")]


def test_a_number_without_end_is_cut() -> None:
    [(_, message)] = _told({"name": 10**300})
    assert message == f"Input should be a valid string; got 1{'0' * 59}..."


def test_a_long_name_is_not_repeated() -> None:
    [(path, message)] = _told({"name": "a", "inner": [{"k" * 10_000: 1}]})
    assert (path, message) == (f"inner[0].{'k' * 128}...", "Unknown field")


def test_a_body_that_is_no_object_says_what_is_expected() -> None:
    [fault] = field_faults(
        [{"type": "missing", "loc": (), "msg": "Field required", "input": None}], None
    )
    assert (fault.path, fault.message) == ("", "Expected a JSON object, sent as application/json")


def test_a_path_reads_as_in_the_value() -> None:
    assert path_text(("a", 1, 2, "b")) == "a[1][2].b"
