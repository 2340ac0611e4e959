"""The training of one job, top to bottom: prepare, measure, check, train, save."""

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase, get_scheduler

from cce_core import LossConfig
from cce_core.api import LossOutput
from cce_core.models import Split
from service.contract.errors import JobFailure
from service.contract.memory import MemoryLedger, NumericsReceipt
from service.contract.spec import ResolvedOptions
from worker.events import (
    CheckpointWritten,
    Ledger,
    Message,
    Metrics,
    Receipt,
    Resolved,
    Result,
    RunSpec,
    Validated,
)
from worker.training import batches, checkpoint, data, memory, receipt, report
from worker.training.adapter import is_adapted
from worker.training.batches import Batch
from worker.training.checkpoint import Position, Run
from worker.training.examples import Example
from worker.training.model import (
    check,
    check_packing,
    hidden_states,
    load_config,
    load_model,
    load_tokenizer,
    pick_device,
    split_model,
)
from worker.training.optimizer import MasterAdamW
from worker.training.reporter import Reporter
from worker.training.resolve import resolve, sequence_length

_LOGGED_POINTS = 500
_SMOOTHING = 0.9


@dataclass(frozen=True)
class Data:
    """Tokenized training and validation data, in rows of one example, or of several if packed."""

    training: list[list[Example]]
    validation: list[list[Example]]
    pad: int
    packed: bool

    def batch(self, rows: list[list[Example]]) -> Batch:
        """Rows as tensors."""
        return batches.collate(rows, self.pad, packed=self.packed)


def validate(spec: RunSpec, reporter: Reporter) -> None:
    """Tokenize everything, and say whether it can be trained on."""
    reporter.phase("validating")
    config, tokenizer = load_config(spec), load_tokenizer(spec)
    check(spec, tokenizer)
    length = sequence_length(spec.job, config)
    size = data.measure(spec.training, tokenizer, length)
    if spec.validation is not None:
        data.measure(spec.validation, tokenizer, length, "invalid_validation_file")
    reporter.send(
        Validated(examples=size.examples, tokens=size.tokens, supervised_tokens=size.supervised)
    )


def train(spec: RunSpec, reporter: Reporter) -> None:
    """Do the job."""
    reporter.phase("loading")
    checkpoint.seed_everything(spec.job.seed)
    device = pick_device()
    tokenizer, config = load_tokenizer(spec), load_config(spec)
    length = sequence_length(spec.job, config)
    reporter.phase("validating")
    rows = _data(spec, tokenizer, length)
    resolved = resolve(spec.job, len(rows.training), length, cuda=device.type == "cuda")
    reporter.send(Resolved(options=resolved))
    reporter.phase("loading")
    model = load_model(spec, resolved, device)
    run = _run(model, tokenizer, spec, resolved)
    parts = split_model(model)
    if spec.job.options.packing:
        check_packing(parts)
    loss_config = LossConfig(
        implementation=resolved.loss_implementation, preset=spec.job.options.loss.preset
    )
    position = Position()
    if spec.resume_from is not None:
        position = checkpoint.resume(run, spec.resume_from)
        reporter.send(Message(message=f"Resumed from the checkpoint at step {position.step}."))
    session = Session(spec, resolved, rows, run, parts, loss_config, reporter)
    ledger, parity = _measure(session)
    session.train(position)
    _finish(session, position, ledger, parity)


def _data(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, length: int) -> Data:
    options = spec.job.options
    training = data.load(spec.training, tokenizer, length)
    validation: list[Example] = []
    if spec.validation is not None:
        validation = data.load(spec.validation, tokenizer, length, "invalid_validation_file")

    def rows(examples: list[Example]) -> list[list[Example]]:
        if options.packing:
            return batches.pack(examples, length)
        return [[example] for example in examples]

    pad = tokenizer.pad_token_id or 0
    assert isinstance(pad, int)
    return Data(rows(training), rows(validation), pad, options.packing)


def _run(
    model: torch.nn.Module, tokenizer: object, spec: RunSpec, resolved: ResolvedOptions
) -> Run:
    options = spec.job.options
    optimizer = MasterAdamW(
        checkpoint.trainable(model),
        lr=resolved.learning_rate,
        weight_decay=options.weight_decay,
    )
    scheduler = get_scheduler(
        options.lr_scheduler,
        optimizer,
        num_warmup_steps=int(options.warmup_ratio * resolved.total_steps),
        num_training_steps=resolved.total_steps,
    )
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return Run(model, optimizer, scheduler, tokenizer)


