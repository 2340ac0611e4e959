"""Launch the hot blocks' gradients: where most rows keep a block, whole products beat lists.

They go through the kernels of the exact backward: two launches, whatever their number is, which the
device alone knows. dE begins with their share, in its own dtype; their rows of dC are final.
"""

import torch

from cce_core.kernels.launch import Logit
from cce_core.kernels.rows import Rows
from cce_core.kernels.slices import Listed, Slice, Targets, Upstream, dlogits, gradients

MOST = 32  # blocks: beyond these, lists are as fast on the data that was measured


def hot_room(n: int, block: int, item: int, room: int) -> int:
    """How many blocks' dz fit in `room` bytes."""
    return max(min(MOST, room // (n * block * item)), 1)


def hot_gradients(
    rows: Rows,
    logit: Logit,
    upstream: Upstream,
    targets: Targets,
    hot: Listed,
    exact: torch.Tensor,
) -> None:
    """Write the hot blocks' share of dE and their rows of dC, unless the device finds `exact` 1."""
    width = len(hot.blocks) * logit.tilings.block
    dz = torch.empty((len(rows.e), width), dtype=rows.e.dtype, device=rows.e.device)
    ticket = torch.zeros((), dtype=torch.int32, device=dz.device)
    aux = targets.de if targets.de is not None else dz
    part = Slice(dz, aux, ticket, exact, listed=hot)
    dlogits(rows, logit, upstream, part, logit.tilings.hot_logits)
    gradients(rows, logit, targets, part, logit.tilings.hot_gradients)
