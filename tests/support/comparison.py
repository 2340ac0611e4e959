"""A comparison's report to look at: four losses at three batch sizes, as a GPU would give them."""

import math
from typing import Any

from service.contract.comparison import Cell, ComparisonReport, Conditions, GradientError
from service.contract.memory import LossName

GIB = 2**30
STEPS = 20
PEAKS: dict[LossName, float] = {
    "full_logits": 6.0,
    "compiled_full_logits": 3.2,
    "chunked": 0.9,
    "cce": 0.1,
}
SPEEDS: dict[LossName, float] = {
    "full_logits": 20_000,
    "compiled_full_logits": 26_000,
    "chunked": 18_500,
    "cce": 25_500,
}


def cell(loss: LossName, size: int, **changes: Any) -> Cell:
    """A cell that came to its end."""
    drift = 1e-3 * list(PEAKS).index(loss)
    losses = tuple(2 + 5 * math.exp(-step / 6) + drift * step for step in range(STEPS))
    fields: dict[str, Any] = {
        "peak_bytes": int((8 + size * PEAKS[loss]) * GIB),
        "tokens_per_s": SPEEDS[loss] * size / (size + 1),
        "train_losses": losses,
        "max_curve_difference": drift * (STEPS - 1),
        "gradient_error": GradientError(hidden=2e-3 + drift, head=3e-3 + drift),
        "valid_loss": 2.5 + drift,
        "valid_mean_token_accuracy": 0.5 - drift,
    }
    return Cell(loss=loss, batch_size=size, outcome="completed", **fields | changes)


def report(**changes: Any) -> ComparisonReport:
    """A whole report; full logits have not fitted at the largest batch size."""
    cells = [cell(loss, size) for size in (1, 4, 16) for loss in PEAKS]
    cells[8] = Cell(
        loss="full_logits", batch_size=16, outcome="out_of_memory", note="It asked for <16 GiB>."
    )
    conditions = Conditions(
        model="gemma <2b>",
        training_file_sha256="1" * 64,
        validation_file_sha256="2" * 64,
        seed=0,
        steps=STEPS,
        seq_length=1024,
        vocab_size=256_000,
        hidden_size=2304,
        parameters=2_614_341_888,
        options={"learning_rate": 2e-5, "dtype": "bfloat16", "adapter": None},
        device="NVIDIA H200",
        method="CUDA allocator peak",
    )
    fields = {"conditions": conditions.model_copy(update=changes), "versions": {"torch": "2.13"}}
    return ComparisonReport(job_id="ftjob-1", cells=cells, **fields)
