"""The numerics receipt: our loss and gradients on the first real batch, against fp32 full logits.

And what else a reader needs to trust a result, or to make it again: what the filter left out and
how far off it took itself to be, the seed, the data, and the versions of all that computed it.

The loss is compared with the unmodified model's own logits, so that anything a family does to its
logits that we don't know of shows here, before training. All of it on a slice of the batch, a
smaller one where the device has no memory for more.
"""

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

import torch
import transformers
from torch.nn import functional

from cce_core import IGNORE_INDEX, LossConfig, baselines
from cce_core.head import Head
from cce_core.models import Split
from cce_core.observe import Observation, observed
from cce_core.registry import ImplementationUnavailable
from service.contract.errors import JobFailure
from service.contract.receipt import FilteredMass, NumericsReceipt
from worker.training import device as device_of
from worker.training.allocator import attempt
from worker.training.batches import Batch
from worker.training.checkpoint import Position
from worker.training.model import hidden_states
from worker.training.parity import in_fp32, relative_error

# Predictions to compare: on CUDA so many that the filter is compared too, if V D is at least
# 2^27: below, it saves nothing (`cce_core/kernels/loss.py`). Where so many do not fit fewer are
# tried; what size a micro-batch can be is not for the receipt to say.
_ROWS = {"cpu": (256, 64, 16), "cuda": (2048, 256, 64, 16)}
# A slice is whole sixteens of tokens: Triton compiles apart for sizes that are not, and a batch of
# long sequences has such a size too, so that both take the same kernels.
_STEP = 16
_FILTER_POINTS = 20
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from; the fields are the receipt's."""

    seed: int
    training_file_sha256: str
    resumed_from_step: int | None = None


def check(
    model: Split, batch: Batch, config: LossConfig, provenance: Provenance
) -> NumericsReceipt:
    """Compare, on the first sequences of a batch.

    Raises:
        JobFailure: `loss_parity_failed`: an error is over the tolerance, and nothing was trained.
        torch.OutOfMemoryError: Not even a few rows fit.
    """
    *sizes, least = _ROWS[batch.input_ids.device.type]
    for rows in sizes:
        found = attempt(partial(_check, model, _slice(batch, rows), config, provenance))
        if isinstance(found, NumericsReceipt):
            return found
    return _check(model, _slice(batch, least), config, provenance)


def _check(
    model: Split, part: Batch, config: LossConfig, provenance: Provenance
) -> NumericsReceipt:
    tolerance = _TOLERANCE[model.head.weight.dtype]
    hidden, own = _forward(model, part)
    with observed() as seen:
        ours = _ours(model.head, hidden, part, config)
    truth = _truth(model.head, hidden, part)
    receipt = NumericsReceipt(
        implementation=config.implementation,
        preset=config.preset,
        rows=part.supervised,
        loss=ours[0],
        loss_reference=own,
        loss_error=abs(ours[0] - own) / max(abs(own), 1e-12),
        hidden_grad_error=relative_error(ours[1][0], truth[1][0]),
        head_grad_error=relative_error(ours[1][1], truth[1][1]) if len(truth[1]) > 1 else None,
        tolerance=tolerance,
        filtered=_series([{"step": 0, **filtered_fields(seen)}]),
        **asdict(provenance),
        versions=_versions(hidden.device),
    )
    _judge(receipt)
    return receipt


