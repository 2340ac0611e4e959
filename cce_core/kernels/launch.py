"""What the launchers share: tensor descriptors, and the logit's options as kernel arguments."""

from dataclasses import dataclass

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from cce_core.kernels import tiling
from cce_core.kernels.tiling import Tilings, interpreted, programs, tilings


def describe(tensor: torch.Tensor, rows: int, columns: int) -> TensorDescriptor | torch.Tensor:
    """A (rows, columns) window on a contiguous matrix, which `primitives.window` opens."""
    if not tiling.host_described(tensor.device):
        return tensor
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, columns])


@dataclass(frozen=True)
class Logit:
    """z = softcap(scale * (e . c + bias)), on one device."""

    c: torch.Tensor  # (V, D)
    bias: torch.Tensor | None  # (V,) fp32
    scale: float
    softcap: float | None

    @property
    def tilings(self) -> Tilings:
        """The configurations of this device."""
        return tilings(self.c.device)

    @property
    def programs(self) -> int:
        """Multiprocessors of this device."""
        return programs(self.c.device)

    @property
    def reach(self) -> float:
        """An upper bound of |z|."""
        return self.softcap if self.softcap is not None else float("inf")

    def cooperation(self) -> tuple[int, dict[str, object]]:
        """Programs that can all run at once, and the arguments of a launch that waits for it."""
        if interpreted():
            return 1, {"ASYNC": False}
        copies = torch.cuda.get_device_capability(self.c.device)[0] >= 9
        return self.programs, {"ASYNC": copies, "launch_cooperative_grid": True}

    def common(self) -> dict[str, object]:
        """The constexpr arguments that every product kernel takes."""
        return {
            "UPCAST": interpreted(),
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        }

    def post(self) -> dict[str, object]:
        """The constexpr arguments of the logit's post-processing."""
        return {"HAS_BIAS": self.bias is not None, "HAS_CAP": self.softcap is not None}
