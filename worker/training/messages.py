"""Conversations in the form that chat templates expect, which is not quite the wire format's.

Templates know the role `system` and not its later name, tool calls and not the functions that came
before them, text and not its parts; and they want a call's arguments as an object, not as JSON.
"""

import json
from dataclasses import dataclass
from typing import Any

_ROLES = {"developer": "system", "function": "tool"}
# About the loss, or said in another form.
_DROPPED = {"weight", "function_call"}


class BadRow(Exception):
    """A row cannot be trained on; says where and why."""

    def __init__(self, path: str | None, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """The messages and tools of a row, ready to be rendered.

    Attributes:
        messages: What templates call `messages`.
        tools: What they call `tools`, or None.
        learned: Indices of the assistant messages that are trained on.
        names: The functions that are called or offered, by their path in the row.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    learned: list[int]
    names: dict[str, str]

    @property
    def weighted(self) -> bool:
        """Whether the assistant says something that is not to be learned."""
        spoken = [each for each in self.messages if each["role"] == "assistant"]
        return len(self.learned) < len(spoken)


def conversation(row: dict[str, Any]) -> Conversation:
    """The conversation of a row that the structural checks have passed.

    Raises:
        BadRow: The arguments of a call are no JSON object.
    """
    names: dict[str, str] = {}
    messages = [
        _message(message, f"messages[{at}]", names) for at, message in enumerate(row["messages"])
    ]
    tools, functions = row.get("tools") or [], row.get("functions") or []
    names |= {f"tools[{at}].function": tool["function"]["name"] for at, tool in enumerate(tools)}
    names |= {f"functions[{at}]": function["name"] for at, function in enumerate(functions)}
    offered = [*tools, *({"type": "function", "function": each} for each in functions)]
    learned = [
        at
        for at, message in enumerate(row["messages"])
        if message["role"] == "assistant" and message.get("weight") != 0
    ]
    return Conversation(messages, offered or None, learned, names)


def _message(message: dict[str, Any], path: str, names: dict[str, str]) -> dict[str, Any]:
    plain = {name: value for name, value in message.items() if name not in _DROPPED}
    plain["role"] = _ROLES.get(message["role"], message["role"])
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    plain["content"] = content or ""
    if calls := _calls(message, path):
        plain["tool_calls"] = list(calls.values())
        names |= {where: call["function"]["name"] for where, call in calls.items()}
    return plain


def _calls(message: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """The calls of a message, by their paths."""
    found = {
        f"{path}.tool_calls[{at}].function": call
        for at, call in enumerate(message.get("tool_calls") or [])
    }
    if function := message.get("function_call"):
        found[f"{path}.function_call"] = {"type": "function", "function": function}
    return {
        where: {**call, "function": _with_object(call["function"], where)}
        for where, call in found.items()
    }


def _with_object(function: dict[str, Any], path: str) -> dict[str, Any]:
    """A call whose arguments are an object: templates would put JSON into JSON otherwise."""
    try:
        arguments = json.loads(function["arguments"])
    except ValueError as error:
        raise BadRow(f"{path}.arguments", f"expected a JSON object: {error}") from error
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        raise BadRow(f"{path}.arguments", f"expected a JSON object, got a JSON {kind}")
    return {**function, "arguments": arguments}
