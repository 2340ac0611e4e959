"""A model folder that the worker may not read, as when a container runs under a user of its own."""

from service.contract.queue import VALIDATE
from tests.worker.support import Deployment


def test_a_link_that_leads_nowhere_is_named_before_any_trainer_starts(
    deployment: Deployment,
) -> None:
    weights = deployment.folder / "models" / "base" / "model.safetensors"
    weights.symlink_to("../../blobs/0a1b2c")
    runner, _ = deployment.supervisor()
    job_id = deployment.create(["validated"], status="validating_files")
    runner.run(job_id, VALIDATE)
    record = deployment.store.get(job_id)
    assert record.status == "failed"
    assert (record.error.code, record.error.param) == ("model_unavailable", "model")
    assert str(weights) in record.error.message
