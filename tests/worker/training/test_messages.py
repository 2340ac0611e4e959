import json

import pytest

from worker.training.messages import BadRow, conversation

CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "time", "arguments": '{"zone": "UTC"}'},
}
FUNCTION = {"name": "time", "description": "It is late.", "parameters": {"type": "object"}}
USER = {"role": "user", "content": "Hello?"}


def test_messages_lose_what_is_about_the_loss() -> None:
    chat = conversation({"messages": [USER, {"role": "assistant", "content": "Hi.", "weight": 1}]})
    assert chat.messages == [USER, {"role": "assistant", "content": "Hi."}]
    assert (chat.tools, chat.learned, chat.weighted) == (None, [1], False)


@pytest.mark.parametrize(("weight", "learned"), [(0, [3]), (1, [1, 3]), (None, [1, 3])])
def test_a_weight_of_0_alone_makes_an_answer_unlearned(
    weight: int | None, learned: list[int]
) -> None:
    answer = {"role": "assistant", "content": "Hi."}
    chat = conversation({"messages": [USER, {**answer, "weight": weight}, USER, answer]})
    assert chat.learned == learned
    assert chat.weighted == (weight == 0)


def test_parts_are_joined_and_nothing_is_empty_text() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo?"}]
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    chat = conversation({"messages": [{"role": "user", "content": parts}, answer]})
    assert [message["content"] for message in chat.messages] == ["Hello?", ""]


def test_a_developer_speaks_as_the_system_does() -> None:
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "assistant", "content": "!"}]
    assert conversation({"messages": messages}).messages[0]["role"] == "system"


def test_the_arguments_of_a_call_are_an_object() -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    (_, said) = conversation({"messages": [USER, answer]}).messages
    assert said["tool_calls"] == [
        {**CALL, "function": {"name": "time", "arguments": {"zone": "UTC"}}}
    ]


def test_functions_are_the_older_form_of_tools() -> None:
    row = {
        "messages": [
            USER,
            {"role": "assistant", "function_call": CALL["function"]},
            {"role": "function", "name": "time", "content": "9 h"},
        ],
        "functions": [FUNCTION],
    }
    chat = conversation(row)
    call = {"type": "function", "function": {"name": "time", "arguments": {"zone": "UTC"}}}
    assert chat.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert chat.messages[2] == {"role": "tool", "name": "time", "content": "9 h"}
    assert chat.tools == [{"type": "function", "function": FUNCTION}]


def test_every_function_has_a_path() -> None:
    row = {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}],
        "tools": [{"type": "function", "function": FUNCTION}],
        "functions": [{**FUNCTION, "name": "date"}],
    }
    assert conversation(row).names == {
        "messages[1].tool_calls[0].function": "time",
        "messages[1].tool_calls[1].function": "time",
        "tools[0].function": "time",
        "functions[0]": "date",
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [("{", "expected a JSON object: "), ("[1]", "got a JSON list"), ("", "expected a JSON object")],
)
def test_arguments_that_are_no_object_are_a_fault(arguments: str, reason: str) -> None:
    call = {**CALL, "function": {"name": "time", "arguments": arguments}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    with pytest.raises(BadRow) as fault:
        conversation(json.loads(json.dumps(row)))
    assert fault.value.path == "messages[1].tool_calls[0].function.arguments"
    assert reason in fault.value.reason
