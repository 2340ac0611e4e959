"""Files first, then the records that name them; and neither for an attempt that lost its job."""

import hashlib
from pathlib import Path

import pytest

from service.contract.comparison import CSV_NAME, HTML_NAME, JSON_NAME
from service.contract.errors import JobFailure, LostClaim
from tests.worker.support import ORG, Deployment
from tests.worker.test_events import RECEIPT
from worker.events import CheckpointWritten, Compared, Result
from worker.publish import Publisher


def publisher(deployment: Deployment, job_id: str, keep: int = 2) -> Publisher:
    """The publisher of a new attempt."""
    lease = deployment.hold(job_id)
    record = deployment.store.get(job_id)
    return Publisher(
        deployment.store, deployment.storage, lease, record, base="base", keep_checkpoints=keep
    )


def checkpoint(
    deployment: Deployment, step: int, name: str = "model.safetensors"
) -> CheckpointWritten:
    """What a trainer has written at a step."""
    folder = deployment.folder / f"checkpoint-{step}"
    for path in (folder / "model" / name, folder / "state" / "training.pt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"step {step}")
    return CheckpointWritten(step=step, path=folder, metrics={"train_loss": 1.0 / step})


def result(deployment: Deployment) -> Result:
    """What a trainer has written at the end."""
    folder = deployment.folder / "result"
    model = folder / "model"
    (model / "nested").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "nested" / "config.json").write_bytes(b"{}")
    (folder / "metrics.csv").write_bytes(b"step\n1\n")
    (folder / "report.json").write_bytes(b'{"a": 1}')
    (folder / "outliers.csv").write_bytes(b"epoch\n1\n")
    return Result(
        model=model,
        model_kind="full",
        metrics_csv=folder / "metrics.csv",
        report=folder / "report.json",
        outliers_csv=folder / "outliers.csv",
        receipt=RECEIPT,
        trained_tokens=7,
    )


def read(deployment: Deployment, path: str) -> bytes:
    with deployment.storage.read(path) as stream:
        return stream.read()


def folders(deployment: Deployment, path: str) -> list[str]:
    return [child.rpartition("/")[2] for child in deployment.storage.children(path)]


# Checkpoints


def test_a_checkpoint_is_in_the_storage_and_a_model_by_name(stored: Deployment) -> None:
    job_id = stored.create(suffix="mine")
    publisher(stored, job_id).checkpoint(checkpoint(stored, 4))
    (found,) = stored.store.checkpoints(job_id)
    assert (found.step, found.path) == (4, f"checkpoints/{job_id}/1-4")
    assert read(stored, f"{found.path}/state/training.pt") == b"step 4"
    assert found.model == f"ft:base:{ORG}:mine:{job_id.removeprefix('ftjob-')}:ckpt-step-4"
    model = stored.models.get(ORG, found.model)
    assert (model.kind, model.base, model.step) == ("full", "base", 4)
    assert [(file.name, file.bytes) for file in model.files] == [("model.safetensors", 6)]
    assert read(stored, f"{model.path}/model.safetensors") == b"step 4"
    assert stored.messages(job_id)[-1].message == "Checkpoint created at step 4."


def test_a_checkpoint_with_an_adapter_is_one(stored: Deployment) -> None:
    job_id = stored.create()
    publisher(stored, job_id).checkpoint(checkpoint(stored, 4, "adapter_config.json"))
    (found,) = stored.store.checkpoints(job_id)
    assert stored.models.get(ORG, found.model).kind == "lora"


def test_the_oldest_checkpoints_go_with_their_files_and_models(stored: Deployment) -> None:
    job_id = stored.create()
    publish = publisher(stored, job_id, keep=2)
    for step in (2, 4, 6):
        publish.checkpoint(checkpoint(stored, step))
    assert [each.step for each in stored.store.checkpoints(job_id)] == [6, 4]
    assert folders(stored, f"checkpoints/{job_id}") == ["1-4", "1-6"]
    assert {model.step for model in stored.models.all(ORG)} == {4, 6}


def test_a_step_that_is_made_again_replaces_the_first(stored: Deployment) -> None:
    job_id = stored.create()
    publisher(stored, job_id).checkpoint(checkpoint(stored, 4))
    stored.lose(job_id)
    publisher(stored, job_id).checkpoint(checkpoint(stored, 4))
    (found,) = stored.store.checkpoints(job_id)
    assert found.path == f"checkpoints/{job_id}/2-4"
    assert folders(stored, f"checkpoints/{job_id}") == ["2-4"]
    assert stored.models.get(ORG, found.model).path == f"{found.path}/model"


