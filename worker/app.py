"""The Celery worker: its settings, each with the reason, and what runs beside its tasks.

A message is acknowledged when it arrives: the record, its lease and the reaper make sure that a
job is run, and no broker setting could. The pool is one thread, since the job runs in a process of
its own anyway: the main process answers pings and signals while a job runs, and when it is killed
there is no pool process that lives on.
"""

from typing import Any

from celery import Celery, bootsteps
from celery.apps.worker import Worker

from service.contract.connection import connect
from service.contract.events import Events
from service.contract.files import Files
from service.contract.fleet import Fleet
from service.contract.models import BaseModels, Models
from service.contract.queue import TRAIN, Queue, QueueName, make_celery
from service.contract.storage import Storage
from service.contract.store import Store
from worker.prepare import Preparation
from worker.presence import Presence
from worker.reaper import Reaper
from worker.runner import Runner
from worker.settings import WorkerSettings
from worker.tasks import add_tasks

PING_TIMEOUT_S = 2.0


class Supervision(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """What runs beside the tasks: the reaper's sweeps, and for a worker that trains its presence.

    It stops the job before the pool waits for it.
    """

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(
        self,
        worker: Worker,
        *,
        runner: Runner,
        reaper: Reaper,
        presence: Presence | None,
        **options: Any,
    ) -> None:
        super().__init__(worker, **options)
        self._runner = runner
        self._reaper = reaper
        self._presence = presence

    def start(self, worker: Worker) -> None:
        """Sweep and tell now and then, on the worker's own timer."""
        interval_s = self._reaper.settings.reaper_interval_s
        worker.timer.call_repeatedly(interval_s, self._reaper.sweep)
        if self._presence is not None:
            self._presence.start()
            worker.timer.call_repeatedly(interval_s, self._presence.tick)

    def stop(self, worker: Worker) -> None:  # noqa: ARG002 -- Celery's signature
        """Make the running job give itself back to the queue."""
        self._runner.stopping.set()
        if self._presence is not None:
            self._presence.stop()

    terminate = stop


def make_worker(settings: WorkerSettings, queues: list[QueueName]) -> Worker:
    """A Celery worker on `queues`, ready to start; nothing is connected yet."""
    app = make_celery(settings)
    runner, reaper = make_supervisor(settings, app)
    add_tasks(app, runner)
    app.steps["worker"].add(Supervision)
    app.conf.update(
        # An idle worker elsewhere gets the job: none waits here behind the one that runs.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        task_acks_late=False,
        # True would revoke the running job when Redis restarts, and lose its message.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Redis whose disk or memory is full refuses to hand out messages: that passes, too.
        broker_channel_error_retry=True,
        worker_redirect_stdouts=False,
    )
    return app.Worker(
        hostname=_node_name(settings, queues),
        queues=queues,
        pool="threads",
        concurrency=1,
        loglevel=settings.log_level,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        runner=runner,
        reaper=reaper,
        presence=make_presence(settings) if TRAIN in queues else None,
    )


def answers(settings: WorkerSettings, queues: list[QueueName]) -> bool:
    """Whether the worker of these queues on this machine answers a ping, busy or not."""
    with make_celery(settings) as app:
        name = _node_name(settings, queues)
        return bool(app.control.ping(destination=[name], timeout=PING_TIMEOUT_S))


def _node_name(settings: WorkerSettings, queues: list[QueueName]) -> str:
    role = "-".join(queue.removeprefix("headroom.") for queue in queues)
    return f"{role}@{settings.worker_name}"


def make_presence(settings: WorkerSettings) -> Presence:
    """What tells of one worker, on a Redis client of its own."""
    return Presence(settings, Fleet(connect(settings, settings.redis_timeout_s)))


def make_supervisor(settings: WorkerSettings, app: Celery) -> tuple[Runner, Reaper]:
    """The runner and the reaper of one worker, on a Redis client of their own."""
    redis = connect(settings, settings.redis_timeout_s)
    store, events = Store(redis, lease_s=settings.lease_s), Events(redis, settings.event_cap)
    storage, files, queue = Storage(settings.storage_url), Files(redis), Queue(app, redis)
    preparation = Preparation(
        store, storage, files, Models(redis), BaseModels(settings), settings.device
    )
    return (
        Runner(settings, store, events, queue, preparation),
        Reaper(settings, store, queue, storage, files),
    )
