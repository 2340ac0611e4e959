"""Run one attempt: `python -m worker.training SPEC.json --events-fd N`.

A failure that a user can mend ends as a Failed line and exit code 0; anything else crashes with its
trace in the log, and the supervisor tries again.
"""

import argparse
from pathlib import Path

from service.contract.errors import JobFailure
from worker.events import Failed, RunSpec
from worker.training import comparison, oom, trainer
from worker.training.reporter import Reporter


def main() -> None:
    """Read the spec, do the work, report."""
    parser = argparse.ArgumentParser(prog="python -m worker.training", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    arguments = parser.parse_args()
    spec = RunSpec.model_validate_json(arguments.spec.read_text())
    reporter = Reporter(arguments.events_fd)
    if spec.mode == "validate":
        work = trainer.validate
    else:
        work = trainer.train if spec.job.comparison is None else comparison.compare
    try:
        with oom.besides_training():
            work(spec, reporter)
    except JobFailure as failure:
        reporter.send(_failed(failure))


def _failed(failure: JobFailure) -> Failed:
    return Failed.model_validate(
        {
            "code": failure.code,
            "message": failure.message,
            "param": failure.param,
            "data": failure.data,
        }
    )


if __name__ == "__main__":
    main()
