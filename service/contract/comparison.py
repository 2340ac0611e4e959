"""The report of a comparison: every loss at every batch size, from the same start on the same data.

The trainer writes it as JSON, CSV and HTML; `headroom compare` reads the JSON.
"""

from typing import Any, Literal

from pydantic import Field

from service.contract.memory import Frozen, LossName

JSON_NAME, CSV_NAME, HTML_NAME = "comparison.json", "comparison.csv", "comparison.html"
Outcome = Literal["completed", "out_of_memory", "diverged", "unavailable"]


class GradientError(Frozen):
    """How far the gradients of the first batch are from fp32: ||g - g_fp32|| / ||g_fp32||.

    Attributes:
        hidden: Of the hidden states that go into the head.
        head: Of the head's weight; None where it is not trained.
    """

    hidden: float
    head: float | None


class Cell(Frozen):
    """One loss at one batch size.

    Attributes:
        outcome: Whether all steps were done, or why not; figures are those of the steps alone.
        note: What to know of an outcome that is not `completed`.
        peak_bytes: The most that was allocated: weights, gradients, optimizer, activations, loss.
        tokens_per_s: Tokens of the training data a second, without padding, after the first steps.
        train_losses: Mean loss of each step.
        max_curve_difference: Largest difference of a step's loss to `full_logits`' of the same
            batch size; None where one of the two has no whole curve.
        gradient_error: Against fp32 on the first batch, at the start; None where the fp32
            reference itself did not fit.
        valid_loss: Mean over the validation file after the last step; None without a file.
        valid_mean_token_accuracy: Likewise.
    """

    loss: LossName
    batch_size: int
    outcome: Outcome
    note: str | None = None
    peak_bytes: int | None = None
    tokens_per_s: float | None = None
    train_losses: tuple[float, ...] = ()
    max_curve_difference: float | None = None
    gradient_error: GradientError | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None

    @property
    def figures(self) -> dict[str, float | None]:
        """What can be held against another cell, by name; None where it was not measured."""
        gradient = self.gradient_error
        return {
            "peak_bytes": self.peak_bytes,
            "tokens_per_s": self.tokens_per_s,
            "last_train_loss": self.train_losses[-1] if self.train_losses else None,
            "max_curve_difference": self.max_curve_difference,
            "hidden_gradient_error": gradient.hidden if gradient else None,
            "head_gradient_error": gradient.head if gradient else None,
            "valid_loss": self.valid_loss,
            "valid_mean_token_accuracy": self.valid_mean_token_accuracy,
        }


class Conditions(Frozen):
    """What was compared on. Two reports can be held against each other where all of it agrees.

    Attributes:
        training_file_sha256: Of the file's bytes, in hex.
        validation_file_sha256: Likewise; None without a file.
        steps: Optimizer steps of each cell, at a constant learning rate.
        seq_length: Tokens that every sequence was padded to.
        vocab_size: V.
        hidden_size: D.
        parameters: Of the model, trained or not.
        options: The training options, resolved.
        device: For example `NVIDIA H200`.
        method: How bytes were counted.
    """

    model: str
    training_file_sha256: str
    validation_file_sha256: str | None
    seed: int
    steps: int
    seq_length: int
    vocab_size: int
    hidden_size: int
    parameters: int
    options: dict[str, Any]
    device: str
    method: str


class ComparisonReport(Frozen):
    """All that a comparison found.

    Attributes:
        job_id: The comparison.
        versions: Of the libraries that computed it.
        cells: Batch size by batch size, in the order of the losses; one at least.
    """

    job_id: str
    conditions: Conditions
    versions: dict[str, str]
    cells: list[Cell] = Field(min_length=1)
