"""The training loop: optimizer steps, with evaluations and checkpoints on the way."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from cce_core.observe import observed
from service.contract.errors import JobFailure
from worker.events import CheckpointWritten, Message, Metrics, Phases
from worker.training import checkpoint, device, outliers
from worker.training.checkpoint import Position
from worker.training.evaluation import Evaluation, evaluate
from worker.training.meter import PeakMeter
from worker.training.receipt import filtered_fields
from worker.training.session import Session
from worker.training.timing import StepClock

_LOGGED_POINTS = 500
_SMOOTHING = 0.9


@dataclass(frozen=True)
class Point:
    """What an optimizer step came to: means over its predictions, and what its filter did."""

    loss: float
    accuracy: float
    rate: float
    filtered: dict[str, float | None]


@dataclass
class Loop:
    """Trains a session from a position to its end."""

    session: Session
    position: Position
    meter: PeakMeter
    _speed: float | None = None  # smoothed, in rows a second

    def train(self) -> None:
        """Step until the end."""
        session, position, total = self.session, self.position, self.session.resolved.total_steps
        clock = StepClock(session.device)
        session.run.model.train()
        device.reset_peak(session.device)
        if position.step == 0:
            self._evaluate(full=False)
        session.reporter.phase("training")
        while position.step < total:
            started = time.perf_counter()
            clock.start_step()
            point = self.meter.around(position.step, partial(self.step, clock))
            self._report(point, time.perf_counter() - started)
            if phases := clock.result():
                session.reporter.send(Phases(phases=phases))
            if position.step % session.steps_per_epoch == 0:
                self._name_outliers()
            if position.step % session.resolved.checkpoint_every == 0 and position.step < total:
                self._evaluate(full=False)
                self._checkpoint()
        self._evaluate(full=True)
        self._checkpoint()

    def step(self, clock: StepClock) -> Point:
        """One optimizer step over all its micro-batches; the host waits once, for its sums."""
        session, position = self.session, self.position
        with clock.phase("data"):
            rows = session.rows_at(position.step)
            parts = list(session.data.batches(rows, session.resolved.micro_batch_size))
        supervised = sum(batch.supervised for batch in parts)
        sums = torch.zeros(2, dtype=torch.float64, device=session.device)
        losses = []
        with observed() if self._logs(position.step + 1) else nullcontext() as seen:
            for batch in parts:
                with clock.phase("data"):
                    held = batch.to(session.device)
                with clock.phase("forward"):
                    hidden = session.hidden(held)
                with clock.phase("loss"):
                    output = session.loss_of(hidden, held)
                with clock.phase("backward"):
                    torch.autograd.backward(output.loss / supervised)
                sums += torch.stack([output.loss.detach().double(), output.correct.sum().double()])
                losses.append(outliers.example_losses(held, output))
        loss, correct = sums.tolist()
        _insist_finite(loss, "loss", position.step + 1)
        with clock.phase("optimizer"):
            rate = self._apply_gradients()
        examples = [example for batch in parts for example in batch.examples]
        position.step += 1
        position.tokens += sum(len(example.input_ids) for example in examples)
        outliers.keep(position, self._epoch, examples, torch.cat(losses).tolist())
        return Point(
            loss / supervised, correct / supervised, rate, filtered_fields(seen) if seen else {}
        )

    def _apply_gradients(self) -> float:
        """Move the weights by the gradients that have been summed up; the rate at which."""
        run, options = self.session.run, self.session.spec.job.options
        rate: float = run.scheduler.get_last_lr()[0]
        norm = run.optimizer.apply_gradients(options.max_grad_norm)
        _insist_finite(float(norm), "norm of the gradient", self.position.step + 1)
        run.scheduler.step()
        return rate

    @property
    def _epoch(self) -> int:
        """The epoch of the step that was done last, from 1."""
        return (self.position.step - 1) // self.session.steps_per_epoch + 1

    def _logs(self, step: int) -> bool:
        """Whether a step is a point of the loss curve."""
        total = self.session.resolved.total_steps
        return step % max(1, total // _LOGGED_POINTS) == 0 or step == total

    def _name_outliers(self) -> None:
        """Tell which rows of the epoch that ends here had the highest loss."""
        rows = outliers.of_epoch(self.position, self._epoch)
        data = {"epoch": self._epoch, "rows": rows}
        message = outliers.sentence(self._epoch, rows)
        self.session.reporter.send(Message(message=message, data=data))

    def _report(self, point: Point, seconds: float) -> None:
        session, position = self.session, self.position
        total, batch_size = session.resolved.total_steps, session.resolved.batch_size
        rows = batch_size / seconds
        self._speed = rows if self._speed is None else _mix(self._speed, rows)
        session.reporter.progress(
            last=position.step == total,
            step=position.step,
            total_steps=total,
            epoch=position.step / session.steps_per_epoch,
            tokens=position.tokens,
            tokens_per_s=self._speed * position.tokens / (position.step * batch_size),
            eta_s=(total - position.step) * batch_size / self._speed,
            train_loss=point.loss,
            train_mean_token_accuracy=point.accuracy,
            learning_rate=point.rate,
            **device.usage(session.device),
        )
        if self._logs(position.step):
            self._log(point)

    def _log(self, point: Point) -> None:
        """A point of the loss curve."""
        position = self.position
        position.metrics.append(
            {
                "step": position.step,
                "train_loss": point.loss,
                "train_mean_token_accuracy": point.accuracy,
                **point.filtered,
            }
        )
        self.session.reporter.send(
            Metrics(
                step=position.step,
                total_steps=self.session.resolved.total_steps,
                train_loss=point.loss,
                train_mean_token_accuracy=point.accuracy,
                learning_rate=point.rate,
                **point.filtered,
            )
        )

    def _evaluate(self, *, full: bool) -> None:
        """Evaluate where there is a validation file."""
        if not self.session.data.validation:
            return
        self.session.reporter.phase("evaluating")
        found = evaluate(self.session)
        _insist_finite(found.loss, "validation loss", self.position.step)
        self._log_evaluation(found, full=full)

    def _log_evaluation(self, found: Evaluation, *, full: bool) -> None:
        session, position = self.session, self.position
        measured = {"valid_loss": found.loss, "valid_mean_token_accuracy": found.accuracy}
        if full:
            measured |= {f"full_{name}": value for name, value in measured.items()}
        row: dict[str, float | None] = {"step": position.step, **measured}
        if position.metrics and position.metrics[-1]["step"] == position.step:
            position.metrics[-1] |= row
        else:
            position.metrics.append(row)
        total = session.resolved.total_steps
        session.reporter.send(Metrics(step=position.step, total_steps=total, **measured))
        session.reporter.progress(last=True, phase="training", valid_loss=found.loss)

    def _checkpoint(self) -> None:
        session, position = self.session, self.position
        folder = session.spec.workdir / f"checkpoint-{position.step}"
        checkpoint.save(session.run, position, folder)
        last = position.metrics[-1] if position.metrics else {}
        metrics = {name: value for name, value in last.items() if value is not None}
        metrics.pop("step", None)
        session.reporter.send(CheckpointWritten(step=position.step, path=folder, metrics=metrics))


def _insist_finite(value: float, name: str, step: int) -> None:
    if not math.isfinite(value):
        message = f"The {name} is {value} at step {step}; try a lower learning rate."
        raise JobFailure("training_diverged", message)


def _mix(old: float, new: float) -> float:
    return _SMOOTHING * old + (1 - _SMOOTHING) * new
