"""Text that any machine has, as tokens: Python source files, and a byte-level BPE made of them."""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

END = "<|end|>"
LONGEST_FILE = 2**18
"""Bytes; longer files are tables and test data rather than text."""


def source_folders() -> tuple[Path, ...]:
    """Where this Python keeps its library and the packages installed beside it."""
    paths = sysconfig.get_paths()
    return tuple(sorted({Path(paths[name]) for name in ("stdlib", "purelib", "platlib")}))


def source_texts(folders: Sequence[Path]) -> Iterator[str]:
    """Yield the distinct Python files under `folders`, in an order that only their names decide.

    The order is that of a hash, so that neighbours have nothing to do with each other and the first
    few files are a fair sample of all.
    """
    files = {
        hashlib.sha256(str(path.relative_to(folder)).encode()).digest(): path
        for folder in folders
        for path in folder.rglob("*.py")
    }
    seen = set()
    for _, path in sorted(files.items()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest in seen or not 0 < len(content) <= LONGEST_FILE:
            continue
        seen.add(digest)
        yield content.decode("utf-8", errors="replace")


def take(texts: Iterator[str], size: int) -> list[str]:
    """The next texts, until they hold `size` characters."""
    taken, held = [], 0
    for text in texts:
        taken.append(text)
        held += len(text)
        if held >= size:
            break
    return taken


class Tokenizer:
    """A byte-level BPE of at most `vocabulary` tokens, learnt from `texts`.

    Raises:
        ModuleNotFoundError: the package tokenizers is not installed.
    """

    def __init__(self, texts: list[str], vocabulary: int) -> None:
        from tokenizers import Tokenizer as Engine
        from tokenizers import models, pre_tokenizers, trainers

        self._engine = Engine(models.BPE())
        self._engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._engine.train_from_iterator(texts, trainer)

    def tokens(self, texts: list[str]) -> torch.Tensor:
        """All texts in a row, int32 ids, an end token after each."""
        end = self._engine.token_to_id(END)
        remaining, parts = iter(texts), []
        while batch := list(islice(remaining, 1024)):
            parts += [[*found.ids, end] for found in self._engine.encode_batch(batch)]
        return torch.tensor([token for part in parts for token in part], dtype=torch.int32)
