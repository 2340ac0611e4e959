"""What the trainer would run on, as a worker's supervisor asks for it."""

import os
import subprocess
import sys

import pytest
import torch

from service.contract.device import Device
from service.contract.errors import JobFailure
from worker.settings import WorkerSettings
from worker.training.device import facts, name, pick_device, usage


def test_the_program_tells_the_device_of_this_machine() -> None:
    command = WorkerSettings().device_command
    assert command[1:] == ["-m", "worker.training.device"]
    done = subprocess.run([*command, "auto"], capture_output=True, text=True, check=True)
    device = Device.model_validate_json(done.stdout)
    if device.kind == "cpu":
        assert device.name == "cpu"
        assert device.total_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert device.total_bytes > 2**28


def test_it_needs_no_model_library() -> None:
    program = "import sys, worker.training.device; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"transformers", "peft", "redis"} & {*done.stdout.split()}


def test_a_device_has_one_name_wherever_it_is_told() -> None:
    cpu = torch.device("cpu")
    assert name(cpu) == usage(cpu)["device"] == facts(cpu).name == "cpu"


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto") == torch.device("cpu")


def test_a_worker_for_gpus_does_not_train_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(JobFailure) as failure:
        pick_device("cuda")
    assert failure.value.code == "device_unavailable"


def test_a_gpu_is_taken_where_it_is_there_and_not_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(wanted).type for wanted in ("auto", "cuda", "cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]


def test_a_gpu_that_does_not_start_is_no_reason_to_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(JobFailure) as failure:
        pick_device("auto")
    assert failure.value.code == "device_unavailable"
