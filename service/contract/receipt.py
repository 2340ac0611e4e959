"""The numerics receipt: how far a job's loss is from fp32, what was left out, and what ran."""

from pydantic import FiniteFloat

from service.contract.memory import Frozen


class FilteredMass(Frozen):
    """What the filtered backward left to its mean field in one optimizer step, and how well it did.

    A row's filtered mass is the probability whose gradient is not taken entry by entry. The error
    is ||dE - filtered dE|| / ||dE|| over a micro-batch, with dE the gradient of the hidden states;
    the device estimates it on sampled rows before it decides whether to fall back.

    Attributes:
        step: The optimizer step; 0 for the receipt's slice of the first batch, before training,
            which is filtered even if the steps are so small that they are exact.
        p50: Median over the step's rows.
        p99: The 99th of 100 parts of them have no more.
        error_p50: Median of the estimates over the step's micro-batches; None where none was made,
            since the filter had no room for what it has to keep.
        error_max: The largest of them. A micro-batch over 2**-7 is among the fallbacks.
        fallbacks: Micro-batches that the device computed exactly instead: nothing was left out.
    """

    step: int
    p50: float
    p99: float
    error_p50: FiniteFloat | None = None
    error_max: FiniteFloat | None = None
    fallbacks: int


class NumericsReceipt(Frozen):
    """Parity of the loss on the job's first real batch, against fp32 on the unmodified model.

    Errors are relative: ||g - g_fp32|| / ||g_fp32|| over a slice of `rows` rows.

    Attributes:
        filtered: Over time, evenly thinned; empty where every backward is exact.
        training_file_sha256: Of the bytes that were trained on, in hex.
        resumed_from_step: The checkpoint that this attempt began with; None for the beginning.
        versions: Of what computed it: packages, CUDA, its driver, the device, the kind of
            machine.
    """

    implementation: str
    preset: str
    rows: int
    loss: float
    loss_reference: float
    loss_error: float
    hidden_grad_error: float
    head_grad_error: float | None
    tolerance: float
    filtered: list[FilteredMass]
    seed: int
    training_file_sha256: str
    resumed_from_step: int | None
    versions: dict[str, str]
