"""A stand-in for the trainer that speaks its protocol and does what the job's metadata says.

`metadata["train"]` and `metadata["validate"]` are JSON lists of steps for each mode; a step is a
list of the name and the arguments of one of `Script`'s methods.
Only the supervisor's own tests use it: they need trainers that misbehave on demand.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from service.contract.job import Progress
from service.contract.memory import OutOfMemoryReport
from service.contract.receipt import FilteredMass, NumericsReceipt
from worker.events import (
    CheckpointWritten,
    Failed,
    Message,
    Metrics,
    ProgressLine,
    Result,
    RunSpec,
    Validated,
)

RECEIPT = NumericsReceipt(
    implementation="blocked",
    preset="default",
    rows=1,
    loss=1.0,
    loss_reference=1.0,
    loss_error=0.0,
    hidden_grad_error=0.0,
    head_grad_error=None,
    tolerance=0.1,
    filtered=[FilteredMass(step=1, p50=0.1, p99=0.2, error_p50=1e-3, error_max=2e-3, fallbacks=0)],
    seed=1,
    training_file_sha256="0" * 64,
    resumed_from_step=None,
    versions={},
)


class Script:
    def __init__(self, spec: RunSpec, events_fd: int) -> None:
        self.spec = spec
        self.fd = events_fd
        self.start = 0
        if spec.resume_from:
            self.start = json.loads((spec.resume_from / "state" / "step.json").read_text())

    def emit(self, line) -> None:
        os.write(self.fd, line.model_dump_json().encode() + b"\n")

    def raw(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def say(self, message: str, **data) -> None:
        self.emit(Message(message=message, data={"pid": os.getpid(), "start": self.start, **data}))

    def say_spec(self) -> None:
        self.say("spec", spec=self.spec.model_dump(mode="json"))

    def say_variable(self, name: str) -> None:
        self.say("variable", value=os.environ.get(name))

    def say_log(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def exit(self, code: int) -> None:
        os._exit(code)

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_unless_resumed(self) -> None:
        if not self.start:
            self.kill()

    def sleep_unless_resumed(self, seconds: float) -> None:
        if not self.start:
            self.sleep(seconds)

    def ignore_term(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def grandchild(self) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.say("grandchild", child=child.pid)

    def validated(self) -> None:
        self.emit(Validated(examples=2, tokens=20, supervised_tokens=10, longest=12))

    def failed(self, code: str, message: str, data: dict) -> None:
        self.emit(Failed(code=code, message=message, param="training_file", data=data))

    def out_of_memory_above(self, rows: int) -> None:
        """A device that holds `rows` sequences and no more."""
        size = self.spec.max_micro_batch_size or 8
        if size <= rows:
            return
        report = OutOfMemoryReport(
            device="small",
            micro_batch_size=size,
            asked_bytes=3 << 30,
            allocated_bytes=7 << 30,
            reserved_bytes=7 << 30,
            total_bytes=8 << 30,
            categories=None,
        )
        message = "There is no memory left."
        self.emit(Failed(code="out_of_memory", message=message, data=report.model_dump()))
        os._exit(0)

    def progress(self, step: int, total: int) -> None:
        self.emit(ProgressLine(progress=Progress(phase="training", step=step, total_steps=total)))

    def metrics(self, step: int, total: int) -> None:
        self.emit(Metrics(step=step, total_steps=total, train_loss=10.0 / step))

    def checkpoint(self, step: int) -> None:
        folder = self.spec.workdir / f"checkpoint-{step}"
        self._model(folder / "model", f"weights of step {step}")
        (folder / "state").mkdir()
        (folder / "state" / "step.json").write_text(str(step))
        self.emit(CheckpointWritten(step=step, path=folder, metrics={"train_loss": 10.0 / step}))

    def train(self, until: int, total: int, step_s: float, every: int) -> None:
        for step in range(self.start + 1, until + 1):
            time.sleep(step_s)
            self.metrics(step, total)
            self.progress(step, total)
            if step % every == 0:
                self.checkpoint(step)

    def result(self) -> None:
        folder = self.spec.workdir / "result"
        self._model(folder, "final weights")
        csv, report = self.spec.workdir / "metrics.csv", self.spec.workdir / "report.json"
        csv.write_text("step,train_loss\n1,10.0\n")
        report.write_text("{}")
        outliers = self.spec.workdir / "outliers.csv"
        outliers.write_text("epoch,line,loss,tokens\n")
        self.emit(
            Result(
                model=folder,
                model_kind="full",
                metrics_csv=csv,
                report=report,
                outliers_csv=outliers,
                receipt=RECEIPT,
                trained_tokens=7,
            )
        )

    def _model(self, folder: Path, weights: str) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(weights)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--events-fd", type=int)
    arguments = parser.parse_args()
    spec = RunSpec.model_validate_json(arguments.spec.read_text())
    script = Script(spec, arguments.events_fd)
    default = '[["validated"]]' if spec.mode == "validate" else "[]"
    for step, *values in json.loads(spec.job.metadata.get(spec.mode, default)):
        getattr(script, step)(*values)


if __name__ == "__main__":
    main()
