"""`python -m worker --queues train`: start a worker; settings come from `HEADROOM_*` variables."""

import argparse
import sys

from service.contract.connection import AccessRefused, check_access
from service.contract.queue import TRAIN, VALIDATE, QueueName
from service.contract.settings import SettingsRefused, from_environment
from worker.app import answers, make_worker
from worker.settings import WorkerSettings

QUEUES: dict[str, QueueName] = {"train": TRAIN, "validate": VALIDATE}


def main(arguments: list[str]) -> int:
    """Run a worker until it is told to stop; the exit code is Celery's."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument(
        "--queues", nargs="+", choices=QUEUES, default=["train"], help="what to take jobs from"
    )
    parser.add_argument(
        "--ping", action="store_true", help="exit with 0 if this machine's worker answers"
    )
    chosen = parser.parse_args(arguments)
    queues = [QUEUES[name] for name in chosen.queues]
    try:
        settings = from_environment(WorkerSettings)
        check_access(settings)
    except (SettingsRefused, AccessRefused) as error:
        parser.exit(1, f"{error}\n")
    if chosen.ping:
        return 0 if answers(settings, queues) else 1
    worker = make_worker(settings, queues)
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