def over_time(receipt: NumericsReceipt, position: Position) -> NumericsReceipt:
    """The receipt with what the filter left out over the whole run, evenly thinned."""
    found = _series(position.metrics)
    stride = max(1, -(-len(found) // _FILTER_POINTS))
    thinned = found[::-1][::stride][::-1]  # the last one stays
    return receipt.model_copy(update={"filtered": receipt.filtered[:1] + thinned})


def filtered_fields(seen: Observation) -> dict[str, float | None]:
    """What the filter did in a step, as fields of a point; none where nothing was filtered."""
    if not seen.passes:
        return {}
    p50, p99 = seen.quantiles(0.5, 0.99)
    errors = [error for error in seen.errors() if math.isfinite(error)]
    return {
        "filtered_mass_p50": p50,
        "filtered_mass_p99": p99,
        "filter_error_p50": statistics.median(errors) if errors else None,
        "filter_error_max": max(errors, default=None),
        "filter_fallbacks": seen.fallbacks(),
    }


def _series(rows: Sequence[Mapping[str, Any]]) -> list[FilteredMass]:
    """The points that have the filter's fields."""
    return [
        FilteredMass(
            step=row["step"],
            p50=row["filtered_mass_p50"],
            p99=row["filtered_mass_p99"],
            error_p50=row.get("filter_error_p50"),
            error_max=row.get("filter_error_max"),
            fallbacks=row["filter_fallbacks"],
        )
        for row in rows
        if "filtered_mass_p50" in row
    ]


def _judge(receipt: NumericsReceipt) -> None:
    errors = {
        "loss": receipt.loss_error,
        "gradient of the hidden states": receipt.hidden_grad_error,
        "gradient of the head": receipt.head_grad_error or 0.0,
    }
    for name, error in errors.items():
        if not error <= receipt.tolerance:  # NaN fails too
            raise JobFailure(
                "loss_parity_failed",
                f"The {name} is off by {error:.2e} of the fp32 reference; expected at most "
                f"{receipt.tolerance:.0e}. Nothing was trained.",
            )


def _slice(batch: Batch, rows: int) -> Batch:
    """The first sequences with so many predictions, about as far as it takes; all, if too few."""
    counted = batch.labels[:, 1:] != IGNORE_INDEX
    sequences = int((counted.sum(1).cumsum(0) < rows).sum()) + 1
    pairs = int((counted[:sequences].sum(0).cumsum(0) < rows).sum()) + 1
    tokens = pairs + 1  # the last one is but predicted
    return batch.first(sequences, -(-tokens // _STEP) * _STEP)


@torch.no_grad()
def _forward(model: Split, part: Batch) -> tuple[torch.Tensor, float]:
    """Hidden states, and the mean loss of the model's own logits."""
    training = model.model.training
    model.model.eval()  # dropout would differ between the two passes
    try:
        hidden = hidden_states(model, part)
        logits = model.model(
            input_ids=part.input_ids,
            attention_mask=part.attention_mask,
            position_ids=part.position_ids,
            use_cache=False,
        ).logits
    finally:
        model.model.train(training)
    labels = part.labels[:, 1:]
    counted = labels != IGNORE_INDEX  # a long prompt's logits are not to be upcast
    return hidden, float(functional.cross_entropy(logits[:, :-1][counted].float(), labels[counted]))


def _ours(
    head: Head, hidden: torch.Tensor, part: Batch, config: LossConfig
) -> tuple[float, list[torch.Tensor]]:
    """Mean loss and gradients as the job will compute them."""
    leaf = hidden.detach().clone().requires_grad_()
    # By number, since "auto" spares the filter a slice that is smaller than the job's steps.
    asked = replace(config, filter_eps=config.eps)
    try:
        loss = head.loss(leaf, part.labels, asked, shift=1).loss
    except ImplementationUnavailable as error:
        raise JobFailure("unsupported_model", str(error), param="loss.implementation") from error
    return _with_gradients(loss, leaf, head)


def _truth(head: Head, hidden: torch.Tensor, part: Batch) -> tuple[float, list[torch.Tensor]]:
    """The same in fp32 with full logits, a thousand rows of them at a time: prompts are long."""
    leaf, exact = hidden.detach().float().requires_grad_(), in_fp32(head)
    loss = baselines.chunked(leaf, exact, part.labels) / part.supervised
    return _with_gradients(loss, leaf, exact)


def _with_gradients(
    loss: torch.Tensor, leaf: torch.Tensor, head: Head
) -> tuple[float, list[torch.Tensor]]:
    leaves = [leaf, head.weight] if head.weight.requires_grad else [leaf]
    return float(loss.detach()), list(torch.autograd.grad(loss, leaves))


def _versions(device: torch.device) -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": _installed("triton"),
        "cuda": str(torch.version.cuda),
        "driver": device_of.driver_version(),
        "device": device_of.name(device),
        "machine": platform.machine(),
    }
    return {name: version for name, version in found.items() if version is not None}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
