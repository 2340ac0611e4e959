"""The training rows with the highest loss: what the loss knows of each row, kept by epoch.

A row's loss is the mean over its predictions, as it was when it was trained on: rows that come late
in an epoch meet a model that has learned more.
"""

import csv
import heapq
from collections.abc import Sequence
from pathlib import Path

import torch

from cce_core.api import LossOutput
from worker.training.batches import Batch
from worker.training.checkpoint import Position
from worker.training.examples import Example

MOST = 20
COLUMNS = ("epoch", "line", "loss", "tokens")
_NAMED = 3
Row = dict[str, float]


@torch.no_grad()
def example_losses(batch: Batch, output: LossOutput) -> torch.Tensor:
    """The summed loss of each example of a batch, (examples,) fp32, on the device."""
    assert batch.owner is not None
    losses = (output.lse - output.label_logit).detach().flatten()
    return losses.new_zeros(len(batch.examples)).index_add_(0, batch.owner.flatten(), losses)


def keep(
    position: Position, epoch: int, examples: Sequence[Example], losses: Sequence[float]
) -> None:
    """Take in the summed losses of a step's examples: the highest of the epoch stay."""
    seen = [
        {
            "epoch": epoch,
            "line": example.line,
            "loss": loss / example.supervised,
            "tokens": example.supervised,
        }
        for example, loss in zip(examples, losses, strict=True)
    ]
    others = [row for row in position.outliers if row["epoch"] != epoch]
    highest = heapq.nlargest(MOST, of_epoch(position, epoch) + seen, key=lambda row: row["loss"])
    position.outliers = others + highest


def of_epoch(position: Position, epoch: int) -> list[Row]:
    """The rows of an epoch, the highest loss first."""
    return [row for row in position.outliers if row["epoch"] == epoch]


def sentence(epoch: int, rows: list[Row]) -> str:
    """The worst of an epoch's rows, for people."""
    named = ", ".join(f"line {row['line']} ({row['loss']:.3f})" for row in rows[:_NAMED])
    return f"Epoch {epoch}: the rows with the highest loss are {named}."


def write_csv(position: Position, path: Path) -> None:
    """All epochs' rows as a table."""
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        table.writerows(position.outliers)
