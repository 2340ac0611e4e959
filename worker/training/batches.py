"""Examples as batches of tensors: packing, padding, and the order of an epoch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cce_core import IGNORE_INDEX
from worker.training.examples import Example

# Rows that packing keeps open at a time: enough to fill them, few enough to be quick.
_OPEN_ROWS = 64


@dataclass(frozen=True)
class Batch:
    """Sequences padded to the longest, (B, T) int64 each."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None  # None: packed, position ids tell sequences apart
    owner: torch.Tensor | None = None  # which of `examples` a token is of; 0 for padding
    examples: tuple[Example, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def first(self, rows: int, length: int | None = None) -> "Batch":
        """The first rows, and of them the first tokens."""
        return self._each(lambda tensor: tensor[:rows, :length])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        mask, owner = self.attention_mask, self.owner
        return replace(
            self,
            input_ids=change(self.input_ids),
            labels=change(self.labels),
            position_ids=change(self.position_ids),
            attention_mask=None if mask is None else change(mask),
            owner=None if owner is None else change(owner),
        )

    @property
    def supervised(self) -> int:
        """Predictions that the loss sees."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())


def pack(examples: list[Example], max_length: int) -> list[list[Example]]:
    """Examples side by side in rows of at most `max_length` tokens: first fit, in file order.

    A few rows are open at a time. Where none has room, the fullest is closed for a new one.
    """
    rows: list[list[Example]] = []
    room: dict[int, int] = {}  # of the open rows
    for example in examples:
        length = len(example.input_ids)
        place = next((row for row, free in room.items() if free >= length), None)
        if place is None:
            if len(room) == _OPEN_ROWS:
                del room[min(room, key=room.__getitem__)]
            place = len(rows)
            rows.append([])
            room[place] = max_length
        rows[place].append(example)
        room[place] -= length
    return rows


def collate(rows: list[list[Example]], pad: int, *, packed: bool) -> Batch:
    """Pad rows of one or more examples to the longest row."""
    length = max(sum(len(example.input_ids) for example in row) for row in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, pad)
    labels = torch.full(shape, IGNORE_INDEX)
    positions = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    owner = torch.zeros(shape, dtype=torch.int64)
    examples = tuple(example for row in rows for example in row)
    number = 0
    for at, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.input_ids)
            ids[at, start:end] = torch.tensor(example.input_ids)
            # Nothing predicts across a border: an example's first token has no label.
            labels[at, start + 1 : end] = torch.tensor(example.labels[1:], dtype=torch.int64)
            positions[at, start:end] = torch.arange(end - start)
            mask[at, start:end] = 1
            owner[at, start:end] = number
            start, number = end, number + 1
        positions[at, start:] = torch.arange(length - start)
    return Batch(ids, labels, positions, None if packed else mask, owner, examples)


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The shuffled order of an epoch: a function of seed and epoch alone, so that it resumes."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled: list[int] = torch.randperm(count, generator=generator).tolist()
    return shuffled
