import pytest
import torch

from cce_core import IGNORE_INDEX, LossConfig, baselines
from cce_core.head import Head

B, T, D, V = 2, 37, 16, 101


@pytest.fixture
def case() -> tuple[torch.Tensor, Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    bias = torch.randn(V, generator=generator).requires_grad_()
    labels = torch.randint(V, (B, T), generator=generator)
    labels[0, 3:9] = IGNORE_INDEX
    return hidden, Head(weight, bias, scale=0.5, softcap=4.0), labels


# While it traces, torch.compile looks at the .grad of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("baseline", [baselines.chunked, baselines.compiled_full_logits])
def test_every_baseline_is_the_same_loss(case, baseline, monkeypatch) -> None:
    monkeypatch.setattr(baselines, "CHUNK_ROWS", 7)
    monkeypatch.setattr(
        baselines,
        "_compiled",
        lambda: torch.compile(baselines._rows_loss, backend="eager", dynamic=False),
    )
    hidden, head, labels = case
    leaves = [hidden, *head.parameters()]
    truth = baselines.full_logits(hidden, head, labels)
    ours = baseline(hidden, head, labels)
    torch.testing.assert_close(ours, truth)
    for found, expected in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(truth, leaves), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_full_logits_are_what_cut_cross_entropy_computes(case) -> None:
    hidden, head, labels = case
    ours = head.loss(hidden, labels, LossConfig(), shift=1, reduction="sum").loss
    torch.testing.assert_close(ours, baselines.full_logits(hidden, head, labels))


def test_only_what_is_trained_counts_as_a_parameter_of_the_head() -> None:
    weight = torch.zeros(3, 2)
    assert Head(weight).parameters() == []
    assert len(Head(weight.requires_grad_(), torch.zeros(3)).parameters()) == 1
