import io
import tracemalloc
from typing import Any

import pytest

from service.datasets import MAX_LINE_BYTES, MAX_LISTED, Dataset, Fault, InvalidDataset, check
from tests.service.support import ASK, CHAT, TELL, jsonl

TEXT = jsonl({"text": "Words."})
UNICODE = '{"text": "Grüße, 世界 🌍"}'.encode()


def _faults(content: bytes) -> tuple[list[Fault], int]:
    with pytest.raises(InvalidDataset) as error:
        check(io.BytesIO(content))
    return error.value.faults, error.value.total


def _fault(content: bytes) -> Fault:
    """The only one."""
    faults, total = _faults(content)
    assert total == len(faults) == 1
    return faults[0]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (CHAT * 3, Dataset("chat", 3, len(CHAT) - 1)),
        (TEXT + b'{"text": "a longer one, which counts"}', Dataset("text", 2, 38)),
        (CHAT.rstrip(), Dataset("chat", 1, len(CHAT) - 1)),
        (CHAT.replace(b"\n", b"\r\n") * 2, Dataset("chat", 2, len(CHAT) - 1)),
        (UNICODE, Dataset("text", 1, len(UNICODE))),
    ],
)
def test_a_file_without_faults(content: bytes, found: Dataset) -> None:
    assert check(io.BytesIO(content)) == found


@pytest.mark.parametrize(
    ("line", "path", "reason"),
    [
        (b"{no json", None, "not JSON"),
        (b"[1]", None, "not a JSON object"),
        (b"", None, "blank"),
        (b'{"text": "\xff"}', None, "not UTF-8: invalid start byte at byte 11"),
        (b'{"text": "\\ud800"}', None, "not JSON"),
        (b"[" * 10_000, None, "not JSON"),
        (b'{"question": 1}', None, "neither `messages` nor `text`"),
        (b'{"prompt": "a", "completion": "b"}', None, "prompt and its completion"),
        (b'{"input": {}, "preferred_output": []}', None, "preference data"),
        (b'{"text": "a"}', None, "Mixed formats: this line is text, the first was chat"),
        (b'{"messages": []}', "messages", "at least 1 item"),
        (b'{"messages": [], "text": "a"}', "messages", "at least 1 item"),
    ],
)
def test_a_fault_has_its_line_its_path_and_the_reason(
    line: bytes, path: str | None, reason: str
) -> None:
    faults, _ = _faults(CHAT + line + b"\n" + CHAT)
    assert (faults[0].line, faults[0].path) == (2, path)
    assert reason in faults[0].message


def test_the_path_leads_to_the_value() -> None:
    fault = _fault(CHAT + jsonl({"messages": [{**ASK, "content": 3}, TELL]}))
    assert (fault.line, fault.path) == (2, "messages[0].content")
    assert fault.message == "Input should be a valid string or a valid array; got 3"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "Hi."}, "Field required"),
        ({"role": "usr", "content": "Hi."}, "one of 'system', 'developer', 'user', 'assistant'"),
        ({"role": ["user"], "content": "Hi."}, "one of 'system'"),
    ],
)
def test_a_wrong_role_is_told_of_the_role(message: dict[str, Any], reason: str) -> None:
    fault = _fault(CHAT + jsonl({"messages": [message, TELL]}))
    assert (fault.line, fault.path) == (2, "messages[0].role")
    assert reason in fault.message


def test_every_fault_of_a_line_is_told() -> None:
    faults, total = _faults(jsonl({"messages": [{**ASK, "content": 3}, {**TELL, "weight": 7}]}))
    assert total == 2
    assert [fault.path for fault in faults] == ["messages[0].content", "messages[1].weight"]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_a_fault(content: bytes) -> None:
    assert "mpty" in _faults(content)[0][-1].message or "blank" in _faults(content)[0][-1].message


def test_a_byte_order_mark_is_one_fault() -> None:
    fault = _fault(b"\xef\xbb\xbf" + CHAT * 2)
    assert fault.line == 1
    assert "byte order mark" in fault.message


def test_faults_beyond_the_listed_are_counted() -> None:
    faults, total = _faults(b"oops\n" * 250 + CHAT)
    assert (len(faults), total) == (MAX_LISTED, 250)
    assert [fault.line for fault in faults] == list(range(1, MAX_LISTED + 1))


def test_the_message_tells_the_first_and_how_many_follow() -> None:
    with pytest.raises(InvalidDataset) as error:
        check(io.BytesIO(b"oops\n" * 30))
    assert error.value.message.startswith("The file has 30 faults: line 1: It is not JSON")
    assert error.value.message.endswith("; and 20 more.")


def test_a_line_of_countless_faults_is_not_taken_apart() -> None:
    fault, total = _faults(CHAT + b'{"messages": [' + b",".join([b"{}"] * 5000) + b"]}\n")
    assert total > 1000
    assert len(fault) == 1
    assert "look at its structure" in fault[0].message


def test_a_long_line_is_skipped_and_the_next_is_read() -> None:
    faults, total = _faults(CHAT + b"x" * (3 * MAX_LINE_BYTES) + b"\n" + CHAT + b"oops\n")
    assert [(fault.line, total) for fault in faults] == [(2, 2), (4, 2)]
    assert "over the limit of 2,097,152 bytes" in faults[0].message


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_limit_of_a_line_counts_its_bytes_without_the_end(end: bytes) -> None:
    row = b'{"text": "' + b"x" * (MAX_LINE_BYTES - 12) + b'"}'
    assert len(row) == MAX_LINE_BYTES
    assert check(io.BytesIO(row + end)) == Dataset("text", 1, MAX_LINE_BYTES)
    assert "over the limit" in _fault(row + b" " + end).message
    assert "over the limit" in _fault(row + b"\r" * 9 + b"x" + end).message


class _Endless(io.RawIOBase):
    """A line of `size` bytes that is nowhere in memory."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), self._left)
        buffer[:count] = b"x" * count
        self._left -= count
        return count


def test_memory_does_not_grow_with_a_line() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataset):
            check(io.BufferedReader(_Endless(100 * MAX_LINE_BYTES)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * MAX_LINE_BYTES
