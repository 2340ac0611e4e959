"""Full logits on a CPU: what they would take, where trying them might exhaust the machine."""

import torch

from worker.training import device as device_of

_CPU_SHARE = 0.5
# Logits, log-probabilities and their gradient, in fp32.
_COPIES = 3
FORMULA = "three_logits"


def too_large(rows: int, vocabulary: int, device: torch.device) -> int | None:
    """The bytes that `rows` predictions take by `FORMULA`, if they are not to be tried; else None.

    A CPU's memory must last for others, too, and who exhausts it is killed; CUDA's allocator
    refuses.
    """
    size = _COPIES * 4 * rows * vocabulary
    if device.type == "cuda" or size <= _CPU_SHARE * device_of.free_cpu_bytes():
        return None
    return size
