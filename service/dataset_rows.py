"""One line of a training file, as pydantic models: the chat format, and plain text.

Length limits bound the memory that a hostile line can claim; no honest one comes near them.
"""

import json
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

_MAX_MESSAGES, _MAX_PARTS, _MAX_TOOLS = 10_000, 1_000, 1_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


_Content = (
    str | Annotated[list[_TextPart], Field(min_length=1, max_length=_MAX_PARTS, fail_fast=True)]
)


class _FunctionCall(_Strict):
    name: Annotated[str, Field(min_length=1)]
    arguments: str


class _ToolCall(_Strict):
    id: str
    type: Literal["function"]
    function: _FunctionCall


def _finite(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The parser takes what is no number in JSON, and a chat template would write it."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError("NaN and Infinity are not JSON; expected finite numbers") from error
    return value


class _FunctionDefinition(_Strict):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: Annotated[dict[str, JsonValue], AfterValidator(_finite)] | None = None
    strict: bool | None = None


class _Tool(_Strict):
    type: Literal["function"]
    function: _FunctionDefinition


class _Prompt(_Strict):
    role: Literal["system", "developer", "user"]
    content: _Content
    name: str | None = None


class _Assistant(_Strict):
    role: Literal["assistant"]
    content: _Content | None = None
    name: str | None = None
    refusal: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: (
        Annotated[list[_ToolCall], Field(min_length=1, max_length=_MAX_TOOLS, fail_fast=True)]
        | None
    ) = None
    function_call: _FunctionCall | None = None

    @property
    def learned(self) -> bool:
        """Whether the model is to learn this message."""
        return self.weight != 0

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None and self.function_call is None:
            raise ValueError("An assistant message needs `content`, `tool_calls` or both")
        return self


class _ToolResult(_Strict):
    role: Literal["tool"]
    content: _Content
    tool_call_id: str


class _FunctionResult(_Strict):
    role: Literal["function"]
    content: str
    name: str


_Message = Annotated[
    _Prompt | _Assistant | _ToolResult | _FunctionResult, Field(discriminator="role")
]


class ChatRow(_Strict):
    """A conversation, of which at least one assistant message is to be learned."""

    messages: Annotated[list[_Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    tools: Annotated[list[_Tool], Field(max_length=_MAX_TOOLS, fail_fast=True)] | None = None
    parallel_tool_calls: bool | None = None
    functions: (
        Annotated[list[_FunctionDefinition], Field(max_length=_MAX_TOOLS, fail_fast=True)] | None
    ) = None

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if not any(isinstance(each, _Assistant) and each.learned for each in self.messages):
            raise ValueError("No assistant message to learn: none is there, or all have weight 0")
        return self


class TextRow(_Strict):
    """A text, every token of which is learned."""

    text: Annotated[str, Field(min_length=1)]
