"""Rows as token ids and labels: the chat template and the loss mask, or plain text.

The loss is on assistant tokens: those that the template's generation tags mark, or else what each
assistant message adds to the rendered text. A message of weight 0 is never trained on. Plain text
is trained on in full, its end included.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from cce_core import IGNORE_INDEX
from worker.training.messages import BadRow, Conversation, conversation

# Jinja's control of whitespace may be in the tag.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]  # of characters: the first, and the one after the last


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


def text_example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    """The tokens of `{"text": ...}` and the end of a sequence, all of them trained on."""
    ids: list[int] = tokenizer(row["text"])["input_ids"]
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return Example(ids, list(ids))


def chat_example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    """A rendered conversation, with labels where the assistant speaks.

    Raises:
        BadRow: The chat template refuses the row, leaves out a call or a tool, or rewrites earlier
            messages so that it can't be told who says what.
    """
    chat = conversation(row)
    template = _Template(tokenizer, chat.tools)
    text = template.render(chat.messages)
    for path, name in chat.names.items():
        if name not in text:
            raise BadRow(path, f"the model's chat template leaves it out: {name}")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    tokens = [_with_width(token) for token in encoded["offset_mapping"]]
    marked = template.marked(chat.messages)
    trained = [marked is None or _touches(token, marked) for token in tokens]
    if marked is None or chat.weighted:
        spans = list(_spans(template, text, chat))
        inside = [_within(token, spans) for token in tokens]
        trained = [both[0] and both[1] for both in zip(trained, inside, strict=True)]
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

    def before(self, messages: list[dict[str, Any]], at: int) -> str:
        """What stands before the words of the assistant's message at `at`."""
        if at > 0:
            return self.render(messages[:at], prompt=True)
        # No template renders an empty conversation: look for what it puts before an answer.
        alone = self.render(messages[:1])
        prompt = self.render(messages[:1], prompt=True).removeprefix(alone)
        start = alone.find(prompt)
        if start < 0:
            raise BadRow("messages[0]", "the chat template lets no assistant speak first")
        return alone[: start + len(prompt)]

    def marked(self, messages: list[dict[str, Any]]) -> list[Span] | None:
        """What the template's generation tags mark; None where it has no tags.

        In characters: which tokens these are is read differently by releases of transformers, some
        of which lose the place at whitespace that a tokenizer leaves out of its offsets.
        """
        template = self.tokenizer.get_chat_template(tools=self.tools)
        if not _GENERATION.search(template):
            return None
        names: dict[str, Any] = self.tokenizer.special_tokens_map  # as the template knows them
        found: Any = render_jinja_template(
            conversations=[messages],
            tools=self.tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **names,
        )
        _texts, spans = found
        return list(spans[0])


def _spans(template: _Template, text: str, chat: Conversation) -> Iterator[Span]:
    """The characters of each assistant message that is trained on."""
    for at in chat.learned:
        before = template.before(chat.messages, at)
        through = template.render(chat.messages[: at + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise BadRow(f"messages[{at}]", "the chat template rewrites what came before it")
        yield len(before), len(through)


def _with_width(token: Span) -> Span:
    """The characters of a token, one at the least.

    Some tokenizers leave whitespace out of the offsets, so that a token which is nothing else has
    no width, and stands where it ends.
    """
    start, end = token
    return min(start, end - 1), end


def _within(token: Span, spans: list[Span]) -> bool:
    """Whether a token lies in a span."""
    start, end = token
    return any(first <= start and end <= last for first, last in spans)


def _touches(token: Span, spans: list[Span]) -> bool:
    """Whether any of a token lies in a span."""
    start, end = token
    return any(first < end and start < last for first, last in spans)
