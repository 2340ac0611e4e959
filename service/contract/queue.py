"""The Celery messages: one task, a job id in it, and which jobs have a message waiting.

A message is a hint. Losing one costs a reaper's interval, a second one is refused at the claim.
"""

import json
from typing import Literal

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis

from service.contract.connection import available
from service.contract.errors import Unavailable
from service.contract.settings import Settings

TASK = "headroom.run_job"
# Validation needs no GPU, and must not wait behind one: it has a queue of its own.
QueueName = Literal["headroom.validate", "headroom.train"]
VALIDATE: QueueName = "headroom.validate"
TRAIN: QueueName = "headroom.train"


def make_celery(settings: Settings) -> Celery:
    """A Celery application that speaks to our broker; JSON only, and no result backend."""
    app = Celery("headroom", broker=_broker_url(settings))
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue=TRAIN,
        # A create request must answer, not wait for a broker that is away: the reaper sends again.
        task_publish_retry=False,
        broker_transport_options={"socket_timeout": 5.0, "socket_connect_timeout": 5.0},
    )
    return app


class Queue:
    """Send a job's message, and see which jobs have one waiting."""

    def __init__(self, app: Celery, redis: Redis) -> None:
        self._app = app
        self._redis = redis

    def send(self, job_id: str, queue: QueueName) -> None:
        """Ask any worker on `queue` to run the job.

        Raises:
            Unavailable: The broker does not answer; the record stands, and the reaper will send.
        """
        try:
            self._app.send_task(TASK, args=[job_id], queue=queue)
        except OperationalError as error:
            raise Unavailable("The job is recorded; the queue does not answer yet.") from error

    def waiting(self, queue: QueueName) -> set[str]:
        """Ids of the jobs with a message in `queue`."""
        with available():
            messages: list[str] = self._redis.lrange(queue, 0, -1)
        return {_job_id(message) for message in messages}


def _job_id(message: str) -> str:
    """The job id of a raw message, from the representation of its arguments in the header."""
    argsrepr: str = json.loads(message)["headers"]["argsrepr"]
    return argsrepr.strip("[]'\"")


def _broker_url(settings: Settings) -> str:
    """The Redis URL with the password in it: Celery takes no other way."""
    password = settings.redis_password()
    if password is None:
        return settings.redis_url
    scheme, rest = settings.redis_url.split("://", 1)
    return f"{scheme}://:{password.get_secret_value()}@{rest.rsplit('@', 1)[-1]}"
