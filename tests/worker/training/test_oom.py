import os
from pathlib import Path

import pytest
import torch
from torch import nn

from service.contract.memory import OutOfMemoryReport
from service.contract.spec import LoraAdapter
from tests.worker.training.support import chats, make_spec, train
from worker.training.oom import OutOfMemory, besides_training


def test_a_model_that_does_not_fit_is_a_failure_that_no_smaller_batch_averts() -> None:
    with pytest.raises(OutOfMemory) as caught, besides_training():
        torch.zeros(2**50)
    failure = caught.value
    assert failure.code == "out_of_memory"
    report = OutOfMemoryReport.model_validate(failure.data)
    assert report.asked_bytes == 2**52
    assert report.micro_batch_size is None
    if not torch.cuda.is_available():
        assert report.total_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert "What helps" in failure.message


@pytest.mark.parametrize(
    ("options", "helps"),
    [
        ({}, "a lower max_seq_length than 128, gradient_checkpointing, a LoRA adapter"),
        ({"adapter": LoraAdapter(), "gradient_checkpointing": True}, "max_seq_length than 128"),
    ],
)
# transformers renames them in 5.24; peft still calls one.
@pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")
def test_what_does_not_fit_while_training_is_told_with_what_helps(
    tmp_path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    helps: str,
) -> None:
    refuse_in_training(monkeypatch)
    spec = make_spec(tmp_path, tiny, chats(2), hyperparameters={"batch_size": 1}, **options)
    with pytest.raises(OutOfMemory) as caught:
        train(spec)
    failure = caught.value
    assert "at a micro-batch of 1: 1.5 GiB were asked for," in failure.message
    assert failure.message.endswith(f"{helps}, or a larger device.")
    report = OutOfMemoryReport.model_validate(failure.data)
    assert (report.micro_batch_size, report.asked_bytes) == (1, 3 << 29)
    assert report.categories is not None
    assert report.categories.weights > 100_000
    # Nothing was stepped yet: there are no moments, and fp32 weights are their own masters.
    assert (report.categories.optimizer, report.categories.gradients) == (0, 0)


def refuse_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator refuses in the middle of the first pass that needs gradients."""
    whole = nn.Linear.forward

    def forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU ...")
        return whole(module, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), besides_training():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
