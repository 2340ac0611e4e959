"""The training of one job, top to bottom: prepare, measure, check, train, save."""

from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase, get_scheduler

from cce_core import LossConfig
from service.contract.memory import MemoryLedger
from service.contract.receipt import NumericsReceipt
from service.contract.resolve import resolve, sequence_length
from service.contract.spec import ResolvedOptions
from worker.events import Ledger, Message, Receipt, Resolved, Result, RunSpec, Validated
from worker.training import batches, checkpoint, data, memory, oom, outliers, receipt, report
from worker.training import device as device_of
from worker.training.adapter import is_adapted
from worker.training.batches import Batch
from worker.training.checkpoint import Position, Run
from worker.training.examples import Example
from worker.training.forecast import Forecast
from worker.training.loop import Loop
from worker.training.micro_batch import settle
from worker.training.model import (
    check,
    check_packing,
    context_of,
    load_config,
    load_model,
    load_tokenizer,
    split_model,
)
from worker.training.optimizer import MasterAdamW
from worker.training.receipt import Provenance
from worker.training.report import Measured
from worker.training.reporter import Reporter
from worker.training.session import Data, Row, Session


def validate(spec: RunSpec, reporter: Reporter) -> None:
    """Tokenize everything, and say whether it can be trained on."""
    reporter.phase("validating")
    config, tokenizer = load_config(spec), load_tokenizer(spec)
    check(spec, tokenizer)
    length = sequence_length(spec.job, context_of(config))
    size = data.measure(spec.training, tokenizer, length)
    if spec.validation is not None:
        data.measure(spec.validation, tokenizer, length, "invalid_validation_file")
    reporter.send(
        Validated(
            examples=size.examples,
            tokens=size.tokens,
            supervised_tokens=size.supervised,
            longest=size.longest,
        )
    )


def open_session(spec: RunSpec, reporter: Reporter) -> tuple[Session, Position]:
    """Load all that the job works with, and put it where the last attempt left it."""
    reporter.phase("loading")
    checkpoint.seed_everything(spec.job.seed)
    device = device_of.pick_device(spec.device)
    tokenizer, config = load_tokenizer(spec), load_config(spec)
    length = sequence_length(spec.job, context_of(config))
    reporter.phase("validating")
    rows = _data(spec, tokenizer, length)
    resolved = resolve(
        spec.job,
        len(rows.training),
        length,
        cuda=device.type == "cuda",
        on_adapter=spec.base_model is not None,
        max_micro_batch_size=spec.max_micro_batch_size,
    )
    if spec.job.comparison is None:  # which has no batch size of its own
        reporter.send(Resolved(options=resolved))
    reporter.phase("loading")
    model = load_model(spec, config, resolved, device)
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
    return Session(spec, resolved, rows, run, parts, loss_config, reporter), position


def train(spec: RunSpec, reporter: Reporter) -> None:
    """Do the job."""
    session, position = open_session(spec, reporter)
    session = settle(session)
    ledger, parity = measure(session, position)
    forecast = Forecast(session, position.step)
    with oom.while_training(session):
        Loop(session, position, forecast.meter).train()
    _finish(session, position, Measured(ledger, parity, forecast.score()))


def _data(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, length: int) -> Data:
    options = spec.job.options
    training = data.load(spec.training, tokenizer, length)
    validation: list[Example] = []
    if spec.validation is not None:
        validation = data.load(spec.validation, tokenizer, length, "invalid_validation_file")

    def rows(examples: list[Example]) -> list[Row]:
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


def measure(session: Session, position: Position) -> tuple[MemoryLedger | None, NumericsReceipt]:
    """Parity and memory on the first real batch; both leave the run as it was."""
    session.reporter.phase("measuring")
    batch = session.first_batch()
    provenance = Provenance(
        seed=session.spec.job.seed,
        training_file_sha256=session.spec.training.sha256,
        resumed_from_step=position.step if session.spec.resume_from else None,
    )
    ledger = None
    with torch.random.fork_rng(devices=[session.device] if session.device.type == "cuda" else []):
        with oom.while_training(session):
            parity = receipt.check(session.model, batch, session.loss, provenance)
        session.reporter.send(Receipt(receipt=parity))
        if session.spec.job.options.memory_ledger:
            ledger = _ledger(session, batch, position)
    return ledger, parity


def _ledger(session: Session, batch: Batch, position: Position) -> MemoryLedger:
    """That of an earlier attempt on such a batch and device, or else a new one; which is told."""
    known = session.spec.ledger
    if known is not None and _conditions(known) == (
        device_of.name(session.device),
        *batch.input_ids.shape,
    ):
        message = "The memory ledger of an earlier attempt stands: batch and device are the same."
        session.reporter.send(Message(message=message))
        return known
    with oom.while_training(session):
        ledger = memory.measure(
            session.model,
            batch,
            session.loss,
            passes=session.passes_from(position.step),
            optimizer_bytes=session.run.optimizer.unmade_bytes,
        )
    session.reporter.send(Ledger(ledger=ledger))
    return ledger


def _conditions(ledger: MemoryLedger) -> tuple[str, int, int]:
    """What may differ between the attempts at a job."""
    return ledger.device, ledger.micro_batch_size, ledger.seq_length


def _finish(
    session: Session,
    position: Position,
    measured: Measured,
) -> None:
    """Write the results; the supervisor publishes them."""
    session.reporter.phase("saving")
    spec, folder = session.spec, session.spec.workdir / "result"
    folder.mkdir()
    checkpoint.save_model(session.run, folder / "model")
    report.write_csv(position, folder / "metrics.csv")
    outliers.write_csv(position, folder / "outliers.csv")
    parity = receipt.over_time(measured.receipt, position)
    measured = replace(measured, receipt=parity)
    report.write_report(spec, session.resolved, position, measured, folder / "report.json")
    session.reporter.send(
        Result(
            model=folder / "model",
            model_kind="lora" if is_adapted(session.run.model) else "full",
            metrics_csv=folder / "metrics.csv",
            report=folder / "report.json",
            outliers_csv=folder / "outliers.csv",
            receipt=parity,
            trained_tokens=position.tokens,
        )
    )
