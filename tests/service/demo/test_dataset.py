import json
import subprocess
import sys
from pathlib import Path

from service.demo.dataset import Pair, read_pairs, write_dataset

SOURCE = '''
"""Module docstring, long enough to be kept."""
raise SystemExit("imported")

def public(x):
    """Does a thing that is worth a whole sentence."""

def short():
    """Too short."""

class Thing:
    """A thing that is documented well enough."""

    def method(self):
        """Does a thing that is worth a whole sentence."""

    async def wait(self):
        """Waits for something that takes long.

        {paragraph}
        """
'''


def _library(folder: Path) -> Path:
    source = SOURCE.replace("{paragraph}", "word " * 200)
    for name in ("pkg/__init__.py", "test/skipped.py", "site-packages/skipped.py"):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(source)
    return folder


def test_reads_names_without_importing(tmp_path: Path) -> None:
    pairs = {pair.question: pair.answer for pair in read_pairs(_library(tmp_path))}
    assert pairs == {
        "What is the module `pkg` for?": "Module docstring, long enough to be kept.",
        "What does `pkg.public` do?": "Does a thing that is worth a whole sentence.",
        "What is the class `pkg.Thing`?": "A thing that is documented well enough.",
        # The second paragraph does not fit, and is left out whole; the repeated answer is dropped.
        "What does the coroutine `pkg.Thing.wait` do?": "Waits for something that takes long.",
    }


def test_the_library_makes_thousands_of_pairs_in_two_fixed_files(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    training = [json.loads(line) for line in dataset.training.read_text().splitlines()]
    validation = [json.loads(line) for line in dataset.validation.read_text().splitlines()]
    assert len(training) == dataset.training_pairs > 4000
    assert len(validation) == dataset.validation_pairs > 200
    questions = [row["messages"][0]["content"] for row in training + validation]
    assert len(set(questions)) == len(questions)
    assert Pair("What does `json.dumps` do?", "").held_out is False
    assert any(row["messages"][0]["content"] == dataset.sample.question for row in validation)
    assert all(len(row["messages"][1]["content"]) <= 480 for row in training + validation)


def test_writing_the_dataset_imports_nothing_that_it_documents(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from service.demo.dataset import write_dataset;"
        f"write_dataset(pathlib.Path({str(tmp_path)!r}));"
        "sys.exit(bool({'antigravity', 'this', 'turtle', 'tkinter'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
