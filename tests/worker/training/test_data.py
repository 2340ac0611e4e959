import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from service.datasets import Fault, check
from tests.worker.training.support import ask, chats, source
from worker.events import DataSource
from worker.training.data import InvalidData, load, measure
from worker.training.examples import chat_example

LONG = ask("Hello?", "x" * 500)


@pytest.fixture
def long_and_silent(tmp_path: Path) -> DataSource:
    """Rows 2 and 4 are too long, row 5 has nothing to be learned."""
    rows = [ask("a", "b"), LONG, ask("a", "b"), LONG, ask("a", "b", weight=0), ask("a", "b")]
    return source(tmp_path / "data.jsonl", rows)


def test_examples_stand_in_file_order(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = chats(7)
    examples = load(source(tmp_path / "data.jsonl", rows), tokenizer, 128)
    expected = [chat_example(row, tokenizer) for row in rows]
    assert examples == [replace(one, line=at) for at, one in enumerate(expected, start=1)]


def test_the_size_is_that_of_the_examples(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    file = source(tmp_path / "data.jsonl", chats(7))
    examples, size = load(file, tokenizer, 128), measure(file, tokenizer, 128)
    assert size.examples == 7
    assert size.tokens == sum(len(example.input_ids) for example in examples)
    assert size.supervised == sum(example.supervised for example in examples)


@pytest.mark.parametrize("read", [load, measure])
def test_every_fault_is_told_with_its_line(
    read: object, long_and_silent: DataSource, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InvalidData) as error:
        read(long_and_silent, tokenizer, 128)  # type: ignore[operator]
    too_long = "tokens; expected at most max_seq_length, 128"
    faults = [Fault.model_validate(fault) for fault in error.value.data["faults"]]
    assert [(fault.line, fault.path) for fault in faults] == [(2, None), (4, None), (5, None)]
    assert too_long in faults[0].message
    assert faults[2].message == "no token to train on"
    assert error.value.data["fault_count"] == 3
    assert (error.value.code, error.value.param) == ("invalid_training_file", "training_file")
    assert error.value.message.startswith("The file has 3 faults: line 2: ")


def test_a_fault_in_a_message_has_its_path(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "no"}}
    rows = [ask("a", "b"), ask("a", "b", tool_calls=[call])]
    with pytest.raises(InvalidData) as error:
        load(source(tmp_path / "data.jsonl", rows), tokenizer, 128, "invalid_validation_file")
    (fault,) = error.value.data["faults"]
    assert (fault["line"], fault["path"]) == (2, "messages[1].tool_calls[0].function.arguments")
    assert (error.value.code, error.value.param) == ("invalid_validation_file", "validation_file")
    assert error.value.message.startswith("The file has 1 fault: line 2, messages[1].tool_calls")


def test_a_hundred_faults_are_listed_and_all_are_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InvalidData) as error:
        measure(source(tmp_path / "data.jsonl", [LONG] * 250), tokenizer, 128)
    assert len(error.value.data["faults"]) == 100
    assert error.value.data["fault_count"] == 250
    assert error.value.message.endswith("; and 247 more.")


def test_a_row_of_the_greatest_length_is_not_too_long(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    length = len(chat_example(LONG, tokenizer).input_ids)
    file = source(tmp_path / "data.jsonl", [LONG])
    assert measure(file, tokenizer, length).tokens == length
    with pytest.raises(InvalidData):
        measure(file, tokenizer, length - 1)


def test_lines_are_those_of_the_upload_check(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Lines end at a line feed alone: JSON may have other breaks, inside its text or around it."""
    rows = [
        '{"text":\r "one"}\r\n',
        json.dumps({"text": "t\u2028wo\x85"}, ensure_ascii=False),
        "\n",
    ]
    path = tmp_path / "data.jsonl"
    path.write_bytes("".join(rows).encode())
    with path.open("rb") as stream:
        assert check(stream).rows == 2
    examples = load(DataSource(path=path, format="text", sha256=""), tokenizer, 128)
    texts = [tokenizer.decode(example.input_ids[:-1]) for example in examples]
    assert texts == ["one", "t\u2028wo\x85"]


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    def peak(rows: int) -> int:
        file = source(
            tmp_path / f"{rows}.jsonl", [{"text": "x" * 100 + str(n)} for n in range(rows)]
        )
        tracemalloc.start()
        try:
            assert measure(file, tokenizer, 128).examples == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(1000) < 2 * peak(100)
