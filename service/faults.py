"""What is wrong with a value, and where in it: pydantic's errors as paths and reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import ErrorDetails

Loc = Sequence[int | str]
_SHOWN_CHARS = 60
_SHOWN_TYPES = (str, int, float, bool, type(None))
# Errors whose reason tells what was got, or of nothing that could be shown.
_TELLING = {"missing", "extra_forbidden", "value_error", "too_short", "too_long", "json_invalid"}
# No field has a longer name; that of an unknown one may be as long as the value.
_SHOWN_NAME_CHARS = 128
_EXPECTED = "Input should be "
_REASONS = {
    "extra_forbidden": "Unknown field",
    "missing": "Field required",
    "model_attributes_type": f"{_EXPECTED}a JSON object",
    "model_type": f"{_EXPECTED}a JSON object",
}
_NO_BODY = "Expected a JSON object, sent as application/json"


@dataclass
class FieldFault:
    """All that is wrong with one field.

    Attributes:
        path: Of the form `messages[2].content`; empty for the value itself.
        kind: Pydantic's type of the first error, for example `missing`.
        reasons: What is expected, one for each alternative.
    """

    path: str
    kind: str
    got: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """What is expected, and what was got."""
        first, *others = self.reasons
        return " or ".join([first, *(each.removeprefix(_EXPECTED) for each in others)]) + self.got


def field_faults(errors: Sequence[ErrorDetails], value: object) -> list[FieldFault]:
    """Group errors by field, and drop what only says that another alternative did not fit either.

    Args:
        errors: Of the validation of `value`, with their contexts.
        value: What was validated.
    """
    found: dict[tuple[int | str, ...], FieldFault] = {}
    for error in map(_of_field, errors):
        place = _place(error, value)
        fault = found.setdefault(place, FieldFault(path_text(place), error["type"], _got(error)))
        if (reason := _reason(error)) not in fault.reasons:
            fault.reasons.append(reason)
    return [fault for place, fault in found.items() if not _has_deeper(place, found)]


def path_text(place: Loc) -> str:
    """`("messages", 2, "content")` as `messages[2].content`; a very long name is cut."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_cut(part)}" for part in place]
    return "".join(parts).removeprefix(".")


def _cut(name: str) -> str:
    return name if len(name) <= _SHOWN_NAME_CHARS else f"{name[:_SHOWN_NAME_CHARS]}..."


def _of_field(error: ErrorDetails) -> ErrorDetails:
    """What a union says of its tag, said of the field that holds the tag."""
    if error["type"] not in {"union_tag_invalid", "union_tag_not_found"}:
        return error
    tag = error["ctx"]["discriminator"].strip("'")
    field_error: ErrorDetails = {**error, "loc": (*error["loc"], tag)}
    if tag not in error["input"]:
        return {**field_error, "type": "missing"}
    expected = f"{_EXPECTED}one of {error['ctx']['expected_tags']}"
    return {**field_error, "type": "literal_error", "msg": expected, "input": error["input"][tag]}


def _place(error: ErrorDetails, value: Any) -> tuple[int | str, ...]:
    """An error's location without pydantic's own marks: only what leads into the value."""
    place: list[int | str] = []
    *parts, last = error["loc"] or ("",)
    for part in parts:
        if _leads_on(value, part):
            place.append(part)
            value = value[part]
    if error["type"] == "missing" or _leads_on(value, last):
        place.append(last)
    return tuple(place)


def _leads_on(value: object, part: int | str) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _has_deeper(place: tuple[int | str, ...], others: dict[tuple[int | str, ...], Any]) -> bool:
    """Whether a fault lies inside the field at `place`; it then says more than the field's own."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in others)


def _reason(error: ErrorDetails) -> str:
    if error["type"] == "json_invalid":
        where = "".join(f" at character {int(place) + 1}" for place in error["loc"])
        return f"It is not JSON: {error['ctx']['error']}{where}"
    if error["type"] in {"model_attributes_type", "missing"} and not error["loc"]:
        return _NO_BODY
    return _REASONS.get(error["type"]) or error["msg"].removeprefix("Value error, ").rstrip(".")


def _got(error: ErrorDetails) -> str:
    """The value at fault, or what it is, where that tells more than the reason."""
    if error["type"] in _TELLING:
        return ""
    shown = _shown(error.get("input"))
    return f"; got {shown}" if shown else ""


def _shown(value: object) -> str | None:
    """A short value as it is, and of any other what it is; None for what JSON has not."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if not isinstance(value, _SHOWN_TYPES):
        return None
    if len(shown := repr(value)) <= _SHOWN_CHARS:
        return shown
    return f"{len(value):,} characters" if isinstance(value, str) else f"{shown[:_SHOWN_CHARS]}..."
