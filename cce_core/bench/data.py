"""Benchmark data with a trained model's logits: a Zipf prior, a few dozen candidates a row.

    C[v] = s g[v] + prior[v] u        g[v] standard normal, u a unit vector
    E[i] = u + sum_k boost[k] g[v_k] / (s D)

so z[i, v] is the row's log prior, plus a boost for each candidate v_k (drawn from a flattened
prior), plus noise from the overlaps. Labels are drawn from softmax(z) itself. Random weights would
give a flat softmax, under which any filter looks free while its gradient is wrong.
N rows, V vocabulary, D width.
"""

from dataclasses import dataclass

import torch

KINDS = ("realistic", "shuffled", "flat")
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Shape:
    """A model's loss layer."""

    name: str
    v: int
    d: int
    softcap: float | None = None


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("gemma-2-2b", 256000, 2304, 30.0),
        Shape("llama-3-8b", 128256, 4096),
        Shape("qwen-2.5-7b", 152064, 3584),
        Shape("mistral-nemo", 131072, 5120),
        Shape("phi-3.5", 32064, 3072),
    )
}


@dataclass(frozen=True)
class Case:
    """One problem: tensors and where they come from."""

    shape: Shape
    kind: str
    e: torch.Tensor  # (N, D) bf16
    c: torch.Tensor  # (V, D) bf16
    targets: torch.Tensor  # (N,) int64, IGNORE_INDEX where ignored
    statistics: dict[str, float]


def logits(e: torch.Tensor, c: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """fp32 logits of a few rows: (rows, V)."""
    z = (e @ c.T).float()
    return softcap * torch.tanh(z / softcap) if softcap is not None else z


def make(
    shape: Shape,
    kind: str,
    n: int,
    device: torch.device,
    *,
    seed: int = 0,
    ignored: float = 0.05,
) -> Case:
    """Make a case of `n` rows; `ignored` is the share of rows without a label."""
    if kind not in KINDS:
        msg = f"kind must be one of {KINDS}, got {kind!r}"
        raise ValueError(msg)
    random = torch.Generator(device=device).manual_seed(seed)
    if kind == "flat":
        e, c = _flat(shape, n, device, random)
    else:
        e, c = _realistic(shape, n, device, random)
    if kind == "shuffled":
        c = c[torch.randperm(shape.v, generator=random, device=device)].contiguous()
    targets = _labels(e, c, shape.softcap, random)
    found = statistics(e, c, shape.softcap)
    lost = torch.rand(n, generator=random, device=device) < ignored
    return Case(shape, kind, e, c, targets.masked_fill(lost, IGNORE_INDEX), found)


def _flat(
    shape: Shape, n: int, device: torch.device, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    e = torch.randn(n, shape.d, generator=random, device=device)
    c = torch.randn(shape.v, shape.d, generator=random, device=device)
    return e.bfloat16(), c.mul_(0.02).bfloat16()


def _realistic(
    shape: Shape, n: int, device: torch.device, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    candidates, strongest, decay, size = 200, 12.0, 0.45, 1.0
    v, d = shape.v, shape.d
    rank = torch.arange(v, device=device, dtype=torch.float32)
    prior = -1.05 * torch.log(rank + 3.0)
    prior -= prior.mean()
    c = torch.randn(v, d, generator=random, device=device).mul_(size / d**0.5)
    u = torch.zeros(d, device=device)
    u[0] = 1.0
    c[:, 0] = prior / 4.0
    c = c.bfloat16()
    spread = torch.softmax(0.75 * prior, 0)
    e = torch.zeros(n, d, device=device)
    steps = torch.arange(candidates, device=device, dtype=torch.float32)
    for first in range(0, n, 256):
        rows = min(256, n - first)
        picked = torch.multinomial(spread.expand(rows, v), candidates, generator=random)
        jitter = torch.rand(rows, candidates, generator=random, device=device)
        boost = strongest - decay * strongest * ((steps + 4 * jitter) / candidates) ** 0.5
        boost -= 0.5 * prior[picked]
        chosen = c[picked].float()
        chosen[..., 0] = 0.0
        e[first : first + rows] = torch.einsum("nk,nkd->nd", boost, chosen) / size**2
    e[:, 0] = 4.0
    return e.bfloat16(), c


def _labels(
    e: torch.Tensor, c: torch.Tensor, softcap: float | None, random: torch.Generator
) -> torch.Tensor:
    parts = []
    for rows in torch.split(e, 256):
        p = torch.softmax(logits(rows, c, softcap), 1)
        parts.append(torch.multinomial(p, 1, generator=random)[:, 0])
    return torch.cat(parts)


def statistics(
    e: torch.Tensor, c: torch.Tensor, softcap: float | None, rows: int = 1024
) -> dict[str, float]:
    """How sparse the softmax is, over the first rows."""
    entries, mass, tiles, alive, entropy = 0.0, 0.0, 0, 0.0, 0.0
    taken = e[:rows]
    for part in torch.split(taken, 128):
        p = torch.softmax(logits(part, c, softcap), 1)
        over = p > 2.0**-12
        entries += over.sum().item()
        mass += (p * over).sum().item()
        entropy -= (p * p.clamp(min=1e-30).log()).sum().item()
        columns = torch.nn.functional.pad(over.any(0), (0, -over.shape[1] % 128)).view(-1, 128)
        alive += columns.any(1).sum().item()
        tiles += columns.shape[0]
    n = taken.shape[0]
    return {
        "entries_over_2^-12": entries / n,
        "mass_over_2^-12": mass / n,
        "tiles_alive": alive / tiles,
        "entropy": entropy / n,
    }
