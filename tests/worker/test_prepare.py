"""From a record to a run spec: the model, the files and the checkpoint that a trainer starts on."""

from pathlib import Path
from typing import Any

import pytest

from service.contract.errors import JobFailure
from service.contract.estimate.record import MicroBatch
from service.contract.job import Checkpoint, new_id
from service.contract.models import ModelRecord
from tests.worker.support import ORG, Deployment
from tests.worker.test_events import LEDGER
from worker.events import Mode, RunSpec
from worker.prepare import ModelSource, Preparation


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    folder = tmp_path / "attempt"
    folder.mkdir()
    return folder


def prepare(
    deployment: Deployment, workdir: Path, job_id: str, mode: Mode = "train"
) -> tuple[ModelSource, RunSpec]:
    """What an attempt at a job prepares."""
    preparation: Preparation = deployment.supervisor()[0].preparation
    lease = deployment.hold(job_id)
    record = deployment.store.get(job_id)
    model = preparation.model(record, workdir, lease)
    return model, preparation.run_spec(record, mode, model, workdir, lease)


def failure(deployment: Deployment, workdir: Path, job_id: str) -> JobFailure:
    with pytest.raises(JobFailure) as failed:
        prepare(deployment, workdir, job_id)
    return failed.value


def put(deployment: Deployment, path: str, content: str = "x") -> None:
    with deployment.storage.write(path) as stream:
        stream.write(content.encode())


def tuned(deployment: Deployment, name: str, **fields: Any) -> str:
    """The id of a model that a job made."""
    model = ModelRecord(
        **{
            "id": f"ft:base:{ORG}::{name}",
            "org": ORG,
            "created_at": 1,
            "base": "base",
            "job_id": "ftjob-made-it",
            "kind": "full",
            "path": f"models/{name}",
            "files": [],
            **fields,
        }
    )
    put(deployment, f"{model.path}/config.json", name)
    deployment.models.add(model)
    return model.id


def checkpoints(deployment: Deployment, job_id: str, *steps: int) -> None:
    """Checkpoints that an earlier attempt has published."""
    lease = deployment.hold(job_id)
    for step in steps:
        path = f"checkpoints/{job_id}/1-{step}"
        put(deployment, f"{path}/state/step.json", str(step))
        checkpoint = Checkpoint(
            id=new_id("ftckpt_"), created_at=1, step=step, path=path, model="m", metrics={}
        )
        model = ModelRecord(
            id="m",
            org=ORG,
            created_at=1,
            base="base",
            job_id=job_id,
            kind="full",
            path=path,
            files=[],
        )
        deployment.store.add_checkpoint(lease.claim, checkpoint, model, keep=9)
    deployment.lose(job_id)


# The whole


def test_files_are_on_the_local_disk_as_they_were_uploaded(
    stored: Deployment, workdir: Path
) -> None:
    validation = stored.upload(b'{"messages": []}\n', format="chat", sha256="1" * 64)
    job_id = stored.create(
        training_file=stored.upload(b'{"text": "a"}\n'), validation_file=validation
    )
    _, spec = prepare(stored, workdir, job_id)
    assert spec.training.path.read_bytes() == b'{"text": "a"}\n'
    assert (spec.training.format, spec.training.sha256) == ("text", "0" * 64)
    assert spec.validation is not None
    assert spec.validation.path.read_bytes() == b'{"messages": []}\n'
    assert (spec.validation.format, spec.validation.sha256) == ("chat", "1" * 64)


def test_the_spec_is_the_jobs(stored: Deployment, workdir: Path) -> None:
    job_id = stored.create()
    _, spec = prepare(stored, workdir, job_id, "validate")
    assert (spec.mode, spec.job_id, spec.workdir) == ("validate", job_id, workdir)
    assert spec.job == stored.store.get(job_id).spec
    assert (spec.validation, spec.base_model, spec.resume_from) == (None, None, None)


def test_what_an_earlier_attempt_settled_is_passed_on(stored: Deployment, workdir: Path) -> None:
    job_id = stored.create()
    spec = prepare(stored, workdir, job_id)[1]
    assert (spec.settled, spec.ledger) == (None, None)
    choice = MicroBatch(
        size=6, chosen_by="probe", full_logits=2, provenance="measured", multiple=3.0, device="H200"
    )
    stored.lose(job_id)
    stored.store.update(stored.hold(job_id).claim, None, micro_batch=choice, memory=LEDGER)
    stored.lose(job_id)
    spec = prepare(stored, workdir, job_id)[1]
    assert (spec.settled, spec.ledger) == (choice, LEDGER)


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_the_device_is_the_workers(stored: Deployment, workdir: Path, device: str) -> None:
    stored.settings = stored.settings.model_copy(update={"device": device})
    _, spec = prepare(stored, workdir, stored.create())
    assert spec.device == device


# Models


def test_a_base_model_is_the_folder_of_the_allow_list(stored: Deployment, workdir: Path) -> None:
    model, spec = prepare(stored, workdir, stored.create())
    folder = str(stored.folder / "models" / "base")
    assert model == ModelSource(load=folder, under=None, base="base")
    assert spec.model_source == folder


def test_weights_that_cannot_be_read_are_named(stored: Deployment, workdir: Path) -> None:
    """A link that leads nowhere stands for another user's file, which root could read."""
    weights = stored.folder / "models" / "base" / "model.safetensors"
    weights.symlink_to("../../blobs/0a1b2c")
    under_an_adapter = tuned(stored, "on-base", kind="lora")
    for name in ("base", under_an_adapter):
        error = failure(stored, workdir, stored.create(model=name))
        assert (error.code, error.param) == ("model_unavailable", "model")
        assert str(weights) in error.message


