"""Datasets as token ids and labels: the chat template, the loss mask, tokenized faults, batches.

The loss is on assistant tokens: those that the template's generation tags mark, or else what each
assistant message adds to the rendered text. A message of weight 0 is never trained on. Plain text
is trained on in full.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cce_core import IGNORE_INDEX
from service.contract.errors import JobFailure, JobFailureCode
from worker.events import DataSource

MAX_FAULTS = 100


@dataclass(frozen=True)
class Example:
    """One sequence; labels stand at their own tokens (the loss shifts) and are -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Predictions that the loss sees: the first token is never predicted."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


class BadRow(Exception):
    """A row cannot be trained on; says where and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


class InvalidData(JobFailure):
    """A dataset has tokenized faults; up to a hundred are listed, all are counted."""

    def __init__(self, code: JobFailureCode, faults: list[dict[str, Any]], total: int) -> None:
        shown = "; ".join(f"line {f['line']}: {f['path']}: {f['reason']}" for f in faults[:3])
        more = f"; and {total - 3} more" if total > 3 else ""
        field_name = code.removeprefix("invalid_")
        super().__init__(code, f"The file has {total} faults: {shown}{more}.", param=field_name)
        self.data = {"faults": faults, "total_faults": total}


@dataclass
class Dataset:
    """All examples of a file, in file order."""

    examples: list[Example] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def supervised(self) -> int:
        """Predictions of all examples."""
        return sum(example.supervised for example in self.examples)


def load(
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    code: JobFailureCode = "invalid_training_file",
) -> Dataset:
    """Tokenize a whole file.

    Raises:
        InvalidData: Rows are too long, have nothing to train on, or don't fit the chat template.
    """
    dataset, total = Dataset(), 0
    faults: list[dict[str, Any]] = []
    encode = _chat if source.format == "chat" else _text
    with source.path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                dataset.examples.append(_checked(encode(json.loads(line), tokenizer), max_length))
            except BadRow as fault:
                total += 1
                if len(faults) < MAX_FAULTS:
                    faults.append({"line": number, "path": fault.path, "reason": fault.reason})
    if total:
        raise InvalidData(code, faults, total)
    return dataset


def _checked(example: Example, max_length: int) -> Example:
    length = len(example.input_ids)
    if length > max_length:
        raise BadRow("", f"{length} tokens; expected at most max_seq_length, {max_length}")
    if example.supervised == 0:
        raise BadRow("", "no token to train on")
    return example


def _text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    ids: list[int] = tokenizer(row["text"])["input_ids"]
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return Example(ids, list(ids))


def _chat(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
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
        except (ValueError, TypeError, KeyError) as error:
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


@dataclass(frozen=True)
class Batch:
    """Sequences padded to the longest, (B, T) int64 each."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None  # None: packed, position ids tell sequences apart

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        mask = self.attention_mask
        return Batch(
            self.input_ids.to(device),
            self.labels.to(device),
            self.position_ids.to(device),
            None if mask is None else mask.to(device),
        )

    @property
    def supervised(self) -> int:
        """Predictions that the loss sees."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())


def pack(dataset: Dataset, max_length: int) -> list[list[Example]]:
    """Examples side by side in sequences of at most `max_length`, first fit in file order."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in dataset.examples:
        length = len(example.input_ids)
        place = next((i for i, free in enumerate(room) if free >= length), None)
        if place is None:
            rows.append([example])
            room.append(max_length - length)
        else:
            rows[place].append(example)
            room[place] -= length
    return rows


def collate(rows: list[list[Example]], pad: int, *, packed: bool) -> Batch:
    """Pad rows of one or more examples to the longest row."""
    length = max(sum(len(example.input_ids) for example in row) for row in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, pad)
    labels = torch.full(shape, IGNORE_INDEX)
    positions = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    for at, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.input_ids)
            ids[at, start:end] = torch.tensor(example.input_ids)
            # Nothing predicts across a border: an example's first token has no label.
            labels[at, start + 1 : end] = torch.tensor(example.labels[1:], dtype=torch.int64)
            positions[at, start:end] = torch.arange(end - start)
            mask[at, start:end] = 1
            start = end
        positions[at, start:] = torch.arange(length - start)
    return Batch(ids, labels, positions, None if packed else mask)


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The shuffled order of an epoch: a function of seed and epoch alone, so that it resumes."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled: list[int] = torch.randperm(count, generator=generator).tolist()
    return shuffled
