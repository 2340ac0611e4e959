"""What records become on the wire."""

import time
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob
from pydantic import BaseModel

from service.contract.job import (
    Checkpoint,
    JobError,
    JobRecord,
    JobStatus,
    Progress,
    StoredEvent,
)
from service.contract.spec import Hyperparameters, TrainingOptions
from service.schemas import Job, JobCheckpoint, Listing, MetricPoint
from tests.service.contract.support import record
from tests.support.measured import LEDGER, RECEIPT, RESOLVED

FULL: dict[str, Any] = {
    "token": 5,
    "attempt": 2,
    "worker": "gpu-node-1",
    "started_at": 2,
    "finished_at": 3,
    "error": JobError(code="out_of_memory", message="It asked for 9 GB."),
    "resolved": RESOLVED,
    "progress": Progress(phase="training", step=1, total_steps=4, eta_s=60.0),
    "memory": LEDGER,
    "receipt": RECEIPT,
    "trained_tokens": 7,
    "fine_tuned_model": "ft:tiny:org::1",
    "result_files": ["file-1"],
}


def _record(**fields: Any) -> JobRecord:
    return record(metadata={"team": "a"}, suffix="mine").model_copy(update=fields)


def test_all_that_a_record_tells_is_told_by_the_same_name() -> None:
    full = _record(**FULL)
    job = Job.of(full, None)
    for name in FULL.keys() - {"token"}:
        assert getattr(job, name) == FULL[name], name
    assert (job.id, job.organization_id, job.created_at) == (full.id, full.org, full.created_at)
    assert (job.metadata, job.suffix, job.seed) == ({"team": "a"}, "mine", 1)


@pytest.mark.parametrize("fields", [{}, FULL])
@pytest.mark.parametrize("status", JobStatus)
def test_the_client_reads_every_job_without_a_fault(
    status: JobStatus, fields: dict[str, Any]
) -> None:
    body = Job.of(_record(status=status, **fields), 1).model_dump(mode="json")
    job = FineTuningJob.model_validate(body)
    assert job.status == status
    assert job.model_dump(mode="json", warnings="error").items() >= {"seed": 1}.items()


def test_a_place_in_the_queue_is_that_of_a_queued_job() -> None:
    places = {status: Job.of(_record(status=status), 3).queue_position for status in JobStatus}
    assert places == dict.fromkeys(JobStatus) | {JobStatus.QUEUED: 3}


def test_the_end_is_estimated_while_the_job_runs() -> None:
    running = Job.of(_record(status=JobStatus.RUNNING, **FULL), None)
    assert running.estimated_finish is not None
    assert 50 < running.estimated_finish - time.time() < 70
    assert Job.of(_record(status=JobStatus.QUEUED, **FULL), None).estimated_finish is None
    assert Job.of(_record(status=JobStatus.RUNNING), None).estimated_finish is None


def test_what_was_auto_is_echoed_as_resolved_and_the_rest_as_asked() -> None:
    asked = Job.of(_record(), None)
    assert asked.hyperparameters == Hyperparameters()
    assert {name: getattr(asked, name) for name in TrainingOptions.model_fields} == dict(
        TrainingOptions()
    )
    job = Job.of(_record(resolved=RESOLVED), None)
    assert job.hyperparameters.batch_size == 8
    assert job.method.supervised.hyperparameters == job.hyperparameters
    assert (job.learning_rate, job.checkpoint_every, job.dtype) == (2e-4, 24, "float32")
    assert (job.loss.implementation, job.loss.preset) == ("blocked", "default")
    assert (job.warmup_ratio, job.adapter) == (0.03, None)


class _Item(BaseModel):
    id: str


def test_a_page_names_its_first_and_its_last() -> None:
    page = Listing[_Item].of([_Item(id="a"), _Item(id="b"), _Item(id="c")], has_more=True)
    assert (page.first_id, page.last_id, page.has_more) == ("a", "c", True)
    empty = Listing[_Item].of([])
    assert (empty.first_id, empty.last_id, empty.has_more) == (None, None, False)


def test_a_point_of_the_curve_leaves_out_what_is_none() -> None:
    data = {"step": 3, "train_loss": 1.5, "grad_norm": 0.1}
    event = StoredEvent(id="ftevent-1-0", created_at=9, message="", type="metrics", data=data)
    point = MetricPoint.of(event)
    assert (point.id, point.created_at, point.step, point.train_loss) == ("ftevent-1-0", 9, 3, 1.5)
    assert not hasattr(point, "grad_norm")


def test_a_checkpoint_tells_its_step_among_its_metrics_too() -> None:
    made = Checkpoint(
        id="ftckpt_1", created_at=1, step=4, path="secret", model="ft:m", metrics={"valid_loss": 2}
    )
    told = JobCheckpoint.of("ftjob-1", made)
    assert told.metrics == {"step": 4, "valid_loss": 2}
    assert "secret" not in told.model_dump_json()
