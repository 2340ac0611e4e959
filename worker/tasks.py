"""The one Celery task: a view on the runner."""

from celery import Celery, Task

from service.contract.queue import TASK
from worker.runner import Runner


def add_tasks(app: Celery, runner: Runner) -> None:
    """Register `run_job` on an application."""

    # A shared task would be every other application's of the process as well.
    @app.task(name=TASK, bind=True, shared=False)  # type: ignore[untyped-decorator]
    def run_job(task: Task, job_id: str) -> None:
        """Run a job that waits in the queue that the message came from."""
        runner.run(job_id, task.request.delivery_info["routing_key"])
