"""What may become of a job, from its record alone."""

import time
from typing import Any

import pytest

from service.contract import rules
from service.contract.errors import Conflict, LostClaim
from service.contract.job import EDGES, TERMINAL, Event, JobRecord, JobStatus
from service.contract.rules import CANCELLED, Claim
from tests.service.contract.support import EVENT, record

S = JobStatus


def _record(status: JobStatus, **fields: Any) -> JobRecord:
    return record().model_copy(update={"status": status, **fields})


@pytest.mark.parametrize("status", JobStatus)
def test_a_claim_holds_by_its_token_while_an_attempt_works(status: JobStatus) -> None:
    job = _record(status, token=3)
    if status in {S.VALIDATING_FILES, S.RUNNING}:
        assert rules.held(job, Claim(job.id, 3)) is job
    for lost in (2, 4, 3 if status not in rules.CLAIMED else 0):
        with pytest.raises(LostClaim, match=f"Attempt {lost} no longer holds job {job.id}"):
            rules.held(job, Claim(job.id, lost))
    with pytest.raises(LostClaim):
        rules.held(None, Claim(job.id, 3))


def test_a_start_for_training_counts_an_attempt_and_keeps_the_first_time() -> None:
    claim = Claim("ftjob-1", 5)
    first, event = rules.start(_record(S.QUEUED), claim, "node-1")
    assert first["started_at"] == pytest.approx(time.time(), abs=5)
    assert (first["status"], first["attempt"], first["token"]) == (S.RUNNING, 1, 5)
    assert first["worker"] == "node-1"
    assert event == Event(message="Job started.")
    again, event = rules.start(_record(S.QUEUED, attempt=1, started_at=7), claim, "node-2")
    assert (again["attempt"], again["started_at"]) == (2, 7)
    assert event == Event(message="Attempt 2.")


def test_a_start_of_the_validation_is_no_attempt() -> None:
    changes, _ = rules.start(_record(S.VALIDATING_FILES), Claim("ftjob-1", 1), "node-1")
    assert changes == {"token": 1, "worker": "node-1"}


@pytest.mark.parametrize("to", JobStatus)
@pytest.mark.parametrize("status", JobStatus)
def test_a_move_is_along_an_edge_and_an_end_has_its_time(status: JobStatus, to: JobStatus) -> None:
    if to not in EDGES[status]:
        with pytest.raises(Conflict, match=f"is {status}; it cannot become {to}") as error:
            rules.move(_record(status), to, EVENT, {})
        assert error.value.code == "illegal_transition"
        return
    changes, event = rules.move(_record(status), to, EVENT, {"trained_tokens": 7})
    assert event is EVENT
    assert (changes["status"], changes["trained_tokens"]) == (to, 7)
    assert changes["cancel_requested"] is False
    assert ("finished_at" in changes) == (to in TERMINAL)


@pytest.mark.parametrize("status", [S.VALIDATING_FILES, S.RUNNING])
def test_a_job_that_was_asked_to_stop_goes_back_to_no_queue(status: JobStatus) -> None:
    changes, event = rules.move(_record(status, cancel_requested=True), S.QUEUED, EVENT, {})
    assert (changes["status"], event) == (S.CANCELLED, CANCELLED)
    assert "finished_at" in changes


def test_a_result_stands_although_the_job_was_asked_to_stop() -> None:
    asked = _record(S.RUNNING, cancel_requested=True)
    changes, _ = rules.move(asked, S.SUCCEEDED, EVENT, {})
    assert changes["status"] is S.SUCCEEDED


def test_a_request_to_stop_is_told_once_and_done_where_nobody_holds_the_job() -> None:
    first, event = rules.cancel(_record(S.RUNNING), leased=True)
    assert first == {"cancel_requested": True}
    assert event is not None
    assert event.message == "Cancellation requested."
    assert rules.cancel(_record(S.RUNNING, cancel_requested=True), leased=True) == (first, None)
    changes, event = rules.cancel(_record(S.RUNNING, cancel_requested=True), leased=False)
    assert (changes["status"], event) == (S.CANCELLED, CANCELLED)


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize("leased", [True, False])
def test_what_has_ended_is_not_cancelled(status: JobStatus, leased: bool) -> None:
    with pytest.raises(Conflict, match=f"has ended already; its status is {status}") as error:
        rules.cancel(_record(status), leased=leased)
    assert error.value.code == "illegal_transition"
