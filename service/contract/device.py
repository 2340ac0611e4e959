"""What a worker trains on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

DeviceKind = Literal["cuda", "cpu"]


class Device(BaseModel):
    """A device, as far as it decides what a job needs and how fast it is.

    Attributes:
        name: For example `NVIDIA H200`; `cpu` for any CPU.
        total_bytes: Of its memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: DeviceKind
    name: str
    total_bytes: int
