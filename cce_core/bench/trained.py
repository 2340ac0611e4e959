"""The head of a language model that this machine trains itself, as benchmark data.

A model of about 100 M parameters, V 65536, learns Python source code for a minute and a half; its
hidden states on text held out, its head and the true next tokens are kept on disk. Unlike generated
data its tail is a real one: correlated, and of no low rank.

    python -m cce_core.bench.trained [--smoke] [--cache FOLDER]      make it, say what it is like
"""

import argparse
import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from cce_core.bench import data, text
from cce_core.bench.language_model import Schedule, Size, hidden_states, train

KIND = "trained"


@dataclass(frozen=True)
class Training:
    """What is trained, on how much text, for how long."""

    name: str
    size: Size
    schedule: Schedule
    text_size: int  # characters to train on
    vocabulary_size: int  # characters that the vocabulary is learnt from
    held_out: int  # characters that the hidden states are taken on

    @property
    def shape(self) -> data.Shape:
        """The loss layer that comes of it."""
        return data.Shape(self.name, self.size.v, self.size.d)

    @property
    def file_name(self) -> str:
        """Another configuration, another file."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:12]
        return f"{self.name}-{digest}.pt"


FULL = Training(
    "python-100m",
    Size(v=65536, d=768, layers=7, heads=12, context=512),
    Schedule(batch=32, steps=4000, seconds=90.0),
    text_size=80_000_000,
    vocabulary_size=20_000_000,
    held_out=280_000,
)
SMOKE = Training(
    "python-smoke",
    Size(v=512, d=32, layers=2, heads=2, context=64),
    Schedule(batch=8, steps=200, seconds=120.0, learning_rate=4e-3),
    text_size=200_000,
    vocabulary_size=100_000,
    held_out=20_000,
)


def default_cache() -> Path:
    """Where trained heads are kept if no folder is named."""
    return Path.home() / ".cache" / "headroom"


def make(training: Training, device: torch.device) -> dict[str, torch.Tensor]:
    """Train, and return e (tokens, D) bf16, c (V, D) bf16, labels (tokens,) and scalars, on CPU.

    Raises:
        ModuleNotFoundError: the package tokenizers is not installed.
        ValueError: this machine has not enough Python source files.
    """
    texts = text.source_texts(text.source_folders())
    held_out = text.take(texts, training.held_out)
    train_on = text.take(texts, training.text_size)
    tokenizer = text.Tokenizer(text.take(iter(train_on), training.vocabulary_size), training.size.v)
    ids = tokenizer.tokens(train_on)
    if len(ids) <= training.size.context:
        raise ValueError(f"needs more text than {training.size.context} tokens, got {len(ids)}")
    model, steps = train(ids, training.size, training.schedule, device)
    e, labels = hidden_states(model, tokenizer.tokens(held_out), training.size.context)
    made = {"e": e, "c": model.head.detach().bfloat16(), "labels": labels}
    scalars = {"steps": torch.tensor(steps), "tokens": torch.tensor(len(ids))}
    return {name: value.cpu() for name, value in (made | scalars).items()}


def load(training: Training, folder: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """What `make` made before, or makes now; the file appears whole or not at all."""
    path = folder / training.file_name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = make(training, device)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
            torch.save(made, file)
        Path(file.name).replace(path)
    held: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return held


def case(
    training: Training, folder: Path, n: int, device: torch.device, *, ignored: float = 0.05
) -> data.Case:
    """`n` held-out tokens as a case; `ignored` is the share of them that loses its label.

    Raises:
        ValueError: fewer tokens are held out; the cases above apply too.
    """
    held = load(training, folder, device)
    if len(held["e"]) < n:
        raise ValueError(f"{training.name} has {len(held['e'])} rows held out, got rows={n}")
    e, c, labels = (held[name].to(device) for name in ("e", "c", "labels"))
    e, labels = e[:n].contiguous(), labels[:n]
    random = torch.Generator(device=device).manual_seed(0)
    lost = torch.rand(n, generator=random, device=device) < ignored
    statistics = data.statistics(e, c, None) | {
        "loss": _loss(e, c, labels),
        "steps": held["steps"].item(),
        "tokens": held["tokens"].item(),
    }
    return data.Case(
        training.shape, KIND, e, c, labels.masked_fill(lost, data.IGNORE_INDEX), statistics
    )


def _loss(e: torch.Tensor, c: torch.Tensor, labels: torch.Tensor) -> float:
    parts = zip(torch.split(e, 256), torch.split(labels, 256), strict=True)
    total = sum(
        cross_entropy(data.logits(rows, c, None), chosen, reduction="sum").item()
        for rows, chosen in parts
    )
    return total / len(labels)


def main() -> None:
    """Make the data and print its statistics."""
    parser = argparse.ArgumentParser(
        prog="python -m cce_core.bench.trained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model, in seconds on an idle CPU"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the data")
    parser.add_argument("--rows", type=int, default=None, help="of the statistics")
    arguments = parser.parse_args()
    training = SMOKE if arguments.smoke else FULL
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = arguments.rows or (1024 if arguments.smoke else 8192)
    found = case(training, arguments.cache, rows, device)
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in found.statistics.items())
    sys.stdout.write(f"{found.shape.name} V {found.shape.v} D {found.shape.d}: {numbers}\n")


if __name__ == "__main__":
    main()
