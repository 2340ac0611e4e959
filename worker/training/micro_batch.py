"""Settle the micro-batch of a run, and say what full logits would have allowed.

    halved after running out of memory          that
    settled by an earlier attempt               that, on a device of the same name
    asked for, or cut by the steps asked for    that
    on CPU, and of a batch of 1                 all of the batch
    on CUDA                                     the largest that fits: predicted, then tried

What full logits would have been left with is tried where ours is, and predicted elsewhere; on CPU,
whose memory is not the job's alone, nothing is said of it.
"""

from dataclasses import replace

import torch

from service.contract.batching import batching
from service.contract.estimate.fit import micro_batch, usable_bytes
from service.contract.estimate.record import MicroBatch, MicroBatchRule
from service.contract.memory import LossName
from service.contract.resolve import with_micro_batch
from worker.events import MicroBatchSettled
from worker.training import device as device_of
from worker.training.batches import Batch
from worker.training.losses import losses_of
from worker.training.prediction import Predictable, predictable
from worker.training.probe import Probe, cuda_limit
from worker.training.session import Session


def settle(session: Session) -> Session:
    """The session with its micro-batch, which is told."""
    choice = _choose(session)
    resolved = with_micro_batch(session.resolved, choice.size)
    session.reporter.send(MicroBatchSettled(micro_batch=choice, options=resolved))
    return replace(session, resolved=resolved)


def probed(session: Session, limit: int) -> MicroBatch:
    """Try micro-batches of the run's longest sequences within `limit` bytes, with both losses."""
    batch = session.resolved.batch_size
    ours = max(1, _largest(session, "cce", limit, most=batch))
    full = _largest(session, "full_logits", limit, most=ours)
    return _compared(session, ours, "probe", full, measured=True)


def predicted(session: Session, size: int, rule: MicroBatchRule, limit: int | None) -> MicroBatch:
    """A size that is settled, beside what full logits are predicted to fit within `limit` bytes."""
    known = None if limit is None else predictable(session)
    full = None
    if limit is not None and known is not None:
        full = _fitting(session, known, "full_logits", limit, most=size)
    return _compared(session, size, rule, full, measured=False)


def _choose(session: Session) -> MicroBatch:
    size, device = session.resolved.micro_batch_size, session.device
    limit = usable_bytes(device_of.total_bytes(device), "cuda") if device.type == "cuda" else None
    if session.spec.max_micro_batch_size is not None:
        return predicted(session, size, "out_of_memory", limit)
    settled = session.spec.settled
    if settled is not None and settled.device == device_of.name(device):
        return settled
    if not batching(session.spec.job, len(session.data.training)).open:
        return predicted(session, size, "request", limit)
    if device.type == "cpu" or session.resolved.batch_size == 1:
        return predicted(session, size, "rule", limit)
    session.reporter.phase("measuring")
    with torch.random.fork_rng(devices=[device]):
        return probed(session, cuda_limit(device))


def _compared(
    session: Session, size: int, rule: MicroBatchRule, full_logits: int | None, *, measured: bool
) -> MicroBatch:
    return MicroBatch(
        size=size,
        chosen_by=rule,
        full_logits=full_logits,
        provenance="measured" if measured else "modelled",
        multiple=size / full_logits if full_logits else None,
        device=device_of.name(session.device),
    )


def _largest(session: Session, loss: LossName, limit: int, *, most: int) -> int:
    """The largest micro-batch that was tried and fits; begins with what is predicted."""
    known = predictable(session)
    start = most if known is None else _fitting(session, known, loss, limit, most=most)
    probe = Probe(
        model=session.model,
        optimizer=session.run.optimizer,
        loss=losses_of(session.model, session.loss)[loss],
        sequences=lambda count: _longest(session, count),
        limit=limit,
    )
    return probe.largest(start=start, batch=session.resolved.batch_size, limit=most)


def _fitting(
    session: Session, known: Predictable, loss: LossName, usable: int, *, most: int
) -> int:
    """What fits by prediction."""
    length = _longest(session, 1).input_ids.shape[1]
    work = replace(known.work, seq_length=length)
    batch = session.resolved.batch_size
    return micro_batch(known.shape, work, loss, usable, batch=batch, limit=most)


def _longest(session: Session, count: int) -> Batch:
    """A batch of the longest sequences of the training data, some of them again if they are few."""
    rows = sorted(
        session.data.training,
        key=lambda row: sum(len(example.input_ids) for example in row),
        reverse=True,
    )
    return session.data.batch([rows[at % len(rows)] for at in range(count)])
