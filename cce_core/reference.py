"""The definition of the row statistics: full logits, ordinary torch, gradients by autograd.

    z = cap(scale * (E C^T + bias))          (n, V), in fp32 (fp64 for fp64 inputs)
    lse = logsumexp(z)    label_logit = z[y]    row_max = max(z)    mean_logit = mean(z)
    entropy = lse - sum_v softmax(z) z

It holds N x V numbers, several times over, and serves every dtype, every device, higher derivatives
and function transforms. N rows, V vocabulary, D width.
"""

import torch

from cce_core.problem import Head, Problem, RowStats


def logits(e: torch.Tensor, c: torch.Tensor, bias: torch.Tensor | None, head: Head) -> torch.Tensor:
    """Return z, (N, V), in the dtype of e (N, D) and c (V, D); `bias` is (V,) or None."""
    z = e @ c.T
    if bias is not None:
        z = z + bias.to(z.dtype)
    z = z * head.scale if head.scale != 1.0 else z
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z


def row_statistics(problem: Problem) -> RowStats:
    """Return the differentiable statistics of every row of `problem`."""
    kind, counted = problem.accumulator, problem.targets >= 0

    def where_counted(values: torch.Tensor) -> torch.Tensor:
        return torch.where(counted, values, 0)

    e = torch.where(counted[:, None], problem.e, 0).to(kind)  # whatever it holds where not counted
    z = logits(e, problem.c.to(kind), problem.bias, problem.head)
    lse = torch.logsumexp(z, 1)
    label = z.gather(1, problem.targets.clamp(min=0)[:, None])[:, 0]
    entropy = _entropy(z.detach(), lse.detach()) if problem.wanted.entropy else None
    return RowStats(
        lse=where_counted(lse),
        label_logit=where_counted(label),
        row_max=where_counted(z.detach().amax(1)),
        mean_logit=where_counted(z.mean(1)) if problem.wanted.mean else None,
        entropy=None if entropy is None else where_counted(entropy),
    )


def _entropy(z: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    p = torch.exp(z - lse[:, None])
    return lse - torch.where(p > 0, p * z, 0).sum(1)
