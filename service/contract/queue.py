"""The Celery messages: one task, a job id in it, and which jobs have a message waiting.

A message is a hint. Losing one costs a reaper's interval, a second one is refused at the claim.
"""

import json
from collections.abc import Iterator
from typing import Literal, get_args
from urllib.parse import quote, urlsplit

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis

from service.contract.commands import typed
from service.contract.connection import SOCKET_TIMEOUT_S, available
from service.contract.errors import Unavailable
from service.contract.settings import Settings

TASK = "headroom.run_job"
# Validation needs no GPU, and must not wait behind one: it has a queue of its own.
QueueName = Literal["headroom.validate", "headroom.train"]
VALIDATE: QueueName = "headroom.validate"
TRAIN: QueueName = "headroom.train"
# Names the job outside the body, which is for the worker's deserializer.
_JOB_HEADER = "headroom_job_id"
_CHUNK = 500


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
        broker_transport_options={
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
        },
    )
    return app


class Queue:
    """Send a job's message, and see which jobs have one waiting."""

    def __init__(self, app: Celery, redis: Redis) -> None:
        self._app = app
        self._redis = typed(redis)

    def send(self, job_id: str, queue: QueueName) -> None:
        """Ask any worker on `queue` to run the job.

        Raises:
            Unavailable: The broker does not answer; the record stands, and the reaper will send.
        """
        try:
            with available():
                self._app.send_task(TASK, args=[job_id], queue=queue, headers={_JOB_HEADER: job_id})
        except OperationalError as error:
            raise Unavailable("The job is recorded; the queue does not answer yet.") from error

    def waiting(self, queue: QueueName) -> set[str]:
        """Ids of the jobs with a message in `queue`."""
        return {job_id for job_id in map(_job_id, self._messages(queue)) if job_id is not None}

    def depths(self) -> dict[QueueName, int]:
        """How many messages wait in each queue."""
        with available():
            return {queue: self._redis.llen(queue) for queue in get_args(QueueName)}

    def _messages(self, queue: QueueName) -> Iterator[str]:
        """The messages in a queue, newest first, a portion at a time.

        New ones come in before the first: what moves on between two portions is seen twice.
        """
        start = 0
        while True:
            with available():
                messages = self._redis.lrange(queue, start, start + _CHUNK - 1)
            yield from messages
            if len(messages) < _CHUNK:
                return
            start += _CHUNK


def _job_id(message: str) -> str | None:
    """The job that a raw message is about; None for one that we did not send."""
    job_id: str | None = json.loads(message)["headers"].get(_JOB_HEADER)
    return job_id


def _broker_url(settings: Settings) -> str:
    """The Redis URL with the password in it: Celery takes no other way."""
    password = settings.redis_password()
    if password is None:
        return settings.redis_url
    url = urlsplit(settings.redis_url)
    _, _, address = url.netloc.rpartition("@")
    secret = quote(password.get_secret_value(), safe="")
    return url._replace(netloc=f"{url.username or ''}:{secret}@{address}").geturl()
