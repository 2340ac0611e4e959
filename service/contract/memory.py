"""Memory and time: the ledger of the loss, who held what when none was left, a step's phases.

Each figure says where it comes from; a saving always names its baseline.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

LossName = Literal["full_logits", "compiled_full_logits", "chunked", "cce"]
Provenance = Literal["measured", "modelled", "out_of_memory"]
BatchFormula = Literal["linear_step", "proportional_step"]


class Frozen(BaseModel):
    """An immutable record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Frozen):
    """A number of bytes and where it comes from.

    Attributes:
        bytes: Peak bytes above the inputs and the gradients themselves; for `out_of_memory`,
            the bytes that the failed allocation asked for.
        provenance: `measured` by the allocator, `modelled` by a formula, or `out_of_memory`.
        formula: The formula's name, for a modelled figure.
    """

    bytes: int
    provenance: Provenance
    formula: str | None = None


class LargestBatch(Frozen):
    """The largest micro-batch that fits, by a formula over the ledger's `room_bytes`.

    Attributes:
        sequences: How many, of the measured length.
        formula: `linear_step`: (room - fixed) / bytes_per_sequence, from the peak of a pass at
            two micro-batches. `proportional_step`: room / bytes_per_sequence, from its peak at
            one, which errs on the side of fewer.
        bytes_per_sequence: By which each sequence raises the pass's peak.
        fixed_bytes: What the pass takes whatever the micro-batch.
    """

    sequences: int
    formula: BatchFormula
    bytes_per_sequence: int
    fixed_bytes: int


class LossMemory(Frozen):
    """One loss on the job's own shapes.

    Attributes:
        loss: Which loss.
        loss_layer: Peak of forward and backward of the loss layer alone.
        step: Peak of a forward and backward pass of the model, above weights and gradients,
            or None if not run.
        tokens_per_s: Throughput of such a pass, warm and not slowed by the counting; None if not
            run.
        largest_micro_batch: Modelled; None on CPU, where memory is not the job's alone, and where
            no micro-batch that was tried did fit.
    """

    loss: LossName
    loss_layer: Figure
    step: Figure | None = None
    tokens_per_s: float | None = None
    largest_micro_batch: LargestBatch | None = None


class Saving(Frozen):
    """What the job's loss saves against one named baseline.

    Attributes:
        micro_batch_ratio: How many times larger a micro-batch fits; None where either is unknown.
    """

    baseline: LossName
    loss_layer_bytes: int
    loss_layer_ratio: float
    step_bytes: int | None = None
    step_ratio: float | None = None
    micro_batch_ratio: float | None = None


class MemoryLedger(Frozen):
    """The loss layer's memory on one job's model, micro-batch and device.

    Attributes:
        device: Name of the device, for example `NVIDIA H200` or `cpu`.
        method: How bytes were counted, for example `cuda allocator peak`.
        tokens: Rows N of the loss: supervised positions of the measured micro-batch.
        vocab_size: V.
        hidden_size: D.
        dtype: Compute dtype of the measured passes.
        room_bytes: What the device has for a micro-batch beside weights, gradients, optimizer and
            other processes; None on CPU.
        losses: One entry a loss.
        savings: The job's loss against each measured or modelled baseline.
    """

    device: str
    method: str
    micro_batch_size: int
    seq_length: int
    tokens: int
    vocab_size: int
    hidden_size: int
    dtype: str
    room_bytes: int | None = None
    losses: list[LossMemory]
    savings: list[Saving]


class StepPhases(Frozen):
    """Where the time of an optimizer step goes: seconds, means over a few steps.

    In these steps alone, the host waited for the device at the end of each phase.

    Attributes:
        steps: How many steps were timed.
        data: Collate the rows, and copy them to the device.
        forward: The model up to the loss layer.
        loss: The loss layer's forward.
        backward: Of all; with gradient checkpointing it runs the forward again.
        optimizer: Clip and apply the gradients.
    """

    steps: int
    data: float
    forward: float
    loss: float
    backward: float
    optimizer: float

    def __str__(self) -> str:
        """The share of each phase in the time of a step."""
        seconds = self.model_dump(exclude={"steps"})
        total = sum(seconds.values())
        shares = ", ".join(f"{name} {spent / total:.0%}" for name, spent in seconds.items())
        return f"A step takes {total:.3g} s: {shares}."


class MemoryByCategory(Frozen):
    """What the job's tensors hold on the device, in bytes.

    Attributes:
        weights: The model's parameters and buffers.
        gradients: Of the weights, in any dtype.
        optimizer: Its state, and what weights of another dtype lack of fp32.
        other: All else that was allocated: activations, the loss layer, work space. None on CPU,
            where the allocator keeps no account.
    """

    weights: int
    gradients: int
    optimizer: int
    other: int | None


class OutOfMemoryReport(Frozen):
    """The allocator's account of the moment when it could not give what was asked for.

    Attributes:
        device: Name of the device.
        micro_batch_size: Sequences that were worked on at once; None where fewer would not help,
            since what did not fit is the model itself.
        asked_bytes: Size of the allocation that failed; None where the allocator did not say.
        allocated_bytes: In tensors; None on CPU.
        reserved_bytes: Taken from the device by the allocator, free for tensors or in them; None
            on CPU.
        total_bytes: All memory of the device.
        categories: Who held what was allocated; None before the model was loaded.
    """

    device: str
    micro_batch_size: int | None
    asked_bytes: int | None
    allocated_bytes: int | None
    reserved_bytes: int | None
    total_bytes: int
    categories: MemoryByCategory | None
