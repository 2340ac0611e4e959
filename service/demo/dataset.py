"""A chat dataset from Python's own documentation: the docstrings of the standard library.

The source files are parsed and never imported, since importing some of them opens windows and
browsers. What comes out depends on the Python version alone.
"""

import ast
import hashlib
import json
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Tests, vendored packages and platform data are no documentation of the library.
_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3"}
    | {"turtledemo", "ensurepip", "__phello__"}
)
_MIN_CHARACTERS, _MAX_CHARACTERS = 30, 480
_VALIDATION_SHARE = 256 // 20  # of 256 values of a hash byte: about a twentieth
_QUESTIONS = {
    ast.Module: "What is the module `{}` for?",
    ast.ClassDef: "What is the class `{}`?",
    ast.FunctionDef: "What does `{}` do?",
    ast.AsyncFunctionDef: "What does the coroutine `{}` do?",
}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Pair:
    """A question about a name of the standard library, and what its docstring answers."""

    question: str
    answer: str

    @property
    def held_out(self) -> bool:
        """Whether the pair is in the validation split: a hash decides, the same on every run."""
        return hashlib.sha256(self.question.encode()).digest()[0] < _VALIDATION_SHARE

    def line(self) -> str:
        """The pair as a line of a chat dataset."""
        messages = [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.answer},
        ]
        return json.dumps({"messages": messages}) + "\n"


@dataclass(frozen=True)
class Dataset:
    """The two files of a split, and how many pairs are in each.

    Attributes:
        sample: A held-out pair whose answer a person can judge at a glance.
    """

    training: Path
    validation: Path
    training_pairs: int
    validation_pairs: int
    sample: Pair


def write_dataset(folder: Path) -> Dataset:
    """Write `train.jsonl` and `validation.jsonl` into `folder`."""
    pairs = list(read_pairs(Path(sysconfig.get_path("stdlib"))))
    held_out = [pair for pair in pairs if pair.held_out]
    learned = [pair for pair in pairs if not pair.held_out]
    training, validation = folder / "train.jsonl", folder / "validation.jsonl"
    training.write_text("".join(pair.line() for pair in learned))
    validation.write_text("".join(pair.line() for pair in held_out))
    sample = min(held_out, key=_judgeable)
    return Dataset(training, validation, len(learned), len(held_out), sample)


def _judgeable(pair: Pair) -> tuple[bool, int, str]:
    """Sorts short questions with the library's commonest kind of answer first."""
    predicate = pair.answer.startswith("Return True if ") and "\n" not in pair.answer
    return not predicate, len(pair.question), pair.question


def read_pairs(library: Path) -> Iterator[Pair]:
    """The documented names of a folder of Python sources, no question and no answer twice."""
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if _SKIPPED.intersection(parts):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        for name, node in _documented(_parse(path), module):
            pair = _pair(name, node)
            if pair is not None and not seen.intersection((pair.question, pair.answer)):
                seen.update((pair.question, pair.answer))
                yield pair


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        # Old sources have invalid escapes; they are not ours to mend.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(path.read_bytes())


def _documented(node: _Documented, name: str) -> Iterator[tuple[str, _Documented]]:
    """A module or class with all that is defined in it, under qualified names."""
    yield name, node
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.{child.name}")


def _pair(name: str, node: _Documented) -> Pair | None:
    """The question and answer of one name; None where its docstring says too little."""
    answer = _whole_paragraphs(ast.get_docstring(node) or "")
    if len(answer) < _MIN_CHARACTERS:
        return None
    return Pair(_QUESTIONS[type(node)].format(name), answer)


def _whole_paragraphs(docstring: str) -> str:
    """As many paragraphs from the start as fit; a first one that is longer is cut at a word."""
    first, *rest = docstring.split("\n\n")
    if len(first) > _MAX_CHARACTERS:
        return textwrap.shorten(first, _MAX_CHARACTERS, placeholder=" ...")
    answer = first
    for paragraph in rest:
        if len(answer) + len(paragraph) + 2 > _MAX_CHARACTERS:
            break
        answer += f"\n\n{paragraph}"
    return answer.strip()
