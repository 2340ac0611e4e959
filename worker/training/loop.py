"""The training loop: optimizer steps, with evaluations and checkpoints on the way."""

import math
import time
from dataclasses import dataclass

import torch

from service.contract.errors import JobFailure
from worker.events import CheckpointWritten, Metrics
from worker.training import checkpoint, device
from worker.training.checkpoint import Position
from worker.training.evaluation import Evaluation, evaluate
from worker.training.session import Session

_LOGGED_POINTS = 500
_SMOOTHING = 0.9


@dataclass(frozen=True)
class Point:
    """What an optimizer step came to: means over its predictions."""

    loss: float
    accuracy: float
    rate: float


@dataclass
class Loop:
    """Trains a session from a position to its end."""

    session: Session
    position: Position
    _speed: float | None = None  # smoothed, in rows a second

    def train(self) -> None:
        """Step until the end."""
        session, position, total = self.session, self.position, self.session.resolved.total_steps
        session.run.model.train()
        device.reset_peak(session.device)
        if position.step == 0:
            self._evaluate(full=False)
        session.reporter.phase("training")
        while position.step < total:
            started = time.perf_counter()
            point = self._step()
            self._report(point, time.perf_counter() - started)
            if position.step % session.resolved.checkpoint_every == 0 and position.step < total:
                self._evaluate(full=False)
                self._checkpoint()
        self._evaluate(full=True)
        self._checkpoint()

    def _step(self) -> Point:
        """One optimizer step over all its micro-batches."""
        session, position, run = self.session, self.position, self.session.run
        rows = session.rows_at(position.step)
        parts = list(session.data.batches(rows, session.resolved.micro_batch_size))
        supervised = sum(batch.supervised for batch in parts)
        loss, correct = 0.0, 0
        for batch in parts:
            output = session.forward(batch.to(session.device))
            torch.autograd.backward(output.loss / supervised)
            loss += float(output.loss.detach())
            correct += int(output.correct.sum())
        _insist_finite(loss, "loss", position.step + 1)
        rate = run.scheduler.get_last_lr()[0]
        run.optimizer.take_gradients()
        norm = torch.nn.utils.clip_grad_norm_(
            run.optimizer.masters, session.spec.job.options.max_grad_norm
        )
        _insist_finite(float(norm), "norm of the gradient", position.step + 1)
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad(set_to_none=True)
        position.step += 1
        position.tokens += sum(len(example.input_ids) for row in rows for example in row)
        return Point(loss / supervised, correct / supervised, rate)

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
        if position.step % max(1, total // _LOGGED_POINTS) == 0 or position.step == total:
            self._log(point)

    def _log(self, point: Point) -> None:
        """A point of the loss curve."""
        position = self.position
        position.metrics.append(
            {
                "step": position.step,
                "train_loss": point.loss,
                "train_accuracy": point.accuracy,
            }
        )
        self.session.reporter.send(
            Metrics(
                step=position.step,
                total_steps=self.session.resolved.total_steps,
                train_loss=point.loss,
                train_mean_token_accuracy=point.accuracy,
                learning_rate=point.rate,
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
        row: dict[str, float | None] = {
            "step": position.step,
            "valid_loss": found.loss,
            "valid_mean_token_accuracy": found.accuracy,
        }
        if position.metrics and position.metrics[-1]["step"] == position.step:
            position.metrics[-1] |= row
        else:
            position.metrics.append(row)
        session.reporter.send(
            Metrics(
                step=position.step,
                total_steps=session.resolved.total_steps,
                valid_loss=found.loss,
                valid_mean_token_accuracy=found.accuracy,
                full_valid_loss=found.loss if full else None,
                full_valid_mean_token_accuracy=found.accuracy if full else None,
            )
        )
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
