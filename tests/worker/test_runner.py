import json
import shutil
from pathlib import Path

from service.contract.files import Files
from service.contract.models import ModelRecord
from service.contract.queue import TRAIN, VALIDATE
from tests.support.redis_server import RedisServer
from tests.worker.support import ORG, Deployment
from worker.runner import Runner


def read(deployment: Deployment, path: str) -> str:
    with deployment.storage.read(path) as stream:
        return stream.read().decode()


# Validation


def test_a_valid_file_queues_the_job_for_training(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["validated"], status="validating_files")
    runner.run(job_id, VALIDATE)
    assert deployment.status(job_id) == "queued"
    assert deployment.queue.waiting(TRAIN) == {job_id}
    last = deployment.messages(job_id)[-1]
    assert last.data == {"examples": 2, "tokens": 20, "supervised_tokens": 10, "longest": 12}
    assert deployment.store.get(job_id).data.model_dump() == last.data


def test_progress_that_was_told_stays_from_the_validation_on(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(["progress", 1, 9], ["validated"], status="validating_files")
    runner.run(job_id, VALIDATE)
    record = deployment.store.get(job_id)
    assert (record.status, record.progress.step) == ("queued", 1)


def test_a_faulty_file_fails_the_job_with_every_fault(
    deployment: Deployment, runner: Runner
) -> None:
    faults = {"faults": [{"line": 3, "path": None, "message": "too long"}], "fault_count": 1}
    script = ["failed", "invalid_training_file", "1 fault", faults]
    job_id = deployment.create(script, status="validating_files")
    runner.run(job_id, VALIDATE)
    record = deployment.store.get(job_id)
    assert record.status == "failed"
    assert record.error.model_dump() == {
        "code": "invalid_training_file",
        "message": "1 fault",
        "param": "training_file",
    }
    last = deployment.messages(job_id)[-1]
    assert (last.level, last.data["faults"]) == ("error", faults["faults"])
    assert deployment.queue.waiting(TRAIN) == set()


def test_a_validation_that_crashes_is_tried_again_and_then_fails(deployment: Deployment) -> None:
    runner, _ = deployment.supervisor(max_attempts=2)
    job_id = deployment.create(["exit", 3], status="validating_files")
    runner.run(job_id, VALIDATE)
    assert deployment.status(job_id) == "validating_files"
    assert not deployment.store.has_lease(job_id)
    assert deployment.queue.waiting(VALIDATE) == {job_id}
    runner.run(job_id, VALIDATE)
    assert deployment.store.get(job_id).error.code == "trainer_crashed"


def test_who_validates_takes_no_job_for_training(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["result"])
    runner.run(job_id, VALIDATE)
    record = deployment.store.get(job_id)
    assert (record.status, record.token) == ("queued", 0)


def test_the_trainer_gets_the_spec_of_the_job(deployment: Deployment, runner: Runner) -> None:
    validation = deployment.upload(format="chat")
    job_id = deployment.create(["say_spec"], ["result"], validation_file=validation)
    runner.run(job_id, TRAIN)
    spec = deployment.said(job_id, "spec")["spec"]
    assert spec["mode"] == "train"
    assert spec["job_id"] == job_id
    assert spec["model_source"] == str(deployment.folder / "models" / "base")
    assert Path(spec["training"]["path"]).read_text() == '{"text": "hello"}\n'
    assert spec["validation"]["format"] == "chat"
    assert spec["resume_from"] is None
    assert Path(spec["workdir"]).parent == deployment.folder / "work"


# Success


def test_a_result_is_published_with_the_success(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["result"], suffix="mine")
    runner.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert record.status == "succeeded"
    assert record.trained_tokens == 7
    assert record.fine_tuned_model == f"ft:base:{ORG}:mine:{job_id.removeprefix('ftjob-')}"
    model = deployment.models.get(ORG, record.fine_tuned_model)
    assert [file.name for file in model.files] == ["config.json", "model.safetensors"]
    assert read(deployment, f"{model.path}/model.safetensors") == "final weights"
    metrics, report, outliers = [deployment.files.get(ORG, id_) for id_ in record.result_files]
    assert (metrics.filename, metrics.purpose) == ("step_metrics.csv", "fine-tune-results")
    assert read(deployment, metrics.path) == "step,train_loss\n1,10.0\n"
    assert metrics.bytes == 23
    assert json.loads(read(deployment, report.path)) == {}
    assert outliers.filename == "loss_outliers.csv"
    assert read(deployment, outliers.path) == "epoch,line,loss,tokens\n"
    assert record.receipt.filtered[0].p99 == 0.2


def test_nothing_is_left_in_the_work_folder(deployment: Deployment, runner: Runner) -> None:
    for script in (["result"], ["failed", "training_diverged", "NaN", {}]):
        runner.run(deployment.create(script), TRAIN)
    assert list((deployment.folder / "work").iterdir()) == []


def test_metrics_and_progress_are_on_the_record(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["train", 3, 3, 0.0, 9], ["result"])
    runner.run(job_id, TRAIN)
    metrics = deployment.events.metrics(job_id, resolution=10)
    assert [event.data["train_loss"] for event in metrics] == [10.0, 5.0, 10.0 / 3]
    assert "valid_loss" not in metrics[0].data
    assert metrics[0].message == "Step 1/3: training loss=10.0000"
    progress = deployment.store.get(job_id).progress
    assert (progress.step, progress.total_steps) == (3, 3)


def test_progress_is_written_no_more_often_than_is_of_use(deployment: Deployment) -> None:
    runner, _ = deployment.supervisor(progress_interval_s=60.0)
    steps = [step for n in range(50) for step in (["progress", n, 50], ["sleep", 0.01])]
    job_id = deployment.create(*steps, ["result"])
    runner.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert record.progress.step == 49
    assert record.version < 10


# Checkpoints


def test_the_newest_checkpoints_are_kept(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["train", 10, 10, 0.0, 2], ["result"])
    runner.run(job_id, TRAIN)
    checkpoints = deployment.store.checkpoints(job_id)
    assert [checkpoint.step for checkpoint in checkpoints] == [10, 8, 6]
    listed = {model.id for model in deployment.models.all(ORG)}
    final = deployment.store.get(job_id).fine_tuned_model
    assert listed == {final, *(f"{final}:ckpt-step-{step}" for step in (6, 8, 10))}
    for checkpoint in checkpoints:
        model = deployment.models.get(ORG, checkpoint.model)
        assert model.step == checkpoint.step
        weights = read(deployment, f"{model.path}/model.safetensors")
        assert weights == f"weights of step {checkpoint.step}"
    folders = (deployment.folder / "storage" / "checkpoints" / job_id).iterdir()
    assert {folder.name for folder in folders} == {"1-6", "1-8", "1-10"}


def test_a_crash_resumes_from_the_last_checkpoint(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(
        ["train", 5, 8, 0.0, 2], ["kill_unless_resumed"], ["train", 8, 8, 0.0, 2], ["result"]
    )
    runner.run(job_id, TRAIN)
    assert deployment.status(job_id) == "queued"
    assert deployment.queue.waiting(TRAIN) == {job_id}
    assert "was killed by SIGKILL" in deployment.messages(job_id)[-1].message
    runner.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert (record.status, record.attempt) == ("succeeded", 2)
    steps = [event.data["step"] for event in deployment.events.metrics(job_id, resolution=100)]
    assert steps[:6] == [1, 2, 3, 4, 5, 5]  # the first step of the second attempt is 5
    # one checkpoint a step, although both attempts were at step 4 or beyond
    assert [c.step for c in deployment.store.checkpoints(job_id)] == [8, 6, 4]


def test_what_a_dead_attempt_did_not_get_to_record_is_removed(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(
        ["train", 2, 4, 0.0, 2], ["kill_unless_resumed"], ["train", 4, 4, 0.0, 2], ["result"]
    )
    runner.run(job_id, TRAIN)
    storage = deployment.folder / "storage"
    names = ("1-4", "1-3.0f.part", "3-4")  # the last is of an attempt that is ahead of ours
    for leftover in names:
        (storage / "checkpoints" / job_id / leftover / "model").mkdir(parents=True)
    runner.run(job_id, TRAIN)
    assert deployment.status(job_id) == "succeeded"
    left = (storage / "checkpoints" / job_id).iterdir()
    assert {folder.name for folder in left} == {"1-2", "2-4", "3-4"}


def test_an_object_storage_serves_data_checkpoints_and_results(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    deployment = Deployment(redis_server.url, tmp_path, storage_url=f"memory://{tmp_path.name}")
    runner, _ = deployment.supervisor()
    job_id = deployment.create(
        ["say_spec"], ["train", 2, 4, 0.0, 2], ["kill_unless_resumed"], ["train", 4, 4, 0.0, 2],
        ["result"],
    )  # fmt: skip
    runner.run(job_id, TRAIN)
    runner.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert (record.status, record.attempt) == ("succeeded", 2)
    model = deployment.models.get(ORG, record.fine_tuned_model)
    assert read(deployment, f"{model.path}/model.safetensors") == "final weights"
    specs = [e.data["spec"] for e in deployment.messages(job_id) if e.message == "spec"]
    assert specs[1]["training"]["path"].startswith(specs[1]["workdir"])
    assert specs[1]["resume_from"].startswith(specs[1]["workdir"])
    deployment.close()


# Failure


def test_a_job_that_always_crashes_fails_after_its_attempts(deployment: Deployment) -> None:
    runner, _ = deployment.supervisor(max_attempts=3)
    job_id = deployment.create(["say_log", "segfault in layer 3"], ["exit", 139])
    for attempt in (1, 2, 3):
        assert deployment.status(job_id) == "queued"
        runner.run(job_id, TRAIN)
        assert deployment.store.get(job_id).attempt == attempt
    record = deployment.store.get(job_id)
    assert record.status == "failed"
    assert record.error.code == "trainer_crashed"
    assert "exited with code 139" in record.error.message
    assert "segfault in layer 3" in record.error.message


def test_a_failure_that_the_trainer_reports_is_final(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(["failed", "loss_parity_failed", "off by 1e-2", {"rows": 8}])
    runner.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert (record.status, record.attempt) == ("failed", 1)
    assert record.error.code == "loss_parity_failed"
    assert record.finished_at is not None


def test_out_of_memory_goes_on_at_half_the_micro_batch(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(
        ["train", 2, 4, 0.0, 2], ["out_of_memory_above", 2], ["say_spec"], ["result"]
    )
    sizes = []
    for times in (1, 2):
        runner.run(job_id, TRAIN)
        record = deployment.store.get(job_id)
        assert (record.status, record.attempt) == ("queued", 0)  # a crash would have been counted
        assert record.reduced_batch.times == times
        assert deployment.queue.waiting(TRAIN) == {job_id}
        sizes.append(record.reduced_batch.micro_batch_size)
    assert sizes == [4, 2]
    event = deployment.messages(job_id)[-1]
    assert event.level == "warn"
    assert "micro-batch of 4" in event.message
    assert event.data["code"] == "out_of_memory"
    assert event.data["asked_bytes"] == 3 << 30
    runner.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert (record.status, record.attempt) == ("succeeded", 1)
    said = deployment.said(job_id, "spec")
    assert (said["spec"]["max_micro_batch_size"], said["start"]) == (2, 2)


def test_out_of_memory_ends_a_job_that_has_been_halved_three_times(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(["out_of_memory_above", 0], ["result"])
    for _ in range(3):
        runner.run(job_id, TRAIN)
        assert deployment.status(job_id) == "queued"
    runner.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert (record.status, record.error.code) == ("failed", "out_of_memory")
    assert record.error.message.endswith("was halved 3 times.")
    assert deployment.messages(job_id)[-1].data["micro_batch_size"] == 1


def test_the_trainer_gets_an_allocator_without_gaps(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["say_variable", "PYTORCH_ALLOC_CONF"], ["result"])
    runner.run(job_id, TRAIN)
    assert deployment.said(job_id, "variable")["value"] == "expandable_segments:True"


def test_a_line_that_nobody_understands_does_not_hang_the_job(deployment: Deployment) -> None:
    runner, _ = deployment.supervisor(max_attempts=1)
    job_id = deployment.create(["raw", "Traceback!\n"], ["sleep", 60])
    runner.run(job_id, TRAIN)
    assert deployment.store.get(job_id).error.code == "worker_lost"


def test_a_deleted_file_fails_the_job(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["result"])
    files = Files(deployment.redis)
    files.remove(files.get(ORG, deployment.store.get(job_id).spec.training_file))
    runner.run(job_id, TRAIN)
    error = deployment.store.get(job_id).error
    assert (error.code, error.param) == ("invalid_training_file", "training_file")


def test_a_model_that_is_gone_fails_the_job(deployment: Deployment, runner: Runner) -> None:
    job_id = deployment.create(["result"])
    shutil.rmtree(deployment.folder / "models" / "base")
    runner.run(job_id, TRAIN)
    error = deployment.store.get(job_id).error
    assert (error.code, error.param) == ("model_unavailable", "model")


def test_a_storage_that_cannot_be_written_is_tried_again_then_named(
    deployment: Deployment,
) -> None:
    runner, _ = deployment.supervisor(max_attempts=2)
    job_id = deployment.create(["result"])
    (deployment.folder / "storage" / "models").write_text("in the way")
    runner.run(job_id, TRAIN)
    assert deployment.status(job_id) == "queued"
    runner.run(job_id, TRAIN)
    assert deployment.store.get(job_id).error.code == "storage_unavailable"
    assert deployment.models.all(ORG) == []


def test_a_checkpoint_that_was_deleted_is_no_reason_to_start_anew(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(
        ["train", 4, 6, 0.0, 2], ["kill_unless_resumed"], ["say_spec"], ["result"]
    )
    runner.run(job_id, TRAIN)
    newest, _ = deployment.store.checkpoints(job_id)
    deployment.storage.delete(newest.path)
    runner.run(job_id, TRAIN)
    assert deployment.said(job_id, "spec")["start"] == 2


# Own models as the base


def test_a_job_can_tune_what_a_job_made(deployment: Deployment, runner: Runner) -> None:
    first = deployment.create(["result"])
    runner.run(first, TRAIN)
    made = deployment.store.get(first).fine_tuned_model
    second = deployment.create(["say_spec"], ["result"], model=made)
    runner.run(second, TRAIN)
    source = deployment.said(second, "spec")["spec"]["model_source"]
    assert (Path(source) / "model.safetensors").read_text() == "final weights"
    name = deployment.store.get(second).fine_tuned_model
    assert name == f"ft:base:{ORG}::{second.removeprefix('ftjob-')}"


def test_an_adapter_comes_with_the_model_under_it(deployment: Deployment, runner: Runner) -> None:
    adapter = ModelRecord(
        id="ft:base:x", org=ORG, created_at=1, base="base", job_id="j", kind="lora",
        path="models/adapter", files=[],
    )  # fmt: skip
    with deployment.storage.write("models/adapter/adapter_config.json") as file:
        file.write(b"{}")
    deployment.models.add(adapter)
    job_id = deployment.create(["say_spec"], ["result"], model=adapter.id)
    runner.run(job_id, TRAIN)
    spec = deployment.said(job_id, "spec")["spec"]
    assert spec["model_source"].endswith("storage/models/adapter")
    assert spec["base_model"] == str(deployment.folder / "models" / "base")


def test_a_model_of_another_organization_is_not_found(
    deployment: Deployment, runner: Runner
) -> None:
    theirs = ModelRecord(
        id="ft:base:y", org="org-other", created_at=1, base="base", job_id="j", kind="full",
        path="models/theirs", files=[],
    )  # fmt: skip
    deployment.models.add(theirs)
    job_id = deployment.create(["result"], model=theirs.id)
    runner.run(job_id, TRAIN)
    assert deployment.store.get(job_id).error.code == "model_unavailable"
