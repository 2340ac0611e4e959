"""What a trainer has found out about its job: how it is told, and where the record keeps it."""

from typing import Any

from service.contract.estimate.record import JobEstimate, MicroBatch
from service.contract.job import Event
from service.contract.spec import ResolvedOptions
from service.contract.units import size
from worker.events import Estimated, Ledger, MicroBatchSettled, Phases, Receipt, Resolved

Finding = Resolved | MicroBatchSettled | Estimated | Ledger | Receipt | Phases
_HOW = {
    "request": "as asked for",
    "rule": "by rule",
    "out_of_memory": "since more did not fit",
    "probe": "the largest that fits",
}


def told(line: Finding) -> tuple[Event, dict[str, Any]]:
    """The event of a finding, and the fields of the record that it changes."""
    match line:
        case Resolved():
            return _event(_options(line.options), line.options), {"resolved": line.options}
        case MicroBatchSettled():
            micro = line.micro_batch
            changes = {"micro_batch": micro, "resolved": line.options}
            return _event(_settled(micro, line.options.batch_size), micro), changes
        case Estimated():
            return _event(_scored(line.estimate), line.estimate), {"estimate": line.estimate}
        case Ledger():
            return _event("Memory ledger measured.", line.ledger), {"memory": line.ledger}
        case Receipt():
            return _event("Loss verified.", line.receipt), {"receipt": line.receipt}
        case Phases():
            return _event(str(line.phases), line.phases), {"phases": line.phases}


def _event(message: str, found: Any) -> Event:
    return Event(message=message, data=found.model_dump())


def _options(options: ResolvedOptions) -> str:
    """What was settled of the training; how the batch is cut is told when that is."""
    return (
        f"Options resolved: batch size {options.batch_size}, learning rate"
        f" {options.learning_rate:.3g}, {options.total_steps} steps, sequences of at most"
        f" {options.max_seq_length} tokens, {options.dtype}."
    )


def _settled(micro: MicroBatch, batch: int) -> str:
    """How the batch is cut, in a sentence or two."""
    said = f"Micro-batches of {micro.size} for a batch of {batch}, {_HOW[micro.chosen_by]}."
    if micro.multiple is None:
        return said
    return f"{said} That is {micro.multiple:.3g} times what full logits would have allowed."


def _scored(estimate: JobEstimate) -> str:
    """What was predicted, and how right that was, in a sentence."""
    predicted = size(estimate.predicted_bytes)
    if estimate.measured_bytes is None or estimate.error is None:
        return f"Peak memory predicted: {predicted}, at the {estimate.predicted_at}."
    measured = size(estimate.measured_bytes)
    if f"{abs(estimate.error):.1%}" == "0.0%":
        return f"Peak memory measured: {measured}, as predicted."
    return f"Peak memory measured: {measured}; predicted were {predicted}, {estimate.error:+.1%}."
