"""Read a dataset: tokenize every row, and list every row that can't be trained on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from service.contract.errors import JobFailure, JobFailureCode
from worker.events import DataSource
from worker.training.examples import Example, chat_example, text_example
from worker.training.messages import BadRow

MAX_FAULTS = 100
_MAX_TOLD = 3


class InvalidData(JobFailure):
    """A dataset has tokenized faults; up to a hundred are listed, all are counted.

    Attributes:
        data: `faults`, of the form that an upload's have, and their number `fault_count`.
    """

    def __init__(self, code: JobFailureCode, faults: list[dict[str, Any]], total: int) -> None:
        told = "; ".join(map(_told, faults[:_MAX_TOLD]))
        more = f"; and {total - _MAX_TOLD} more" if total > _MAX_TOLD else ""
        plural = "fault" if total == 1 else "faults"
        field_name = code.removeprefix("invalid_")
        super().__init__(
            code,
            f"The file has {total} {plural}: {told}{more}.",
            param=field_name,
            data={"faults": faults, "fault_count": total},
        )


@dataclass(frozen=True)
class Size:
    """How much there is to train on.

    Attributes:
        examples: Rows.
        tokens: Of all rows.
        supervised: Predictions that the loss sees.
        longest: Tokens of the longest row.
    """

    examples: int
    tokens: int
    supervised: int
    longest: int


def load(
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    code: JobFailureCode = "invalid_training_file",
) -> list[Example]:
    """All examples of a file, in file order.

    Raises:
        InvalidData: Rows are too long, have nothing to train on, or don't fit the chat template.
    """
    return list(_examples(source, tokenizer, max_length, code))


def measure(
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    code: JobFailureCode = "invalid_training_file",
) -> Size:
    """The size of a file, whatever it is, in the memory of a row.

    Raises:
        InvalidData: As `load` does.
    """
    examples = tokens = supervised = longest = 0
    for example in _examples(source, tokenizer, max_length, code):
        examples += 1
        tokens += len(example.input_ids)
        supervised += example.supervised
        longest = max(longest, len(example.input_ids))
    return Size(examples, tokens, supervised, longest)


def _examples(
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    code: JobFailureCode,
) -> Iterator[Example]:
    """The rows that can be trained on; InvalidData at the end, where others were among them."""
    faults: list[dict[str, Any]] = []
    total = 0
    encode = chat_example if source.format == "chat" else text_example
    # JSON may have a carriage return between its tokens, which ends no line.
    with source.path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                example = _checked(encode(json.loads(line), tokenizer), max_length)
                yield replace(example, line=number)
            except BadRow as fault:
                total += 1
                if total <= MAX_FAULTS:
                    faults.append({"line": number, "path": fault.path, "message": fault.reason})
    if total:
        raise InvalidData(code, faults, total)


def _checked(example: Example, max_length: int) -> Example:
    length = len(example.input_ids)
    if length > max_length:
        raise BadRow(None, f"{length} tokens; expected at most max_seq_length, {max_length}")
    if example.supervised == 0:
        raise BadRow(None, "no token to train on")
    return example


def _told(fault: dict[str, Any]) -> str:
    where = f"line {fault['line']}, {fault['path']}" if fault["path"] else f"line {fault['line']}"
    return f"{where}: {fault['message']}"
