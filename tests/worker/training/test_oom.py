import os

import pytest
import torch

from service.contract.memory import OutOfMemoryReport
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


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), besides_training():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
