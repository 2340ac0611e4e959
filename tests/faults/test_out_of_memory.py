"""Running out of memory costs a job its micro-batch, not its result."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from service.contract.job import JobRecord, ReducedBatch
from tests.faults.conftest import EVERY, Curve, deploy, points, submit
from tests.support.tiny_llama import dataset, essays, make_tiny_llama
from tests.worker.support import Deployment

SMALL_DEVICE = str(Path(__file__).with_name("small_device.py"))


def small_device(*arguments: object) -> list[str]:
    return [sys.executable, SMALL_DEVICE, *map(str, arguments)]


def ended(deployment: Deployment, job_id: str) -> JobRecord:
    return deployment.reaches(job_id, "succeeded", "failed", timeout_s=120.0)


def test_the_job_goes_on_from_its_checkpoint_at_half_the_micro_batch_with_the_same_losses(
    tmp_path: Path, tiny_model: Path, texts: list[str], undisturbed: Curve
) -> None:
    steps = 2 * EVERY + EVERY // 2
    with deploy(tmp_path, tiny_model, small_device("rows", 2, steps)) as (deployment, _):
        deployment.worker("validate", "train", max_attempts=1)  # crashes would not be forgiven
        job_id = submit(deployment, texts, memory_ledger=True)
        record = ended(deployment, job_id)
        assert record.status == "succeeded", record.error
        curve = points(deployment, job_id)
        events = deployment.messages(job_id)
    (resumed,) = [now for (before, _), (now, _) in pairwise(curve) if now <= before]
    assert resumed == 2 * EVERY + 1
    assert dict(curve) == pytest.approx(undisturbed, rel=1e-4)
    assert record.reduced_batch == ReducedBatch(micro_batch_size=2, times=1)
    assert record.attempt == 1
    resolved = record.resolved
    assert (resolved.batch_size, resolved.micro_batch_size) == (4, 2)
    assert resolved.gradient_accumulation_steps == 2
    (event,) = [event for event in events if event.data.get("code") == "out_of_memory"]
    assert event.level == "warn"
    assert (event.data["micro_batch_size"], event.data["asked_bytes"]) == (4, 3 << 29)
    assert event.data["total_bytes"] > 0
    held = event.data["categories"]
    assert held["weights"] > 0
    assert held["optimizer"] == pytest.approx(2 * held["weights"], rel=0.01)
    # A baseline that did not fit was an entry of the ledger, and nothing more.
    ledgers = [event.data for event in events if event.message == "Memory ledger measured."]
    assert [ledger["micro_batch_size"] for ledger in ledgers] == [4, 2]
    before, after = (ledger["losses"][0]["loss_layer"] for ledger in ledgers)
    assert (before["provenance"], before["bytes"]) == ("out_of_memory", 6 << 30)
    assert after["provenance"] == "measured"


@pytest.mark.gpu
def test_a_real_cuda_out_of_memory_is_survived(tmp_path: Path) -> None:
    model = make_tiny_llama(
        tmp_path / "model",
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=2048,
    )
    rows = essays(48, length=1500)

    def run(folder: Path, *trainer: object) -> tuple[JobRecord, Curve, list]:
        folder.mkdir()
        with deploy(folder, model, small_device(*trainer)) as (deployment, _):
            deployment.worker("validate", "train")
            job_id = deployment.submit(
                model="tiny",
                training_file=deployment.upload(dataset(rows)),
                seed=7,
                hyperparameters={"n_epochs": 4, "batch_size": 16},
                options={
                    "micro_batch_size": 16,
                    "checkpoint_every": 3,
                    "learning_rate": 1e-4,
                    "gradient_checkpointing": False,
                    "memory_ledger": False,
                },
            )
            record = deployment.reaches(job_id, "succeeded", "failed", timeout_s=240.0)
            assert record.status == "succeeded", record.error
            curve = dict(points(deployment, job_id))
            return record, curve, deployment.messages(job_id)

    free, undisturbed, _ = run(tmp_path / "free", "bytes", 1 << 36)
    peak = free.progress.device_memory_peak_bytes
    cap = int(0.7 * peak)
    capped, curve, events = run(tmp_path / "capped", "bytes", cap)
    assert capped.reduced_batch == ReducedBatch(micro_batch_size=8, times=1)
    assert capped.resolved.gradient_accumulation_steps == 2
    assert curve == pytest.approx(undisturbed, rel=0.02)
    assert capped.progress.device_memory_peak_bytes < cap
    (event,) = [event for event in events if event.data.get("code") == "out_of_memory"]
    report = event.data
    assert 0 < report["asked_bytes"] < peak
    assert 0 < report["allocated_bytes"] <= report["reserved_bytes"] <= cap
    held = report["categories"]
    assert sum(held.values()) == report["allocated_bytes"]
    assert held["other"] > held["weights"]  # it is the activations that did not fit
