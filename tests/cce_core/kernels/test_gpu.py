"""At full size, on the device itself: memory, errors, no host synchronization, graph capture."""

import pytest
import torch

from cce_core import linear_cross_entropy
from cce_core.bench import data, measure, ours
from cce_core.config import LossConfig

pytestmark = pytest.mark.gpu

MIB = 2**20
SMALL = data.Shape("small", 50000, 1024, softcap=30.0)  # with 8192 rows, it filters


@pytest.fixture(scope="module")
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="module")
def gemma(device) -> tuple[data.Case, measure.Gradients]:
    case = data.make(data.SHAPES["gemma-2-2b"], "realistic", 8192, device)
    return case, measure.reference(case)


@pytest.mark.parametrize(
    ("preset", "scratch", "err_de", "err_dc"),
    [
        ("default", 160, 5e-3, 3.5e-3),
        (ours.FROZEN, 160, 5e-3, None),
        ("exact", 160, 3.2e-3, 2.6e-3),
    ],
)
def test_gemma_stays_within_its_memory_and_error(gemma, preset, scratch, err_de, err_dc) -> None:
    case, truth = gemma
    chosen = next(i for i in ours.implementations(case) if i.preset == preset)
    row = measure.measure(case, chosen, truth, repeats=1)
    assert row["fw_peak_mib"] <= 1
    assert row["scratch_mib"] <= scratch
    assert row["err_de"] <= err_de
    assert row["err_dc"] is None if err_dc is None else row["err_dc"] <= err_dc
    assert row["dloss"] <= 1e-3


def by_the_kernels(case: data.Case, preset: str):
    """The loss and both gradients, straight from the implementation."""
    return next(i for i in ours.implementations(case) if i.preset == preset).both


def by_the_public_function(case: data.Case, preset: str):
    """The same through the operators and autograd."""
    e, c = (x.detach().requires_grad_() for x in (case.e, case.c))
    options = {"softcap": case.shape.softcap, "config": LossConfig(preset=preset)}

    def both() -> tuple[torch.Tensor, ...]:
        loss = linear_cross_entropy(e, c, case.targets, **options)
        return loss.detach(), *torch.autograd.grad(loss, (e, c))

    return both


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", ["realistic", "flat"])
@pytest.mark.parametrize("preset", ["default", "exact"])
@pytest.mark.parametrize("way", [by_the_kernels, by_the_public_function])
def test_no_synchronization_and_a_graph_gives_the_same(device, way, preset, kind) -> None:
    both = way(data.make(SMALL, kind, 8192, device), preset)
    torch.cuda.synchronize()  # the other stream does not wait for the data
    with torch.cuda.stream(torch.cuda.Stream()):  # as a capture has it
        eager = both()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            both()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    graph.replay()
    torch.cuda.synchronize()
    for got, expected in zip(captured, eager, strict=True):
        assert measure.relative_error(got.reshape(-1, 1), expected.float().reshape(-1, 1)) < 1e-3


def test_deterministic_gives_the_same_bits(device) -> None:
    case = data.make(SMALL, "realistic", 2048, device)
    chosen = ours.implementation(case, "", LossConfig(deterministic=True), head=True)
    first = chosen.both()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, chosen.both(), strict=True))


@pytest.mark.parametrize("kind", data.KINDS)
def test_every_kind_of_data_keeps_the_error_bar(device, kind) -> None:
    case = data.make(SMALL, kind, 8192, device)
    truth = measure.reference(case)
    _, de, dc = ours.implementations(case)[0].both()
    assert measure.relative_error(de, truth.e) < 8e-3
    assert measure.relative_error(dc, truth.c) < 8e-3
