"""One rank of a group of two: computes the cases of the parallel loss, and saves them.

A program of its own, of which the tests start two: rank, file of the store, folder of the results,
cpu (over gloo) or cuda (a GPU each, over NCCL).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from cce_core import LossConfig, VocabularyShard, linear_cross_entropy
from tests.cce_core.problems import Case, make

SPLIT = (32, 13)  # of 45 rows
IMPLEMENTATIONS = ("reference", "blocked", "triton")
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


@dataclass
class Question:
    """A problem and the options it is posed with, the same for one process and for two."""

    case: Case
    options: dict[str, Any] = field(default_factory=dict)

    def ask(self, c: torch.Tensor, bias: torch.Tensor | None, config: LossConfig, **shard: Any):
        """A `LossOutput` of the head that is given."""
        options = {"return_stats": True, "entropy": True} | self.options
        e, targets = self.case.e.view(3, 7, -1), self.case.targets.view(3, 7)
        return linear_cross_entropy(e, c, targets, bias, **options, config=config, **shard)


def questions(device: str) -> dict[str, Question]:
    weights = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)).to(device)
    everything = {"softcap": 4.0, "logit_scale": 1.5, "label_smoothing": 0.2, "z_loss": 0.01}
    everything |= {"shift": 1, "weights": weights, "num_items": 50}

    def posed(*, ignored: float = 0.3, bias: bool = False, **options: Any) -> Question:
        case = make(21, sum(SPLIT), 16, torch.bfloat16, ignored=ignored, bias=bias)
        return Question(case.to(torch.device(device)), options)

    return {
        "plain": posed(),
        "bias": posed(bias=True),
        "no reduction": posed(reduction="none"),
        "everything": posed(bias=True, **everything),
        "no target counts": posed(ignored=1.1),
    }


def answer(
    question: Question, c, bias, config: LossConfig, **shard: Any
) -> dict[str, torch.Tensor]:
    """Loss, statistics and gradients; `c` and `bias` are leaves."""
    question.case.e = question.case.e.detach().requires_grad_()
    out = question.ask(c, bias, config, **shard)
    place = torch.arange(1, 1 + out.loss.numel(), device=out.loss.device)
    (out.loss * place.view(out.loss.shape)).sum().backward()
    grads = {"de": question.case.e.grad, "dc": c.grad, "dbias": None if bias is None else bias.grad}
    return {k: v.detach() for k, v in (vars(out) | grads).items() if v is not None}


def mine(tensor: torch.Tensor | None, rank: int) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().split(SPLIT)[rank].clone().requires_grad_()


def sharded(rank: int, device: str) -> dict[str, dict[str, torch.Tensor]]:
    """Every question, by every implementation, on two shards of different sizes."""
    shard = VocabularyShard.stacked(SPLIT[rank])
    return {
        f"{name}, {kind}": answer(
            q,
            mine(q.case.c, rank),
            mine(q.case.bias, rank),
            LossConfig(implementation=kind),
            vocab_shard=shard,
        )
        for name, q in questions(device).items()
        for kind in IMPLEMENTATIONS
    }


def transformed(rank: int, device: str) -> dict[str, dict[str, torch.Tensor]]:
    """Under torch.compile, whole, and under torch.func.grad."""
    shard = VocabularyShard.stacked(SPLIT[rank])
    config = LossConfig(implementation="blocked")

    def loss(e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(e, c, targets, softcap=4.0, vocab_shard=shard, config=config)

    case = questions(device)["plain"].case
    e, c, targets = case.e.requires_grad_(), mine(case.c, rank), case.targets
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(e, c)
    compiled.backward()
    de, dc = torch.func.grad(loss, argnums=(0, 1))(e.detach(), c.detach())
    return {
        "compile": {"loss": compiled.detach(), "de": e.grad, "dc": c.grad},
        "func": {"loss": loss(e, c).detach(), "de": de, "dc": dc},
    }


def placed(device: str) -> dict[str, dict[str, torch.Tensor]]:
    """The head as a DTensor."""
    mesh = init_device_mesh(device, (len(SPLIT),))
    found = {}
    for name, placement in {"shard": Shard(0), "replicate": Replicate()}.items():
        question = questions(device)["everything"]
        c, bias = (
            distribute_tensor(x.detach(), mesh, [placement]).requires_grad_()
            for x in (question.case.c, question.case.bias)
        )
        got = answer(question, c, bias, LossConfig(implementation="blocked"))
        for key in ("dc", "dbias"):
            assert isinstance(got[key], DTensor)
            assert got[key].placements == (placement,)
            got[key] = got[key].to_local()
        found[name] = got
    return found


def errors(rank: int) -> dict[str, str]:
    """What is said about calls that cannot be served."""
    mesh = init_device_mesh("cpu", (len(SPLIT),))
    question = questions("cpu")["bias"]
    whole, bias = question.case.c.detach(), question.case.bias.detach()
    rows = distribute_tensor(whole, mesh, [Shard(0)])
    total = len(whole)

    def ask(c: torch.Tensor, bias: torch.Tensor | None = None, **options: Any) -> Any:
        return Question(question.case, options).ask(c, bias, LossConfig())

    def with_a_label_too_large() -> Any:
        question.case.targets[-1] = total
        return ask(mine(whole, rank), vocab_shard=VocabularyShard.stacked(SPLIT[rank]))

    calls: dict[str, Callable[[], Any]] = {
        "columns": lambda: ask(distribute_tensor(whole, mesh, [Shard(1)])),
        "twice": lambda: ask(rows, vocab_shard=VocabularyShard.chunked(total)),
        "bias": lambda: ask(rows, distribute_tensor(bias, mesh, [Replicate()])),
        "weights": lambda: ask(rows, weights=distribute_tensor(torch.ones(3, 7), mesh, [Shard(0)])),
        "too long": lambda: ask(whole, vocab_shard=VocabularyShard(dist.group.WORLD, 1, total)),
        "label": with_a_label_too_large,
        "fewer rows than ranks": lambda: VocabularyShard.chunked(1),
        "a rank without rows": lambda: VocabularyShard.stacked(rank),
        "no such row": lambda: VocabularyShard(dist.group.WORLD, 5, 5),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    return found


def on_cpu(results: Any) -> Any:
    """The same results, readable where there is no such device."""
    if isinstance(results, dict):
        return {name: on_cpu(value) for name, value in results.items()}
    return results.cpu() if isinstance(results, torch.Tensor) else results


def main() -> None:
    rank, store, folder, device = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        BACKENDS[device], init_method=f"file://{store}", rank=rank, world_size=len(SPLIT)
    )
    chunk = VocabularyShard.chunked(5)
    results = {
        "sharded": sharded(rank, device),
        "transformed": transformed(rank, device),
        "placed": placed(device),
        "errors": errors(rank) if device == "cpu" else {},
        "chunked": (chunk.first, chunk.total),
    }
    torch.save(on_cpu(results), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
