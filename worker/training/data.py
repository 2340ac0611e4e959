"""Load a dataset: tokenize every row, and list every row that can't be trained on."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from service.contract.errors import JobFailure, JobFailureCode
from worker.events import DataSource
from worker.training.examples import BadRow, Example, chat_example, text_example

MAX_FAULTS = 100


class InvalidData(JobFailure):
    """A dataset has tokenized faults; up to a hundred are listed, all are counted."""

    def __init__(self, code: JobFailureCode, faults: list[dict[str, Any]], total: int) -> None:
        shown = "; ".join(f"line {f['line']}: {f['path']}: {f['reason']}" for f in faults[:3])
        more = f"; and {total - 3} more" if total > 3 else ""
        field_name = code.removeprefix("invalid_")
        super().__init__(
            code,
            f"The file has {total} faults: {shown}{more}.",
            param=field_name,
            data={"faults": faults, "total_faults": total},
        )


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
    encode = chat_example if source.format == "chat" else text_example
    with source.path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                example = _checked(encode(json.loads(line), tokenizer), max_length)
                dataset.examples.append(replace(example, line=number))
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
