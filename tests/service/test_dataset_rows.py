import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.dataset_rows import ChatRow, TextRow
from tests.service.support import ASK, TELL

CALL = {"id": "1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
TOOL = {
    "type": "function",
    "function": {"name": "time", "description": "It is late.", "parameters": {"type": "object"}},
}


def _chat(**fields: Any) -> ChatRow:
    return ChatRow.model_validate_json(json.dumps({"messages": [ASK, TELL], **fields}))


@pytest.mark.parametrize(
    "messages",
    [
        [TELL],
        [{"role": "system", "content": "Be kind."}, ASK, TELL],
        [{"role": "developer", "content": "Be kind."}, ASK, TELL],
        [ASK, {**TELL, "weight": 0}, ASK, {**TELL, "weight": 1}],
        [ASK, {**TELL, "weight": None}],
        [{"role": "user", "name": "Ada", "content": [{"type": "text", "text": "Hello?"}]}, TELL],
        [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [
            ASK,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "9 h"},
            TELL,
        ],
        [
            ASK,
            {"role": "assistant", "function_call": {"name": "time", "arguments": "{}"}},
            {"role": "function", "name": "time", "content": "9 h"},
            TELL,
        ],
    ],
)
def test_what_a_conversation_may_be(messages: list[dict[str, Any]]) -> None:
    assert len(_chat(messages=messages).messages) == len(messages)


def test_tools_stand_beside_the_messages() -> None:
    row = _chat(tools=[TOOL], parallel_tool_calls=False)
    assert row.tools is not None
    assert row.tools[0].function.name == "time"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"messages": []}, ("messages",)),
        ({"messages": "Hello?"}, ("messages",)),
        ({"messages": [ASK]}, ()),
        ({"messages": [ASK, {**TELL, "weight": 0}]}, ()),
        ({"messages": [ASK, {**TELL, "weight": 2}]}, ("messages", 1, "assistant", "weight")),
        ({"messages": [ASK, {**TELL, "weight": 0.5}]}, ("messages", 1, "assistant", "weight")),
        ({"messages": [{**ASK, "weight": 1}, TELL]}, ("messages", 0, "user", "weight")),
        ({"messages": [{"role": "human", "content": "Hello?"}, TELL]}, ("messages", 0)),
        ({"messages": [{"content": "Hello?"}, TELL]}, ("messages", 0)),
        ({"messages": [{"role": "user"}, TELL]}, ("messages", 0, "user", "content")),
        ({"messages": [ASK, {"role": "assistant"}]}, ("messages", 1, "assistant")),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": []}]}, ("messages", 1)),
        (
            {"messages": [ASK, {"role": "tool", "content": "9 h"}, TELL]},
            ("messages", 1, "tool", "tool_call_id"),
        ),
        ({"tools": [{"type": "function"}]}, ("tools", 0, "function")),
        ({"tools": [{**TOOL, "type": "search"}]}, ("tools", 0, "type")),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, ("tools", 0, "function")),
        ({"tool": [TOOL]}, ("tool",)),
    ],
)
def test_what_is_wrong_with_a_conversation_and_where(
    fields: dict[str, Any], place: tuple[int | str, ...]
) -> None:
    with pytest.raises(ValidationError) as error:
        _chat(**fields)
    assert error.value.errors()[0]["loc"][: len(place)] == place


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_tool_takes_no_number_that_json_has_not(number: str) -> None:
    row = json.dumps({"messages": [ASK, TELL], "tools": [TOOL]})
    assert ChatRow.model_validate_json(row.replace('"object"', "1e99"))
    with pytest.raises(ValidationError) as error:
        ChatRow.model_validate_json(row.replace('"object"', f'{{"minimum": [{number}]}}'))
    [fault] = error.value.errors()
    assert fault["loc"] == ("tools", 0, "function", "parameters")
    assert "NaN and Infinity are not JSON" in fault["msg"]


@pytest.mark.parametrize("row", ['{"text": ""}', '{"text": 3}', '{"text": "a", "b": 1}', "{}"])
def test_a_text_is_text_and_nothing_else(row: str) -> None:
    with pytest.raises(ValidationError):
        TextRow.model_validate_json(row)
