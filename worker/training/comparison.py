"""A comparison, top to bottom: load once, measure cell by cell, write the reports."""

from typing import get_args

from service.contract.comparison import Cell
from service.contract.memory import LossName
from service.contract.units import size
from worker.events import Message, RunSpec
from worker.training import cell, comparison_report, device
from worker.training.cell import Bench
from worker.training.reporter import Reporter
from worker.training.trainer import open_session


def compare(spec: RunSpec, reporter: Reporter) -> None:
    """Do the comparison."""
    asked = spec.job.comparison
    assert asked is not None, "a job that trains is the trainer's"
    session, _ = open_session(spec, reporter)
    session.run.model.train()
    cuda = session.device.type == "cuda"
    losses: list[LossName] = (
        [name for name in get_args(LossName) if cuda or name != "compiled_full_logits"]
        if asked.losses == "auto"
        else asked.losses
    )
    bench = Bench.of(session, asked.steps, max(asked.batch_sizes))
    reporter.phase("training")
    plan = [(loss, batch) for batch in asked.batch_sizes for loss in losses]
    cells = [_measured(bench, at, len(plan), *each) for at, each in enumerate(plan)]
    reporter.phase("saving")
    folder = spec.workdir / "result"
    folder.mkdir()
    reporter.send(comparison_report.write(bench, with_differences(cells), folder))


def _measured(bench: Bench, at: int, count: int, loss: LossName, batch: int) -> Cell:
    """One cell, and what is told while it runs and when it is done."""
    reporter = bench.session.reporter

    def tell(steps: int, train_loss: float, tokens_per_s: float | None) -> None:
        reporter.progress(
            last=steps == bench.steps,
            step=at * bench.steps + steps,
            total_steps=count * bench.steps,
            train_loss=train_loss,
            tokens_per_s=tokens_per_s,
            **device.usage(bench.session.device),
        )

    found = cell.measure(bench, loss, batch, tell)
    data = found.model_dump(mode="json", exclude={"train_losses"})
    level = "info" if found.outcome == "completed" else "warn"
    reporter.send(Message.model_validate({"message": _told(found), "level": level, "data": data}))
    return found


def _told(found: Cell) -> str:
    where = f"{found.loss} at batch size {found.batch_size}"
    if found.peak_bytes is None or found.tokens_per_s is None:
        return f"{where}: {found.outcome.replace('_', ' ')}. {found.note}"
    return (
        f"{where}: peak {size(found.peak_bytes)}, {found.tokens_per_s:,.0f} tokens/s,"
        f" last loss {found.train_losses[-1]:.4f}."
    )


def with_differences(cells: list[Cell]) -> list[Cell]:
    """The cells, each with the largest difference of its curve to that of full logits."""
    truths = {
        each.batch_size: each.train_losses
        for each in cells
        if each.loss == "full_logits" and each.outcome == "completed"
    }

    def difference(each: Cell) -> float | None:
        truth = truths.get(each.batch_size)
        if truth is None or each.outcome != "completed":
            return None
        return max(abs(a - b) for a, b in zip(each.train_losses, truth, strict=True))

    return [each.model_copy(update={"max_curve_difference": difference(each)}) for each in cells]
