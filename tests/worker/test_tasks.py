"""The task as a view: which job, of which queue, and nothing else, reaches the runner."""

import pytest

from service.contract.queue import TASK, TRAIN, VALIDATE, QueueName
from tests.worker.support import Deployment
from worker.tasks import add_tasks


@pytest.mark.parametrize(("queue", "status"), [(VALIDATE, "queued"), (TRAIN, "validating_files")])
def test_a_message_is_about_the_queue_that_it_came_from(
    deployment: Deployment, queue: QueueName, status: str
) -> None:
    """A job of the other queue is left alone."""
    runner, _ = deployment.supervisor()
    add_tasks(deployment.celery, runner)
    waits = "validating_files" if queue == VALIDATE else "queued"
    done = deployment.create(["validated" if queue == VALIDATE else "result"], status=waits)
    other = deployment.create(["result"], status=status)
    for job_id in (done, other):
        deployment.celery.tasks[TASK].apply(args=[job_id], routing_key=queue, throw=True)
    assert deployment.status(done) == ("queued" if queue == VALIDATE else "succeeded")
    assert deployment.status(other) == status


def test_the_task_has_the_name_that_messages_have(deployment: Deployment) -> None:
    assert TASK not in deployment.celery.tasks
    runner, _ = deployment.supervisor()
    add_tasks(deployment.celery, runner)
    assert TASK in deployment.celery.tasks