def test_nothing_names_the_checkpoint_of_an_attempt_that_lost_its_job(stored: Deployment) -> None:
    job_id = stored.create()
    old = publisher(stored, job_id)
    stored.lose(job_id)
    with pytest.raises(LostClaim):
        old.checkpoint(checkpoint(stored, 4))
    assert stored.store.checkpoints(job_id) == []
    assert stored.models.all(ORG) == []


# Leftovers


def test_what_older_attempts_did_not_get_to_record_is_removed(stored: Deployment) -> None:
    job_id = stored.create()
    publisher(stored, job_id).checkpoint(checkpoint(stored, 4))
    stored.lose(job_id)
    named = [f"checkpoints/{job_id}/1-6", f"models/{job_id}/1", f"checkpoints/{job_id}/3-8"]
    for path in named:
        with stored.storage.write(f"{path}/model/weights") as stream:
            stream.write(b"half")
    publisher(stored, job_id).remove_leftovers()
    # what is recorded stays, and what an attempt wrote that is ahead of this one
    assert folders(stored, f"checkpoints/{job_id}") == ["1-4", "3-8"]
    assert folders(stored, f"models/{job_id}") == []


# Results


def test_a_result_is_there_when_the_job_has_succeeded(stored: Deployment) -> None:
    job_id = stored.create()
    publisher(stored, job_id).result(result(stored))
    record = stored.store.get(job_id)
    assert (record.status, record.trained_tokens) == ("succeeded", 7)
    model = stored.models.get(ORG, record.fine_tuned_model)
    assert model.id == f"ft:base:{ORG}::{job_id.removeprefix('ftjob-')}"
    assert [file.name for file in model.files] == ["model.safetensors", "nested/config.json"]
    for file in model.files:
        assert len(read(stored, f"{model.path}/{file.name}")) == file.bytes
    assert record.receipt == RECEIPT
    contents = {
        "step_metrics.csv": b"step\n1\n",
        "report.json": b'{"a": 1}',
        "loss_outliers.csv": b"epoch\n1\n",
    }
    files = [stored.files.get(ORG, file_id) for file_id in record.result_files]
    assert [file.filename for file in files] == list(contents)
    for file in files:
        content = read(stored, file.path)
        assert content == contents[file.filename]
        assert (file.bytes, file.purpose) == (len(content), "fine-tune-results")
        assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_a_comparison_ends_with_its_reports_and_no_model(stored: Deployment) -> None:
    job_id = stored.create()
    contents = {name: name.encode() for name in (JSON_NAME, CSV_NAME, HTML_NAME)}
    json_report, csv_table, html_report = (stored.folder / name for name in contents)
    for name, content in contents.items():
        (stored.folder / name).write_bytes(content)
    line = Compared(json_report=json_report, csv_table=csv_table, html_report=html_report)
    publisher(stored, job_id).comparison(line)
    record = stored.store.get(job_id)
    assert (record.status, record.fine_tuned_model) == ("succeeded", None)
    assert stored.models.all(ORG) == []
    files = [stored.files.get(ORG, file_id) for file_id in record.result_files]
    assert {file.filename: read(stored, file.path) for file in files} == contents


def test_nothing_names_the_result_of_an_attempt_that_lost_its_job(stored: Deployment) -> None:
    job_id = stored.create()
    old = publisher(stored, job_id)
    stored.lose(job_id)
    with pytest.raises(LostClaim):
        old.result(result(stored))
    record = stored.store.get(job_id)
    assert (record.status, record.fine_tuned_model, record.result_files) == ("queued", None, [])
    assert stored.models.all(ORG) == []
    uploaded = [record.spec.training_file]
    assert [
        file.id
        for file in stored.files.page(ORG, purpose=None, after=None, limit=10, ascending=True).items
    ] == uploaded


def test_a_model_of_a_tuned_model_carries_the_name_of_the_first(stored: Deployment) -> None:
    job_id = stored.create(model=f"ft:base:{ORG}:first:123")
    publisher(stored, job_id).result(result(stored))
    name = stored.store.get(job_id).fine_tuned_model
    assert name == f"ft:base:{ORG}::{job_id.removeprefix('ftjob-')}"


def test_a_storage_that_cannot_be_written_is_a_failure_to_be_tried_again(
    deployment: Deployment,
) -> None:
    job_id = deployment.create()
    Path(deployment.settings.storage_url, "checkpoints").write_text("in the way")
    with pytest.raises(JobFailure) as failure:
        publisher(deployment, job_id).checkpoint(checkpoint(deployment, 4))
    assert failure.value.code == "storage_unavailable"
    assert deployment.store.checkpoints(job_id) == []
