"""What a job keeps of its own prediction: what was predicted, and how right that was."""

from typing import Literal

from pydantic import Field

from service.contract.memory import Frozen, Provenance


class ComponentBytes(Frozen):
    """What takes memory in a step, in bytes; not all of it at once."""

    weights: int
    optimizer: int = Field(description="AdamW's moments, and what bf16 weights lack of fp32.")
    gradients: int
    activations: int = Field(description="What the forward keeps for the backward.")
    attention: int = Field(description="The part of the activations that attention keeps.")
    working: int = Field(description="What the backward of a layer takes beside.")
    optimizer_step: int = Field(description="Gradients, and a chunk of all in fp32.")


class JobEstimate(Frozen):
    """The peak of a job's steps, predicted before the first and measured over them.

    Attributes:
        micro_batch_size: Sequences of the micro-batch that is predicted to take the most.
        seq_length: Its tokens a sequence.
        components: Of its step.
        predicted_bytes: The peak.
        predicted_at: The moment of the step that is the peak.
        measured_bytes: None until the training is done, and where the step was not measured.
        error: predicted over measured, less 1: positive where less was needed than predicted.
        method: How it was measured: the CUDA allocator's peak over all steps, or the CPU
            allocator's events in the step with that micro-batch.
    """

    micro_batch_size: int
    seq_length: int
    components: ComponentBytes
    predicted_bytes: int
    predicted_at: str
    measured_bytes: int | None = None
    error: float | None = None
    method: str | None = None


MicroBatchRule = Literal["request", "rule", "out_of_memory", "probe"]


class MicroBatch(Frozen):
    """The size of a job's micro-batches, and what full logits would have allowed.

    Attributes:
        size: Sequences at once.
        chosen_by: `request`: it was asked for. `rule`: all of the batch, as on CPU.
            `out_of_memory`: halved where a larger one did not fit. `probe`: the largest that fits.
        full_logits: The largest of at most `batch_size` that fits with full logits; 0 where not one
            sequence does, None where nothing can be said: on CPU, whose memory is not the job's
            alone, and for a model that nothing is predicted for.
        provenance: Whether that was tried (`measured`) or predicted (`modelled`).
        multiple: `size` over `full_logits`; None where that is 0 or None.
        device: Name of the device that it was settled for; an attempt on another settles anew.
    """

    size: int
    chosen_by: MicroBatchRule
    full_logits: int | None
    provenance: Provenance
    multiple: float | None
    device: str | None = None
