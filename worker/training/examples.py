"""Rows as token ids and labels: the chat template and the loss mask, or plain text.

The loss is on assistant tokens: those that the template's generation tags mark, or else what each
assistant message adds to the rendered text. A message of weight 0 is never trained on. Plain text
is trained on in full, its end included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from cce_core import IGNORE_INDEX


@dataclass(frozen=True)
class Example:
    """One sequence; labels stand at their own tokens (the loss shifts) and are -100 elsewhere.

    Attributes:
        line: Where it is in its file, from 1.
    """

    input_ids: list[int]
    labels: list[int]
    line: int = 0

    @cached_property
    def supervised(self) -> int:
        """Predictions that the loss sees: the first token is never predicted."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


class BadRow(Exception):
    """A row cannot be trained on; says where and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


def text_example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    """The tokens of `{"text": ...}` and the end of a sequence, all of them trained on."""
    ids: list[int] = tokenizer(row["text"])["input_ids"]
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return Example(ids, list(ids))


def chat_example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    """A rendered conversation, with labels where the assistant speaks.

    Raises:
        BadRow: The chat template refuses the row, or rewrites earlier messages.
    """
    messages = [_plain(message) for message in row["messages"]]
    template = _Template(tokenizer, row.get("tools"))
    text = template.render(messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = list(_spans(template, text, messages, row["messages"]))
    trained = [
        start < end and any(first <= start and end <= last for first, last in spans)
        for start, end in encoded["offset_mapping"]
    ]
    if marks := template.marks(messages):
        trained = [kept and bool(mark) for kept, mark in zip(trained, marks, strict=True)]
    ids: list[int] = encoded["input_ids"]
    labels = [token if kept else IGNORE_INDEX for token, kept in zip(ids, trained, strict=True)]
    return Example(ids, labels)


@dataclass(frozen=True)
class _Template:
    """A tokenizer's chat template, with the row's tools."""

    tokenizer: PreTrainedTokenizerBase
    tools: list[Any] | None

    def render(self, messages: list[dict[str, Any]], *, prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=self.tools, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise BadRow("messages", f"the chat template refuses it: {error}") from error
        assert isinstance(text, str)
        return text

    def marks(self, messages: list[dict[str, Any]]) -> list[int] | None:
        """What the template's generation tags mark, a token each; None where it has no tags."""
        if "{% generation %}" not in (self.tokenizer.chat_template or ""):
            return None
        encoded: Any = self.tokenizer.apply_chat_template(
            messages, tools=self.tools, return_dict=True, return_assistant_tokens_mask=True
        )
        marks: list[int] = encoded["assistant_masks"]
        return marks


def _spans(
    template: _Template, text: str, plain: list[dict[str, Any]], messages: list[dict[str, Any]]
) -> Iterator[tuple[int, int]]:
    """The characters of each assistant message that is trained on."""
    for at, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        before = template.render(plain[:at], prompt=True)
        through = template.render(plain[: at + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise BadRow(f"messages[{at}]", "the chat template rewrites what came before it")
        yield len(before), len(through)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: text content, and nothing that is about the loss."""
    plain = {name: value for name, value in message.items() if name != "weight"}
    content = plain.get("content")
    if isinstance(content, list):
        plain["content"] = "".join(part["text"] for part in content)
    elif content is None:
        plain["content"] = ""
    return plain
