"""The job's prediction of its own peak: made before it trains, scored when it has.

The data is tokenized by then, so that every micro-batch of the run is known by its shape; the
largest prediction of all of them is the job's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from service.contract.device import DeviceKind
from service.contract.errors import InvalidRequest
from service.contract.estimate.model import ModelShape, shape_of
from service.contract.estimate.peak import component_bytes, moments, step_bytes
from service.contract.estimate.record import JobEstimate
from service.contract.estimate.workload import Workload, workload
from service.contract.spec import LoraAdapter
from worker.training.adapter import is_adapted
from worker.training.session import Session, epoch_order


@dataclass(frozen=True)
class Prediction:
    """What a job will need.

    Attributes:
        shape: Of the model.
        work: The micro-batch that takes the most.
        step: A step that has it.
    """

    shape: ModelShape
    work: Workload
    step: int

    def estimate(self) -> JobEstimate:
        """For the record; nothing is measured yet."""
        found = moments(self.shape, self.work, "cce")
        at = max(found, key=found.__getitem__)
        return JobEstimate(
            micro_batch_size=self.work.micro_batch,
            seq_length=self.work.seq_length,
            components=component_bytes(self.shape, self.work),
            predicted_bytes=found[at],
            predicted_at=at,
        )


class Predictable(NamedTuple):
    """A model that memory can be predicted for, and what is done to it."""

    shape: ModelShape
    work: Workload


def predictable(session: Session) -> Predictable | None:
    """A session's model, and what is done to it, on one sequence of one token.

    None for a family or an adapter of which nothing can be predicted.
    """
    kind: DeviceKind = "cuda" if session.device.type == "cuda" else "cpu"
    try:
        shape = shape_of(session.model.model.config.get_text_config().to_dict())
        adapter = _adapter(session.run.model, shape)
    except InvalidRequest:
        return None
    packed = session.data.packed
    work = workload(session.resolved, kind, 1, adapter, packed=packed)
    return Predictable(shape, work.of_size(1))


def predict(session: Session, first_step: int) -> Prediction | None:
    """The prediction for the steps from `first_step` on; None where there is none to be made."""
    known = predictable(session)
    if known is None or first_step >= session.resolved.total_steps:
        return None
    shape, base = known
    steps = dict(_cuts(session, first_step))
    works = {cut: replace(base, **cut._asdict()) for cut in steps}
    most = max(works, key=lambda cut: step_bytes(shape, works[cut], "cce"))
    return Prediction(shape, works[most], steps[most])


def scored(estimate: JobEstimate, measured: int, method: str) -> JobEstimate:
    """The estimate with what the steps really took."""
    error = estimate.predicted_bytes / measured - 1
    return estimate.model_copy(
        update={"measured_bytes": measured, "error": error, "method": method}
    )


class _Cut(NamedTuple):
    """What distinguishes the micro-batches of a run: fields of `Workload`."""

    micro_batch: int
    seq_length: int
    padded: bool
    supervised: int
    accumulating: bool


def _cuts(session: Session, first_step: int) -> Iterator[tuple[_Cut, int]]:
    """The micro-batches of a run, each with its step.

    The very first step is left out where others follow: AdamW has no moments yet, which makes it
    take less than any other of its size.
    """
    sizes = [
        (sum(len(each.input_ids) for each in row), sum(each.supervised for each in row))
        for row in session.data.training
    ]
    resolved = session.resolved
    if session.run.optimizer.unmade_bytes and first_step + 1 < resolved.total_steps:
        first_step += 1
    for step in range(first_step, resolved.total_steps):
        epoch, within = divmod(step, session.steps_per_epoch)
        order = epoch_order(len(sizes), session.spec.job.seed, epoch)
        start = within * resolved.batch_size
        rows = [sizes[row] for row in order[start : start + resolved.batch_size]]
        for at in range(0, len(rows), resolved.micro_batch_size):
            lengths, supervised = zip(*rows[at : at + resolved.micro_batch_size], strict=True)
            longest, mixed = max(lengths), min(lengths) < max(lengths)
            yield _Cut(len(lengths), longest, mixed, sum(supervised), at > 0), step


def _adapter(model: Any, shape: ModelShape) -> LoraAdapter | None:
    """The adapter that is trained, whichever way it came onto the model.

    Raises:
        InvalidRequest: It is on more than the linear layers of every decoder layer.
    """
    if not is_adapted(model):
        return None
    config = model.active_peft_config
    adapter = LoraAdapter(
        rank=config.r,
        dropout=float(config.lora_dropout),
        targets=sorted(config.target_modules),
    )
    names = [linear.name for linear in shape.adapted(adapter)]
    return adapter.model_copy(update={"targets": names})