@pytest.mark.parametrize("name", ["../base", "/etc", "base/../base", "elsewhere", "org/base"])
def test_nothing_else_is_a_base_model(stored: Deployment, workdir: Path, name: str) -> None:
    error = failure(stored, workdir, stored.create(model=name))
    assert (error.code, error.param) == ("model_unavailable", "model")


def test_a_hub_id_is_loaded_where_a_pattern_allows_it(
    deployment: Deployment, workdir: Path
) -> None:
    deployment.settings = deployment.settings.model_copy(update={"hub_models": ["org/*"]})
    model, _ = prepare(deployment, workdir, deployment.create(model="org/model"))
    assert model == ModelSource(load="org/model", under=None, base="org/model")
    error = failure(deployment, workdir, deployment.create(model="other/model"))
    assert error.code == "model_unavailable"


def test_a_tuned_model_is_its_folder(stored: Deployment, workdir: Path) -> None:
    name = tuned(stored, "full")
    model, _ = prepare(stored, workdir, stored.create(model=name))
    assert (Path(model.load) / "config.json").read_text() == "full"
    assert (model.under, model.base) == (None, name)


def test_an_adapter_comes_with_what_is_under_it(stored: Deployment, workdir: Path) -> None:
    on_base = tuned(stored, "on-base", kind="lora")
    model, spec = prepare(stored, workdir, stored.create(model=on_base))
    assert (Path(spec.model_source) / "config.json").read_text() == "on-base"
    assert spec.base_model == model.under == str(stored.folder / "models" / "base")
    assert model.base == "base"
    on_tuned = tuned(stored, "on-tuned", kind="lora", base=tuned(stored, "full"))
    model, spec = prepare(stored, workdir, stored.create(model=on_tuned))
    assert (Path(spec.base_model) / "config.json").read_text() == "full"
    assert model.base == f"ft:base:{ORG}::full"


@pytest.mark.parametrize(
    "fields",
    [{"org": "org-other"}, {"kind": "lora", "base": "gone"}, {"path": "models/full/none"}],
    ids=["another's", "base gone", "files gone"],
)
def test_a_tuned_model_that_cannot_be_had(
    stored: Deployment, workdir: Path, fields: dict[str, Any]
) -> None:
    name = tuned(stored, "full", **fields)
    if "path" in fields:
        stored.storage.delete("models/full")
    error = failure(stored, workdir, stored.create(model=name))
    assert (error.code, error.param) == ("model_unavailable", "model")


# Files


@pytest.mark.parametrize("which", ["training", "validation"])
@pytest.mark.parametrize("lost", ["record", "content", "format"])
def test_a_file_that_cannot_be_trained_on_is_named(
    stored: Deployment, workdir: Path, which: str, lost: str
) -> None:
    file = stored.files.get(ORG, stored.upload(**({"format": None} if lost == "format" else {})))
    job_id = stored.create(**{f"{which}_file": file.id})
    if lost == "record":
        stored.files.remove(file)
    elif lost == "content":
        stored.storage.delete(file.path)
    error = failure(stored, workdir, job_id)
    assert (error.code, error.param) == (f"invalid_{which}_file", f"{which}_file")
    assert file.id in error.message


def test_a_file_of_another_organization_is_not_found(stored: Deployment, workdir: Path) -> None:
    file_id = stored.upload(org="org-other")
    error = failure(stored, workdir, stored.create(training_file=file_id))
    assert error.code == "invalid_training_file"


def test_a_storage_that_is_away_is_to_be_tried_again(deployment: Deployment, workdir: Path) -> None:
    job_id = deployment.create()
    storage = Path(deployment.settings.storage_url)
    storage.rename(storage.with_name("elsewhere"))
    assert failure(deployment, workdir, job_id).code == "storage_unavailable"


# Checkpoints


def resumed_step(spec: RunSpec) -> int:
    assert spec.resume_from is not None
    return int((spec.resume_from / "state" / "step.json").read_text())


def test_training_goes_on_from_the_newest_checkpoint(stored: Deployment, workdir: Path) -> None:
    job_id = stored.create()
    checkpoints(stored, job_id, 2, 4, 6)
    _, spec = prepare(stored, workdir, job_id)
    assert resumed_step(spec) == 6


def test_a_checkpoint_that_is_gone_is_passed_over(stored: Deployment, workdir: Path) -> None:
    job_id = stored.create()
    checkpoints(stored, job_id, 2, 4, 6)
    stored.storage.delete(f"checkpoints/{job_id}/1-6")
    _, spec = prepare(stored, workdir, job_id)
    assert resumed_step(spec) == 4
    for step in (2, 4):
        stored.storage.delete(f"checkpoints/{job_id}/1-{step}")
    stored.lose(job_id)
    _, spec = prepare(stored, workdir, job_id)
    assert spec.resume_from is None


def test_a_folder_that_no_record_names_is_no_checkpoint(stored: Deployment, workdir: Path) -> None:
    job_id = stored.create()
    checkpoints(stored, job_id, 2)
    put(stored, f"checkpoints/{job_id}/1-4/state/step.json", "4")
    _, spec = prepare(stored, workdir, job_id)
    assert resumed_step(spec) == 2


def test_a_validation_needs_no_checkpoint(stored: Deployment, workdir: Path) -> None:
    job_id = stored.create()
    checkpoints(stored, job_id, 2)
    _, spec = prepare(stored, workdir, job_id, "validate")
    assert spec.resume_from is None
