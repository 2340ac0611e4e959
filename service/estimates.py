"""The use case of an estimate: what a job would need, from what is on record alone.

Nothing is loaded, run or created: the model's config gives the memory, the file's record or an
earlier job's the tokens, the workers' presence the devices, past jobs the speed.
"""

from dataclasses import dataclass

from service.contract.batching import batching
from service.contract.device import Device, DeviceKind
from service.contract.estimate.fit import largest_predicted, micro_batch, usable_bytes
from service.contract.estimate.losses import layer_bytes
from service.contract.estimate.model import ModelShape, shape_of
from service.contract.estimate.peak import component_bytes, moments, trained_parameters
from service.contract.estimate.workload import Workload, workload
from service.contract.fleet import LiveWorker
from service.contract.job import JobRecord
from service.contract.memory import LossName
from service.contract.resolve import resolve, sequence_length, with_micro_batch
from service.contract.spec import JobSpec, LoraAdapter, ResolvedOptions
from service.deps import Services
from service.estimate_schemas import (
    DataEstimate,
    DeviceEstimate,
    Estimate,
    LossEstimate,
)
from service.job_request import JobCreate
from service.jobs import check
from service.model_configs import config_of
from service.past_jobs import data_size, tokens_per_s

_PAST_JOBS = 100
_LOSSES: dict[DeviceKind, tuple[LossName, ...]] = {
    "cuda": ("full_logits", "compiled_full_logits", "chunked", "cce"),
    "cpu": ("full_logits", "chunked", "cce"),
}


@dataclass(frozen=True)
class _Question:
    """A job, and what is known of it."""

    spec: JobSpec
    shape: ModelShape
    adapter: LoraAdapter | None
    on_adapter: bool
    max_seq_length: int
    data: DataEstimate
    past: list[JobRecord]

    @property
    def sequences(self) -> int:
        """Rows of the trainer's batches: examples, or what packing makes of them."""
        if not self.spec.options.packing:
            return self.data.examples
        return max(1, -(-self.data.tokens // self.max_seq_length))

    @property
    def seq_length(self) -> int:
        """The longest of them."""
        packed = self.spec.options.packing
        return min(self.max_seq_length, self.data.tokens if packed else self.data.longest)


def estimate(services: Services, org: str, request: JobCreate) -> Estimate:
    """Predict what the job of a create request would need, on each kind of live worker.

    Raises:
        InvalidRequest: The job could not be created, or nothing can be predicted for its model.
        Unavailable: Redis or the storage does not answer.
    """
    spec = request.spec(seed=0)
    check(services, org, spec)
    question = _question(services, org, spec)
    devices = [
        _on_device(question, device, names) for device, names in _kinds(services.fleet.live())
    ]
    resolved = devices[0].resolved
    return Estimate(
        model=spec.model,
        data=question.data,
        total_steps=resolved.total_steps,
        trained_tokens=resolved.n_epochs * question.data.tokens,
        parameters=question.shape.parameters,
        trained_parameters=trained_parameters(question.shape, _work(question, resolved, "cpu")),
        devices=devices,
    )


def _question(services: Services, org: str, spec: JobSpec) -> _Question:
    config, own = config_of(services, org, spec.model)
    shape = shape_of(config)
    length = sequence_length(spec, shape.context)  # which `check` has found to be possible
    past = services.store.page(org, after=None, limit=_PAST_JOBS, metadata={}).items
    past = [job for job in past if job.spec.model == spec.model]
    data = data_size(services.files.get(org, spec.training_file), past, length)
    adapter = own or spec.options.adapter
    return _Question(spec, shape, adapter, own is not None, length, data, past)


def _kinds(workers: list[LiveWorker]) -> list[tuple[Device | None, list[str]]]:
    """Each different device, with those who have it; None where nobody is alive."""
    kinds: dict[Device | None, list[str]] = {}
    for worker in workers:
        kinds.setdefault(worker.device, []).append(worker.name)
    return list(kinds.items()) or [(None, [])]


def _on_device(question: _Question, device: Device | None, names: list[str]) -> DeviceEstimate:
    kind: DeviceKind = "cuda" if device is None else device.kind
    spec, shape = question.spec, question.shape
    resolved = resolve(
        spec,
        question.sequences,
        question.max_seq_length,
        cuda=kind == "cuda",
        on_adapter=question.on_adapter,
    )
    usable = None if device is None else usable_bytes(device.total_bytes, kind)
    if usable is not None and kind == "cuda" and batching(spec, question.sequences).open:
        work = _work(question, resolved, kind)
        batch = resolved.batch_size
        size = micro_batch(shape, work, "cce", usable, batch=batch, limit=batch)
        resolved = with_micro_batch(resolved, max(1, size))
    work = _work(question, resolved, kind)
    losses = [_loss(shape, work, loss, usable) for loss in _LOSSES[kind]]
    by_name = {each.loss: each for each in losses}
    ours, full = by_name["cce"], by_name["full_logits"]
    speed = device and tokens_per_s(question.past, spec.options, resolved, device)
    return DeviceEstimate(
        device=device,
        workers=names,
        resolved=resolved,
        components=component_bytes(shape, work),
        losses=losses,
        usable_bytes=usable,
        fits=None if usable is None else ours.peak_bytes <= usable,
        multiple=(
            ours.largest_micro_batch / full.largest_micro_batch
            if ours.largest_micro_batch and full.largest_micro_batch
            else None
        ),
        seconds=resolved.n_epochs * question.data.tokens / speed if speed else "unknown",
    )


def _work(question: _Question, resolved: ResolvedOptions, kind: DeviceKind) -> Workload:
    return workload(
        resolved,
        kind,
        question.seq_length,
        question.adapter,
        packed=question.spec.options.packing,
    )


def _loss(shape: ModelShape, work: Workload, loss: LossName, usable: int | None) -> LossEstimate:
    found = moments(shape, work, loss)
    at = max(found, key=found.__getitem__)
    largest = None if usable is None else largest_predicted(shape, work, loss, usable)
    return LossEstimate(
        loss=loss,
        loss_layer_bytes=layer_bytes(shape, work, loss),
        peak_bytes=found[at],
        peak_at=at,
        largest_micro_batch=largest,
    )
