"""Structural checks of training files: every fault, with its line, in one pass and bounded memory.

A file is JSON lines of one format, chat or text (`dataset_rows.py`), in UTF-8. It is checked when
it is uploaded: a faulty file is refused before it is stored, and a job finds only checked ones.
What needs a tokenizer to be seen, too long or nothing to learn, is the worker's to check.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from service.contract.errors import InvalidRequest
from service.contract.spec import DataFormat
from service.dataset_rows import ChatRow, TextRow
from service.faults import field_faults

MAX_LINE_BYTES = 2 * 2**20
# A line of the greatest length is read whole, with either of its ends.
_PORTION_BYTES = MAX_LINE_BYTES + len(b"\r\n")
MAX_LISTED = 100
_MAX_TOLD = 10
# A line with more errors than this is not taken apart: the list itself would need the memory.
_MAX_DETAILS = 1_000
_BOM = b"\xef\xbb\xbf"
_ROWS: dict[DataFormat, type[BaseModel]] = {"chat": ChatRow, "text": TextRow}
_KEYS: dict[str, DataFormat] = {"messages": "chat", "text": "text"}
_OTHER_FORMATS = {
    "preferred_output": "This is preference data; only supervised fine-tuning is supported",
    "prompt": "This is a prompt and its completion; write them as `messages`, or as one `text`",
}
_FORMATS = '`{"messages": [...]}` (chat) or `{"text": "..."}`'


class Fault(BaseModel):
    """Something wrong with a line of a file.

    Attributes:
        line: Counted from 1; 0 for the file as a whole.
        path: Where in the line, for example `messages[2].content`, or None for the whole line.
        message: What is expected, and what was got.
    """

    line: int
    path: str | None = None
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line else "file"
        return f"{where}, {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class InvalidDataset(InvalidRequest):
    """A training file has faults.

    Attributes:
        faults: The first of them.
        total: How many there are.
    """

    default_code = "invalid_training_file"

    def __init__(self, faults: list[Fault], total: int) -> None:
        told = "; ".join(map(str, faults[:_MAX_TOLD]))
        more = f"; and {total - _MAX_TOLD} more" if total > _MAX_TOLD else ""
        plural = "fault" if total == 1 else "faults"
        super().__init__(f"The file has {total} {plural}: {told}{more}.", param="file")
        self.faults = faults
        self.total = total


@dataclass(frozen=True)
class Dataset:
    """A file without faults."""

    format: DataFormat
    rows: int
    longest_row_bytes: int


@dataclass
class _Findings:
    """What the lines so far have shown."""

    format: DataFormat | None = None
    rows: int = 0
    longest_row_bytes: int = 0
    total: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, line: int, message: str, path: str | None = None, count: int = 1) -> None:
        self.total += count
        if len(self.faults) < MAX_LISTED:
            self.faults.append(Fault(line=line, path=path, message=message))


def check(stream: IO[bytes]) -> Dataset:
    """Check a training file, reading it once from its present position.

    Raises:
        InvalidDataset: With every fault counted and the first `MAX_LISTED` listed.
    """
    findings = _Findings()
    for number, line in enumerate(_lines(stream), start=1):
        _check_line(findings, number, line)
    if not findings.rows:
        findings.add(0, "It is empty; expected one JSON object a line")
    if findings.faults:
        raise InvalidDataset(findings.faults, findings.total)
    assert findings.format is not None
    return Dataset(findings.format, findings.rows, findings.longest_row_bytes)


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines without their ends; of one over the limit, the first `_PORTION_BYTES`."""
    while line := stream.readline(_PORTION_BYTES):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(_PORTION_BYTES)
        yield line.rstrip(b"\r\n") if line.endswith(b"\n") else line


def _check_line(findings: _Findings, number: int, line: bytes) -> None:
    findings.rows += 1
    findings.longest_row_bytes = max(findings.longest_row_bytes, len(line))
    if number == 1 and line.startswith(_BOM):
        findings.add(1, "It begins with a byte order mark; save the file as UTF-8 without one")
        line = line.removeprefix(_BOM)
    if len(line) > MAX_LINE_BYTES:
        findings.add(number, f"It is over the limit of {MAX_LINE_BYTES:,} bytes")
        return
    if not line.strip():
        findings.add(number, "It is blank; expected a JSON object")
        return
    try:
        line.decode()
    except UnicodeDecodeError as error:
        findings.add(number, f"It is not UTF-8: {error.reason} at byte {error.start + 1}")
        return
    _check_row(findings, number, line)


def _check_row(findings: _Findings, number: int, line: bytes) -> None:
    """Validate against the file's format; only where that fails is the line looked at closely."""
    if findings.format is not None:
        try:
            _ROWS[findings.format].model_validate_json(line)
        except ValidationError as error:
            _explain(findings, number, line, error)
        return
    findings.format = _format_of(findings, number, line)
    if findings.format is not None:
        _check_row(findings, number, line)


def _explain(findings: _Findings, number: int, line: bytes, error: ValidationError) -> None:
    """Add the faults of a line that is not of the file's format."""
    if error.error_count() > _MAX_DETAILS:
        count = error.error_count()
        findings.add(number, f"It has {count:,} faults; look at its structure", count=count)
        return
    own = _format_of(findings, number, line)
    if own is None:
        return
    if own != findings.format:
        findings.add(number, f"Mixed formats: this line is {own}, the first was {findings.format}")
        return
    errors = error.errors(include_url=False)
    for fault in field_faults(errors, from_json(line)):
        findings.add(number, fault.message, fault.path or None)


def _format_of(findings: _Findings, number: int, line: bytes) -> DataFormat | None:
    """The format that a line is in, by its keys; where it has none, that is the fault."""
    try:
        row = from_json(line)
    except ValueError as error:
        reason = str(error).replace(" line 1", "")  # of the one line that the parser saw
        findings.add(number, f"It is not JSON: {reason}")
        return None
    if not isinstance(row, dict):
        findings.add(number, f"It is not a JSON object; expected {_FORMATS}")
        return None
    for key, format_ in _KEYS.items():
        if key in row:
            return format_
    other = next((reason for key, reason in _OTHER_FORMATS.items() if key in row), None)
    findings.add(number, other or f"It has neither `messages` nor `text`; expected {_FORMATS}")
    return None
