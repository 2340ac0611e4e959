"""The real trainer on a device that is too small for it.

    small_device.py rows ROWS AFTER TRAINER_ARGUMENTS...    an injected error
    small_device.py bytes BYTES TRAINER_ARGUMENTS...        a real one, on CUDA

With `rows`, the allocator's error is raised in the middle of a forward pass, where a real one would
come from: when more than ROWS sequences are worked on at once, once AFTER passes went well; and
always by the full logits of more than ROWS. With `bytes`, the allocator may take no more
than so many from the device.
"""

import runpy
import sys

import torch
from torch import nn

from cce_core import baselines


def hold_no_more_than(rows: int, after: int) -> None:
    whole, passes = nn.Embedding.forward, 0

    def forward(module: nn.Embedding, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += torch.is_grad_enabled()
        if torch.is_grad_enabled() and passes > after and len(tokens) > rows:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 ..."
            )
        return whole(module, tokens)

    nn.Embedding.forward = forward
    full_logits = baselines.full_logits

    def few_logits(hidden: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(hidden) > rows:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 ..."
            )
        return full_logits(hidden, *rest)

    baselines.full_logits = few_logits


def take_no_more_than(size: int) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(size / total)


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "rows":
        hold_no_more_than(*map(int, arguments[:2]))
        arguments = arguments[2:]
    else:
        take_no_more_than(int(arguments[0]))
        arguments = arguments[1:]
    sys.argv = ["worker.training", *arguments]
    runpy.run_module("worker.training", run_name="__main__", alter_sys=True)