def _measure(session: "Session") -> tuple[MemoryLedger | None, NumericsReceipt]:
    """Parity and memory on the first real batch; both leave the run as it was."""
    session.reporter.phase("measuring")
    session.run.model.train()  # else nothing is dropped out, nor recomputed
    first = session.batch_at(0)[: session.resolved.micro_batch_size]
    batch = session.data.batch(first).to(session.device)
    ledger = None
    with torch.random.fork_rng(devices=[session.device] if session.device.type == "cuda" else []):
        parity = receipt.check(session.model, batch, session.loss, session.spec.job.seed)
        session.reporter.send(Receipt(receipt=parity))
        if session.spec.job.options.memory_ledger:
            ledger = memory.measure(session.model, batch, session.loss)
            session.reporter.send(Ledger(ledger=ledger))
    return ledger, parity


@dataclass
class Session:
    """Everything that the loop works with."""

    spec: RunSpec
    resolved: ResolvedOptions
    data: Data
    run: Run
    model: Split
    loss: LossConfig
    reporter: Reporter
    _speed: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""
        return -(-len(self.data.training) // self.resolved.batch_size)

    def batch_at(self, step: int) -> list[list[Example]]:
        """The rows of a step: a function of the seed and the step alone."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = batches.order(len(self.data.training), self.spec.job.seed, epoch)
        start = within * self.resolved.batch_size
        return [self.data.training[i] for i in order[start : start + self.resolved.batch_size]]

    def train(self, position: Position) -> None:
        """Step until the end, with evaluations and checkpoints on the way."""
        self.run.model.train()
        total = self.resolved.total_steps
        if position.step == 0:
            self._evaluate(position, full=False)
        self.reporter.phase("training")
        while position.step < total:
            started = time.perf_counter()
            point = self._step(position)
            self._report(position, point, time.perf_counter() - started)
            if position.step % self.resolved.checkpoint_every == 0 and position.step < total:
                self._evaluate(position, full=False)
                self._checkpoint(position)
        self._evaluate(position, full=True)
        self._checkpoint(position)

    def _step(self, position: Position) -> dict[str, float]:
        """One optimizer step over all its micro-batches."""
        rows = self.batch_at(position.step)
        micro = self.resolved.micro_batch_size
        parts = [
            self.data.batch(rows[start : start + micro]) for start in range(0, len(rows), micro)
        ]
        supervised = sum(batch.supervised for batch in parts)
        loss, correct = 0.0, 0
        for batch in parts:
            output = self._forward(batch)
            torch.autograd.backward(output.loss / supervised)
            loss += float(output.loss.detach())
            correct += int(output.correct.sum())
        _insist_finite(loss, "loss", position.step + 1)
        rate = self.run.scheduler.get_last_lr()[0]
        self.run.optimizer.take_gradients()
        norm = torch.nn.utils.clip_grad_norm_(
            self.run.optimizer.masters, self.spec.job.options.max_grad_norm
        )
        _insist_finite(float(norm), "norm of the gradient", position.step + 1)
        self.run.optimizer.step()
        self.run.scheduler.step()
        self.run.optimizer.zero_grad(set_to_none=True)
        position.step += 1
        position.tokens += sum(len(example.input_ids) for row in rows for example in row)
        return {"loss": loss / supervised, "accuracy": correct / supervised, "rate": rate}

    def _forward(self, batch: Batch) -> LossOutput:
        batch = batch.to(self.device)
        hidden = hidden_states(self.model, batch)
        return self.model.head.loss(hidden, batch.labels, self.loss, shift=1, reduction="sum")

    def _report(self, position: Position, point: dict[str, float], seconds: float) -> None:
        total = self.resolved.total_steps
        rows = self.resolved.batch_size / seconds
        self._speed = rows if self._speed is None else self._mix(self._speed, rows)
        tokens = self._speed * position.tokens / (position.step * self.resolved.batch_size)
        self.reporter.progress(
            last=position.step == total,
            step=position.step,
            total_steps=total,
            epoch=position.step / self.steps_per_epoch,
            tokens=position.tokens,
            tokens_per_s=tokens,
            eta_s=(total - position.step) * self.resolved.batch_size / self._speed,
            train_loss=point["loss"],
            train_mean_token_accuracy=point["accuracy"],
            learning_rate=point["rate"],
            **_device_memory(self.device),
        )
        if position.step % max(1, total // _LOGGED_POINTS) == 0 or position.step == total:
            position.metrics.append(
                {
                    "step": position.step,
                    "train_loss": point["loss"],
                    "train_accuracy": point["accuracy"],
                }
            )
            self.reporter.send(
                Metrics(
                    step=position.step,
                    total_steps=total,
                    train_loss=point["loss"],
                    train_mean_token_accuracy=point["accuracy"],
                    learning_rate=point["rate"],
                )
            )

    @staticmethod
    def _mix(old: float, new: float) -> float:
        return _SMOOTHING * old + (1 - _SMOOTHING) * new

    def _evaluate(self, position: Position, *, full: bool) -> None:
        """Loss and accuracy on the validation file; nothing where there is none."""
        if not self.data.validation:
            return
        self.reporter.phase("evaluating")
        self.run.model.eval()
        loss, correct, supervised = 0.0, 0, 0
        with torch.no_grad():
            for batch in self._validation():
                output = self._forward(batch)
                loss += float(output.loss)
                correct += int(output.correct.sum())
                supervised += batch.supervised
        self.run.model.train()
        _insist_finite(loss, "validation loss", position.step)
        self._report_evaluation(position, loss / supervised, correct / supervised, full=full)

    def _validation(self) -> Iterator[Batch]:
        rows, size = self.data.validation, self.resolved.micro_batch_size
        for start in range(0, len(rows), size):
            yield self.data.batch(rows[start : start + size])

    def _report_evaluation(
        self, position: Position, loss: float, accuracy: float, *, full: bool
    ) -> None:
        row: dict[str, float | None] = {
            "step": position.step,
            "valid_loss": loss,
            "valid_mean_token_accuracy": accuracy,
        }
        if position.metrics and position.metrics[-1]["step"] == position.step:
            position.metrics[-1] |= row
        else:
            position.metrics.append(row)
        self.reporter.send(
            Metrics(
                step=position.step,
                total_steps=self.resolved.total_steps,
                valid_loss=loss,
                valid_mean_token_accuracy=accuracy,
                full_valid_loss=loss if full else None,
                full_valid_mean_token_accuracy=accuracy if full else None,
            )
        )
        self.reporter.progress(last=True, phase="training", valid_loss=loss)

    def _checkpoint(self, position: Position) -> None:
        folder = self.spec.workdir / f"checkpoint-{position.step}"
        checkpoint.save(self.run, position, folder)
        last = position.metrics[-1] if position.metrics else {}
        metrics = {name: value for name, value in last.items() if value is not None}
        metrics.pop("step", None)
        self.reporter.send(CheckpointWritten(step=position.step, path=folder, metrics=metrics))


def _finish(
    session: Session,
    position: Position,
    ledger: MemoryLedger | None,
    parity: NumericsReceipt,
) -> None:
    """Write the results; the supervisor publishes them."""
    session.reporter.phase("saving")
    spec, folder = session.spec, session.spec.workdir / "result"
    folder.mkdir()
    checkpoint.save_model(session.run, folder / "model")
    report.write_csv(position, folder / "metrics.csv")
    report.write_report(spec, session.resolved, position, ledger, parity, folder / "report.json")
    session.reporter.send(
        Result(
            model=folder / "model",
            model_kind="lora" if is_adapted(session.run.model) else "full",
            metrics_csv=folder / "metrics.csv",
            report=folder / "report.json",
            trained_tokens=position.tokens,
        )
    )


def _insist_finite(value: float, name: str, step: int) -> None:
    if not math.isfinite(value):
        message = f"The {name} is {value} at step {step}; try a lower learning rate."
        raise JobFailure("training_diverged", message)


def _device_memory(device: torch.device) -> dict[str, object]:
    if device.type == "cuda":
        return {
            "device": torch.cuda.get_device_name(device),
            "device_memory_bytes": torch.cuda.memory_allocated(device),
            "device_memory_peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    now, peak = _resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "device": "cpu",
        "device_memory_bytes": now,
        "device_memory_peak_bytes": max(now, peak),  # the kernel adds up the two at its own times
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123 -- a kernel interface, not a path of ours
        return int(statm.read().split()[1]) * resource.getpagesize()
