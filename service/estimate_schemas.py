"""What the estimate of a job answers."""

from typing import Literal

from pydantic import BaseModel, Field

from service.contract.device import Device
from service.contract.estimate.record import ComponentBytes
from service.contract.memory import LossName
from service.contract.spec import ResolvedOptions


class DataEstimate(BaseModel):
    """The training data in tokens."""

    examples: int = Field(description="Rows of the training file.")
    tokens: int = Field(description="Of all examples.")
    longest: int = Field(description="Tokens of the longest example, within max_seq_length.")
    basis: Literal["tokenized", "bytes"] = Field(
        description="`tokenized`: an earlier job has tokenized this file for this model. `bytes`: "
        "a token for every four bytes of the file, and for every three of its longest row."
    )


class LossEstimate(BaseModel):
    """A step with one loss; the job's own is `cce`."""

    loss: LossName
    loss_layer_bytes: int = Field(description="Above its inputs and gradients, as in the ledger.")
    peak_bytes: int = Field(description="Of a training step, at the resolved micro-batch.")
    peak_at: str = Field(description="The moment of the step that is the peak.")
    largest_micro_batch: int | None = Field(
        description="Sequences of the longest example's length that fit at once; 0 where not one "
        "does, null where no device is known."
    )


class DeviceEstimate(BaseModel):
    """A step on one kind of device."""

    device: Device | None = Field(description="Null where no worker is alive: CUDA is assumed.")
    workers: list[str] = Field(description="The live workers that train on it.")
    resolved: ResolvedOptions
    components: ComponentBytes
    losses: list[LossEstimate]
    usable_bytes: int | None = Field(
        description="Of the device, without what CUDA or the system and fragmentation take."
    )
    fits: bool | None = Field(description="Whether the job's step does.")
    multiple: float | None = Field(
        description="How many times the largest micro-batch of full logits fits with cce."
    )
    seconds: float | Literal["unknown"] = Field(
        description="Of training alone, by past jobs of this model on such a device."
    )


class Estimate(BaseModel):
    """What a job would need; nothing was created."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    model: str
    data: DataEstimate
    total_steps: int
    trained_tokens: int = Field(description="Over all epochs.")
    parameters: int
    trained_parameters: int
    devices: list[DeviceEstimate]
