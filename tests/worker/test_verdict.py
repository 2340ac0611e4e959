import pytest

from service.contract.errors import JobFailure
from service.contract.job import JobError, JobRecord, ReducedBatch
from service.contract.memory import OutOfMemoryReport
from service.contract.spec import JobSpec
from worker.verdict import MAX_HALVINGS, Retry, judge


def record(reduced: ReducedBatch | None = None) -> JobRecord:
    spec = JobSpec(model="base", training_file="file-1", seed=1)
    return JobRecord(
        id="ftjob-1", org="org", created_at=1, spec=spec, attempt=2, reduced_batch=reduced
    )


def out_of_memory(micro_batch_size: int | None) -> JobFailure:
    report = OutOfMemoryReport(
        device="small",
        micro_batch_size=micro_batch_size,
        asked_bytes=None,
        allocated_bytes=None,
        reserved_bytes=None,
        total_bytes=1,
        categories=None,
    )
    return JobFailure("out_of_memory", "No memory. Take less.", data=report.model_dump())


@pytest.mark.parametrize(("size", "half"), [(2, 1), (5, 2), (16, 8)])
def test_out_of_memory_halves_the_micro_batch_and_takes_the_attempt_back(
    size: int, half: int
) -> None:
    # The tries are used up: those are for crashes.
    verdict = judge(out_of_memory(size), record(), tries=4, max_tries=4)
    assert isinstance(verdict, Retry)
    assert verdict.changes["reduced_batch"] == ReducedBatch(micro_batch_size=half, times=1)
    assert verdict.changes["attempt"] == 1
    assert verdict.event.data["micro_batch_size"] == size


@pytest.mark.parametrize("size", [None, 1])
def test_where_there_is_no_half_the_job_ends(size: int | None) -> None:
    verdict = judge(out_of_memory(size), record(), tries=1, max_tries=4)
    assert verdict == JobError(code="out_of_memory", message="No memory. Take less.")


def test_the_job_ends_after_the_last_halving() -> None:
    for times in range(1, MAX_HALVINGS):
        reduced = ReducedBatch(micro_batch_size=8, times=times)
        verdict = judge(out_of_memory(8), record(reduced), tries=1, max_tries=4)
        assert isinstance(verdict, Retry)
        assert verdict.changes["reduced_batch"].times == times + 1
    reduced = ReducedBatch(micro_batch_size=8, times=MAX_HALVINGS)
    verdict = judge(out_of_memory(8), record(reduced), tries=1, max_tries=4)
    assert isinstance(verdict, JobError)
    assert "Take less." in verdict.message
    assert "halved 3 times" in verdict.message


def test_a_crash_is_tried_again_until_the_tries_are_used_up() -> None:
    crash = JobFailure("trainer_crashed", "It died.")
    again = judge(crash, record(), tries=3, max_tries=4)
    assert isinstance(again, Retry)
    assert again.changes == {}
    assert judge(crash, record(), tries=4, max_tries=4) == JobError(
        code="trainer_crashed", message="It died."
    )


def test_a_fault_of_the_job_itself_is_not_tried_again() -> None:
    fault = JobFailure("loss_parity_failed", "Off.", param="loss")
    assert judge(fault, record(), tries=1, max_tries=4) == JobError(
        code="loss_parity_failed", message="Off.", param="loss"
    )
