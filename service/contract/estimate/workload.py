"""What is run on a model: everything beside its shape that decides how much memory a step takes."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from service.contract.device import DeviceKind
from service.contract.spec import DtypeName, LoraAdapter, ResolvedOptions

ITEM_BYTES: dict[DtypeName, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Workload:
    """One micro-batch of B sequences of T tokens, and how it is trained on.

    Attributes:
        dtype: Of weights, activations and gradients.
        device: Which device's kernels and optimizer run.
        micro_batch: B.
        seq_length: T.
        checkpointing: Whether activations are computed again in the backward, layer by layer.
        adapter: LoRA, or None for full fine-tuning.
        padded: Whether sequences are of different length, so that a micro-batch of more than one
            is padded, and attention needs a mask.
        packed: Whether several examples share a sequence, which needs a mask too.
        implementation: Of our own loss.
        supervised: Tokens that the loss sees; None for all of them.
        accumulating: Whether gradients of earlier micro-batches of the step are held meanwhile.
    """

    dtype: DtypeName
    device: DeviceKind
    micro_batch: int
    seq_length: int
    checkpointing: bool
    adapter: LoraAdapter | None = None
    padded: bool = False
    packed: bool = False
    implementation: Literal["reference", "blocked", "triton"] = "blocked"
    supervised: int | None = None
    accumulating: bool = False

    @property
    def item(self) -> int:
        """Bytes of a number of `dtype`."""
        return ITEM_BYTES[self.dtype]

    @property
    def tokens(self) -> int:
        """N = B T."""
        return self.micro_batch * self.seq_length

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.adapter is None

    @property
    def masked(self) -> bool:
        """Whether attention needs a mask beyond causality."""
        return self.packed or (self.padded and self.micro_batch > 1)

    @property
    def dropout(self) -> bool:
        """Whether the inputs of adapters are dropped at random."""
        return self.adapter is not None and self.adapter.dropout > 0

    def of_size(self, micro_batch: int) -> Self:
        """The same with another micro-batch."""
        return replace(self, micro_batch=micro_batch)


def workload(
    resolved: ResolvedOptions,
    device: DeviceKind,
    seq_length: int,
    adapter: LoraAdapter | None,
    *,
    packed: bool,
) -> Workload:
    """What a job runs at its resolved options, on sequences of at most `seq_length` tokens."""
    return Workload(
        dtype=resolved.dtype,
        device=device,
        micro_batch=resolved.micro_batch_size,
        seq_length=seq_length,
        checkpointing=resolved.gradient_checkpointing,
        adapter=adapter,
        padded=not packed,
        packed=packed,
        implementation=resolved.loss_implementation,
        accumulating=resolved.gradient_accumulation_steps > 1,
    )
