"""A tokenizer and a model that are trained in a second, and the trainer run in this process."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.support.stack import write_chat
from tests.worker.training.support import Outcome, make_spec, train
from worker.training import starter

SHAPE = {"vocab-size": 384, "width": 32, "layers": 2, "heads": 2, "context": 128}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, which waits for others' processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings and a tokenizer whose chat template marks the assistant."""
    folder = tmp_path_factory.mktemp("tiny")
    data = write_chat(folder / "data.jsonl")
    options = [f"--{name}={value}" for name, value in SHAPE.items()]
    starter.main([str(data), str(folder / "model"), *options])
    return folder / "model"


@pytest.fixture
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    """The tiny model's tokenizer, to be changed at will."""
    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Train the tiny model on rows, each time in a folder of its own."""
    runs = iter(range(100))

    def run(rows: list[dict], **options: object) -> Outcome:
        return train(make_spec(tmp_path / f"run-{next(runs)}", tiny, rows, **options))

    return run
